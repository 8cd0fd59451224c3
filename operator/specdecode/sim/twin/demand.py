"""What users ask for over time: request rates, and the classes that requests fall into."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specdecode.sim.acceptance import Acceptance, AcceptanceTable
from specdecode.sim.twin.measured import lacking, rows_of, trace_of
from specdecode.sim.twin.scenario import Arrivals, Autoscaler, Scenario, ScenarioError
from specdecode.vllm.speculation import Method

Array = NDArray[np.float64]

NODES = ((-math.sqrt(3.0), 1 / 6), (0.0, 2 / 3), (math.sqrt(3.0), 1 / 6))
"""Gauss-Hermite nodes of a standard normal, with their weights: how the requests of a kind differ in acceptance."""

EPOCH = 60.0
"""Seconds over which mix, lengths and temperature are constant."""


@dataclass(frozen=True)
class Mix:
    """What requests are like for a while. Arrays by class: kind of request x node of the spread of acceptance."""

    kinds: tuple[str, ...]
    shares: Array
    """Share of the arriving requests; adds up to 1."""
    prompt: Array
    """Mean prompt tokens."""
    output: Array
    """Mean output tokens."""
    temperature: float


@dataclass(frozen=True)
class Demand:
    """All of a scenario's traffic, in steps of `dt` seconds and epochs of `epoch_steps` steps."""

    dt: float
    rate: Array
    """Requests per second of the whole service, by step."""
    recorded: NDArray[np.bool_]
    """Whether the step's arrivals are a recording's, which is not to be randomised again."""
    epoch_steps: int
    mixes: tuple[Mix, ...]
    """By epoch; the same object while nothing changes."""

    def over(self, start: int, end: int) -> tuple[float, Mix]:
        """Mean requests per second of the steps from `start` up to, but without, `end`, and what they are like."""
        steps = range(max(0, start), max(start + 1, min(end, len(self.rate))))
        rates = self.rate[steps.start : steps.stop]
        mixes = [self.mixes[i // self.epoch_steps] for i in steps]
        if rates.sum() <= 0 or all(mix is mixes[-1] for mix in mixes):
            return float(rates.mean()), mixes[-1]
        weights = rates / rates.sum()
        shares, prompt, output = (
            sum(w * getattr(mix, name) for w, mix in zip(weights, mixes, strict=True))
            for name in ("shares", "prompt", "output")
        )
        return float(rates.mean()), replace(mixes[-1], shares=shares, prompt=prompt, output=output)

    def offered_tokens(self, start: int, end: int) -> float:
        """Output tokens that users ask for in the steps from `start` up to, but without, `end`."""
        steps = range(start, min(end, len(self.rate)))
        per_request = [float(mix.shares @ mix.output) for mix in (self.mixes[i // self.epoch_steps] for i in steps)]
        return float(self.rate[start:end] @ np.array(per_request)) * self.dt

    def replicas(self, scenario: Scenario) -> NDArray[np.int64]:
        """Pods asked for, by step: constant, by the clock, or by an autoscaler that sees the arrivals alone."""
        wanted, steps = scenario.replicas, len(self.rate)
        if isinstance(wanted, int):
            return np.full(steps, wanted, dtype=np.int64)
        if isinstance(wanted, Autoscaler):
            return _autoscaled(wanted, self.rate, self.dt)
        times = np.arange(steps) * self.dt
        plan = sorted(wanted, key=lambda step: step.at)
        counts = np.full(steps, plan[0].count, dtype=np.int64)
        for step in plan:
            counts[times >= step.at] = step.count
        return counts


HPA_SYNC = 15.0
HPA_TOLERANCE = 0.1
HPA_STABILISATION = 300.0
HPA_METRIC = 60.0
"""Kubernetes' defaults: sync period, tolerance and scale-down stabilisation (pkg/controller/podautoscaler); the
metric is a rate over a minute, as adapters commonly give it."""


def _autoscaled(hpa: Autoscaler, rate: Array, dt: float) -> NDArray[np.int64]:
    window, sync = max(1, round(HPA_METRIC / dt)), max(1, round(HPA_SYNC / dt))
    sums = np.concatenate([[0.0], np.cumsum(rate)])
    counts = np.empty(len(rate), dtype=np.int64)
    current = int(np.clip(math.ceil(rate[0] / hpa.requests_per_second_per_pod), hpa.minimum, hpa.maximum))
    advice: list[tuple[int, int]] = []
    for i in range(len(rate)):
        if i % sync == 0 and i:
            metric = (sums[i] - sums[max(0, i - window)]) / min(i, window)
            ratio = metric / current / hpa.requests_per_second_per_pod
            wanted = current if abs(ratio - 1) <= HPA_TOLERANCE else math.ceil(ratio * current)
            wanted = int(np.clip(wanted, hpa.minimum, hpa.maximum))
            advice = [(t, n) for t, n in advice if (i - t) * dt < HPA_STABILISATION] + [(i, wanted)]
            current = max(wanted, min(current, max(n for _, n in advice)))
        counts[i] = current
    return counts


def demand_of(scenario: Scenario, dt: float) -> Demand:
    """The traffic of a scenario. Raises ScenarioError."""
    steps = max(1, round(scenario.duration / dt))
    epoch_steps = max(1, round(EPOCH / dt))
    times = (np.arange(steps, dtype=np.float64) + 0.5) * dt
    rate, recorded = np.zeros(steps), np.zeros(steps, dtype=np.bool_)
    kinds = tuple(dict.fromkeys(kind for piece in scenario.arrivals for kind in piece.kinds))
    pieces = sorted(scenario.arrivals, key=lambda piece: piece.from_)
    ends = [p.to or (n.from_ if n else math.inf) for p, n in zip(pieces, [*pieces[1:], None], strict=True)]
    mixes: list[Mix | None] = [None] * -(-steps // epoch_steps)
    for piece, end in zip(pieces, ends, strict=True):
        inside = (times >= piece.from_) & (times < end)
        if not inside.any():
            continue
        end = min(end, scenario.duration)
        traced = _traced(piece, scenario, times, dt) if piece.trace else None
        rate[inside] = (traced[0] if traced else _rate(piece, times - piece.from_, times))[inside]
        recorded[inside] = traced is not None
        for epoch in sorted({int(i) // epoch_steps for i in np.flatnonzero(inside)}):
            middle = (epoch + 0.5) * epoch_steps * dt
            mix = _mix(piece, kinds, min(1.0, max(0.0, (middle - piece.from_) / (end - piece.from_))))
            if traced is not None:
                mix = _with_lengths(mix, piece, traced[1], epoch * epoch_steps, (epoch + 1) * epoch_steps)
            last = mixes[epoch - 1] if epoch else None
            mixes[epoch] = last if last is not None and _same(last, mix) else mix
    first = next((mix for mix in mixes if mix is not None), None)
    if first is None:
        raise ScenarioError("arrivals: no piece lies within the duration: lengthen duration or move from")
    filled: list[Mix] = []
    for found in mixes:
        filled.append(found or (filled[-1] if filled else first))
    return Demand(dt, rate, recorded, epoch_steps, tuple(filled))


def _rate(piece: Arrivals, since: Array, times: Array) -> Array:
    if piece.requests_per_second is not None:
        rate = np.full(len(times), piece.requests_per_second)
    elif piece.steps is not None:
        plan = sorted(piece.steps, key=lambda step: step.at)
        rate = np.zeros(len(times))
        for step in plan:
            rate[since >= step.at] = step.rate
    else:
        assert piece.diurnal is not None
        d = piece.diurnal
        rate = np.maximum(0.0, d.mean + d.amplitude * np.cos(2 * math.pi * (times - d.peak_at) / d.period))
    return rate * _burst(piece, since)


def _burst(piece: Arrivals, since: Array) -> Array:
    if piece.bursts is None:
        return np.ones(len(since))
    late = np.mod(since, piece.bursts.every) >= piece.bursts.every - piece.bursts.length
    return np.where(late, piece.bursts.factor, 1.0)


def _traced(piece: Arrivals, scenario: Scenario, times: Array, dt: float) -> tuple[Array, Array]:
    """Requests per second by step, and sums of (requests, prompt, output tokens) by step."""
    assert piece.trace is not None
    arrivals = trace_of(piece.trace, scenario.folder)
    bins = max(1, math.ceil((arrivals[-1].at + 1e-9) / dt))
    sums = np.zeros((bins, 3))
    for a in arrivals:
        sums[min(bins - 1, int(a.at / dt))] += (1.0, a.ask.prompt_tokens, a.ask.output_tokens)
    index = np.floor((times - piece.from_) / dt).astype(np.int64)
    inside = (index >= 0) & ((index < bins) | piece.trace.repeat)
    found = np.where(inside[:, None], sums[np.mod(index, bins)], 0.0)
    return found[:, 0] / dt * piece.trace.scale * _burst(piece, times - piece.from_), found


def _with_lengths(mix: Mix, piece: Arrivals, sums: Array, start: int, end: int) -> Mix:
    """The mix with the mean lengths of the requests that a recording has in these steps."""
    count, prompt, output = sums[start:end].sum(axis=0)
    if count == 0:
        count, prompt, output = sums.sum(axis=0)
    if count == 0:
        return mix
    return replace(
        mix,
        prompt=mix.prompt if piece.prompt_tokens else np.full_like(mix.prompt, prompt / count),
        output=mix.output if piece.output_tokens else np.full_like(mix.output, max(2.0, output / count)),
    )


def _mix(piece: Arrivals, kinds: Sequence[str], along: float) -> Mix:
    nodes = np.array([weight for _, weight in NODES])
    shares = np.array([piece.kinds.get(kind, 0.0) for kind in kinds])
    lengths = np.array([piece.lengths(kind) for kind in kinds])
    temperature = piece.temperature.from_ + along * (piece.temperature.to - piece.temperature.from_)
    return Mix(
        kinds=tuple(kinds),
        shares=np.outer(shares, nodes).ravel(),
        prompt=np.repeat(lengths[:, 0], len(NODES)),
        output=np.repeat(np.maximum(lengths[:, 1], 2.0), len(NODES)),
        temperature=round(temperature, 3),
    )


def _same(a: Mix, b: Mix) -> bool:
    return a.temperature == b.temperature and all(
        np.array_equal(x, y) for x, y in ((a.shares, b.shares), (a.prompt, b.prompt), (a.output, b.output))
    )


class Drafts:
    """How the drafts of each profile fare over time: the table, and the scenario's changes to it."""

    def __init__(self, scenario: Scenario, table: AcceptanceTable, methods: Mapping[str, Method]) -> None:
        self._changes, self._table, self._methods = scenario.acceptance.changes, table, methods
        kinds = dict.fromkeys(kind for piece in scenario.arrivals for kind in piece.kinds)
        drafting = {m for m in methods.values() if m is not Method.DISABLED}
        for kind, method in lacking(table, kinds, sorted(drafting)).items():
            raise ScenarioError(
                f"acceptance: nothing is known of {kind!r} requests with {method}; the table has the kinds"
                f" {', '.join(table.kinds)}: use one of those in mix, or give rows under acceptance.kinds"
            )

    def half_life(self, profile: str) -> float | None:
        """Seconds of uptime after which half of a profile's acceptance is left."""
        return next(
            (c.half_life for c in self._changes if c.half_life and self._about(c.profile, c.method, profile)), None
        )

    def at(self, profile: str, kind: str, temperature: float, t: float) -> Acceptance:
        """The acceptance of a typical request, `t` seconds after the start."""
        method, factor = self._methods[profile], 1.0
        acceptance = self._table.at(kind, method, temperature)
        for change in sorted(self._changes, key=lambda c: c.at):
            if change.at > t or not self._about(change.profile, change.method, profile):
                continue
            if change.kind not in (None, kind):
                continue
            if change.rows is not None:
                factor = 1.0
                acceptance = AcceptanceTable({(kind, method): rows_of(change.rows)}).at(kind, method, temperature)
            elif change.factor is not None:
                factor = change.factor
        return replace(acceptance, accept=tuple(min(1.0, p * factor) for p in acceptance.accept))

    def version(self, t: float) -> int:
        """Changes so far: what was computed for one number holds until the next."""
        return sum(c.at <= t for c in self._changes)

    def _about(self, named: str | None, method: Method | None, profile: str) -> bool:
        return named == profile or (named is None and method is self._methods[profile])
