"""What it costs to observe: the pages of a policy's pods read, put into windows and measured.

python benchmarks/bench_observe.py [RECORDING]

A policy has 10 pods and looks 20 readings back. Printed are each stage's CPU time, its share, and what 1,000 such
policies take of one core in an interval of 15 s; beside it what prometheus_client needs only to parse the pages.
"""

from __future__ import annotations

import gzip
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from specdecode.model.window import Window, acceptance_spread, pods_together
from specdecode.vllm.metrics import read_page

RECORDING = Path(__file__).parents[1] / "tests" / "data" / "vllm-metrics" / "0.32.0" / "ngram"
POLICIES, PODS, READINGS, INTERVAL = 1000, 10, 20, 15.0
KEPT = 2 * READINGS
"""Windows keep more than a policy looks back: a rollout compares longer times."""
ROUNDS = 20


def stages(texts: list[bytes]) -> dict[str, Callable[[], object]]:
    """What is done for one policy in an interval, stage by stage."""
    pages = [read_page(text) for text in texts]
    windows = [Window(KEPT * INTERVAL) for _ in range(PODS)]
    for n in range(KEPT):
        windows = [w.add(pages[n * len(pages) // KEPT], n * INTERVAL) for w in windows]
    now = KEPT * INTERVAL
    since = now - (READINGS - 1) * INTERVAL
    moved = [w.add(pages[-1], now) for w in windows]
    recent = [w.since(since) for w in moved]
    return {
        "read_page": lambda: [read_page(texts[-1]) for _ in range(PODS)],
        "Window.add": lambda: [w.add(pages[-1], now) for w in windows],
        "pods_together": lambda: pods_together([w.since(since) for w in moved]),
        "each pod alone": lambda: [pods_together([w]) for w in recent],
        "acceptance_spread": lambda: acceptance_spread(recent),
    }


def main() -> None:
    """Prints the figures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDING
    texts = [gzip.decompress(path.read_bytes()) for path in sorted(folder.glob("*.prom.gz"))]
    last = texts[-1].decode()
    calls = stages(texts) | {"prometheus_client": lambda: list(text_string_to_metric_families(last))}
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):  # the stages in turns: what else the machine does falls on all of them
        for name, call in calls.items():
            best[name] = min(best[name], timeit.timeit(call, timer=time.process_time, number=1))
    parser = best.pop("prometheus_client") * PODS
    policy = sum(best.values())
    print(f"{PODS} pods, the last {READINGS} of {KEPT} readings, pages of {len(last) / 1000:.0f} kB")
    print(f"{'':<20}{'us a page':>10}{'ms a policy':>13}{'share':>8}")
    for name, seconds in [*best.items(), ("together", policy)]:
        print(f"{name:<20}{seconds / PODS * 1e6:>10.0f}{seconds * 1e3:>13.2f}{seconds / policy:>8.0%}")
    share = POLICIES * policy / INTERVAL
    print(f"{POLICIES} policies: {POLICIES * policy:.1f} s of one core, {share:.0%} of an interval of {INTERVAL:g} s")
    print(f"prometheus_client parses as many pages in {parser / policy:.0f} times that")


if __name__ == "__main__":
    main()
