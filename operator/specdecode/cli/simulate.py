"""`specdecode simulate`: a service, its traffic and its operator in virtual time, beside the baselines."""

from __future__ import annotations

import csv
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specdecode.sim.twin.result import OPERATOR, Result
from specdecode.sim.twin.run import simulate as run
from specdecode.sim.twin.scenario import ScenarioError, load_scenario


class Output(StrEnum):
    """How the figures are printed."""

    TABLE = "table"
    JSON = "json"


def simulate(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario file (YAML).")],
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print the figures.")] = Output.TABLE,
    agents: Annotated[str | None, typer.Option(help="Agents to run, comma-separated; all by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed instead of the scenario's.")] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="File (.csv or .json) for load, options and TPOT of every 5 minutes.")
    ] = None,
) -> None:
    """Run a scenario in virtual time: the operator beside the simple ways of running the same service."""
    try:
        if timeline is not None and timeline.suffix not in (".csv", ".json"):
            raise ScenarioError(f"--timeline {timeline}: name a file that ends in .csv or .json")
        names = [name.strip() for name in agents.split(",") if name.strip()] if agents is not None else None
        result = run(load_scenario(scenario), names, seed=seed, processes=os.cpu_count() or 1)
        if timeline is not None:
            _write(result, timeline)
    except (ScenarioError, OSError) as error:
        typer.echo(f"specdecode simulate: {error}", err=True)
        raise typer.Exit(1) from None
    if output is Output.JSON:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        _show(result, Console())


def _write(result: Result, path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(result.timeline, indent=1) + "\n", encoding="utf-8")
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(result.timeline[0]))
        writer.writeheader()
        writer.writerows(result.timeline)


def _show(result: Result, console: Console) -> None:
    hours = result.duration_seconds / 3600
    console.print(
        f"{result.scenario}: {hours:g} h, {result.pods} pods, seed {result.seed}; took {result.wall_seconds:.0f} s",
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("agent", no_wrap=True)
    for heading in (
        "TPOT ms\nmean",
        "\nP99",
        "TTFT ms\nmean",
        "\nP99",
        "tokens\nmillions",
        "rolls",
        "operator\nfaster",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    ours = result.agents.get(OPERATOR, {}).get("tpot_mean")
    for name, a in sorted(result.agents.items(), key=lambda item: item[1]["tpot_mean"] or 0.0):
        theirs = a["tpot_mean"]
        table.add_row(
            name,
            *(_ms(a[key]) for key in ("tpot_mean", "tpot_p99", "ttft_mean", "ttft_p99")),
            f"{a['tokens'] / 1e6:.1f}",
            str(a["rolls"]),
            f"{100 * (theirs / ours - 1):+.1f} %" if ours and theirs and name != OPERATOR else "",
        )
    console.print(table)
    if result.calibration:
        c = result.calibration
        console.print(
            f"predictions: {c['covered']} of {c['predictions']} right within their 90 % interval;"
            f" canaries as predicted: {c['canaries_covered']} of {c['canaries']}",
            highlight=False,
        )
    for change in result.changes:
        console.print(
            f"{change['time'][:16]} {change['from']['profile']} to {change['to']['profile']}: {change['message']}",
            highlight=False,
        )


def _ms(seconds: Any) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"
