"""The figures of a run, as `docs/reference/scenario.md` describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdecode.api.v1alpha1 import Outcome
from specdecode.sim.twin.agents import Change, Operator
from specdecode.sim.twin.calibration import Calibration, canaries_covered
from specdecode.sim.twin.simulation import Simulation
from specdecode.sim.twin.world import World

OPERATOR, ALONE, ORACLE = "operator", "alone", "oracle"
THRESHOLD, SCHEDULE, EMA, INFORMED = "threshold-only", "schedule-only", "ema", "informed"
STATIC = "static:"

Json = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """How every agent did. Times in seconds."""

    scenario: str
    seed: int
    duration_seconds: float
    pods: int
    wall_seconds: float
    agents: Mapping[str, Json]
    comparison: Json
    changes: tuple[Json, ...]
    calibration: Json | None
    timeline: tuple[Json, ...]

    def as_json(self) -> Json:
        """Everything but the timeline."""
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "duration_seconds": self.duration_seconds,
            "pods": self.pods,
            "wall_seconds": round(self.wall_seconds, 2),
            "agents": dict(self.agents),
            **self.comparison,
            "changes": list(self.changes),
            "calibration": self.calibration,
        }


@dataclass(frozen=True)
class Found:
    """What a simulation of some of the agents says."""

    agents: Mapping[str, Json]
    changes: tuple[Json, ...]
    calibration: Json | None
    timeline: tuple[Json, ...]


def found_by(simulation: Simulation, calibration: Calibration) -> Found:
    """The figures of a simulation that has run."""
    operator = next((p.agent for p in simulation.players if isinstance(p.agent, Operator)), None)
    return Found(
        agents={p.name: _figures(simulation, i) for i, p in enumerate(simulation.players)},
        changes=tuple(_change(c) for c in operator.changes) if operator else (),
        calibration=_calibration(calibration, operator) if operator else None,
        timeline=tuple(_row(simulation, bucket) for bucket in range(len(simulation.prevailing))),
    )


def result_of(world: World, seed: int, wall_seconds: float, parts: Sequence[Found]) -> Result:
    """The figures of all agents, which were simulated in parts."""
    agents = _not_worse_than_alone({name: figures for part in parts for name, figures in part.agents.items()})
    rows = zip(*(part.timeline for part in parts), strict=True)
    return Result(
        scenario=world.scenario.name,
        seed=seed,
        duration_seconds=world.steps * world.dt,
        pods=int(world.replicas.max()),
        wall_seconds=wall_seconds,
        agents=_with_regret(agents),
        comparison=_comparison(agents),
        changes=tuple(change for part in parts for change in part.changes),
        calibration=next((part.calibration for part in parts if part.calibration), None),
        timeline=tuple({k: v for row in pieces for k, v in row.items()} for pieces in rows),
    )


def _figures(simulation: Simulation, i: int) -> Json:
    service, agent = simulation.services[i], simulation.players[i].agent
    rows = service.serving_rows
    figures = simulation.tally.figures(i, simulation.world.scenario.policy)
    figures["waiting_at_end"] = round(float(simulation.fleet.waiting[rows].sum()))
    if isinstance(agent, Operator):
        figures["rolls"] = sum(c.entry.outcome is Outcome.SUCCESSFUL for c in agent.changes)
        figures["canaries"] = agent.canaries
        figures["canary_pod_seconds"] = agent.canary_pod_seconds
    else:
        figures["rolls"], figures["canaries"], figures["canary_pod_seconds"] = getattr(agent, "rolls", 0), 0, 0.0
    return figures


def _not_worse_than_alone(agents: dict[str, Json]) -> dict[str, Json]:
    """Who knows everything, and begins with the same, leaves alone what chance favoured."""
    alone, oracle = agents.get(ALONE), agents.get(ORACLE)
    if alone and oracle and (alone["tpot_mean"] or 0.0) < (oracle["tpot_mean"] or 0.0):
        agents[ORACLE] = dict(alone)
    return agents


def _best_static(agents: Mapping[str, Json]) -> str | None:
    statics = [name for name, a in agents.items() if name.startswith(STATIC) and a["tpot_mean"]]
    return min(statics, key=lambda name: float(agents[name]["tpot_mean"]), default=None)


def _with_regret(agents: Mapping[str, Json]) -> Mapping[str, Json]:
    best = agents.get(ORACLE, {}).get("tpot_mean")
    for figures in agents.values():
        tpot = figures["tpot_mean"]
        figures["regret"] = tpot / best - 1 if best and tpot else None
    return agents


def _comparison(agents: Mapping[str, Json]) -> Json:
    """Baselines' mean TPOT over the operator's: above 1 the operator is faster."""
    tpots = {name: a["tpot_mean"] for name, a in agents.items() if a["tpot_mean"]}
    best = _best_static(agents)
    ours = tpots.get(OPERATOR)

    def over_operator(name: str | None) -> float | None:
        theirs = tpots.get(name or "")
        return theirs / ours if ours and theirs else None

    return {
        "best_static": best,
        "ratio_to_oracle": over_operator(ORACLE),
        "ratio_to_best_static": over_operator(best),
        "ratio_to_threshold_only": over_operator(THRESHOLD),
        "ratio_to_schedule_only": over_operator(SCHEDULE),
        "ratio_to_ema": over_operator(EMA),
        "ratio_to_alone": over_operator(ALONE),
    }


def _change(change: Change) -> Json:
    entry = change.entry
    return {
        "time": entry.started_at,
        "finished": entry.finished_at,
        "from": entry.source.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "to": entry.target.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "trigger": entry.reason,
        "outcome": entry.outcome.value,
        "reason": entry.outcome_reason,
        "message": entry.message,
        "predicted_gain": change.predicted and change.predicted.rounded(),
        "canary_gain": entry.gain and entry.gain.model_dump(),
        "gave_up_one": entry.give_up_one,
    }


def _calibration(calibration: Calibration, operator: Operator) -> Json:
    checked = calibration.checked
    measured, met = canaries_covered(operator.changes)
    profiles = dict.fromkeys(c.profile for c in checked)
    return {
        "predictions": len(checked),
        "covered": sum(c.covered for c in checked),
        "by_profile": {
            profile: {
                "predictions": sum(c.profile == profile for c in checked),
                "covered": sum(c.covered for c in checked if c.profile == profile),
            }
            for profile in profiles
        },
        "canaries": measured,
        "canaries_covered": met,
    }


def _row(simulation: Simulation, bucket: int) -> Json:
    world, tally = simulation.world, simulation.tally
    start = bucket * simulation.bucket_steps
    rate = world.demand.rate[start : start + simulation.bucket_steps]
    row: Json = {
        "t": round(start * world.dt),
        "requests_per_second": round(float(rate.mean()), 3),
        "pods": int(world.replicas[start]),
    }
    for i, player in enumerate(simulation.players):
        seconds, tokens = tally.request_seconds[bucket, i], tally.tokens[bucket, i]
        row[f"{player.name} profile"] = simulation.prevailing[bucket][i]
        row[f"{player.name} tpot"] = round(float(seconds / tokens), 6) if tokens else None
    return row
