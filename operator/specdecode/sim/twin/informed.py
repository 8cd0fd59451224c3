"""Who knows all of the present and nothing of the future: what nobody can beat who has to act on what he has seen.

It asks the tables that the fleet runs by what each option would do at the load of the last minutes, so it needs no
metrics, no model and no canary, and rolls at once to what is best now. What it loses against the oracle is the price of
not knowing what comes; what an operator loses against it is the price of having to find out.
"""

from __future__ import annotations

from collections.abc import Sequence

from specdecode.model.cost import Option
from specdecode.model.loads import DAY
from specdecode.sim.twin.service import Service
from specdecode.sim.twin.truth import Steady, Truth
from specdecode.sim.twin.world import World


class Informed:
    """Changes to what is best at the load of now, under the policy's own minimum gain, cool-down and limit of changes.

    `options`: what it chooses from; the first runs at the start.
    """

    def __init__(self, world: World, options: Sequence[Option]) -> None:
        self.interval = 60.0
        self._world, self._options, self._running = world, options, options[0]
        self._truth = Truth(world.times, world.gains)
        self._changed: list[float] = []

    @property
    def rolls(self) -> int:
        """Changes so far."""
        return len(self._changed)

    def act(self, service: Service, t: float) -> None:
        """Roll, if something else is faster by what the policy asks for, and the pods can do without one meanwhile."""
        policy = self._world.scenario.policy
        today = [at for at in self._changed if at > t - DAY]
        if not service.deployment.settled or len(today) >= policy.rollout.max_changes_per_day:
            return
        if today and t - today[-1] < policy.rollout.cooldown:
            return
        settled = [self._settles(option, service, t) for option in self._options]
        now = settled[self._options.index(self._running)]
        best = min(range(len(settled)), key=lambda i: settled[i].tpot)
        if now.tpot / settled[best].tpot - 1 < policy.objective.minimum_gain:
            return
        pods = len(service.serving_rows)
        if self._world.cramped and not now.saturated:
            without = self._settles(self._running, service, t, pods / max(1, pods - 1))
            if without.saturated:
                return
        self._running = self._options[best]
        self._changed.append(t)
        service.change(self._running, give_up_one=self._world.cramped)

    def _settles(self, option: Option, service: Service, t: float, more: float = 1.0) -> Steady:
        """Where an option settles under `more` times the load of the window; what waits is to be served too."""
        demand, fleet, rows = self._world.demand, service.fleet, service.serving_rows
        policy = self._world.scenario.policy
        window, now = policy.metrics.window, int(t / demand.dt)
        rate, mix = demand.over(now - round(window / demand.dt), now)
        asked = (rate + float(fleet.waiting[rows].sum()) / window) / max(1, len(rows)) * more
        runs = option == self._running and len(rows)
        # What drafts well while its process is fresh must still be worth it when the next change is allowed.
        uptime = t - float(fleet.started[rows].mean()) if runs else policy.rollout.cooldown
        return self._truth.steady(option, mix, t, asked, uptime)
