"""What each phase of recorded runs yields, as the Markdown table of docs/metrics.md.

python benchmarks/phases.py RUN…        RUN: a folder as `specdecode replay` reads it, with phases in its index
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from specdecode.cli.replay import phases, read_recording
from specdecode.model.measure import Measurement

HEADING = "| run | load | accepted | length | E | B | T ms | TPOT ms | TTFT ms | tokens/s |"


def table(runs: Iterable[Path]) -> Iterator[str]:
    """The lines of the table."""
    yield HEADING
    yield "| --- " * 2 + "| ---: " * 8 + "|"
    for run in runs:
        for phase, measured in phases(read_recording(run)):
            if "c" in phase:  # others are idle
                load = f"{phase['mix']}, T={phase['T']}, {phase['c']} clients"
                yield f"| {run.parent.name}/{run.name} | {load} | {' | '.join(cells(measured))} |"


def cells(m: Measurement) -> Iterator[str]:
    """The figures of one phase; a dash where one is not measurable."""
    for value, factor, form in (
        (m.acceptance_rate, 1, ".2f"),
        (m.accepted_length, 1, ".2f"),
        (m.tokens_per_step, 1, ".2f"),
        (m.requests_per_step, 1, ".1f"),
        (m.step_seconds, 1000, ".1f"),
        (m.tpot_seconds, 1000, ".1f"),
        (m.ttft_seconds, 1000, ".0f"),
        (m.generation_tokens_per_second, 1, ".0f"),
    ):
        yield "–" if value is None else format(value * factor, form)


if __name__ == "__main__":
    print("\n".join(table(map(Path, sys.argv[1:]))))
