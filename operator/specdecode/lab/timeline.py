"""A picture of a run: what was asked for, what ran, what users felt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from specdecode.lab.demo import MANAGED, NGRAM, OFF, TITLES, Run
from specdecode.sim.load import Record

Array = NDArray[np.float64]

BIN = 2.0
COLOURS = {MANAGED: "#0072b2", OFF: "#999999", NGRAM: "#d55e00"}
PROFILE_COLOURS = {"disabled": "#cccccc", "draft": "#e69f00", "ngram": "#56b4e9"}
UNKNOWN = "#eeeeee"


def draw(run: Run, file: Path) -> None:
    """Writes the timeline; the suffix of `file` says in which format."""
    end = max((r.end for records in run.records.values() for r in records), default=1.0)
    figure, (load, profile, tpot) = plt.subplots(
        3, 1, figsize=(11, 7), sharex=True, gridspec_kw={"height_ratios": [2, 0.7, 4]}, layout="constrained"
    )
    asked = _binned(run.records[MANAGED], end, lambda r: r.start, lambda rs: len(rs) / BIN)
    load.fill_between(*asked, step="mid", color="#cfe2f3")
    load.set_ylabel("requests/s")
    load.set_ylim(bottom=0)
    for name in (OFF, NGRAM, MANAGED):
        line = _binned(run.records[name], end, lambda r: r.end, _mean_tpot)
        tpot.plot(*line, color=COLOURS[name], lw=2.2 if name == MANAGED else 1.4, label=TITLES[name])
    tpot.set_ylabel("time per output token, ms\n(as clients measured it)")
    tpot.set_ylim(bottom=0)
    tpot.set_xlabel("seconds")
    tpot.legend(loc="upper left", frameon=False)
    marks = [*run.profiles, (end, "unknown", None)]
    for (start, active, trying), (until, *_) in itertools.pairwise(marks):
        profile.axvspan(start, until, color=PROFILE_COLOURS.get(active, UNKNOWN), lw=0)
        if trying:
            colour = PROFILE_COLOURS.get(trying, UNKNOWN)
            profile.axvspan(start, until, ymax=0.4, color=colour, hatch="////", ec="#444444", lw=0)
        for text, height, width in ((active, 0.7, 0.05), (trying and "canary", 0.2, 0.045)):
            if text and until - start > width * end:
                profile.text((start + until) / 2, height, text, ha="center", va="center", fontsize=8, clip_on=True)
    profile.set_yticks([])
    profile.set_ylim(0, 1)
    profile.set_ylabel("runs")
    for at, name in run.acts:
        for axis in (load, profile, tpot):
            axis.axvline(at, color="#dddddd", lw=0.8, zorder=0)
        load.text(at + 1, load.get_ylim()[1] * 0.95, name.replace(": ", ":\n"), fontsize=8, va="top")
    tpot.set_xlim(0, end)
    for axis in (load, tpot):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("specdecode: one workload with the operator, two without, the same load", fontsize=11)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _binned(
    records: Sequence[Record], end: float, when: Callable[[Record], float], value: Callable[[Sequence[Record]], float]
) -> tuple[Array, Array]:
    """Seconds, and the value of the records in each bin."""
    count = max(1, int(np.ceil(end / BIN)))
    bins: list[list[Record]] = [[] for _ in range(count)]
    for r in records:
        bins[min(count - 1, int(when(r) / BIN))].append(r)
    return np.array([(i + 0.5) * BIN for i in range(count)]), np.array([value(b) for b in bins])


def _mean_tpot(records: Sequence[Record]) -> float:
    timed = [(r.tpot * 1e3, r.tokens) for r in records if r.error is None and r.tpot is not None]
    tokens = sum(n for _, n in timed)
    return sum(t * n for t, n in timed) / tokens if tokens else float("nan")
