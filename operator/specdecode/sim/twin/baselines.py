"""The simple ways of looking after a service that the operator is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specdecode.model.cost import Option
from specdecode.sim.twin.fleet import Passed
from specdecode.sim.twin.service import Service
from specdecode.sim.twin.tables import StepTimes
from specdecode.sim.twin.truth import benchmarked_schedule, benchmarked_threshold
from specdecode.vllm.capabilities import capabilities
from specdecode.vllm.version import Version

FLOOR = 0.5
"""Acceptance below which the common advice is to turn speculation off."""
AGAIN = 4 * 3600.0
"""Seconds after which a profile that failed is tried again."""
ENOUGH_DRAFTED = 1000
BENCHMARK_ACCEPTANCE = 0.7
"""Acceptance per token of the usual synthetic benchmark."""


class ThresholdOnly:
    """Looks at nothing but the acceptance rate: a profile below the floor is rolled away, without a canary."""

    def __init__(self, options: Sequence[Option], off: Option, window: float, *, give_up_one: bool) -> None:
        """`options`: those that speculate, in the order in which they are tried; the first runs at the start."""
        self.interval = 60.0
        self._options, self._off, self._window, self._give_up_one = options, off, window, give_up_one
        self._running: Option = options[0] if options else off
        self._failed: dict[str, float] = {}
        self._steps: list[Passed] = []
        self._seen: list[tuple[float, float, float]] = []
        self.rolls = 0

    def after_step(self, service: Service, passed: Passed, t: float) -> None:
        """Takes note of the step, for the next judgement."""
        self._steps.append(passed)

    def act(self, service: Service, t: float) -> None:
        """Judge what runs, once it has run for a window."""
        steps, self._steps = self._steps, []
        if not service.deployment.settled:
            self._seen.clear()
            return
        if self._running is self._off:
            self._go_on(service, t)
            return
        self._seen.append((t, *_drafted_and_accepted(steps, service)))
        if t - self._seen[0][0] < self._window:
            return
        self._seen = [s for s in self._seen if s[0] > t - self._window]
        drafted, accepted = sum(s[1] for s in self._seen), sum(s[2] for s in self._seen)
        if drafted >= ENOUGH_DRAFTED and accepted / drafted < FLOOR:
            self._failed[self._running.profile] = t
            self._go_on(service, t)

    def _go_on(self, service: Service, t: float) -> None:
        """To the first profile that has not failed lately, else off."""
        fresh = (o for o in self._options if t - self._failed.get(o.profile, -AGAIN) >= AGAIN)
        wanted = next(fresh, self._off)
        if wanted is not self._running:
            self._running = wanted
            self.rolls += 1
            self._seen.clear()
            service.change(wanted, give_up_one=self._give_up_one)


def _drafted_and_accepted(steps: Sequence[Passed], service: Service) -> tuple[float, float]:
    """Tokens that the serving pods drafted and accepted in some time steps."""
    if not steps:
        return 0.0, 0.0
    rows = service.serving_rows
    taken = np.stack([p.request_seconds[:, rows] / p.step_seconds[rows] for p in steps])
    drafting = np.stack([p.drafting[:, rows] * p.k[rows] for p in steps])
    accepted = np.stack([p.per_step[:, rows] - 1 for p in steps])
    return float((taken * drafting).sum()), float((taken * accepted).sum())


def scheduled_by_hand(option: Option, times: StepTimes, version: Version) -> Option:
    """The engine's own mechanism, set once from a benchmark: K by batch size, else a threshold, else a fixed K."""
    speculation, able = option.speculation, capabilities(version)
    method = speculation.vllm_method if speculation else None
    if speculation is None or method is None:
        return option
    if able.schedule_method(method):
        return Option(option.profile, benchmarked_schedule(times, speculation, BENCHMARK_ACCEPTANCE))
    if able.disable_by_batch_size(method):
        threshold = benchmarked_threshold(times, speculation, BENCHMARK_ACCEPTANCE)
        return Option(option.profile, replace(speculation, disable_by_batch_size=threshold))
    return option


TIERS: Mapping[int, tuple[int, ...]] = {1: (1, 3, 5, 7), 8: (0, 1, 3), 32: (0, 1), 64: (0,)}
"""Candidate K from a batch size on: the defaults of SGLang's adaptive speculation."""
DOWN_HYSTERESIS = -0.25


class AcceptedLengthTiers:
    """K inside the engine, pod by pod, by the accepted length: SGLang's adaptive speculation.

    Its moving average spans a few dozen engine steps, which is less than a time step here: the mean of the last one.
    """

    interval = float("inf")

    def __init__(self, option: Option, times: StepTimes) -> None:
        k_max = (option.speculation.num_speculative_tokens or 0) if option.speculation else 0
        held = [np.full(times.max_num_seqs + 1, k, dtype=np.int64) for k in range(k_max + 1)]
        self._variants = np.array([times.variant_of(option.profile, ks, scheduled=True) for ks in held])
        self._from = np.array(sorted(TIERS))
        moves = [
            [_moves(sorted({min(c, k_max) for c in TIERS[b]}), k) for k in range(k_max + 1)] for b in sorted(TIERS)
        ]
        # [tier, K]: where to, and from which accepted length on (up) or up to which (down).
        self._up, self._up_from, self._down, self._down_to = np.array(moves, dtype=np.float64).transpose(2, 0, 1)

    def act(self, service: Service, t: float) -> None:
        """Everything happens in the engine."""

    def after_step(self, service: Service, passed: Passed, t: float) -> None:
        """Move each pod's K by at most one tier."""
        rows = service.serving_rows
        seconds, k = passed.request_seconds[:, rows], passed.k[rows]
        accepted = (seconds * passed.per_step[:, rows]).sum(axis=0) / np.maximum(seconds.sum(axis=0), 1e-12) - 1
        tier = np.maximum(np.searchsorted(self._from, service.fleet.running[:, rows].sum(axis=0), side="right") - 1, 0)
        up, down = accepted > self._up_from[tier, k], accepted <= self._down_to[tier, k]
        wanted = np.where(up, self._up[tier, k], np.where(down, self._down[tier, k], k)).astype(np.int64)
        service.fleet.turn(rows, self._variants[wanted])


def _moves(tier: list[int], k: int) -> tuple[float, float, float, float]:
    """From K within a tier's candidates: the next one and the accepted length above which it is taken, the one before
    and the length down to which it is taken."""
    if k not in tier:
        nearest = min((c for c in tier if c > 0), key=lambda c: abs(c - k), default=0)
        return nearest, -1.0, nearest, -1.0
    i = tier.index(k)
    up = (tier[i + 1], k - 0.5) if i + 1 < len(tier) else (k, np.inf)
    down = (tier[i - 1], tier[i - 1] - 0.5 + DOWN_HYSTERESIS) if i else (k, -np.inf)
    return (*up, *down)


@dataclass(frozen=True)
class Move:
    """A roll that was planned."""

    at: float
    option: Option


class Planned:
    """Follows a plan that was made in advance."""

    interval = 15.0

    def __init__(self, moves: Sequence[Move], *, give_up_one: bool) -> None:
        self._moves, self._give_up_one = list(moves), give_up_one
        self.rolls = 0

    def act(self, service: Service, t: float) -> None:
        """Start the roll whose time has come."""
        while self._moves and self._moves[0].at <= t:
            service.change(self._moves.pop(0).option, give_up_one=self._give_up_one)
            self.rolls += 1
