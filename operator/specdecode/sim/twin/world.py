"""What a scenario resolves to: everything that it names, read and checked, shared by all agents."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from specdecode.model.cost import Option
from specdecode.policy.options import Menu, speculation_of
from specdecode.sim.twin.demand import Demand, Drafts, demand_of
from specdecode.sim.twin.measured import acceptance_of, surface_of
from specdecode.sim.twin.scenario import Scenario, ScenarioError
from specdecode.sim.twin.service import menu_of
from specdecode.sim.twin.tables import Gains, StepTimes, drafters_of
from specdecode.vllm.speculation import Method
from specdecode.vllm.unmanageable import Unmanageable
from specdecode.vllm.version import Version

STEP = 3.0
"""Seconds of a time step, at most: an operator's interval is a whole number of them."""
PADS_DRAFTS = Version(0, 32, 0)
"""From here on an n-gram step without a match drafts all the same (Model Runner V2)."""


@dataclass(frozen=True)
class World:
    """One scenario, ready to be run."""

    scenario: Scenario
    demand: Demand
    menu: Menu
    times: StepTimes
    gains: Gains
    replicas: NDArray[np.int64] = field(init=False)
    """Pods asked for, by step."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "replicas", self.demand.replicas(self.scenario))

    @property
    def dt(self) -> float:
        """Seconds of a time step."""
        return self.demand.dt

    @property
    def steps(self) -> int:
        """Time steps of the scenario."""
        return len(self.demand.rate)

    @property
    def options(self) -> dict[str, Option]:
        """What this version of vLLM can run, each at its fixed K, by profile."""
        return {o.profile: o for o in self.menu.options if not isinstance(self.menu.render(o), Unmanageable)}

    @property
    def cramped(self) -> bool:
        """Whether a roll has to give up a pod first: no GPU is free for an additional one."""
        return self.scenario.spare_gpus == 0

    def in_steps_of(self, dt: float) -> World:
        """The same world in other time steps."""
        return replace(self, demand=demand_of(self.scenario, dt))


def world_of(scenario: Scenario) -> World:
    """The world of a scenario. Raises ScenarioError."""
    surface = surface_of(scenario)
    menu = menu_of(scenario, surface.graph_limit_tokens)
    profiles: dict[str, tuple[Method, int]] = {}
    for name, profile in menu.profiles.items():
        speculation = speculation_of(profile)
        method = speculation.method if speculation else Method.DISABLED
        if method not in surface.methods:
            raise ScenarioError(
                f"surface: {surface.name} has no step times of {method} (profile {name}); it covers"
                f" {', '.join(surface.methods)}: choose another surface, or leave the profile out"
            )
        profiles[name] = method, (speculation.num_speculative_tokens or 0) if speculation else 0
    drafters = drafters_of(profiles)
    drafts = Drafts(scenario, acceptance_of(scenario), {name: method for name, (method, _) in profiles.items()})
    times = StepTimes(surface, drafters, scenario.max_num_seqs)
    gains = Gains(drafters, drafts, times.k_max, pads=scenario.version >= PADS_DRAFTS)
    interval = scenario.policy.metrics.interval
    return World(scenario, demand_of(scenario, interval / math.ceil(interval / STEP)), menu, times, gains)
