"""One scenario, from the file to the figures."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from specdecode.api.v1alpha1 import DISABLED
from specdecode.model.cost import Option
from specdecode.model.loads import DAY
from specdecode.sim.twin.agents import Alone, Look, Operator
from specdecode.sim.twin.baselines import AcceptedLengthTiers, Planned, ThresholdOnly, scheduled_by_hand
from specdecode.sim.twin.calibration import Calibration
from specdecode.sim.twin.deployment import GRACE
from specdecode.sim.twin.informed import Informed
from specdecode.sim.twin.oracle import choices, plan
from specdecode.sim.twin.result import (
    ALONE,
    EMA,
    INFORMED,
    OPERATOR,
    ORACLE,
    SCHEDULE,
    STATIC,
    THRESHOLD,
    Found,
    Result,
    found_by,
    result_of,
)
from specdecode.sim.twin.scenario import Scenario, ScenarioError
from specdecode.sim.twin.simulation import BUCKET, Player, Simulation
from specdecode.sim.twin.world import World, world_of

REHEARSAL = 2.0
"""The oracle's options are tried in time steps this many times as long: their mean costs are the same."""


def simulate(
    scenario: Scenario,
    agents: Iterable[str] | None = None,
    *,
    seed: int | None = None,
    watch: Callable[[Look], None] | None = None,
    processes: int = 1,
) -> Result:
    """Run a scenario.

    `agents` names those that take part, all but the informed one by default; `watch` sees every tick of the operator.
    With two `processes` the other agents are simulated in one of their own, with the same figures but for rounding.
    Raises ScenarioError.
    """
    began = time.perf_counter()
    seed = scenario.seed if seed is None else seed
    world = world_of(scenario)
    cast = _cast(world, seed)
    baselines = scenario.baselines or [name for name in cast if name != INFORMED]
    wanted = list(dict.fromkeys(agents if agents is not None else [OPERATOR, *baselines]))
    if unknown := [name for name in wanted if name not in cast]:
        raise ScenarioError(f"agents: there is no {', '.join(unknown)}; there are {', '.join(cast)}")
    others = [name for name in wanted if name != OPERATOR]
    if processes < 2 or not others or OPERATOR not in wanted:
        parts = [_part(scenario, wanted, seed, watch)]
    else:
        with ProcessPoolExecutor(1) as pool:
            beside = pool.submit(_part, scenario, others, seed)
            parts = [_part(scenario, [OPERATOR], seed, watch), beside.result()]
    return result_of(world, seed, time.perf_counter() - began, parts)


def _part(scenario: Scenario, agents: Sequence[str], seed: int, watch: Callable[[Look], None] | None = None) -> Found:
    """Simulate some of the agents."""
    world = world_of(scenario)
    calibration = Calibration(world)

    def look_on(look: Look) -> None:
        calibration.watch(look)
        if watch is not None:
            watch(look)

    cast = _cast(world, seed, look_on)
    simulation = Simulation(world, [cast[name]() for name in agents], seed)
    with _no_cycles():
        simulation.run()
    return found_by(simulation, calibration)


@contextlib.contextmanager
def _no_cycles() -> Iterator[None]:
    """A day makes millions of values and no cycles: to look for those takes a tenth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _cast(world: World, seed: int, watch: Callable[[Look], None] | None = None) -> Mapping[str, Callable[[], Player]]:
    """All agents by name, each made when it is wanted."""
    scenario, options = world.scenario, world.options
    off, start = options[DISABLED], options[scenario.start]
    speculating = [o for o in options.values() if o.speculation is not None]
    first = speculating[0] if speculating else off

    def threshold_only() -> Player:
        agent = ThresholdOnly(speculating, off, scenario.policy.metrics.window, give_up_one=world.cramped)
        return Player(THRESHOLD, agent, first)

    def static(option: Option) -> Callable[[], Player]:
        return lambda: Player(f"{STATIC}{option.profile}", Alone(), option)

    return {
        OPERATOR: lambda: Player(OPERATOR, Operator(scenario, watch), start),
        ORACLE: lambda: _oracle(world, seed),
        ALONE: lambda: Player(ALONE, Alone(), start),
        **{f"{STATIC}{name}": static(option) for name, option in options.items()},
        THRESHOLD: threshold_only,
        SCHEDULE: lambda: Player(SCHEDULE, Alone(), scheduled_by_hand(first, world.times, scenario.version)),
        EMA: lambda: Player(EMA, AcceptedLengthTiers(first, world.times), first),
        INFORMED: lambda: Player(INFORMED, Informed(world, _choices(world)), start),
    }


def _choices(world: World) -> list[Option]:
    """What can run, beginning with what runs at first."""
    start = world.options[world.scenario.start]
    return [start, *(o for o in choices(world) if o != start)]


def _oracle(world: World, seed: int) -> Player:
    """The clairvoyant, after a rehearsal of everything that it could run. It begins with what runs at first."""
    options = _choices(world)
    rehearsal = Simulation(
        world.in_steps_of(world.dt * REHEARSAL),
        [Player(str(i), Alone(), option) for i, option in enumerate(options)],
        seed,
        latencies=False,
    )
    rehearsal.run()
    tally, coarse = rehearsal.tally, rehearsal.world
    offered = np.array(
        [
            coarse.demand.offered_tokens(b * rehearsal.bucket_steps, (b + 1) * rehearsal.bucket_steps)
            for b in range(len(tally.tokens))
        ]
    )
    tpot = tally.request_seconds / np.maximum(tally.tokens, 1e-9)
    starts = np.arange(len(tpot)) * rehearsal.bucket_steps
    roll = coarse.replicas[starts] * (world.scenario.roll_time + GRACE)
    days = math.ceil(world.scenario.duration / DAY)
    changes = days * world.scenario.policy.rollout.max_changes_per_day
    moves = plan(tpot * offered[:, None], options, BUCKET, roll.tolist(), changes)
    return Player(ORACLE, Planned(moves, give_up_one=world.cramped), options[0])
