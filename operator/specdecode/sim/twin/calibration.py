"""Whether the operator's predictions hold: its 90 % intervals against what is really so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specdecode.sim.twin.agents import START, Change, Look
from specdecode.sim.twin.truth import Truth
from specdecode.sim.twin.world import World

EVERY = 600.0
"""Seconds between two looks at the predictions: they change slowly."""

PART = 30.0
"""Seconds of the window that are taken as steady, at most: a batch follows its load within seconds."""
LIFETIMES = 10.0
"""The same in lifetimes of a request: where requests are short, so are the bursts that they feel."""


@dataclass(frozen=True)
class Checked:
    """One prediction beside the truth. TPOT in seconds."""

    t: float
    profile: str
    predicted: float
    low: float
    high: float
    truth: float

    @property
    def covered(self) -> bool:
        """Whether the 90 % interval has the truth in it."""
        return self.low <= self.truth <= self.high


class Calibration:
    """Watches the operator."""

    def __init__(self, world: World) -> None:
        self._world, self._truth = world, Truth(world.times, world.gains)
        self._last = -EVERY
        self.checked: list[Checked] = []

    def watch(self, look: Look) -> None:
        """Check what a tick predicts, from time to time."""
        o = look.observation
        if look.t - self._last < EVERY or not o.estimates.predictions:
            return
        self._last = look.t
        demand, pods = self._world.demand, [p for p in o.pods if p.ready]
        if not pods:
            return
        # The operator speaks of its window: of the traffic that came, with its ups and downs.
        m = o.estimates.measured
        life = (m.tpot_seconds or 0.0) * (m.output_length or 0.0) if m is not None else 0.0
        steady = min(PART, LIFETIMES * life) if life else PART
        now, part = int(look.t / demand.dt), max(1, round(steady / demand.dt))
        start = max(0, now - round(o.policy.metrics.window / demand.dt))
        traffic = [demand.over(i, min(i + part, now)) for i in range(start, now, part)]
        # What waits is to be served besides what comes: whatever runs, it has full batches for as long.
        queue = ((m.waiting or 0.0) if m is not None else 0.0) / o.policy.metrics.window
        traffic = [((rate + queue) / len(pods), mix) for rate, mix in traffic if rate > 0]
        if not traffic:
            return
        for option in o.estimates.candidates:
            prediction = o.estimates.predictions.get(option.profile)
            if prediction is None:
                continue
            running = [START + look.t - p.ready_since for p in pods if p.option == option and p.ready_since]
            uptime = sum(running) / len(running) if running else 0.0
            truth = self._truth.over(option, traffic, look.t, uptime)
            if truth is None:
                continue
            tpot = prediction.tpot
            self.checked.append(Checked(look.t, option.profile, tpot.value, tpot.low, tpot.high, truth))


def canaries_covered(changes: Sequence[Change]) -> tuple[int, int]:
    """Canaries that measured a gain after one had been predicted, and those whose two 90 % intervals meet."""
    both = [(c.predicted, c.entry.gain) for c in changes if c.predicted is not None and c.entry.gain is not None]
    return len(both), sum(p.low <= g.high and g.low <= p.high for p, g in both)
