"""No harm: random days of random services under the operator, beside the same services left alone.

python benchmarks/bench_no_harm.py [--count N] [--first SEED] [--processes N] [--days FILE] [--output FILE]

Interrupted (Ctrl-C), it counts the days that it has run; called again, it goes on with the others: each day is kept in
FILE as soon as it is known, for as long as the code is the same. A day that was harmed is told at once.

The operator may cost what its canaries lost while they were measured, what the pods that were left lost while one given
up for a canary started and came back, and `NOISE`: more is harm, unless it served requests that alone would still wait
at the end of the day, or all requests faster for having waited less, or it was chance: a day that looks harmed is run
again with other seeds. Beside the operator plays who knows all of the present, and nothing of the future.

Writes benchmarks/results/no-harm.json, with the worst scenarios as YAML: saved in benchmarks/scenarios (where the
acceptance table lies that some of them name), they run with `specdecode simulate`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from provenance import provenance, side_by_side
from random_scenarios import random_scenario
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specdecode.api.v1alpha1 import Outcome
from specdecode.policy.decision import Reason
from specdecode.policy.spare import NO_CAPACITY
from specdecode.sim.twin.agents import START, Look
from specdecode.sim.twin.result import ALONE, INFORMED, OPERATOR, Result
from specdecode.sim.twin.run import simulate
from specdecode.sim.twin.scenario import Scenario, parse_scenario
from specdecode.sim.twin.simulation import BUCKET

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "no-harm.json"
DAYS = HERE.parent / "build" / "no-harm.jsonl"
_RULES = [*(HERE.parent / "operator" / "specdecode").rglob("*.*"), HERE / "random_scenarios.py", Path(__file__)]
_TABLES = (HERE / "scenarios").glob("*.json")
CODE = tuple(sorted(path for path in (*_RULES, *_TABLES) if "__pycache__" not in path.parts and path.is_file()))
"""What the outcome of a day depends on: code, and tables that come with it."""
NOISE = 0.005
"""Share of TPOT by which two runs of the same service differ by chance; `noise` in the results is what was seen."""
MANY = 0.01
"""Share of a day's requests, or of their time, that makes a difference where they wait."""
REPEATED = 20
"""Of so many scenarios the service left alone is run again with another seed, to see the noise."""
OTHER_SEEDS = (1_000_000, 2_000_000)
"""What is added to the seed of a day that looks harmed, to see whether that was chance."""
WORST = 10

Json = dict[str, Any]


class Exhausted:
    """Counts how often the day's limit of changes held something back."""

    def __init__(self) -> None:
        self.times = {"changes": 0, "restarts": 0}
        self._held: str | None = None

    def watch(self, look: Look) -> None:
        """One tick; the same thing held back over many ticks counts once."""
        held = look.decision.held_back
        stopped = held is not None and held[0] == Reason.CHANGES_EXHAUSTED
        now = ("restarts" if look.decision.restart else "changes") if stopped else None
        if now is not None and now != self._held:
            self.times[now] += 1
        self._held = now


def scenario_of(text: str) -> Scenario:
    """A scenario, with the acceptance tables of benchmarks/scenarios in reach."""
    return parse_scenario(text, folder=HERE / "scenarios")


def probe_cost(result: Result, scenario: Scenario) -> float:
    """What the canaries that lost have cost, by the operator's own figures: a share of TPOT.

    Of each the share of the day's requests that it served (those of its time, from ready to gone, over the pods that
    shared them) times how much slower it was, as the operator measured it.
    """
    requests = sum(row["requests_per_second"] for row in result.timeline)
    cost = 0.0
    for change in result.changes:
        gain = change["canary_gain"]
        if gain is None or gain["value"] >= 0 or not requests:
            continue
        first, last = (_seconds(change[name]) for name in ("time", "finished"))
        for row, share in _during(result, first + scenario.roll_time, last):
            sharing = row["pods"] + (1 if scenario.spare_gpus else 0)
            cost += share * row["requests_per_second"] / requests / sharing * (1 / (1 + gain["value"]) - 1)
    return cost


def given_up_cost(result: Result, scenario: Scenario) -> float:
    """What canaries that were not promoted cost where a pod was given up for them, as a share of TPOT: how much slower
    the service was than alone while the one pod started, and the other again."""
    whole_day = sum(row["requests_per_second"] * (row[f"{ALONE} tpot"] or 0.0) for row in result.timeline)
    cost = 0.0
    for change in result.changes:
        if not change["gave_up_one"] or change["outcome"] == Outcome.SUCCESSFUL:
            continue
        for began in (_seconds(change[name]) for name in ("time", "finished")):
            for row, share in _during(result, began, began + scenario.roll_time):
                ours, alone = row[f"{OPERATOR} tpot"], row[f"{ALONE} tpot"]
                if ours and alone:
                    cost += share * row["requests_per_second"] * max(0.0, ours - alone)
    return cost / max(whole_day, 1e-9)


def _during(result: Result, first: float, last: float) -> Iterator[tuple[Json, float]]:
    """The rows of the timeline between two times, and the share of each that lies there."""
    times = [*(row["t"] for row in result.timeline), result.duration_seconds]
    for row, (start, end) in zip(result.timeline, itertools.pairwise(times), strict=True):
        if (share := (min(last, end) - max(first, start)) / (end - start)) > 0:
            yield row, share


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp() - START


def judge(text: str, *, seed: int | None = None) -> Json:
    """One scenario: how much slower the operator was, what its canaries cost, and what is left as harm; again, if there
    is any."""
    scenario = scenario_of(text)
    day = _judged(text, scenario, seed)
    if not is_harmed(day):
        return day
    first = scenario.seed if seed is None else seed
    again = [_judged(text, scenario, first + more)["harm"] for more in OTHER_SEEDS]
    return day | {"harm_with_other_seeds": again}


def _judged(text: str, scenario: Scenario, seed: int | None) -> Json:
    exhausted = Exhausted()
    result = simulate(scenario, [OPERATOR, ALONE, INFORMED], seed=seed, watch=exhausted.watch)
    ours, alone, informed = (result.agents[name] for name in (OPERATOR, ALONE, INFORMED))
    slower = ours["tpot_mean"] / alone["tpot_mean"] - 1
    cost, given_up = probe_cost(result, scenario), given_up_cost(result, scenario)
    return {
        "name": scenario.name,
        "slower": round(slower, 5),
        "probe_cost": round(cost, 5),
        "given_up_cost": round(given_up, 5),
        "harm": round(slower - cost - given_up, 5),
        "requests_slower": round(_request_seconds(ours) / _request_seconds(alone) - 1, 5),
        "informed": {
            "harm": round(informed["tpot_mean"] / alone["tpot_mean"] - 1, 5),
            "requests_slower": round(_request_seconds(informed) / _request_seconds(alone) - 1, 5),
            "waiting_at_end": {"operator": informed["waiting_at_end"], "alone": alone["waiting_at_end"]},
            "rolls": informed["rolls"],
        },
        "waiting_at_end": {"operator": ours["waiting_at_end"], "alone": alone["waiting_at_end"]},
        "requests": round(sum(row["requests_per_second"] for row in result.timeline) * BUCKET),
        "alone_tpot_ms": round(1e3 * alone["tpot_mean"], 2),
        "changes": ours["canaries"],
        "rolls": ours["rolls"],
        "limit": scenario.policy.rollout.max_changes_per_day,
        "most_changes_in_a_day": most_in_a_day(
            [_seconds(c["time"]) for c in result.changes if c["reason"] != NO_CAPACITY]
        ),
        "exhausted": exhausted.times,
        "predictions": result.calibration["predictions"] if result.calibration else 0,
        "covered": result.calibration["covered"] if result.calibration else 0,
        "history": [
            f"{_seconds(c['time']) / 3600:.2f} h {c['from']['profile']} to {c['to']['profile']} ({c['trigger']}):"
            f" {c['outcome']}, {c['message']}"
            for c in result.changes
        ],
        "yaml": text,
    }


def _request_seconds(agent: Json) -> float:
    """Mean time of a request: what it waited, and all of its tokens."""
    return float(agent["ttft_mean"] + agent["tpot_mean"] * agent["tokens"] / agent["requests"])


def is_harmed(day: Json) -> bool:
    """Whether users were worse off. Where the service alone leaves requests waiting that the operator has served, or
    lets them wait for longer than all of their tokens take, they were not, though each token took longer at the larger
    batch that this takes."""
    waiting = day["waiting_at_end"]
    served_more = waiting["alone"] - waiting["operator"] > MANY * day["requests"]
    harm = statistics.fmean([day["harm"], *day.get("harm_with_other_seeds", ())])
    return min(day["harm"], harm) > NOISE and not served_more and day["requests_slower"] > -MANY


def informed_is_harmed(day: Json) -> bool:
    """The same of who knows all of the present, and pays for no canary."""
    return is_harmed(day["informed"] | {"requests": day["requests"]})


def most_in_a_day(times: Sequence[float]) -> int:
    """Most changes that began within 24 hours."""
    return max((sum(0 <= other - t < 86_400 for other in times) for t in times), default=0)


def work(seed: int) -> Json:
    """Draw and judge."""
    return judge(yaml.safe_dump(random_scenario(seed), sort_keys=False))


class Kept:
    """Days that were run, a line each: the code that they are of, then seeds and what was judged."""

    def __init__(self, file: Path, code: Sequence[Path] = CODE) -> None:
        """Raises SystemExit where the file is of other code: days of two rules make no figure together."""
        of = hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()
        self.days: dict[int, Json] = {}
        written = file.read_text(encoding="utf-8") if file.exists() else ""
        # Whoever was killed while writing left half a line: that day was not kept.
        whole = written[: written.rfind("\n") + 1]
        if whole:
            head, *lines = whole.splitlines()
            if json.loads(head) != {"code": of}:
                raise SystemExit(f"{file} has days of other code: remove it, or name another with --days")
            for line in map(json.loads, lines):
                self.days[line.pop("seed")] = line
        if whole != written or not whole:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(whole or json.dumps({"code": of}) + "\n", encoding="utf-8")
        self._file = file

    def add(self, seed: int, day: Json) -> None:
        """One more."""
        self.days[seed] = day
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seed": seed, **day}) + "\n")


def noise(seed: int) -> float:
    """By how much two runs of a service that is left alone differ."""
    scenario = scenario_of(yaml.safe_dump(random_scenario(seed), sort_keys=False))
    one, two = (simulate(scenario, [ALONE], seed=s).agents[ALONE]["tpot_mean"] for s in (seed, seed + 1_000_000))
    return abs(float(one / two) - 1)


def summary(judged: Sequence[Json], noises: Sequence[float]) -> Json:
    """What they say together."""
    slower = sorted(j["slower"] for j in judged)
    harmed = [j for j in judged if is_harmed(j)]
    predictions = sum(j["predictions"] for j in judged)
    return {
        "scenarios": len(judged),
        "harmed": len(harmed),
        "worst_harm": max((j["harm"] for j in harmed), default=0.0),
        "harmed_by_chance": sum("harm_with_other_seeds" in j for j in judged) - len(harmed),
        "informed_harmed": sum(informed_is_harmed(j) for j in judged),
        "informed_worst_harm": max((j["informed"]["harm"] for j in judged if informed_is_harmed(j)), default=0.0),
        "informed_median_faster": round(1 / (1 + statistics.median(j["informed"]["harm"] for j in judged)) - 1, 4),
        "harmed_both": sum(informed_is_harmed(j) for j in harmed),
        "harmed_but_for_given_up_pods": sum(is_harmed(j | {"harm": j["harm"] + j["given_up_cost"]}) for j in judged)
        - len(harmed),
        "slower_but_wait_less": sum(j["harm"] > NOISE for j in judged) - len(harmed),
        "not_harmed_but_wait_more": sum(
            j["requests_slower"] - j["probe_cost"] > MANY and not is_harmed(j) for j in judged
        ),
        "worst_slower": slower[-1],
        "median_faster": round(1 / (1 + statistics.median(slower)) - 1, 4),
        "faster_by_1_percent_or_more": sum(s < -0.01 for s in slower),
        "slower_by_1_percent_or_more": sum(s > 0.01 for s in slower),
        "allowed_noise": NOISE,
        "noise": {"scenarios": len(noises), "median": _middle(noises), "largest": round(max(noises, default=0.0), 5)},
        "changes_a_day_mean": round(statistics.fmean(j["changes"] for j in judged), 2),
        "beyond_the_limit": [j["name"] for j in judged if j["most_changes_in_a_day"] > j["limit"]],
        "stopped_by_the_limit": sum(j["exhausted"]["changes"] > 0 for j in judged),
        "restarts_stopped_by_theirs": sum(j["exhausted"]["restarts"] > 0 for j in judged),
        "interval_coverage": round(sum(j["covered"] for j in judged) / predictions, 4) if predictions else None,
        "worst": sorted(judged, key=lambda j: (not is_harmed(j), -j["harm"]))[:WORST],
    }


def _middle(values: Sequence[float]) -> float:
    return round(statistics.median(values), 5) if values else 0.0


def lines(found: Json) -> Iterator[str]:
    """For the terminal."""
    yield (
        f"{found['scenarios']} scenarios: {found['harmed']} harmed (slower by more than what the canaries cost and"
        f" {NOISE:.1%} of noise), worst {found['worst_harm']:+.2%};"
        f" {found['harmed_by_chance']} more looked so and were not with other seeds;"
        f" {found['harmed_but_for_given_up_pods']} more if what pods given up for canaries cost were not taken off"
    )
    yield (
        f"who knows all of the present: {found['informed_harmed']} harmed, worst {found['informed_worst_harm']:+.2%},"
        f" {found['harmed_both']} of them with the operator; median {found['informed_median_faster']:+.1%}"
    )
    yield (
        f"{found['slower_but_wait_less']} more were slower by the token, but made requests wait less;"
        f" {found['not_harmed_but_wait_more']} that were not harmed by the token made requests wait more"
    )
    yield (
        f"faster by 1 % or more in {found['faster_by_1_percent_or_more']}, slower in"
        f" {found['slower_by_1_percent_or_more']}; median {found['median_faster']:+.1%}"
    )
    yield (
        f"noise: alone with another seed differs by {found['noise']['median']:.2%} (median), at most"
        f" {found['noise']['largest']:.2%}, in {found['noise']['scenarios']} scenarios"
    )
    yield (
        f"{found['changes_a_day_mean']} changes a day; {len(found['beyond_the_limit'])} scenarios beyond the limit,"
        f" {found['stopped_by_the_limit']} stopped by it ({found['restarts_stopped_by_theirs']} in restarts)"
    )
    coverage = found["interval_coverage"]
    yield f"predictions within their 90 % interval: {'–' if coverage is None else f'{coverage:.0%}'}"
    for j in found["worst"]:
        yield (
            f"  {j['name']}: slower {j['slower']:+.2%}, of it canaries {j['probe_cost']:.2%};"
            f" {j['changes']} changes, {j['rolls']} of them promoted"
        )


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="Random days under the operator, and left alone.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--days", type=Path, default=DAYS, metavar="FILE")
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.count)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    kept = Kept(asked.days)
    missing = [seed for seed in seeds if seed not in kept.days]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        noises = list(side_by_side(noise, seeds[:REPEATED], asked.processes))
        days = zip(missing, side_by_side(work, missing, asked.processes), strict=True)
        done = len(seeds) - len(missing)
        with contextlib.suppress(KeyboardInterrupt):
            for seed, day in progress.track(days, total=len(seeds), completed=done, description="operator, alone"):
                kept.add(seed, day)
                if is_harmed(day):
                    progress.console.print(f"{day['name']}: harmed by {day['harm']:.2%} after {len(kept.days)} days")
    judged = [kept.days[seed] for seed in seeds if seed in kept.days]
    if not judged:
        raise SystemExit("interrupted before the first day was over: nothing is written")
    results = {**provenance(), **summary(judged, noises)}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for line in lines(results):
        print(line)


if __name__ == "__main__":
    main()
