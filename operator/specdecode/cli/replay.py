"""`specdecode replay`: recorded `/metrics` pages through the code that reads and measures live ones."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specdecode.model.measure import Measurement, Unmeasured, gauges, measure
from specdecode.vllm.metrics import Page, PageError, read_page

INDEX = "index.jsonl"
FIGURES = (
    "acceptance_rate",
    "accepted_length",
    "per_position",
    "batch_size",
    "tpot_seconds",
    "step_seconds",
    "ttft_seconds",
    "kv_usage",
    "generation_tokens_per_second",
)


class RecordingError(Exception):
    """A recording that cannot be replayed: what is wrong, and where."""


@dataclass(frozen=True)
class Recorded:
    """One page of a recording."""

    i: int
    t: float
    """Unix seconds."""
    page: Page | PageError
    phase: Any = None
    """What the recorder's index says about the load; equal in neighbouring pages of one phase."""


class Output(StrEnum):
    """How the figures are printed."""

    TABLE = "table"
    JSON = "json"


def read_recording(folder: Path) -> list[Recorded]:
    """The pages of a folder in order: those that `index.jsonl` names by number `i` and time `t`, each in the file
    `<i>.prom.gz` or `<i>.prom` (leading zeros allowed); without an index, all such files in the order of their names,
    timed by when they were written.

    Raises:
        RecordingError: no such folder, no pages, a page that the index names and the folder lacks, a malformed index.
    """
    if not folder.is_dir():
        raise RecordingError(f"{folder}: no such folder")
    files = sorted(p for p in folder.iterdir() if p.name.endswith((".prom", ".prom.gz")))
    if not files:
        raise RecordingError(f"{folder}: no pages (*.prom or *.prom.gz)")
    if not (folder / INDEX).exists():
        return [Recorded(n, file.stat().st_mtime, _page(file)) for n, file in enumerate(files)]
    by_number = {int(stem): file for file in files if (stem := file.name.partition(".")[0]).isdecimal()}
    recorded = []
    for line, i, t, phase in _index(folder / INDEX):
        if i not in by_number:
            raise RecordingError(f"{folder / INDEX}, line {line}: page {i} is not in the folder")
        recorded.append(Recorded(i, t, _page(by_number[i]), phase))
    return recorded


def _index(path: Path) -> Iterator[tuple[int, int, float, Any]]:
    """Line number, i, t and phase of each row."""
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            i, t = int(row["i"]), float(row["t"])
            if not math.isfinite(t):
                raise ValueError(t)
            yield number, i, t, row.get("phase")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordingError(f"{path}, line {number}: expected an object with numbers i and t: {error!r}") from None


def _page(file: Path) -> Page | PageError:
    try:
        content = file.read_bytes()
        return read_page(gzip.decompress(content) if file.suffix == ".gz" else content)
    except (PageError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        return PageError(f"{file}: {error}")


def compare(recording: Sequence[Recorded]) -> Iterator[tuple[Recorded, Measurement | Unmeasured | PageError]]:
    """Each page but the first, with what was measured since the page before it.

    A page that cannot be read is passed over: the next is compared with the last that could be.
    """
    last: Recorded | None = None
    for recorded in recording:
        if recorded is not recording[0]:
            if isinstance(recorded.page, PageError):
                yield recorded, recorded.page
            elif last is None or isinstance(last.page, PageError):
                yield recorded, gauges(recorded.page)
            else:
                yield recorded, measure(last.page, recorded.page, recorded.t - last.t)
        if isinstance(recorded.page, Page):
            last = recorded


def as_row(recorded: Recorded, measured: Measurement | Unmeasured | PageError) -> dict[str, Any]:
    """The figures of a page by name, None where not measurable. The gauges are there wherever the page is."""
    if isinstance(measured, Unmeasured) and isinstance(recorded.page, Page):
        measured = gauges(recorded.page)
    return {"i": recorded.i, "t": recorded.t, **{figure: getattr(measured, figure, None) for figure in FIGURES}}


def phases(recording: Iterable[Recorded]) -> Iterator[tuple[Any, Measurement]]:
    """Each phase of the load that the index names, with what was measured from its first page to its last."""
    for phase, group in groupby(recording, key=lambda recorded: recorded.phase):
        pages = [(r.t, r.page) for r in group if isinstance(r.page, Page)]
        if phase is not None and len(pages) > 1:
            measured = measure(pages[0][1], pages[-1][1], pages[-1][0] - pages[0][0])
            if isinstance(measured, Measurement):
                yield phase, measured


def replay(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of recorded pages: NNNN.prom[.gz], index.jsonl.")
    ],
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print the figures.")] = Output.TABLE,
) -> None:
    """Show what recorded /metrics pages say, as the operator would read them: one line per pair of pages."""
    try:
        recording = read_recording(folder)
    except RecordingError as error:
        typer.echo(f"specdecode replay: {error}", err=True)
        raise typer.Exit(1) from None
    compared = list(compare(recording))
    for recorded, measured in compared:
        if not isinstance(measured, Measurement):
            typer.echo(f"specdecode replay: page {recorded.i} not measured: {measured}", err=True)
    measured_rows = [as_row(recorded, measured) for recorded, measured in compared]
    if output is Output.JSON:
        for row in measured_rows:
            typer.echo(json.dumps(row))
    else:
        Console().print(_table(measured_rows))


_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("accept %", "acceptance_rate", 100, ".0f"),
    ("length", "accepted_length", 1, ".2f"),
    ("batch", "batch_size", 1, ".0f"),
    ("TPOT ms", "tpot_seconds", 1000, ".1f"),
    ("step ms", "step_seconds", 1000, ".1f"),
    ("TTFT ms", "ttft_seconds", 1000, ".0f"),
    ("KV %", "kv_usage", 100, ".1f"),
    ("tokens /s", "generation_tokens_per_second", 1, ".0f"),
)
"""Heading, figure, factor, format."""


def _table(rows: Iterable[dict[str, Any]]) -> Table:
    """Fits 80 columns; only the positions, which may be many, wrap."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("page", "UTC", *(heading for heading, *_ in _COLUMNS)):
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column("by position\n%")
    for row in rows:
        table.add_row(
            str(row["i"]),
            f"{datetime.fromtimestamp(row['t'], UTC):%H:%M:%S}",
            *("–" if row[key] is None else format(row[key] * factor, form) for _, key, factor, form in _COLUMNS),
            " ".join(f"{100 * share:.0f}" for share in row["per_position"] or ()),
        )
    return table
