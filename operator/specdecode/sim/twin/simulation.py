"""Some agents side by side in one world: the same traffic, the same pods, the same price of a change."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from specdecode.model.cost import Option
from specdecode.sim.twin.agents import Agent, Operator
from specdecode.sim.twin.counters import Counters
from specdecode.sim.twin.deployment import VirtualDeployment
from specdecode.sim.twin.fleet import Array, Fleet, Ints, Passed
from specdecode.sim.twin.service import Service
from specdecode.sim.twin.tally import Tally
from specdecode.sim.twin.world import World
from specdecode.vllm.unmanageable import Unmanageable

BUCKET = 300.0
"""Seconds of a row of the timeline."""


@runtime_checkable
class Stepwise(Protocol):
    """An agent that follows every time step."""

    def after_step(self, service: Service, passed: Passed, t: float) -> None:
        """Look at what just happened, and turn what the engine can turn."""


@dataclass(frozen=True)
class Player:
    """An agent, and what its service runs at first."""

    name: str
    agent: Agent
    start: Option


class Simulation:
    """A run of some players. `latencies`: whether distributions are wanted, or sums alone."""

    def __init__(self, world: World, players: Iterable[Player], seed: int, *, latencies: bool = True) -> None:
        self.world, scenario = world, world.scenario
        # The operator comes first: only its pods' pages are read, so only they are made.
        self.players = sorted(players, key=lambda p: not isinstance(p.agent, Operator))
        slots = int(world.replicas.max()) + max(1, scenario.spare_gpus)
        classes = len(world.demand.mixes[0].shares)
        self._seed = seed
        self._arrivals, chances = np.random.default_rng(seed).spawn(2)
        agents = len(self.players)
        self.fleet = Fleet(world.times, world.gains, slots * agents, classes, world.dt, chances, copies=agents)
        self.bucket_steps = max(1, round(BUCKET / world.dt))
        buckets = -(-world.steps // self.bucket_steps)
        self.tally = Tally(self.fleet, len(self.players), slots, buckets, latencies=latencies)
        self.services: list[Service] = []
        self._shared: dict[bytes, Ints] = {}
        """Arrivals [step of the epoch, pod] by how the traffic is split."""
        self._counters: Counters | None = None
        for i, player in enumerate(self.players):
            container = world.menu.render(player.start)
            assert not isinstance(container, Unmanageable), container
            deployment = VirtualDeployment(
                dict(container),
                int(world.replicas[0]),
                rows=range(i * slots, (i + 1) * slots),
                start_up=scenario.roll_time,
                spare=scenario.spare_gpus,
            )
            service = Service(world.menu, self.fleet, deployment, scenario.pod_weights)
            if isinstance(player.agent, Operator):
                self._counters = service.counters = Counters(self.fleet, slots, scenario.version)
            self.services.append(service)
        self.prevailing: list[tuple[str, ...]] = []
        """By bucket, the profile that most pods of each agent run at its end."""

    def run(self) -> None:
        """Let the whole scenario pass."""
        world, demand, dt = self.world, self.world.demand, self.world.dt
        pairs = list(zip(self.players, self.services, strict=True))
        acting = [(p.agent, s, max(1, round(p.agent.interval / dt))) for p, s in pairs if p.agent.interval < math.inf]
        stepwise = [(p.agent, s) for p, s in pairs if isinstance(p.agent, Stepwise)]
        mix, totals, arrivals = None, np.zeros(0, dtype=np.int64), np.zeros((0, 0))
        for i in range(world.steps):
            t, (epoch, within) = i * dt, divmod(i, demand.epoch_steps)
            if within == 0 and (demand.mixes[epoch] is not mix or world.scenario.acceptance.changes):
                mix = demand.mixes[epoch]
                if self._counters is not None:
                    self._counters.count()
                self.tally.add_up()
                self.fleet.enter(mix, t)
            if within == 0:
                totals = self._totals(i)
                self._shared.clear()
            if i and world.replicas[i] != world.replicas[i - 1]:
                for service in self.services:
                    service.deployment.scale(int(world.replicas[i]))
            moved = [service for service in self.services if service.reconcile(t)]
            for agent, service, every in acting:
                if i and i % every == 0:
                    agent.act(service, t)
            if within == 0 or moved:
                arrivals = self._shared_out(i - within, totals)
            passed = self.fleet.step(arrivals[within], t)
            if self._counters is not None:
                self._counters.record(passed)
            self.tally.record(passed)
            for watcher, service in stepwise:
                watcher.after_step(service, passed, t)
            if (i + 1) % self.bucket_steps == 0 or i + 1 == world.steps:
                self.tally.close()
                self.prevailing.append(tuple(_prevailing(s) for s in self.services))

    def _totals(self, start: int) -> Ints:
        """Requests that arrive at the whole service in each step of the epoch that begins here."""
        demand = self.world.demand
        steps = slice(start, start + demand.epoch_steps)
        expected = demand.rate[steps] * demand.dt
        # What was recorded is not to be randomised again, only rounded.
        rounded = np.floor(expected + self._arrivals.random(len(expected)))
        return np.where(demand.recorded[steps], rounded, self._arrivals.poisson(expected)).astype(np.int64)

    def _shared_out(self, start: int, totals: Ints) -> Array:
        """The arrivals of the epoch that began at a step, [step of the epoch, row], shared among the pods that serve
        now: alike for all services whose pods are alike, whoever else takes part."""
        arrivals = np.zeros((len(totals), len(self.fleet.variant)))
        for service in self.services:
            if not service.key:  # who meets no ready pod is turned away
                continue
            shared = self._shared.get(service.key)
            if shared is None:
                # For the whole epoch: drawing costs as much for one step as for all.
                chance = np.random.default_rng([self._seed, start, zlib.crc32(service.key)])
                shared = self._shared[service.key] = chance.multinomial(totals, service.split)
            arrivals[:, service.serving_rows] = shared
        return arrivals


def _prevailing(service: Service) -> str:
    revisions = [p.revision for p in service.deployment.serving]
    option = service.option(max(dict.fromkeys(revisions), key=revisions.count)) if revisions else None
    return option.profile if option else ""
