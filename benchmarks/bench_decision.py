"""How good the decisions are: the operator beside its baselines and an oracle, in every scenario.

python benchmarks/bench_decision.py [--interval SECONDS] [--processes N] [--output FILE] [SCENARIO…]

SCENARIO is a name in benchmarks/scenarios or a file; all of the former by default. A run of all of them writes
benchmarks/results/decision.json and the table of docs/decision-benchmark.md; other runs print, and write to FILE where
one is given.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from provenance import provenance, side_by_side
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specdecode.api.quantities import parse_duration
from specdecode.sim.twin.run import simulate
from specdecode.sim.twin.scenario import Scenario, ScenarioError, load_scenario

HERE = Path(__file__).parent
SCENARIOS = HERE / "scenarios"
RESULTS = HERE / "results" / "decision.json"
DOCUMENT = HERE.parent / "docs" / "decision-benchmark.md"
BEGIN, END = "<!-- decision: written by benchmarks/bench_decision.py -->", "<!-- decision: end -->"

RATIOS = ("oracle", "best_static", "threshold_only", "schedule_only", "ema", "alone")
"""What the operator is held against: that one's mean TPOT over the operator's."""

Json = dict[str, Any]


def at_interval(scenario: Scenario, seconds: float | None) -> Scenario:
    """The scenario, with another interval of the operator where one is given."""
    if seconds is None:
        return scenario
    metrics = scenario.policy.metrics.model_copy(update={"interval": seconds})
    return scenario.model_copy(update={"policy": scenario.policy.model_copy(update={"metrics": metrics})})


def run(path: Path, interval: float | None) -> Json:
    """The figures of one scenario, with all agents."""
    out = simulate(at_interval(load_scenario(path), interval)).as_json()
    agents, calibration = out["agents"], out["calibration"]
    return {
        "name": out["scenario"],
        **{f"ratio_to_{name}": _rounded(out[f"ratio_to_{name}"]) for name in RATIOS},
        "best_static": out["best_static"].removeprefix("static:"),
        "rolls": agents["operator"]["rolls"],
        "canaries": agents["operator"]["canaries"],
        "oracle_rolls": agents["oracle"]["rolls"],
        "tpot_mean_ms": {name: _rounded(1e3 * figures["tpot_mean"]) for name, figures in agents.items()},
        "interval_coverage": _share(calibration["covered"], calibration["predictions"]),
        **{name: calibration[name] for name in ("predictions", "covered")},
        "canaries_measured": calibration["canaries"],
        "canaries_covered": calibration["canaries_covered"],
        "wall_seconds": out["wall_seconds"],
    }


def summary(scenarios: Sequence[Json]) -> Json:
    """What the scenarios say together."""
    to_oracle = [s["ratio_to_oracle"] for s in scenarios]
    return {
        "median_ratio_to_oracle": _rounded(statistics.median(to_oracle)),
        "worst_ratio_to_oracle": min(to_oracle),
        "worst_ratio_to_best_static": min(s["ratio_to_best_static"] for s in scenarios),
        "interval_coverage": _share(sum(s["covered"] for s in scenarios), sum(s["predictions"] for s in scenarios)),
        "canary_coverage": _share(
            sum(s["canaries_covered"] for s in scenarios), sum(s["canaries_measured"] for s in scenarios)
        ),
    }


def bars(found: Json) -> Iterator[tuple[str, bool]]:
    """What is to be reached, and whether it is."""
    median, worst, static = (
        found[f"{name}_ratio_to_{whom}"]
        for name, whom in (("median", "oracle"), ("worst", "oracle"), ("worst", "best_static"))
    )
    yield f"median ratio to the oracle at least 0.97: {median:.3f}", median >= 0.97
    yield f"worst ratio to the oracle at least 0.90: {worst:.3f}", worst >= 0.90
    yield f"never more than 2 % slower than the best static profile: {1 / static - 1:+.1%}", static >= 1 / 1.02
    covered = found["interval_coverage"]
    yield (
        f"85 to 95 % of the predictions within their 90 % interval: {_percent(covered, digits=1)}",
        covered is not None and 0.85 <= covered <= 0.95,
    )


HEADINGS = (
    "scenario", "operator ms", "oracle", "best static", "", "threshold only", "schedule only", "EMA of length",
    "left alone", "rolls (canaries)", "predictions covered",
)  # fmt: skip


def row(s: Json) -> list[str]:
    """A scenario's line in the tables."""
    return [
        s["name"],
        f"{s['tpot_mean_ms']['operator']:.1f}",
        f"{s['ratio_to_oracle']:.3f}",
        s["best_static"],
        *(f"{s[f'ratio_to_{name}']:.2f}" for name in RATIOS[1:]),
        f"{s['rolls']} ({s['canaries']})",
        _percent(s["interval_coverage"]),
    ]


def markdown(results: Json) -> str:
    """The document's part that is measured."""
    machine = results["machine"]
    lines = [
        f"`{results['command']}` on {results['date']}, Python {results['python']}, {machine['cpus']} CPUs"
        f" ({machine['model']}).",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "| --- | ---: | ---: | --- " + "| ---: " * (len(HEADINGS) - 4) + "|",
        *(f"| {' | '.join(row(s))} |" for s in results["scenarios"]),
        "",
        *(f"- {text}{'' if held else ' — **not reached**'}" for text, held in bars(results)),
        f"- canaries that showed what had been predicted (the 90 % intervals meet):"
        f" {_percent(results['canary_coverage'])}",
    ]
    return "\n".join(lines)


def document(text: str, results: Json) -> str:
    """The document with its table replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{DOCUMENT}: put the lines {BEGIN!r} and {END!r} around the table")
    return f"{before}{begin}\n\n{markdown(results)}\n\n{end}{after}"


def show(console: Console, results: Json) -> None:
    """The table on a terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading.replace(" ", "\n"), justify="left" if i in (0, 3) else "right", no_wrap=True)
    for s in results["scenarios"]:
        table.add_row(*row(s))
    console.print(table)
    for text, held in bars(results):
        console.print(f"{'[green]holds' if held else '[red]fails'}[/]  {text}", highlight=False)
    console.print(f"       canaries as predicted: {_percent(results['canary_coverage'])}", highlight=False)


def _path(name: str) -> Path:
    return Path(name) if name.endswith(".yaml") else SCENARIOS / f"{name}.yaml"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="The operator beside its baselines and an oracle.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="name in benchmarks/scenarios, or file")
    parser.add_argument("--interval", type=parse_duration, help="of the operator; the scenarios' own by default")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    paths = [_path(name) for name in asked.scenarios] or sorted(SCENARIOS.glob("*.yaml"))
    progress, scenarios = Console(stderr=True), []
    try:
        for s in side_by_side(functools.partial(run, interval=asked.interval), paths, asked.processes):
            scenarios.append(s)
            progress.print(f"{len(scenarios)} of {len(paths)}: {' | '.join(row(s))}", highlight=False, soft_wrap=True)
    except ScenarioError as error:
        sys.exit(f"bench_decision.py: {error}")
    results = {**provenance(), "scenarios": scenarios, **summary(scenarios)}
    show(Console(width=None if sys.stdout.isatty() else 132), results)
    everything = not asked.scenarios
    for path in filter(None, [asked.output, RESULTS if everything else None]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if everything:
        DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
