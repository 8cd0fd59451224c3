"""The files that a scenario names: surfaces, acceptance tables, traces. The only reader of this package."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from specdecode.model.surface import Surface, SurfaceError, parse_surface
from specdecode.sim.acceptance import Acceptance, AcceptanceError, AcceptanceTable, parse_acceptance
from specdecode.sim.surfaces import DATA, builtin_surfaces
from specdecode.sim.twin.scenario import AcceptanceRow, Scenario, ScenarioError, SurfaceSource, Trace
from specdecode.sim.workload import Arrival, WorkloadError, read_trace
from specdecode.vllm.speculation import Method

Rows = dict[tuple[str, Method], tuple[tuple[float, Acceptance], ...]]

_RAW_METHODS = {"off": Method.DISABLED, "ngram": Method.NGRAM, "draft": Method.DRAFT_MODEL}


def surface_of(scenario: Scenario) -> Surface:
    """The scenario's surface. Raises ScenarioError."""
    source = scenario.surface
    given = SurfaceSource(file=source) if isinstance(source, str) else source
    if given.file in builtin_surfaces():
        path = DATA / "surfaces" / f"{given.file}.jsonl"
    else:
        path = scenario.folder / given.file
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return parse_surface(_with_header(lines, given, path.stem), str(path))
    except OSError as error:
        raise ScenarioError(
            f"surface: no {given.file!r}: neither a readable file ({error}) nor one of {', '.join(builtin_surfaces())}"
        ) from error
    except (SurfaceError, ValueError, KeyError, TypeError) as error:
        raise ScenarioError(f"surface: {error}") from error


def _with_header(lines: Iterable[str], given: SurfaceSource, name: str) -> list[str]:
    """The lines of a surface: its own, or made of raw rows; the header overridden by what is given inline."""
    rows = [json.loads(line) for line in lines if line.strip()]
    if not rows:
        raise SurfaceError(f"{given.file} is empty")
    if "surface" in rows[0]:
        header, body = rows[0], rows[1:]
    else:
        header, body = _from_raw(rows, name)
    inline = {
        "context": given.context,
        "graph_limit_tokens": given.graph_limit_tokens,
        "prompt_token_us": given.prompt_token_micros,
        "kv_token_us": given.kv_token_micros,
    }
    header |= {key: value for key, value in inline.items() if value is not None}
    return [json.dumps(row) for row in (header, *body)]


def _from_raw(rows: list[dict[str, Any]], name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and rows of a surface from a benchmark's raw rows (name, K, B, ctx, step_ms, kv_tokens).

    `off…` is the engine without speculation; `ngram…` and `draft…` with several K were measured in one engine whose
    batch-size schedule held K, with one K in an engine of its own.
    """
    ks: dict[str, set[int]] = {}
    for row in rows:
        ks.setdefault(row["name"], set()).add(int(row["K"]))
    body = []
    for row in rows:
        method = _RAW_METHODS.get(row["name"].partition("-")[0])
        if method is None:
            raise SurfaceError(f"a row named {row['name']!r}: expected off…, ngram… or draft…")
        body.append(
            {
                "method": method,
                "scheduled": method is not Method.DISABLED and len(ks[row["name"]]) > 1,
                **{key: row[key] for key in ("K", "B", "step_ms", "kv_tokens")},
            }
        )
    off = sorted((r["B"], r["step_ms"]) for r in body if r["method"] is Method.DISABLED)
    if not off:
        raise SurfaceError("no rows named off")
    # A prompt token costs what one more token costs where the step is bound by compute: at the largest batches.
    slope = (off[-1][1] - off[-2][1]) / (off[-1][0] - off[-2][0]) * 1e3 if len(off) > 1 else 0.0
    header = {
        "surface": name,
        "gpu": "unknown",
        "target": "unknown",
        "vllm": "unknown",
        "context": float(rows[0].get("ctx", 256)),
        "graph_limit_tokens": 512,
        "prompt_token_us": max(slope, 0.0),
        "kv_token_us": 0.0,
    }
    return header, body


def acceptance_of(scenario: Scenario) -> AcceptanceTable:
    """The scenario's acceptance table, before its changes. Raises ScenarioError."""
    given = scenario.acceptance
    if given.kinds is not None:
        return AcceptanceTable(
            {(kind, method): rows_of(rows) for kind, methods in given.kinds.items() for method, rows in methods.items()}
        )
    path = DATA / "acceptance.json" if given.table is None else scenario.folder / given.table
    try:
        return parse_acceptance(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ScenarioError(f"acceptance.table: {path} cannot be read: {error}") from error
    except AcceptanceError as error:
        raise ScenarioError(f"acceptance: {error}") from error


def rows_of(rows: Iterable[AcceptanceRow]) -> tuple[tuple[float, Acceptance], ...]:
    """Acceptance at ascending temperatures."""
    points = [(row.temperature, Acceptance(row.accept, row.match, row.spread)) for row in rows]
    return tuple(sorted(points, key=lambda point: point[0]))


def trace_of(trace: Trace, folder: Path) -> list[Arrival]:
    """The arrivals of a trace, one of the package or a file. Raises ScenarioError."""
    path = DATA / "traces" / f"{trace.file}.csv.gz"
    if not path.exists():
        path = folder / trace.file
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        arrivals = list(read_trace(text.splitlines(), time_scale=trace.time_scale))
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(p.name.removesuffix(".csv.gz") for p in (DATA / "traces").iterdir()))
        raise ScenarioError(
            f"arrivals: trace {trace.file!r} is neither a readable file ({error}) nor one of {known}"
        ) from error
    except WorkloadError as error:
        raise ScenarioError(f"arrivals: {path}: {error}") from error
    if not arrivals:
        raise ScenarioError(f"arrivals: trace {path} has no requests")
    return arrivals


def lacking(table: AcceptanceTable, kinds: Iterable[str], methods: Iterable[Method]) -> Mapping[str, Method]:
    """Kinds of request for which the table lacks a method."""
    return {kind: m for kind in kinds for m in methods if (kind, m) not in table.rows}
