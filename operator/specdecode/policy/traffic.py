"""Is the traffic of one kind? Means hide a part that loses: drafts that fare well pay for others that do not.

Three signs: acceptance in two clusters, a tail of TPOT that is further from the median than without speculation, and a
low tail of acceptance. Nothing is decided by them: the way out, to part the traffic, is for people.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from specdecode.api.v1alpha1 import DISABLED
from specdecode.model.histogram import Quantile
from specdecode.model.knowledge import ENOUGH_FOR_TAIL
from specdecode.model.measure import Measurement, Percentiles
from specdecode.model.window import DraftingPart, drafting_parts, pods_together
from specdecode.policy.guards import of_what_was_meant
from specdecode.policy.observation import Observation, Pod

SMALLEST = 0.2
"""Share of the drafted tokens that both clusters must hold."""
FEWEST_PARTS = 3
"""Parts in each cluster."""
APART = 0.2
"""Acceptance by which the clusters' means must differ."""
CLEAR = 4.0
"""Standard deviations by which they must, too (Ashman's D: AJ 108, 2348). An even spread that is cut in two has 3.5."""
MINGLED = 0.1
"""Share of the pairs of parts in which the low one came first, and in which the high one did, at least: where all of
one kind come after the other the traffic changed, and is not mixed."""
WIDENED = 1.25
"""Factor by which P99 over P50 of TPOT must exceed what it is without speculation."""
EASE = 0.75
"""Part of each threshold at which a sign that was seen is still taken to be there."""
FLOOR_EASE = 0.05
"""Acceptance above the floor up to which a low tail is."""

ADVICE = "split the Deployment, or route requests by kind or temperature, so that each part gets what suits it"


class Sign(StrEnum):
    """Reasons of the condition MixedTraffic."""

    TWO_CLUSTERS = "TwoClusters"
    TAIL_WIDENED = "TailWidened"
    LOW_TAIL = "LowTail"
    HOMOGENEOUS = "Homogeneous"
    NOTHING_DRAFTED = "NothingDrafted"


@dataclass(frozen=True)
class Traffic:
    """What the traffic looks like."""

    mixed: bool | None
    """None: nothing is drafted, so nothing can be said."""
    sign: Sign
    message: str = ""


@dataclass(frozen=True)
class Clusters:
    """Two groups of parts, by acceptance rate."""

    low: float
    high: float
    """Their means."""
    share: float
    """Of the drafted tokens in the lower one."""


def traffic(o: Observation, *, was_mixed: bool) -> Traffic:
    """What the pods of now show. Signs that were there already (`was_mixed`) go at lower thresholds than they come."""
    ease = EASE if was_mixed else 1.0
    if (widened := _side_by_side(o, ease)) is not None:
        return widened
    acceptance, m = o.estimates.acceptance, o.estimates.measured
    if acceptance is None or m is None:
        return Traffic(None, Sign.NOTHING_DRAFTED)
    since = o.now - o.policy.metrics.window
    parts = [part for p in o.running(o.active) for part in drafting_parts(p.window.since(since))]
    if (two := clusters(parts, ease)) is not None:
        return Traffic(
            True,
            Sign.TWO_CLUSTERS,
            f"{two.share:.0%} of the drafted tokens are accepted at {two.low:.2f}, the others at {two.high:.2f}:"
            f" {ADVICE}",
        )
    if (widened := _since_speculation(o, m, ease)) is not None:
        return widened
    rates = [of_what_was_meant(o, o.active, rate) for rate in acceptance] if o.active else acceptance
    (mean, p10, _, p90), floor = rates, o.policy.guards.acceptance.p10_below
    if p10 < floor + (FLOOR_EASE if was_mixed else 0.0) and floor <= mean:
        return Traffic(
            True,
            Sign.LOW_TAIL,
            f"acceptance is {mean:.2f} on average, but {p10:.2f} at the 10th percentile ({p90:.2f} at the 90th):"
            f" {ADVICE}",
        )
    return Traffic(False, Sign.HOMOGENEOUS)


def clusters(parts: Sequence[DraftingPart], ease: float = 1.0) -> Clusters | None:
    """The two clusters that the parts fall into; None where they do not.

    Cut where the variance between both sides is largest (Otsu's method), every part weighing as many tokens as it
    drafted.
    """
    ordered = sorted(parts)
    cuts = range(FEWEST_PARTS, len(ordered) - FEWEST_PARTS + 1)
    if not cuts:
        return None
    weight, first, second = [0.0], [0.0], [0.0]
    for rate, drafted, _ in ordered:
        weight.append(weight[-1] + drafted)
        first.append(first[-1] + drafted * rate)
        second.append(second[-1] + drafted * rate**2)

    def moments(a: int, b: int) -> tuple[float, float, float]:
        w = weight[b] - weight[a]
        mean = (first[b] - first[a]) / w
        return w, mean, max(0.0, (second[b] - second[a]) / w - mean**2)

    def between(cut: int) -> float:
        (w1, m1, _), (w2, m2, _) = moments(0, cut), moments(cut, len(ordered))
        return w1 * w2 * (m2 - m1) ** 2

    cut = max(cuts, key=between)
    (w1, m1, v1), (w2, m2, v2) = moments(0, cut), moments(cut, len(ordered))
    share, apart = w1 / (w1 + w2), m2 - m1
    if not SMALLEST * ease <= share <= 1 - SMALLEST * ease or apart < APART * ease:
        return None
    if apart < CLEAR * math.sqrt((v1 + v2) / 2) or not _mingled(ordered[:cut], ordered[cut:]):
        return None
    return Clusters(m1, m2, share)


def _mingled(low: Sequence[DraftingPart], high: Sequence[DraftingPart]) -> bool:
    """Whether both kinds were there over the same time. Parts that end together count for both orders."""
    times = sorted(part.t for part in high)
    later = sum(len(times) - (bisect_left(times, p.t) + bisect_right(times, p.t)) / 2 for p in low)
    return MINGLED <= later / (len(low) * len(high)) <= 1 - MINGLED


# --- the tail -----------------------------------------------------------------------------------------------------


def _side_by_side(o: Observation, ease: float) -> Traffic | None:
    """The canary of a change shows both sides in the same minutes."""
    seen = [p for p in o.pods if p.ready and p.answered and not p.terminating and p.option is not None]
    with_ = [p for p in seen if p.option is not None and p.option.speculation is not None]
    without = [p for p in seen if p not in with_]
    if not with_ or not without:
        return None
    since = max((p.window.readings[0].t for p in seen if p.window.readings), default=o.now)
    ours, theirs = (_measured(pods, max(since, o.now - o.policy.metrics.window)) for pods in (with_, without))
    if ours is None or theirs is None or ours.tpot is None or theirs.tpot is None:
        return None
    if min(ours.finished, theirs.finished) < ENOUGH_FOR_TAIL:
        return None
    p50, p99 = _at_least(theirs.tpot.p50), _at_most(theirs.tpot.p99)
    return _widened(ours.tpot, p50, p99, ease, "on the pods without")


def _since_speculation(o: Observation, m: Measurement, ease: float) -> Traffic | None:
    """What is known from before, at a load like that of now."""
    known = o.knowledge.get(DISABLED)
    if known is None or m.tpot is None or m.finished < ENOUGH_FOR_TAIL:
        return None
    if not m.generation_tokens_per_second or m.prompt_length is None:
        return None
    before = known.latencies_like(m.generation_tokens_per_second / m.engines, m.prompt_length, o.now)
    if before is None:
        return None
    return _widened(m.tpot, before.tpot_p50, before.tpot_p99, ease, "without at such a load")


def _widened(tpot: Percentiles, p50: float, p99: float, ease: float, where: str) -> Traffic | None:
    """Whether the tail is further from the median with speculation, wherever in their buckets the quantiles are."""
    median, tail = _at_most(tpot.p50), _at_least(tpot.p99)
    if not p50 or not median or not math.isfinite(p99) or tail <= p99:
        return None
    if tail / median < (1 + (WIDENED - 1) * ease) * p99 / p50:
        return None
    return Traffic(
        True,
        Sign.TAIL_WIDENED,
        f"P99 of TPOT is {tail / median:.1f} times P50 with speculation ({tail * 1e3:.0f} and {median * 1e3:.0f} ms),"
        f" {p99 / p50:.1f} times {where} ({p99 * 1e3:.0f} and {p50 * 1e3:.0f} ms): {ADVICE}",
    )


def _measured(pods: Iterable[Pod], since: float) -> Measurement | None:
    return pods_together(p.window.since(since) for p in pods)


def _at_least(q: Quantile) -> float:
    return q.low if q.value is None else q.value


def _at_most(q: Quantile) -> float:
    return q.high if q.value is None else q.value
