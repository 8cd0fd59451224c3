"""What is known about each option on this workload: the evidence that the cost model is fitted to.

Small and bounded, because it outlives the process: how drafts fare, and step times binned by what a step worked on, so
that an old busy hour is not forgotten when the night is quiet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt, Le, Len, Lt

from specdecode.model.measure import Measurement
from specdecode.model.service import HalfHour

MAX_STEP_TIMES = 28
"""Bins of step times kept per option; the oldest go."""

ENOUGH_REQUEST_STEPS = 50
"""Inter-token latencies that a mean step time is taken from."""

NEWER = 0.2
"""Weight of a new step time in its bin."""

BINS_PER_OCTAVE = 3
"""Bins of batch size."""

FEW_PROMPT_TOKENS = 32.0
"""Prompt tokens in a step that are hardly felt."""

SHRINKAGE = 20.0
"""Drafts that the guess for a position is worth: its chance so far, or that of the position before."""

MAX_RESIDUALS = 8
"""Loads at which it is kept how far the model was off; the oldest go."""

MOST_RESIDUAL = 2.0
"""By how much the model may be off, as a log; more is no residual but a mistake."""

MAX_LATENCIES = 6
"""Loads at which latencies without speculation are kept; the oldest go."""

ENOUGH_FOR_TAIL = 100
"""Finished requests that a 99th percentile is taken from."""

ALIKE = 1.5
"""Factor within which two loads, or two mean lengths of prompts, are alike."""

DAY = 86_400.0

LEAST_EXTRA = 0.01
"""Smallest E - 1 that is told from none."""

AGES = (1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0)
"""Seconds of service that part young pods from older ones. Up to the first they are fresh, from the third on old."""

ROUNDS = 30.0
"""Rounds that a running mean remembers."""


Positive = Annotated[float, Gt(1e-9), Lt(1e9)]
NotNegative = Annotated[float, Ge(0), Lt(1e9)]
Share = Annotated[float, Ge(0), Le(1)]
UnixSeconds = Annotated[float, Ge(0), Lt(1e11)]


@dataclass(frozen=True)
class StepTime:
    """A measured engine step."""

    batch_size: Positive
    """Requests in the step."""
    tokens: Positive
    """Tokens that the target model worked on in the step: requests and their drafts, B(1 + drafted per request)."""
    seconds: Positive
    prompt_tokens: NotNegative = 0.0
    """Prompt tokens computed per step, on average."""
    prompt_length: NotNegative = 0.0
    """Mean prompt tokens of a request; 0: not known."""
    context: NotNegative = 0.0
    """Tokens of context per request."""
    k: Annotated[int, Ge(0), Le(1000)] = 0
    """K in force: 0 without speculation, and where a schedule holds it there."""
    measured_at: UnixSeconds = 0.0
    """Unix seconds."""
    variance: NotNegative = 0.0
    """Of log `seconds` around what steps like this one take: where bursts are shorter than a reading, its means say
    little about any step."""

    @property
    def drafted(self) -> bool:
        """Whether drafts were made."""
        return self.k > 0


@dataclass(frozen=True)
class Drafts:
    """How the drafts of an option fare."""

    match: Share
    """Share of a request's steps that draft at all: 1 but for n-gram on Model Runner V1."""
    chances: Annotated[tuple[Share, ...], Len(1, 1000)]
    """Chance that a draft's position is accepted when all before it were."""
    measured_at: UnixSeconds
    count: NotNegative
    """Drafts that this was measured from."""
    usual: float | None = None
    """Mean of log(E - 1) over the time that this was measured in; None: not known."""
    usual_variance: NotNegative = 0.0
    """Its variance."""
    usual_seconds: NotNegative = 0.0
    """For how long that was, two days at most."""
    beside: tuple[str, float] | None = None
    """Another profile that ran when this was measured, and its log(E - 1): where that has changed since, the traffic
    has, and this is worth less."""

    @property
    def extra(self) -> float:
        """log(E - 1) with every position that was ever drafted."""
        return math.log(max(self.match * self.accepted(len(self.chances)), LEAST_EXTRA))

    def accepted(self, k: int) -> float:
        """Mean tokens accepted per draft of `k` tokens: a1 + a1 a2 + …; deeper positions are like the last known."""
        total, reach = 0.0, 1.0
        for i in range(k):
            reach *= self.chances[min(i, len(self.chances) - 1)]
            total += reach
        return total


@dataclass(frozen=True)
class Latencies:
    """What users got without speculation at one load: what speculation is held against."""

    tokens_per_second: float
    """Output tokens per second and engine."""
    prompt_length: float
    """Mean tokens."""
    tpot_p50: float
    """Seconds per token; the lower end where the bucket has no other."""
    tpot_p99: float
    """Seconds per token; the upper end where the bucket has no other."""
    ttft: float
    """Mean seconds."""
    preemptions: float
    """Per finished request."""
    measured_at: float
    """Unix seconds."""


@dataclass(frozen=True)
class Residual:
    """How far the model of the steps was off at one load."""

    tokens_per_second: Positive
    """Output tokens per second and pod."""
    log_ratio: Annotated[float, Ge(-MOST_RESIDUAL), Le(MOST_RESIDUAL)]
    """log(measured TPOT / modelled TPOT)."""
    measured_at: UnixSeconds
    """Unix seconds."""
    variance: NotNegative = 0.0
    """Of what single windows show, around it."""


@dataclass(frozen=True)
class RunningMean:
    """Mean and variance of a figure over the last `ROUNDS` rounds."""

    mean: float
    variance: float
    rounds: float
    measured_at: float
    """Unix seconds of the last one."""

    @classmethod
    def add(cls, old: RunningMean | None, value: float, now: float) -> RunningMean:
        """The mean with one round more."""
        if old is None:
            return cls(value, 0.0, 1.0, now)
        rounds = min(old.rounds + 1, ROUNDS)
        step = (value - old.mean) / rounds
        variance = (1 - 1 / rounds) * (old.variance + step * (value - old.mean))
        return cls(old.mean + step, variance, rounds, now)


@dataclass(frozen=True)
class Ageing:
    """How drafts fare by how long their pod has served. Logs of accepted lengths at the profile's full K."""

    by_age: tuple[RunningMean | None, ...] = (None,) * (len(AGES) + 1)
    """Between the `AGES`."""
    paired: RunningMean | None = None
    """Fresh pods less old ones in the same minutes."""


@dataclass(frozen=True)
class Knowledge:
    """What is known about one option."""

    measured_at: float | None = None
    """Unix seconds of the last measurement; None: never."""
    learnt_at: float = 0.0
    """Unix seconds up to which the pods' steps were learnt from."""
    acceptance: tuple[float, float, float, float] | None = None
    """Acceptance rate when last measured: mean, P10, P50, P90."""
    accepted_length: float | None = None
    drafts: Drafts | None = None
    tokens_per_step: float = 1.0
    """E when last measured: tokens that a request gets per step, every step counted."""
    tpot_seconds: float | None = None
    prompt_length: float | None = None
    """Mean tokens of a prompt when last measured: by it traffic of another kind is told while nothing is drafted."""
    step_times: tuple[StepTime, ...] = ()
    kv_cache_tokens: float | None = None
    """Size of an engine's KV cache when last measured: a draft model takes its memory from there."""
    latencies: tuple[Latencies, ...] = ()
    """Of an option without speculation, one per half octave of load."""
    ageing: Ageing | None = None
    residuals: tuple[Residual, ...] = ()
    """One per half octave of load."""
    service: tuple[HalfHour, ...] = ()
    """What users got while all pods ran it."""

    def with_residual(self, new: Residual) -> Knowledge:
        """Adds how far the model is seen to be off."""
        old = next((r for r in self.residuals if _place(r.tokens_per_second) == _place(new.tokens_per_second)), None)
        if old is not None:
            # What was seen a while ago says little about the bursts of now.
            weight = max(NEWER, min(1.0, (new.measured_at - old.measured_at) / DAY))
            off = new.log_ratio - old.log_ratio
            variance = (1 - weight) * (old.variance + weight * off**2)
            new = replace(new, log_ratio=old.log_ratio + weight * off, variance=variance)
        kept = sorted((r for r in self.residuals if r is not old), key=lambda r: r.measured_at)[-(MAX_RESIDUALS - 1) :]
        return replace(self, residuals=(*kept, new))

    def latencies_like(self, tokens_per_second: float, prompt_length: float, now: float) -> Latencies | None:
        """What was measured within a day at a load like this (`Latencies` for the units)."""

        def off(known: Latencies) -> float:
            return abs(math.log(known.tokens_per_second / tokens_per_second))

        def alike(known: Latencies) -> bool:
            lengths = abs(math.log(max(known.prompt_length, 1.0) / max(prompt_length, 1.0)))
            return max(off(known), lengths) <= math.log(ALIKE) and now - known.measured_at <= DAY

        return min(filter(alike, self.latencies), key=off, default=None)

    @property
    def acceptance_rate(self) -> float | None:
        """Mean acceptance rate when last measured."""
        return self.acceptance[0] if self.acceptance else None


NEARLY = 0.015
"""Shift of a logarithm, of a step time or of E - 1, that the cost model could hardly tell from none."""
NEARLY_AS_FAR_OFF = 0.05
"""The same of how far the model was off, and of how sure a step time is."""
NEARLY_AS_LONG = 0.05
"""The same of the length of prompts, by which traffic of another kind is told."""


def nearly_same(a: Knowledge, b: Knowledge) -> bool:
    """Whether the cost model could hardly tell what is known in one from what is known in the other."""
    if len(a.step_times) != len(b.step_times) or len(a.residuals) != len(b.residuals):
        return False
    if abs(math.log((a.prompt_length or 1.0) / (b.prompt_length or 1.0))) > NEARLY_AS_LONG:
        return False
    if any(not _nearly_same(old, new) for old, new in zip(a.step_times, b.step_times, strict=True)):
        return False
    residuals = zip(*(sorted(k.residuals, key=lambda r: r.tokens_per_second) for k in (a, b)), strict=True)
    if any(abs(old.log_ratio - new.log_ratio) > NEARLY_AS_FAR_OFF for old, new in residuals):
        return False
    if a.drafts is None or b.drafts is None:
        return a.drafts is b.drafts
    return abs(a.drafts.extra - b.drafts.extra) < NEARLY and abs(a.drafts.match - b.drafts.match) < NEARLY


def _nearly_same(old: StepTime, new: StepTime) -> bool:
    surer = math.sqrt(old.variance) - math.sqrt(new.variance)
    return old.k == new.k and _shift(old, new) <= NEARLY and abs(surer) <= NEARLY_AS_FAR_OFF


def _shift(old: StepTime, new: StepTime) -> float:
    """By how much the logarithm of a step's time has moved beyond what its work may explain: steps take longer for more
    work, and at most in proportion to it."""
    if old is new:
        return 0.0
    work = math.log((new.tokens + new.prompt_tokens) / (old.tokens + old.prompt_tokens))
    moved = math.log(new.seconds / old.seconds)
    return abs(moved - min(max(moved, min(work, 0.0)), max(work, 0.0)))


def learn(
    known: Knowledge | None,
    measured: Measurement | None,
    acceptance: tuple[float, float, float, float] | None,
    k: int | None,
    steps: Iterable[StepTime],
    now: float,
) -> Knowledge:
    """Adds what pods that run the option showed: drafts at `k` tokens as `measured` says, and step times.

    What the measurement lacks keeps its last value. `k` is None where K is not known to have been one number.
    """
    known = replace(known or Knowledge(), learnt_at=now)
    if measured is not None and measured.request_steps:
        drafts = known.drafts
        if k and (measured.drafts or measured.drafts is None):
            drafts = _usual(known.drafts, _drafts(known.drafts, measured, k, now), now)
        # Where nothing was drafted, a step tells its cost, and nothing about acceptance.
        if not k or measured.drafts != 0:
            known = replace(
                known,
                measured_at=now,
                acceptance=acceptance or known.acceptance,
                accepted_length=measured.accepted_length or known.accepted_length,
                drafts=drafts,
                # A step gives every request a token; at the edges of a window a few are counted on the wrong side.
                tokens_per_step=max(1.0, measured.tokens_per_step or known.tokens_per_step),
                tpot_seconds=measured.tpot_seconds or known.tpot_seconds,
                prompt_length=measured.prompt_length or known.prompt_length,
            )
        if measured.kv_cache_tokens:
            known = replace(known, kv_cache_tokens=measured.kv_cache_tokens / measured.engines)
        if (latencies := _latencies(measured, now)) is not None:
            known = replace(known, latencies=_newest(known.latencies, latencies))
    if new := list(steps):
        known = replace(known, step_times=_binned(known.step_times, new))
    return known


def _latencies(m: Measurement, now: float) -> Latencies | None:
    """None where speculation is on, too few requests finished, or a figure is lacking."""
    if m.draft_tokens is not None or m.acceptance_rate is not None or m.finished < ENOUGH_FOR_TAIL:
        return None
    if m.tpot is None or m.ttft_seconds is None or m.prompt_length is None or m.preemptions is None:
        return None
    p50, p99 = m.tpot.p50, m.tpot.p99
    high = p99.high if p99.value is None else p99.value
    if not m.generation_tokens_per_second or math.isinf(high):
        return None
    return Latencies(
        tokens_per_second=m.generation_tokens_per_second / m.engines,
        prompt_length=m.prompt_length,
        tpot_p50=p50.low if p50.value is None else p50.value,
        tpot_p99=high,
        ttft=m.ttft_seconds,
        preemptions=m.preemptions / m.finished,
        measured_at=now,
    )


def _newest(old: tuple[Latencies, ...], new: Latencies) -> tuple[Latencies, ...]:
    """The last ones, one per half octave of load."""
    others = [known for known in old if _place(known.tokens_per_second) != _place(new.tokens_per_second)]
    return (*others[-(MAX_LATENCIES - 1) :], new)


def _place(tokens_per_second: float) -> int:
    """Half octaves of load."""
    return round(2 * math.log2(tokens_per_second))


def _drafts(old: Drafts | None, measured: Measurement, k: int, now: float) -> Drafts | None:
    """Chances by position, each shrunk towards what it was, or else towards the position before it."""
    request_steps = measured.request_steps or 0.0
    # The V0 engine counts neither drafts nor, before 0.8.5, positions: as if every step drafted, and each position had
    # the same chance.
    drafts = request_steps if measured.drafts is None else measured.drafts
    length = measured.tokens_per_step if measured.accepted_length is None else measured.accepted_length
    if not drafts or length is None:
        return old
    match = min(1.0, drafts / request_steps)
    if measured.per_position is None:
        return Drafts(match, (_even_chance(max(0.0, length - 1), k),), now, drafts)
    chances: list[float] = []
    before = 1.0
    for i, share in enumerate(measured.per_position[:k]):
        guess = old.chances[i] if old is not None and i < len(old.chances) else (chances[-1] if chances else 0.5)
        reached = drafts * before
        chances.append(min(1.0, (drafts * share + SHRINKAGE * guess) / (reached + SHRINKAGE)))
        before = share
    deeper = _moved_alike(old.chances, chances) if old is not None else ()
    return Drafts(match, (*chances, *deeper), now, drafts)


def _moved_alike(old: Sequence[float], new: Sequence[float]) -> tuple[float, ...]:
    """The chances beyond the positions that are drafted now: their log-odds have moved as those of the last of these
    have. Else K, once it was lowered for traffic that is hard to guess, would stay low in any other."""
    if not new or len(old) <= len(new):
        return ()
    moved = _log_odds(new[-1]) - _log_odds(old[len(new) - 1])
    return tuple(1 / (1 + math.exp(-_log_odds(chance) - moved)) for chance in old[len(new) :])


def _log_odds(chance: float) -> float:
    inside = min(max(chance, LEAST_EXTRA), 1 - LEAST_EXTRA)
    return math.log(inside / (1 - inside))


def _usual(old: Drafts | None, new: Drafts | None, now: float) -> Drafts | None:
    """The new figures with the mean of all."""
    if new is None:
        return None
    if old is None or old.usual is None:
        return replace(new, usual=new.extra)
    step = min(max(now - old.measured_at, 0.0), LONGEST_STEP)
    seconds = min(old.usual_seconds + step, 2 * DAY)
    weight = step / seconds if seconds else 1.0
    off = new.extra - old.usual
    variance = (1 - weight) * (old.usual_variance + weight * off**2)
    return replace(
        new, usual=old.usual + weight * off, usual_variance=variance, usual_seconds=seconds, beside=old.beside
    )


LONGEST_STEP = 3600.0
"""Seconds that one measurement can stand for: what is found again as it was has hardly changed meanwhile."""


def _even_chance(accepted: float, k: int) -> float:
    """a, where a + a^2 + … + a^k is the mean of accepted tokens."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(1, k + 1)) < accepted else (low, middle)
    return (low + high) / 2


def _binned(times: Iterable[StepTime], new: Iterable[StepTime]) -> tuple[StepTime, ...]:
    """Merges steps into their bins: one per K, third of an octave of batch size, half of one of drafted tokens, and two
    octaves of prompt tokens: what prompts add shows in steps that have few and many of them."""
    bins = {_bin(t): t for t in times}
    for step in new:
        place = _bin(step)
        bins[place] = _mixed(bins[place], step) if place in bins else step
    kept = sorted(bins.values(), key=lambda t: t.measured_at)[-MAX_STEP_TIMES:]
    return tuple(sorted(kept, key=lambda t: (t.k, t.tokens)))


def _bin(t: StepTime) -> tuple[int, int, int, int]:
    drafted = round(2 * math.log2(max(t.tokens / max(t.batch_size, 0.5), 1.0)))
    prompts = round(math.log2(max(t.prompt_tokens, FEW_PROMPT_TOKENS) / FEW_PROMPT_TOKENS) / 2)
    return t.k, round(BINS_PER_OCTAVE * math.log2(max(t.batch_size, 0.5))), drafted, prompts


def _mixed(old: StepTime, new: StepTime) -> StepTime:
    """A running mean."""
    return StepTime(
        batch_size=old.batch_size + NEWER * (new.batch_size - old.batch_size),
        tokens=old.tokens + NEWER * (new.tokens - old.tokens),
        seconds=old.seconds + NEWER * (new.seconds - old.seconds),
        prompt_tokens=old.prompt_tokens + NEWER * (new.prompt_tokens - old.prompt_tokens),
        prompt_length=old.prompt_length + NEWER * (new.prompt_length - old.prompt_length),
        context=old.context + NEWER * (new.context - old.context),
        k=new.k,
        measured_at=new.measured_at,
        variance=old.variance + NEWER * (new.variance - old.variance),
    )
