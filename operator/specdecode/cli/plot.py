"""The picture of `specdecode explain --plot`: one curve per option, labelled where it ends; see `cli.sketch`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from specdecode.api.v1alpha1 import DISABLED
from specdecode.cli.sketch import Array, Curve, Sketch
from specdecode.cli.status import digits, number

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
OFF = "#555555"
STYLE: Any = {
    "svg.hashsalt": "specdecode",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
}
LEGIBLE = {"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 1}
LEGEND = "lines: predicted; bands and bars: 90 % intervals; dotted: where the operator would choose otherwise"
APART = 0.062
"""Least distance of two labels, as a share of the height."""


def draw(s: Sketch, file: Path) -> None:
    """Writes the picture; its suffix says in which format. The same sketch is the same bytes."""
    others = [c.profile for c in s.curves if c.profile != DISABLED]
    colours = {DISABLED: OFF} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}
    with mpl.rc_context(STYLE):
        figure, (main, past) = plt.subplots(
            2, 1, figsize=(10, 6.4), sharex=True, gridspec_kw={"height_ratios": [6, 1]}, layout="constrained"
        )
        figure.patch.set_facecolor("white")
        main.set_xscale("log")
        main.set_yscale("log")
        main.set_xlim(s.loads[0], s.loads[-1])
        main.set_ylim(*_height(s))
        _draw_curves(main, s, colours)
        _draw_limit(main, s)
        _draw_load(main, past, s)
        _draw_turning_points(main, s, colours)
        _draw_past(past, s, colours)
        for axis in (main.xaxis, main.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
        main.set_ylabel("time per output token, ms")
        past.set_xlabel("load: output tokens per second that users ask of one pod")
        main.set_title(f"{s.title}\n", loc="left", fontsize=11)
        main.text(0, 1.015, LEGEND, transform=main.transAxes, color="#555555", fontsize=9)
        main.grid(which="major", color="#eeeeee", lw=0.8)
        for axes in (main, past):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
        figure.savefig(file, dpi=130, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)


def _carried(s: Sketch, c: Curve) -> Array:
    """The part of a curve that the option can carry, in milliseconds."""
    return c.tpot[:, s.loads <= max(c.capacity.value, s.loads[1]) * 1.0001] * 1e3


def _height(s: Sketch) -> tuple[float, float]:
    """All values, and as much of the bands as does not hide them."""
    lows, values, _ = np.hstack([_carried(s, c) for c in s.curves])
    return max(lows.min(), values.min() / 2.5) * 0.9, max(values.max() * 1.4, (s.limit or 0.0) * 1.15e3)


def _draw_curves(axes: Axes, s: Sketch, colours: Mapping[str, str]) -> None:
    ends = []
    for c in s.curves:
        low, value, high = _carried(s, c)
        loads, colour = s.loads[: len(value)], colours[c.profile]
        axes.fill_between(loads, low, high, color=colour, alpha=0.13, lw=0)
        axes.plot(loads, value, color=colour, lw=2.8 if c.runs else 1.6, zorder=3)
        axes.plot(loads[-1:], value[-1:], "o", color=colour, ms=4, zorder=3)
        ends.append((axes.transAxes.inverted().transform(axes.transData.transform((loads[-1], value[-1]))), c))
    heights = _apart([at[1] for at, _ in ends])
    for (at, c), height in zip(ends, heights, strict=True):
        capacity = f"full at {number(c.capacity.value)} ({number(c.capacity.low)}-{number(c.capacity.high)})"
        axes.annotate(
            f"{c.profile}{', runs' if c.runs else ''}\n{capacity}",
            tuple(at),
            (1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colours[c.profile],
            fontsize=9,
            fontweight="bold" if c.runs else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[c.profile], "lw": 0.7, "relpos": (0.0, 0.5)},
        )


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights in the same order, moved so that none is closer to another than `APART`."""
    order = np.argsort(heights)
    moved = np.array(heights, dtype=np.float64)
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + 2 * APART)
    moved -= max(0.0, float(moved.max()) - 0.97)
    return [float(m) for m in moved]


def _draw_limit(axes: Axes, s: Sketch) -> None:
    if s.limit is not None:
        axes.axhline(s.limit * 1e3, color="#b00020", lw=1.2, ls=(0, (5, 3)))
        text = f"limit of the 99th percentile, {digits(s.limit * 1e3)} ms"
        axes.annotate(
            text, (0.01, s.limit * 1e3), (0, 3), ("axes fraction", "data"), "offset points", color="#b00020", fontsize=9
        )


def _draw_load(main: Axes, past: Axes, s: Sketch) -> None:
    for axes in (main, past):
        axes.axvline(s.today, color="black", lw=1, zorder=2)
    if s.measured is not None:
        main.plot([s.today], [s.measured * 1e3], "D", color="black", ms=6, zorder=4)
    text = f"now: {number(s.today)} tokens/s" + (f", measured {digits(s.measured * 1e3)} ms" if s.measured else "")
    at_the_left = s.today < np.sqrt(s.loads[0] * s.loads[-1])
    main.annotate(
        text,
        (s.today, 0.985),
        (5 if at_the_left else -5, 0),
        ("data", "axes fraction"),
        "offset points",
        ha="left" if at_the_left else "right",
        va="top",
        fontsize=9,
        bbox=LEGIBLE,
    )


def _draw_turning_points(axes: Axes, s: Sketch, colours: Mapping[str, str]) -> None:
    """Where the operator would choose otherwise, with the interval."""
    for i, p in enumerate(s.turning):
        colour = colours.get(p.profile, OFF)
        axes.axvspan(p.at.low, p.at.high, ymax=0.03, color=colour, alpha=0.35, lw=0)
        axes.axvline(p.at.value, color=colour, lw=1.2, ls=":")
        above = p.direction == "Above"
        to_the_right = above and p.at.value < s.loads[-1] / 2
        axes.annotate(
            f"{p.profile} {'above' if above else 'below'} {number(p.at.value)}",
            (p.at.value, 0.045 + 0.045 * i),
            (4 if to_the_right else -4, 0),
            ("data", "axes fraction"),
            "offset points",
            ha="left" if to_the_right else "right",
            color=colour,
            fontsize=9,
            bbox=LEGIBLE,
        )


def _draw_past(axes: Axes, s: Sketch, colours: Mapping[str, str]) -> None:
    """How much of the time there were which loads, in the colour of what is fastest there."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for text, height in (("last 2 days", 0.5), ("fastest", 0.02)):
        axes.text(-0.01, height, text, transform=axes.transAxes, ha="right", va="center", fontsize=9)
    edges = np.geomspace(s.loads[0], s.loads[-1], 61)
    counts, _ = np.histogram(np.clip(s.past, edges[0], edges[-1]), edges)
    values = np.stack([np.where(s.loads <= c.capacity.value, c.tpot[1], np.inf) for c in s.curves])
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        at = int(np.abs(np.log(s.loads / np.sqrt(left * right))).argmin())
        fastest = s.curves[int(values[:, at].argmin())].profile
        axes.bar(left, count, right - left, align="edge", color=colours[fastest], alpha=0.55, lw=0)
        axes.axvspan(left, right, ymax=0.08, color=colours[fastest], lw=0)
    axes.set_ylim(-0.08 * max(1, counts.max()), max(1, counts.max()) * 1.15)
