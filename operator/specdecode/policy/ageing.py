"""Drafts that get worse the longer their pod has served, which a restart restores (vLLM issues 11188 and 41838).

What pods of each age get is kept in `Knowledge.ageing`. Traffic changes too, and all pods fall with it: where fresh and
old pods served in the same minutes, only their difference counts. Where they never did, the canary of a restart is the
first fresh pod beside old ones, and proves the guess or ends it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace

from specdecode.api.quantities import format_duration
from specdecode.api.v1alpha1 import Outcome
from specdecode.model.estimate import Z90, Estimate, percent
from specdecode.model.knowledge import AGES, DAY, Ageing, Knowledge, RunningMean
from specdecode.model.measure import Measurement
from specdecode.model.window import ENOUGH_DRAFTED
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.observation import Freshness, Observation, Pod
from specdecode.policy.options import describe, same, unmarked
from specdecode.vllm.unmanageable import Unmanageable

OLD = 3
"""The first of the bins between `AGES` whose pods are old: more than 2 hours of service."""
MEMORY = 2 * 86_400.0
"""Seconds after which what pods of an age got says nothing any more."""
ENOUGH_ROUNDS = 4
STANDARD_ERRORS = 3.0
"""By which fresh and old pods must differ."""
CORRELATED = 3.0
"""Rounds that are worth one: neighbours share their traffic."""
SYSTEMATIC = 0.005
"""Standard error of a log accepted length that no number of rounds takes away."""
REST_IN_VAIN = 6 * 3600.0
"""Seconds after a restart that restored nothing in which there is no other; doubled with each in a row."""
MAX_BACKOFF = 16
"""Factor that the doubling ends at."""


def served(pod: Pod, now: float, slowest_start: float) -> float | None:
    """Seconds that a pod has served; None where that is not known."""
    if pod.ready_since is None:
        return None
    since, readings = pod.ready_since, pod.window.readings
    started = readings[-1].page.process_start if readings else None
    if started is not None and since - started > slowest_start:
        # It was out of service for a moment, and is no younger for it.
        since = started
    return max(0.0, now - since)


def aged(known: Knowledge, shown: Iterable[tuple[float, Measurement]], now: float) -> Knowledge:
    """Adds a round: what pods that have served for so many seconds got while they drafted at the profile's full K."""
    drafted: dict[int, tuple[float, float]] = {}
    for seconds, m in shown:
        if m.accepted_length is None or not m.drafts or (m.draft_tokens or 0.0) < ENOUGH_DRAFTED:
            continue
        tokens, drafts = drafted.get(place := bisect_right(AGES, seconds), (0.0, 0.0))
        drafted[place] = tokens + m.accepted_length * m.drafts, drafts + m.drafts
    if not drafted:
        return known
    before = known.ageing or Ageing()
    by_age = tuple(
        _add(mean, [drafted[place]] if place in drafted else [], now) for place, mean in enumerate(before.by_age)
    )
    paired, old = before.paired, [sums for place, sums in drafted.items() if place >= OLD]
    if 0 in drafted and old:
        paired = RunningMean.add(_recent(paired, now), _log_length([drafted[0]]) - _log_length(old), now)
    return replace(known, ageing=Ageing(by_age, paired))


def _add(mean: RunningMean | None, sums: list[tuple[float, float]], now: float) -> RunningMean | None:
    return RunningMean.add(_recent(mean, now), _log_length(sums), now) if sums else mean


def _log_length(sums: list[tuple[float, float]]) -> float:
    return math.log(math.fsum(tokens for tokens, _ in sums) / math.fsum(drafts for _, drafts in sums))


def _recent(mean: RunningMean | None, now: float) -> RunningMean | None:
    return mean if mean is not None and now - mean.measured_at <= MEMORY else None


def freshness(o: Observation, known: Knowledge | None, restart: float) -> Freshness | None:
    """What fresh pods would be better at than those that run; None where nothing significant is known.

    `restart`: seconds of service that the restart of a pod costs.
    """
    if known is None or known.ageing is None:
        return None
    slowest = o.policy.rollout.progress_deadline
    ages = sorted(a for p in o.running(o.active) if (a := served(p, o.now, slowest)) is not None)
    place = bisect_right(AGES, ages[(len(ages) - 1) // 2]) if ages else 0
    if place < OLD:
        return None
    by_age = [_recent(mean, o.now) for mean in known.ageing.by_age]
    fresh, old = by_age[0], by_age[place]
    if fresh is None or old is None or min(fresh.rounds, old.rounds) < ENOUGH_ROUNDS:
        return None
    paired = _recent(known.ageing.paired, o.now)
    difference, error = fresh.mean - old.mean, _error(fresh, old)
    if paired is not None and paired.rounds >= ENOUGH_ROUNDS:
        difference, error = paired.mean, _error(paired)
    if difference <= STANDARD_ERRORS * error:
        return None
    match, length = known.drafts.match if known.drafts else 1.0, math.exp(old.mean)

    def gain(log_ratio: float) -> float:
        return (1 + match * (length * math.exp(log_ratio) - 1)) / (1 + match * (length - 1)) - 1

    lasts = _half_life(by_age, old.mean + difference / 2)
    expected = Estimate(*(gain(difference + z * error) for z in (0.0, -Z90, Z90)))
    # It decays as it did: exponentially, as good as any shape with this half-life.
    saved = math.log1p(expected.value) * lasts / math.log(2)
    return Freshness(expected, (length * math.exp(difference), length), lasts, saved - restart)


def _half_life(by_age: Sequence[RunningMean | None], middle: float) -> float:
    """Seconds of service after which the mean falls below the middle: between the last age at which it is above and
    the first at which it is not."""
    seen = [(place, mean.mean > middle) for place, mean in enumerate(by_age) if mean and place]
    low = next((place for place, above in seen if not above), OLD)
    high = max((place for place, above in seen if above and place < low), default=0)
    return math.sqrt(AGES[high] * AGES[low - 1])


def _error(*means: RunningMean) -> float:
    """Standard error of a difference."""
    return math.sqrt(SYSTEMATIC**2 + math.fsum(CORRELATED * m.variance / m.rounds for m in means))


# --- the gate and its brake ---------------------------------------------------------------------------------------


def restart_restores(o: Observation) -> Decision | None:
    """The pods have served for long, and fresh ones are better by enough for long enough."""
    found, active, least = o.estimates.restart, o.active, o.policy.objective.minimum_gain
    if found is None or active is None or o.menu is None or o.workload is None:
        return None
    rendered = o.menu.render(active)
    if isinstance(rendered, Unmanageable) or not same(rendered, unmarked(o.workload.container)):
        # A profile that was edited since: a restart would bring its new arguments along.
        return None
    if found.gain.value < least or found.benefit <= 0:
        return None
    fresh, old = found.accepted_length
    return Decision(
        Reason.RESTART_RESTORES,
        f"{describe(active)} gets {old:.2f} tokens per draft step on pods that have served for more than"
        f" {format_duration(AGES[OLD - 1])}, {fresh:.2f} on fresh ones: a restart is expected to make tokens come"
        f" {percent(found.gain)} faster, and half of that to last for {format_duration(found.lasts)}",
        active,
        change=True,
        restart=True,
        gain=found.gain,
        required_gain=least,
    )


def restarts_are_rationed(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """Rest after a restart that was not proven to help, longer after several in a row; and leave other changes room."""
    restarts = [h for h in o.history if h.reason == Reason.RESTART_RESTORES]
    if not d.restart or not restarts:
        return None
    vain = next((i for i, h in enumerate(restarts) if h.outcome is Outcome.SUCCESSFUL), len(restarts))
    rest = REST_IN_VAIN * min(2 ** (vain - 1), MAX_BACKOFF) if vain else 0.0
    if (left := seconds_of(restarts[0].finished_at) + rest - o.now) > 0:
        return Reason.COOLING_DOWN, f"the last restart was not seen to help: none for {format_duration(round(left))}"
    limit = max(1, o.policy.rollout.max_changes_per_day // 2)
    today = [h for h in restarts if seconds_of(h.started_at) > o.now - DAY]
    if len(today) < limit:
        return None
    return (
        Reason.CHANGES_EXHAUSTED,
        f"{len(today)} restarts in 24 hours; they take half of spec.rollout.maxChangesPerDay",
    )
