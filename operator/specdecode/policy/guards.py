"""The guards: what rules speculation out whatever it gains on average, and options that would break a promise.

Each gate asks one question and answers only from figures that it has: a series that is missing is no evidence.
"""

from __future__ import annotations

import math

from specdecode.api.quantities import format_duration
from specdecode.api.v1alpha1 import DISABLED, Outcome
from specdecode.model.cost import Option
from specdecode.model.knowledge import DAY, ENOUGH_FOR_TAIL, Latencies
from specdecode.model.measure import Measurement
from specdecode.model.tokens import matched
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.observation import Estimates, Observation
from specdecode.policy.options import describe
from specdecode.policy.past import TRAFFIC_TURNED, was_worse
from specdecode.vllm.capabilities import capabilities

FULL = 0.95
"""Share of the KV cache in use from which requests wait for room or are preempted."""
ROOMY = 0.85
"""Share up to which there is room: what lies between is no reason to change anything."""
PREEMPTED = 0.01
"""Preemptions per finished request that users feel."""
FEW_PREEMPTIONS = 3
NEARLY = 0.9
"""Share of the TTFT limit from which it is nearly broken."""
AT_EASE = 0.7
"""Share from which speculation stays off after it was switched off for TTFT."""
ADDS = 0.1
"""Share by which mean TTFT must be above what it was without speculation to count."""
QUEUEING = 0.5
"""Share of TTFT spent waiting from which it is a matter of capacity, which speculation may add."""
COLLAPSED = 0.5
"""Share of the floor below which drafts that used to be accepted are as good as useless."""
DISPROVED_FOR = 4 * 3600.0
"""Seconds for which a guard is silent after a canary showed that switching off does not help."""


def acceptance_below_floor(o: Observation) -> Decision | None:
    """Low acceptance is net negative: off, unless both sides of the cost were measured here and say otherwise, of what
    runs or of another schedule of it."""
    floor, acceptance, off = o.policy.guards.acceptance.disable_below, o.estimates.acceptance, _off(o)
    if o.active is None or acceptance is None or off is None:
        return None
    rate = of_what_was_meant(o, o.active, acceptance[0])
    if rate >= floor:
        return None
    gain, known = o.estimates.gain(off), o.knowledge.get(DISABLED)
    measured = gain is not None and known is not None and bool(known.step_times)
    outlook = o.estimates.outlooks.get(DISABLED)
    fell = rate < COLLAPSED * floor and _fell(o, o.active.profile)
    if measured and gain is not None:
        # Where drafts fare nearly as ever, what is expected; where the traffic has turned, only what is sure.
        least = _of_another_schedule(o, o.active.profile)
        loses = gain.high < 0 if fell else gain.value < least or (outlook is not None and outlook.benefit <= 0)
        if loses:
            return None
    if _disproved(o, Reason.ACCEPTANCE_BELOW_FLOOR) or was_worse(o, DISABLED):
        return None
    return Decision(
        Reason.ACCEPTANCE_BELOW_FLOOR,
        f"{describe(o.active)} gets {rate:.2f} of its drafted tokens accepted, below the floor of {floor:g}",
        off,
        change=True,
        gain=gain,
        # Where the cost of both is known, it rests after the last change like any other, unless the traffic is another
        # than when the drafts were chosen, or requests pile up.
        urgent=not measured or fell or o.estimates.relieved_by(off),
    )


def _of_another_schedule(o: Observation, profile: str) -> float:
    """What another schedule of the active profile is expected to gain; 0 where there is none that could carry the load
    and is worth a change."""
    other = o.estimates.candidate(profile)
    gain = o.estimates.gain(other) if other is not None else None
    if gain is None or gain.value < o.policy.objective.minimum_gain or o.estimates.predictions[profile].saturated:
        return 0.0
    return gain.value


def _fell(o: Observation, profile: str) -> bool:
    """Whether fewer drafts are accepted than was usual."""
    known = o.knowledge.get(profile)
    drafts = known.drafts if known else None
    return drafts is not None and drafts.usual is not None and drafts.usual - drafts.extra > TRAFFIC_TURNED


def kv_squeezed(o: Observation) -> Decision | None:
    """The KV cache is full because of the draft: requests are preempted, or about to be."""
    m, off = o.estimates.measured, _off(o)
    if o.active is None or m is None or off is None or _disproved(o, Reason.KV_SQUEEZED):
        return None
    usage, often = _kv_usage(o), _preempted(m)
    full = usage is not None and usage >= FULL
    if not full and not often:
        return None
    cause = _room_without(o, m, usage) or (_new_preemptions(o, m) if often else None)
    if cause is None:
        return None
    seen = [f"{usage:.0%} of the KV cache is in use"] if usage is not None else []
    if often:
        seen.append(f"{m.preemptions:.0f} requests were preempted in {format_duration(round(m.seconds))}")
    return Decision(
        Reason.KV_SQUEEZED,
        f"{' and '.join(seen)} with {describe(o.active)}; {cause}",
        off,
        change=True,
        gain=o.estimates.gain(off),
        urgent=True,
    )


def ttft_bound(o: Observation) -> Decision | None:
    """Users wait for the first token, not for the next: speculation does not help with that, and may add to it."""
    slo, m = o.policy.objective.slo, o.estimates.measured
    limit, tpot_limit = slo.time_to_first_token, slo.time_per_output_token
    if o.active is None or limit is None or m is None or m.ttft is None or m.finished < ENOUGH_FOR_TAIL:
        return None
    speculates = o.active.speculation is not None
    near = AT_EASE if not speculates and _switched_off(o, Reason.TTFT_BOUND) else NEARLY
    if m.ttft.p99.exceeds(near * limit.p99) is not True or not _short_of_time_not_capacity(o.estimates, m):
        return None
    if tpot_limit is not None and (m.tpot is None or m.tpot.p99.exceeds(tpot_limit.p99) is not False):
        return None
    kept = "and TPOT keeps its limit" if tpot_limit else "and there is none of TPOT"
    text = f"P99 TTFT is {_ms(m.ttft.p99.value or m.ttft.p99.low)}, its limit {_ms(limit.p99)}, {kept}"
    if not speculates:
        return Decision(Reason.TTFT_BOUND, f"{text}: speculation shortens TPOT only, so it stays off", o.active)
    off, without = _off(o), _without(o, m)
    if off is None or without is None or m.ttft_seconds is None or _disproved(o, Reason.TTFT_BOUND):
        return None
    if m.ttft_seconds < without.ttft * (1 + ADDS):
        return None
    return Decision(
        Reason.TTFT_BOUND,
        f"{text}; on average it is {_ms(m.ttft_seconds)} with {describe(o.active)} and was {_ms(without.ttft)} without"
        " speculation at such a load",
        off,
        change=True,
        required_gain=o.policy.objective.minimum_gain,
    )


def of_what_was_meant(o: Observation, option: Option, rate: float) -> float:
    """An acceptance rate as the floors mean it: without the misses that n-gram pads on Model Runner V2."""
    known = o.knowledge.get(option.profile)
    if option.speculation is None or known is None or o.menu is None or not capabilities(o.menu.version).ngram_may_pad:
        return rate
    share = matched(option.speculation.method, known.drafts)
    return min(1.0, rate / share) if share > 0 else rate


# --- options that would break a promise ---------------------------------------------------------------------------


def breaks_tpot_limit(o: Observation, option: Option) -> str | None:
    """Why an option is not chosen: it is expected to break the limit of TPOT, while another option would keep it."""
    limit, e, now = o.policy.objective.slo.time_per_output_token, o.estimates, _p99_tpot(o.estimates.measured)
    if limit is None or now is None or (gain := e.gain(option)) is None:
        return None
    # The tail is taken to move with the mean; the canary measures it.
    p99 = now / (1 + gain.value)
    if p99 <= limit.p99:
        return None
    able = (c for c in e.candidates if c.profile in e.predictions and not e.predictions[c.profile].saturated)
    possible = min([now, *(now / (1 + g.value) for c in able if (g := e.gain(c)) is not None)])
    if possible > limit.p99:
        return None
    return f"its P99 TPOT would be about {_ms(p99)}, above the limit of {_ms(limit.p99)}"


def fills_kv_cache(o: Observation, option: Option) -> str | None:
    """Why an option is not chosen: what the requests hold now would not fit into its KV cache with room to spare."""
    m, known = o.estimates.measured, o.knowledge.get(option.profile)
    if option.speculation is None or m is None or known is None or not known.kv_cache_tokens or not m.kv_cache_tokens:
        return None
    smaller = m.kv_cache_tokens / m.engines / known.kv_cache_tokens
    if smaller <= 1 or (usage := _kv_usage(o)) is None or usage * smaller <= max(usage, ROOMY):
        return None
    return f"its KV cache is smaller, and would be {usage * smaller:.0%} full"


# --- what is seen -------------------------------------------------------------------------------------------------


def _off(o: Observation) -> Option | None:
    """To switch speculation off; None where it is off already, or that cannot be."""
    if o.active is None or o.active.speculation is None:
        return None
    return o.estimates.candidate(DISABLED)


def _without(o: Observation, m: Measurement) -> Latencies | None:
    """What users got without speculation at a load like that of now."""
    known = o.knowledge.get(DISABLED)
    if known is None or not m.generation_tokens_per_second or m.prompt_length is None:
        return None
    return known.latencies_like(m.generation_tokens_per_second / m.engines, m.prompt_length, o.now)


def _kv_usage(o: Observation) -> float | None:
    """Mean share of the KV cache in use: a gauge, so every reading of the window counts."""
    since = o.now - o.policy.metrics.window
    readings = [r for p in o.running(o.active) for r in p.window.since(since).readings]
    shares = [e.kv_usage for r in readings for e in r.page.engines if e.kv_usage is not None]
    return math.fsum(shares) / len(shares) if shares else None


def _preempted(m: Measurement) -> bool:
    if m.preemptions is None or m.preemptions < FEW_PREEMPTIONS:
        return False
    return m.preemptions / max(m.finished, 1.0) >= PREEMPTED


def _room_without(o: Observation, m: Measurement, usage: float | None) -> str | None:
    """Whether what the requests hold would fit into the KV cache that there is without the draft."""
    known = o.knowledge.get(DISABLED)
    if known is None or not known.kv_cache_tokens or not m.kv_cache_tokens or usage is None:
        return None
    here = m.kv_cache_tokens / m.engines
    would = usage * here / known.kv_cache_tokens
    if would > min(ROOMY, usage / (1 + ADDS)):
        return None
    return f"without speculation the cache has {known.kv_cache_tokens / here:.1f} times the room, {would:.0%} in use"


def _new_preemptions(o: Observation, m: Measurement) -> str | None:
    """Whether there were fewer preemptions without speculation at a load like that of now."""
    without = _without(o, m)
    if without is None or (m.preemptions or 0.0) / max(m.finished, 1.0) < 2 * without.preemptions:
        return None
    return f"without speculation it was {without.preemptions:.1%} of the requests at such a load"


def _short_of_time_not_capacity(e: Estimates, m: Measurement) -> bool:
    """Whether TTFT is the time of the prompt, not of the queue before it."""
    if e.running is None or e.running.saturated or m.queue_seconds is None or not m.ttft_seconds:
        return False
    return m.queue_seconds < QUEUEING * m.ttft_seconds


def _p99_tpot(m: Measurement | None) -> float | None:
    """Seconds; the lower end in the last bucket, None where the buckets do not tell."""
    if m is None or m.tpot is None or m.finished < ENOUGH_FOR_TAIL:
        return None
    p99 = m.tpot.p99
    return p99.low if math.isinf(p99.high) else p99.value


def _disproved(o: Observation, reason: Reason) -> bool:
    """Whether a canary has just shown that this guard is wrong here."""
    last = next((h for h in o.history if h.reason == reason), None)
    return last is not None and last.outcome is Outcome.FAILED and o.now - seconds_of(last.finished_at) < DISPROVED_FOR


def _switched_off(o: Observation, reason: Reason) -> bool:
    """Whether speculation was last switched off by this guard, within a day."""
    last = o.last_success
    return last is not None and last.reason == reason and o.now - seconds_of(last.finished_at) < DAY


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
