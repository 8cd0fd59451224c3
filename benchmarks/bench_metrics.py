"""Pages per second of the metrics reader, beside the parser of prometheus_client on the same pages in the same run.

python benchmarks/bench_metrics.py [RECORDING]
"""

from __future__ import annotations

import gzip
import sys
import timeit
from collections import deque
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from specdecode.model.measure import measure
from specdecode.model.window import Window, acceptance_spread, pods_together
from specdecode.vllm.metrics import read_page

RECORDING = Path(__file__).parents[1] / "tests" / "data" / "vllm-metrics" / "0.32.0" / "ngram"
PODS, READINGS, INTERVAL = 100, 20, 15.0


def seconds(call: Callable[[], object], number: int) -> float:
    """Of one call: the best of five rounds, as timeit advises."""
    return min(timeit.repeat(call, number=number, repeat=5)) / number


def main() -> None:
    """Prints the figures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDING
    texts = [gzip.decompress(path.read_bytes()) for path in sorted(folder.glob("*.prom.gz"))]
    ours = seconds(lambda: [read_page(text) for text in texts], 10) / len(texts)
    reference = seconds(
        lambda: [deque(text_string_to_metric_families(text.decode()), maxlen=0) for text in texts], 1
    ) / len(texts)
    print(f"{len(texts)} pages of {sum(map(len, texts)) / len(texts) / 1000:.0f} kB")
    print(f"read_page          {1 / ours:7.0f} pages/s")
    print(f"prometheus_client  {1 / reference:7.0f} pages/s")
    print(f"ratio              {reference / ours:7.1f}")

    pages = [read_page(text) for text in texts]
    pair = seconds(lambda: measure(pages[0], pages[1], INTERVAL), 200)
    print(f"measure            {1 / pair:7.0f} pairs/s")

    windows = [Window(READINGS * INTERVAL) for _ in range(PODS)]
    for n in range(READINGS):
        page = pages[min(n * len(pages) // READINGS, len(pages) - 1)]
        windows = [window.add(page, n * INTERVAL) for window in windows]

    def tick() -> None:
        moved = [window.add(pages[-1], READINGS * INTERVAL) for window in windows]
        pods_together(moved)
        acceptance_spread(moved)

    print(f"tick               {1000 * seconds(tick, 1):7.1f} ms for {PODS} pods with {READINGS} readings each")


if __name__ == "__main__":
    main()
