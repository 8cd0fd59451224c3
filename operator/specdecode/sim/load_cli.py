"""`python -m specdecode.sim load`: load servers from the command line."""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdecode.sim.load import Limits, LoadGenerator, Record, new_session, report, summarise
from specdecode.sim.surfaces import DATA
from specdecode.sim.workload import Arrival, WorkloadError, parse_phase, read_trace

BUILTIN_TRACE = DATA / "traces" / "azure-2023-code.csv.gz"


def main(argv: Sequence[str]) -> int:
    """Parse, load, print a table; status 1 when a request failed."""
    parser = argparse.ArgumentParser(
        prog="python -m specdecode.sim load", description="Load vLLM servers, real or simulated."
    )
    add = parser.add_argument
    add("--url", action="append", required=True, help="base URL of a server; may be repeated")
    add(
        "--phase",
        action="append",
        default=[],
        help="NAME:DURATION:LOAD:MIX[:T=0][:prompt=A-B][:output=A-B], e.g. quiet:30s:2rps:summarise:T=0",
    )
    add(
        "--trace",
        nargs="?",
        const=str(BUILTIN_TRACE),
        help="CSV (.gz) of arrivals; without a file: one hour of a coding service (Azure 2023)",
    )
    add("--time-scale", type=float, default=1.0, help="play the trace so many times as fast")
    add("--limit", type=int, default=0, help="only the first so many requests of the trace")
    add("--model", help="model name to ask for")
    add("--api-key")
    add("--seed", type=int, default=0)
    add("--max-in-flight", type=int, default=1000)
    add("--timeout", type=float, default=300.0, help="seconds per request")
    add("-o", "--output", help="write the summary and every request to this JSON file")
    args = parser.parse_args(argv)
    if not args.phase and not args.trace:
        parser.error("nothing to play: give --phase or --trace")
    try:
        phases = [parse_phase(text) for text in args.phase]
        arrivals = _trace(args.trace, args.time_scale, args.limit) if args.trace else []
    except (WorkloadError, OSError) as error:
        parser.error(str(error))
    records: list[Record] = []

    async def play() -> None:
        async with new_session() as session:
            generator = LoadGenerator(
                session,
                lambda: args.url,
                records.append,
                rng=random.Random(args.seed),
                model=args.model,
                api_key=args.api_key,
                limits=Limits(args.max_in_flight, args.timeout),
            )
            await generator.run(phases)
            await generator.replay(arrivals)

    try:
        asyncio.run(play())
    except KeyboardInterrupt:
        print("interrupted: what was answered so far", file=sys.stderr)
    print(table(summarise(records)))
    if args.output:
        Path(args.output).write_text(json.dumps(report(records), indent=1) + "\n", encoding="utf-8")
    return 1 if any(r.error for r in records) else 0


def _trace(path: str, time_scale: float, limit: int) -> list[Arrival]:
    opener: Any = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        arrivals = list(read_trace(file, time_scale=time_scale))
    return arrivals[:limit] if limit else arrivals


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary for people: times in milliseconds."""
    times = "".join(f"{f'{which} mean':>11}{'P50':>8}{'P95':>8}{'P99':>8}" for which in ("TPOT", "TTFT"))
    lines = [f"{'phase':<16}{'requests':>9}{'failed':>7}{'tokens/s':>10}{times}"]
    for name, s in summary.items():
        times = "".join(
            f"{1e3 * s[which][key]:>{11 if key == 'mean' else 8}.1f}"
            if s[which]
            else f"{'-':>{11 if key == 'mean' else 8}}"
            for which in ("tpot", "ttft")
            for key in ("mean", "p50", "p95", "p99")
        )
        lines.append(f"{name:<16}{s['requests']:>9}{s['failures']:>7}{s['tokens_per_second']:>10.1f}{times}")
    return "\n".join(lines)
