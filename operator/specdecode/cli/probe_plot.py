"""The picture of `specdecode probe temperature --plot`: acceptance and tokens per step over temperature."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from specdecode.cli.plot import COLOURS, STYLE
from specdecode.model.estimate import Estimate
from specdecode.probe.sweep import SweepResult


def draw(result: SweepResult, file: Path) -> None:
    """Writes the picture; its suffix says in which format. The same result is the same bytes."""
    at = [a.temperature for a in result.temperatures]
    with mpl.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharex=True, layout="constrained")
        figure.patch.set_facecolor("white")
        figure.suptitle(
            f"{result.model}, answers of at most {result.max_tokens} tokens; bars: 90 % intervals",
            ha="left",
            x=0.01,
            fontsize=11,
        )
        _curve(left, at, [a.acceptance for a in result.temperatures], COLOURS[0], "accepted / drafted tokens")
        positions = max((len(a.per_position) for a in result.temperatures), default=0)
        for i in range(positions):
            known = [(a.temperature, a.per_position[i]) for a in result.temperatures if len(a.per_position) > i]
            left.plot(*zip(*known, strict=True), color="#999999", lw=0.8, zorder=1)
            left.annotate(f" {i + 1}", known[-1], color="#777777", fontsize=8, va="center")
        left.set_ylim(0, 1)
        left.set_ylabel("acceptance; grey: by position")
        _curve(right, at, [a.tokens_per_step for a in result.temperatures], COLOURS[1], "all steps (E)")
        _curve(right, at, [a.accepted_length for a in result.temperatures], COLOURS[2], "steps that drafted")
        right.set_ylim(bottom=1)
        right.set_ylabel("tokens per request and step")
        for axes in (left, right):
            axes.set_xlabel("temperature")
            axes.grid(which="major", color="#eeeeee", lw=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
        right.legend(frameon=False, fontsize=9)
        figure.savefig(file, dpi=130, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)


def _curve(axes: Axes, at: list[float], values: list[Estimate | None], colour: str, label: str) -> None:
    known = [(t, e) for t, e in zip(at, values, strict=True) if e is not None]
    below, above = [e.value - e.low for _, e in known], [e.high - e.value for _, e in known]
    axes.errorbar(
        [t for t, _ in known],
        [e.value for _, e in known],
        yerr=[below, above],
        color=colour,
        marker="o",
        ms=4,
        lw=1.8,
        capsize=3,
        label=label,
        zorder=3,
    )
