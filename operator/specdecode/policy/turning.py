"""What would change the operator's mind: the acceptance, the load, or the time from which it would choose otherwise.

The rule itself is asked: `decide` looks at the observation as it would be, with what the cost model predicts for it,
and the value is searched at which its answer turns. So guards, limits and the least gain count as in any decision.
What is supposed is taken to last, or no load could ever be worth a change; how much longer today's load would have to
last is a turning point of its own.

The interval of a turning point is where the answer turns when what is chosen today is so much better or worse than
predicted as the 90 % interval of its gain over the next best allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

import numpy as np

from specdecode.model.cost import CostModel, OfferedLoad, Option, Prediction
from specdecode.model.estimate import Z90, Estimate
from specdecode.policy.decision import PROBES, Decision, Reason
from specdecode.policy.estimating import Evidence, ModelFactory
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from specdecode.policy.outlook import LONGEST, Outlook

LOADS = 20
"""Loads that predictions are made at; between them they are interpolated."""
QUIETEST = 1 / 64
"""The lowest load that is asked about, as a share of the highest."""
HALVINGS = 7
"""Of a stretch in which the answer turns: acceptance is then known to 0.01."""
LOWEST, HIGHEST = 0.02, 0.98
"""Acceptance that is asked about."""


class Quantity(StrEnum):
    """What would have to be different."""

    ACCEPTANCE = "Acceptance"
    """Share of the drafted tokens that is accepted."""
    LOAD = "Load"
    """Output tokens per second that users ask of a pod."""
    DURATION = "Duration"
    """Seconds that loads like today's go on."""


@dataclass(frozen=True)
class TurningPoint:
    """Where the operator would choose something else."""

    profile: str
    """What it would choose beyond."""
    quantity: Quantity
    of: str | None
    """The profile whose acceptance it is."""
    above: bool
    """Whether the quantity must be above `at`, not below."""
    at: Estimate
    now: Estimate
    """What the quantity is taken to be now."""


@dataclass(frozen=True)
class _Case:
    """What the rule is asked about: the predictions at some load and some acceptance."""

    load: OfferedLoad
    options: Mapping[str, Prediction]
    """Of the candidates, by profile."""
    running: Prediction
    """Of what runs."""
    accepted: tuple[str, float] | None = None
    """A profile and the acceptance that it is supposed to have."""


class Latest:
    """A model factory that keeps the model which it made last: the one that the estimates are of."""

    def __init__(self, factory: ModelFactory) -> None:
        self._factory = factory
        self.model: CostModel | None = None

    def __call__(self, e: Evidence) -> CostModel:
        """The model of the evidence."""
        self.model = self._factory(e)
        return self.model


def turning_points(o: Observation, d: Decision, model: CostModel) -> tuple[TurningPoint, ...]:
    """What would change the decision on an observation; `model` is the one that its estimates are of."""
    e = o.estimates
    if d.target is None or o.active is None or e.load is None or e.modelled is None:
        return ()
    if d.reason is Reason.LOAD_TOO_SHORT:
        return _duration(o)
    today = _Case(e.load, e.predictions, e.modelled)
    choice = _choice(o, today)
    found = [*_loads(o, today, choice, model), *_acceptances(o, today, choice, model)]
    # A probe tries today what the rule would choose only beyond its turning point.
    return tuple(p for p in found if p.profile != d.target.profile or d.reason in PROBES)


def _choice(o: Observation, case: _Case) -> str:
    """The profile that the rule would choose if the case lasted."""
    outlooks = {}
    for profile, prediction in case.options.items():
        gain = math.log(case.running.tpot.value / prediction.tpot.value)
        outlooks[profile] = Outlook(LONGEST, gain * LONGEST, gain, 0.0 if gain > 0 else None)
    estimates = replace(
        o.estimates,
        load=case.load,
        predictions=case.options,
        modelled=case.running,
        running=case.running,
        outlooks=outlooks,
    )
    knowledge, active = o.knowledge, o.active
    if case.accepted is not None:
        profile, rate = case.accepted
        if (known := knowledge.get(profile)) is not None and known.acceptance is not None:
            knowledge = {**knowledge, profile: replace(known, acceptance=(rate, rate, rate, rate))}
        if active is not None and active.profile == profile and estimates.acceptance is not None:
            estimates = replace(estimates, acceptance=(rate, rate, rate, rate))
    d = decide(replace(o, estimates=estimates, knowledge=knowledge))
    chosen = active if d.target is None or d.reason in PROBES else d.target
    return chosen.profile if chosen is not None else ""


def _favouring(o: Observation, case: _Case, profile: str, z: float) -> _Case:
    """The case with a profile's TPOT `z` standard deviations of its gain over the next best lower."""
    if not z or profile not in case.options:
        return case
    ours = case.options[profile].tpot
    rival = min((p.tpot for name, p in case.options.items() if name != profile), key=lambda t: t.value, default=ours)
    factor = math.exp(-z * math.hypot(_sd(ours), _sd(rival)))
    options = {**case.options, profile: _scaled(case.options[profile], factor)}
    is_active = o.active is not None and o.active.profile == profile
    return replace(case, options=options, running=_scaled(case.running, factor) if is_active else case.running)


def _sd(e: Estimate) -> float:
    return math.log(e.high / e.low) / (2 * Z90)


def _scaled(p: Prediction, factor: float) -> Prediction:
    return replace(p, tpot=Estimate(p.tpot.value * factor, p.tpot.low * factor, p.tpot.high * factor))


def _turn(path: Sequence[float], turned: Callable[[float, float], bool]) -> Estimate | None:
    """Where on a path of positive values the answer turns, with its interval, which ends where the path does; None:
    nowhere. `turned` is asked for a value and standard deviations, as in `_favouring`."""
    value = _first(path, turned, 0.0)
    if value is None:
        return None
    bounds = [path[-1] if (at := _first(path, turned, z)) is None else at for z in (-Z90, Z90)]
    return Estimate(value, min(value, *bounds), max(value, *bounds))


def _first(path: Sequence[float], turned: Callable[[float, float], bool], z: float) -> float | None:
    """A value just beyond the first turn."""
    if turned(path[0], z):
        return path[0]
    for before, after in pairwise(path):
        if turned(after, z):
            for _ in range(HALVINGS):
                middle = math.sqrt(before * after)
                before, after = (before, middle) if turned(middle, z) else (middle, after)
            return after
    return None


# --- the load -----------------------------------------------------------------------------------------------------


def _loads(o: Observation, today: _Case, choice: str, model: CostModel) -> list[TurningPoint]:
    """The nearest loads below and above today's at which the choice is another."""
    now = today.load.tokens_per_second
    capacities = [p.headroom * now for p in today.options.values() if math.isfinite(p.headroom)]
    highest = max([now, *capacities])
    grid = np.union1d(np.geomspace(min(now / 2, QUIETEST * highest), highest, LOADS), [now])
    case_at = _over_loads(o, today, grid.tolist(), model)

    def chosen(asked: float, z: float) -> str:
        return _choice(o, _favouring(o, case_at(asked), choice, z))

    found = []
    for above in (False, True):
        path = [now, *(grid[grid > now] if above else grid[grid < now][::-1]).tolist()]
        at = _turn(path, lambda asked, z: chosen(asked, z) != choice)
        if at is not None:
            found.append(TurningPoint(chosen(at.value, 0.0), Quantity.LOAD, None, above, at, Estimate(now, now, now)))
    return found


def _over_loads(o: Observation, today: _Case, grid: Sequence[float], model: CostModel) -> Callable[[float], _Case]:
    """The case at any load from the first to the last of the grid, of requests like today's."""
    load, log_grid = today.load, np.log(grid)
    loads = [load.at(asked) for asked in grid]

    def curve(option: Option) -> Callable[[float], Prediction]:
        predictions = [model.predict(option, one) for one in loads]
        columns = np.log(
            [(p.tpot.value, p.tpot.low, p.tpot.high, max(p.batch_size, 1e-9), p.headroom) for p in predictions]
        ).T

        def at(asked: float) -> Prediction:
            value, low, high, batch, headroom = (math.exp(np.interp(math.log(asked), log_grid, c)) for c in columns)
            return Prediction(Estimate(value, low, high), batch, headroom)

        return at

    curves = {c.profile: curve(c) for c in o.estimates.candidates if c.profile in today.options}
    same = next((c for c in o.estimates.candidates if c == o.active), None)
    running = curves[same.profile] if same else curve(o.active) if o.active else None
    assert running is not None, "what does not run has no turning points"
    return lambda asked: _Case(
        replace(load, tokens_per_second=asked), {name: at(asked) for name, at in curves.items()}, running(asked)
    )


# --- the acceptance -----------------------------------------------------------------------------------------------


def _acceptances(o: Observation, today: _Case, choice: str, model: CostModel) -> list[TurningPoint]:
    """For each option that speculates: how well its drafts would have to be accepted to be chosen, or how badly not to
    be chosen any more."""
    found = []
    for option in o.estimates.candidates:
        believed = model.acceptance(option)
        if believed is None or option.profile not in today.options:
            continue
        point = _acceptance(o, today, choice, option, believed, model)
        if point is not None:
            found.append(point)
    return found


def _acceptance(
    o: Observation, today: _Case, choice: str, option: Option, believed: Estimate, model: CostModel
) -> TurningPoint | None:
    profile, above = option.profile, option.profile != choice

    def chosen(rate: float, z: float) -> str:
        prediction = model.predict(option, today.load, rate)
        running = today.running
        if o.active is not None and o.active.profile == profile:
            running = prediction if o.active == option else model.predict(o.active, today.load, rate)
        case = _Case(today.load, {**today.options, profile: prediction}, running, (profile, rate))
        return _choice(o, _favouring(o, case, profile, z))

    path = [min(max(believed.value, LOWEST), HIGHEST), HIGHEST if above else LOWEST]
    at = _turn(path, lambda rate, z: (chosen(rate, z) == profile) is above)
    if at is None:
        return None
    other = profile if above else chosen(at.value, 0.0)
    return TurningPoint(other, Quantity.ACCEPTANCE, profile, above, at, believed)


# --- the time -----------------------------------------------------------------------------------------------------


def _duration(o: Observation) -> tuple[TurningPoint, ...]:
    """How long loads like today's would have to last for the fastest other option to be worth a change."""
    e = o.estimates
    assert e.modelled is not None
    ours = e.modelled.tpot.value
    others = [c for c in e.candidates if c != o.active and c.profile in e.predictions and c.profile in e.outlooks]
    if not others:
        return ()
    best = min(others, key=lambda c: e.predictions[c.profile].tpot.value).profile
    gain, ahead = math.log(ours / e.predictions[best].tpot.value), e.outlooks[best]
    if gain <= 0 or ahead.benefit > 0:
        return ()
    # Each further second saves as much as one does now, and one of those that lose is gone: that is not counted.
    needed = ahead.duration - ahead.benefit / gain
    now = Estimate(ahead.duration, ahead.duration, ahead.duration)
    return (TurningPoint(best, Quantity.DURATION, None, True, Estimate(needed, needed, needed), now),)
