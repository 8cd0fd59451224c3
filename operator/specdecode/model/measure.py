"""What two readings of a pod's metrics say about the time between them.

`change_between` subtracts (and refuses what cannot be subtracted), `measurement` turns one change, or those of several
pods together, into rates and means. Adding comes before dividing, so pods weigh by what they did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from operator import attrgetter, sub
from typing import Any

from specdecode.model.histogram import Quantile, difference, mean, quantile, total
from specdecode.vllm.metrics import EngineSample, Figures, Histogram, Page

STALL_SECONDS = 60.0
"""An engine with running requests that gives no token for so long is stalled: no prefill step takes that long."""

GAUGES = ("running", "waiting", "kv_usage", "kv_cache_tokens", "draft_acceptance_gauge")
COUNTERS = ("preemptions", "prompt_tokens", "generation_tokens", "drafts", "draft_tokens", "accepted_tokens")
_WITH_QUANTILES = ("ttft", "tpot")
_WITH_MEANS = ("inter_token", "iteration_tokens", "queue_time", "prompt_length", "output_length")
HISTOGRAMS = (*_WITH_QUANTILES, *_WITH_MEANS)
"""Of most a mean is all that is asked for."""
_SUMS = ("running", "waiting", "kv_cache_tokens", *COUNTERS)
"""What several engines have together; the other gauges are shares."""
_Values = Callable[[Figures], tuple[Any, ...]]
_gauges_of: _Values = attrgetter(*GAUGES)
_counters_of: _Values = attrgetter(*COUNTERS)
_histograms_of: _Values = attrgetter(*HISTOGRAMS)
_quantiles_of: _Values = attrgetter(*_WITH_QUANTILES)
_means_of: _Values = attrgetter(*_WITH_MEANS)
_sums_of: _Values = attrgetter(*_SUMS)


class Reason(StrEnum):
    """Why two readings give no measurement."""

    RESTARTED = "Restarted"
    COUNTER_RESET = "CounterReset"
    SERIES_VANISHED = "SeriesVanished"
    ENGINES_CHANGED = "EnginesChanged"
    CLOCK_WENT_BACK = "ClockWentBack"


@dataclass(frozen=True)
class Unmeasured:
    """Two readings between which nothing can be measured. Not a bad result: no result."""

    reason: Reason
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class Activity(StrEnum):
    """What the engine did in the time."""

    SERVING = "Serving"
    IDLE = "Idle"
    """No request is there and no token was made."""
    WAITING = "Waiting"
    """Requests are there and no token was made: a long prefill, or the beginning of a stall."""
    STALLED = "Stalled"
    """Requests were there, and for `STALL_SECONDS` or longer no token was made."""


@dataclass(frozen=True)
class Change:
    """What happened on a pod between two readings. Changes of several pods add up."""

    seconds: float
    figures: Figures
    """Counters and histograms: their increase, all engines of the pod together. Gauges: of the later reading."""
    engines: int
    activity: Activity
    client_errors: float
    """Answers with a 4xx status."""
    server_errors: float

    @property
    def pace(self) -> float:
        """Output tokens per second; 0 where they are not counted."""
        return (self.figures.generation_tokens or 0.0) / self.seconds


@dataclass(frozen=True)
class Percentiles:
    """P50, P95 and P99 of a latency, in seconds."""

    p50: Quantile
    p95: Quantile
    p99: Quantile


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What an engine, a pod or the pods of a profile did over some time. None: not measurable (0/0, not exposed)."""

    seconds: float
    engines: int = 1
    """Engines that are added up in the sums here (`batch_size`, `waiting`, tokens and requests)."""
    activity: Activity = Activity.SERVING

    acceptance_rate: float | None = None
    """Accepted over drafted tokens. On the V0 engine the gauge since the start of the process."""
    accepted_length: float | None = None
    """1 + accepted tokens / drafts: tokens of a step that drafted."""
    per_position: tuple[float, ...] | None = None
    """Share of the drafts in which each position was accepted."""
    tokens_per_step: float | None = None
    """E: tokens per request and decode step, drafted or not. Equal to `accepted_length` when every step drafts."""
    step_seconds: float | None = None
    """T: mean seconds of a step as the requests in it feel it (inter-token latency: one observation per request)."""
    tpot_seconds: float | None = None
    """Mean seconds per output token of the requests that finished. None before vLLM 0.11."""
    ttft_seconds: float | None = None
    queue_seconds: float | None = None
    tpot: Percentiles | None = None
    ttft: Percentiles | None = None

    batch_size: float | None = None
    """Requests running at the later reading; over several engines their sum."""
    requests_per_step: float | None = None
    """B: mean requests that a step of one engine gave a token to, first tokens aside."""
    waiting: float | None = None
    kv_usage: float | None = None
    """0 to 1, of the later reading; over several engines the mean by cache size."""
    kv_cache_tokens: float | None = None
    preemptions: float | None = None
    generation_tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    prompt_length: float | None = None
    """Mean prompt tokens of the requests that finished."""
    output_length: float | None = None

    finished: float = 0.0
    """Requests that finished well (stop, length, …)."""
    aborted: float = 0.0
    """Requests that the client gave up."""
    errored: float = 0.0
    """Requests that the engine ended with an error."""
    client_errors: float = 0.0
    server_errors: float = 0.0

    drafts: float | None = None
    draft_tokens: float | None = None
    """Drafted tokens: the weight of this acceptance among others."""
    accepted_tokens: float | None = None
    generation_tokens: float | None = None
    steps: float | None = None
    """Engine steps."""
    request_steps: float | None = None
    """Decode steps summed over requests: each inter-token latency is one."""

    @property
    def tpot_of_steps(self) -> float | None:
        """T / E: mean seconds per output token by the steps themselves, where TPOT speaks of requests that ended."""
        return self.step_seconds / self.tokens_per_step if self.step_seconds and self.tokens_per_step else None


def measure(before: Page, after: Page, seconds: float) -> Measurement | Unmeasured:
    """What a pod did between two pages read `seconds` apart."""
    change = change_between(before, after, seconds)
    return change if isinstance(change, Unmeasured) else measurement([change])


def gauges(page: Page) -> Measurement:
    """What one page says without another to compare it with: the figures of the moment."""
    f = _added([Figures(**_gauges(engine)) for engine in page.engines])
    return Measurement(
        seconds=0.0,
        engines=len(page.engines),
        batch_size=f.running,
        waiting=f.waiting,
        kv_usage=f.kv_usage,
        kv_cache_tokens=f.kv_cache_tokens,
    )


def change_between(before: Page, after: Page, seconds: float) -> Change | Unmeasured:
    """The change of a pod between two pages read `seconds` apart; all its engines together."""
    if not seconds > 0:
        return Unmeasured(Reason.CLOCK_WENT_BACK, f"the later page is not later: {seconds:g} s")
    if None not in (before.process_start, after.process_start) and before.process_start != after.process_start:
        return Unmeasured(Reason.RESTARTED, "the server process started anew between the pages")
    old = {(e.model_name, e.engine): e for e in before.engines}
    new = {(e.model_name, e.engine): e for e in after.engines}
    if old.keys() != new.keys():
        return Unmeasured(Reason.ENGINES_CHANGED, f"engines were {sorted(old)}, are {sorted(new)}")
    answers = _answers(before, after)
    if isinstance(answers, Unmeasured):
        return answers
    changes = []
    for key, sample in new.items():
        change = _engine_change(old[key], sample)
        if isinstance(change, Unmeasured):
            return change
        changes.append(change)
    return Change(
        seconds=seconds,
        figures=_added(changes),
        engines=len(changes),
        activity=_together([_activity(old[k], new[k], c, seconds) for k, c in zip(new, changes, strict=True)]),
        client_errors=sum(n for (_, status), n in answers.items() if status.startswith("4")),
        server_errors=sum(n for (_, status), n in answers.items() if status.startswith("5")),
    )


def measurement(changes: Sequence[Change], *, percentiles: bool = True) -> Measurement:
    """What the changes, of one pod or of several over the same time, say together; on request without percentiles.

    A figure that one of the pods does not expose is not measurable for all of them. Raises ValueError without changes.
    """
    if not changes:
        raise ValueError("no changes to measure")
    f = _added([c.figures for c in changes])
    drafted, steps = f.draft_tokens, _count(f.iteration_tokens)
    return Measurement(
        seconds=max(c.seconds for c in changes),
        engines=sum(c.engines for c in changes),
        activity=_together([c.activity for c in changes]),
        acceptance_rate=f.draft_acceptance_gauge if drafted is None else _ratio(f.accepted_tokens, drafted),
        accepted_length=_plus_one(_ratio(f.accepted_tokens, f.drafts)),
        per_position=tuple(n / f.drafts for n in f.accepted_per_position) or None if f.drafts else None,
        tokens_per_step=_tokens_per_step(f),
        step_seconds=mean(f.inter_token),
        tpot_seconds=mean(f.tpot),
        ttft_seconds=mean(f.ttft),
        queue_seconds=mean(f.queue_time),
        tpot=_percentiles(f.tpot) if percentiles else None,
        ttft=_percentiles(f.ttft) if percentiles else None,
        batch_size=f.running,
        requests_per_step=_ratio(_count(f.inter_token), steps),
        waiting=f.waiting,
        kv_usage=f.kv_usage,
        kv_cache_tokens=f.kv_cache_tokens,
        preemptions=f.preemptions,
        generation_tokens_per_second=_sum([_ratio(c.figures.generation_tokens, c.seconds) for c in changes]),
        prompt_tokens_per_second=_sum([_ratio(c.figures.prompt_tokens, c.seconds) for c in changes]),
        prompt_length=mean(f.prompt_length),
        output_length=mean(f.output_length),
        finished=sum(n for reason, n in f.requests.items() if reason not in ("abort", "error")),
        aborted=f.requests.get("abort", 0.0),
        errored=f.requests.get("error", 0.0),
        client_errors=sum(c.client_errors for c in changes),
        server_errors=sum(c.server_errors for c in changes),
        drafts=f.drafts,
        draft_tokens=drafted,
        accepted_tokens=f.accepted_tokens,
        generation_tokens=f.generation_tokens,
        steps=steps,
        request_steps=_count(f.inter_token),
    )


def _tokens_per_step(f: Figures) -> float | None:
    """Generated tokens, less each request's first, over decode steps summed over requests.

    All three are counted as they happen. Inter-token latency over TPOT gives the same figure late: TPOT is observed
    when a request finishes, so in a short window the two speak of different steps.
    """
    if f.generation_tokens is None or f.ttft is None:
        return None
    return _ratio(f.generation_tokens - f.ttft.count, _count(f.inter_token))


def _answers(before: Page, after: Page) -> dict[tuple[str, str], float] | Unmeasured:
    """New answers by path and status. A pair's first answer makes its series, so one that was not there was at zero;
    but a page with finished requests and no answers at all was cut before them, and its zeros are not known."""
    old, new = before.http_requests, after.http_requests
    if lost := old.keys() - new.keys():
        return Unmeasured(Reason.SERIES_VANISHED, f"http_requests_total vanished for {sorted(lost)}")
    if not old and any(n > 0 for engine in before.engines for n in engine.requests.values()):
        return {}
    answers = {key: count - old.get(key, 0.0) for key, count in new.items()}
    if min(answers.values(), default=0.0) < 0:
        return Unmeasured(Reason.COUNTER_RESET, "http_requests_total fell")
    return answers


def _engine_change(before: EngineSample, after: EngineSample) -> Figures | Unmeasured:
    """Increase of the counters and histograms, gauges of `after`. What `before` did not have yet cannot be measured."""
    figures = _gauges(after)
    for names, values_of, subtract in _SUBTRACTED:
        for name, old, new in zip(names, values_of(before), values_of(after), strict=True):
            if old is None:
                continue
            if new is None:
                return _vanished(name, after)
            if (increase := subtract(old, new)) is None:
                return _fell(name, after)
            figures[name] = increase
    if lost := before.requests.keys() - after.requests.keys():
        return _vanished(f"requests finished by {sorted(lost)}", after)
    requests = {reason: after.requests[reason] - n for reason, n in before.requests.items()}
    old_positions, positions = before.accepted_per_position, after.accepted_per_position
    if len(positions) < len(old_positions):
        return _vanished("accepted_per_position", after)
    accepted = tuple(map(sub, positions, old_positions)) if len(positions) == len(old_positions) else ()
    if min(requests.values(), default=0.0) < 0 or min(accepted, default=0.0) < 0:
        return _fell("requests or accepted_per_position", after)
    return Figures(requests=requests, accepted_per_position=accepted, **figures)


def _gauges(sample: EngineSample) -> dict[str, Any]:
    return dict(zip(GAUGES, _gauges_of(sample), strict=True))


def _increase(old: float, new: float) -> float | None:
    return new - old if new >= old else None


_SUBTRACTED: tuple[tuple[tuple[str, ...], _Values, Callable[[Any, Any], Any]], ...] = (
    (COUNTERS, _counters_of, _increase),
    (_WITH_QUANTILES, _quantiles_of, difference),
    (_WITH_MEANS, _means_of, partial(difference, buckets=False)),
)
"""How much each figure grew, None where it fell."""


def _vanished(what: str, engine: EngineSample) -> Unmeasured:
    return Unmeasured(Reason.SERIES_VANISHED, f"{what} vanished, model {engine.model_name!r}, engine {engine.engine}")


def _fell(what: str, engine: EngineSample) -> Unmeasured:
    return Unmeasured(
        Reason.COUNTER_RESET, f"{what} fell or changed its buckets, model {engine.model_name!r}, engine {engine.engine}"
    )


def _added(parts: Sequence[Figures]) -> Figures:
    """Several engines as one: sums, the mean for shares. What one of them lacks is lacking."""
    if len(parts) == 1:
        return parts[0]
    figures: dict[str, Any] = dict(zip(_SUMS, map(_sum, zip(*map(_sums_of, parts), strict=True)), strict=True))
    for name, histograms in zip(HISTOGRAMS, zip(*map(_histograms_of, parts), strict=True), strict=True):
        figures[name] = total(histograms)
    positions = [p.accepted_per_position for p in parts]
    if len({len(p) for p in positions}) == 1:
        figures["accepted_per_position"] = tuple(map(math.fsum, zip(*positions, strict=True)))
    reasons = dict.fromkeys(reason for p in parts for reason in p.requests)
    return Figures(
        requests={reason: math.fsum([p.requests.get(reason, 0.0) for p in parts]) for reason in reasons},
        kv_usage=_mean_share([p.kv_usage for p in parts], [p.kv_cache_tokens for p in parts]),
        draft_acceptance_gauge=_mean_share([p.draft_acceptance_gauge for p in parts], [None] * len(parts)),
        **figures,
    )


def _mean_share(shares: Sequence[float | None], weights: Sequence[float | None]) -> float | None:
    """Mean weighted by `weights`, a plain mean where those are not known."""
    known = [1.0] * len(shares) if None in weights else weights
    parts = [None if s is None else s * (w or 0.0) for s, w in zip(shares, known, strict=True)]
    return _ratio(_sum(parts), _sum(known))


def _activity(before: EngineSample, after: EngineSample, change: Figures, seconds: float) -> Activity:
    made = (change.generation_tokens, change.prompt_tokens, _count(change.iteration_tokens))
    if any(made) or made[0] is None:
        return Activity.SERVING
    if not (after.running or after.waiting):
        return Activity.IDLE
    return Activity.STALLED if (before.running or before.waiting) and seconds >= STALL_SECONDS else Activity.WAITING


def _together(activities: Sequence[Activity]) -> Activity:
    """The first of these that one of them does: a stalled engine stalls its requests though others serve."""
    if len(activities) == 1:
        return activities[0]
    return next(a for a in (Activity.STALLED, Activity.SERVING, Activity.WAITING, Activity.IDLE) if a in activities)


def _percentiles(histogram: Histogram | None) -> Percentiles | None:
    p50, p95, p99 = (quantile(histogram, q) for q in (0.5, 0.95, 0.99))
    return Percentiles(p50, p95, p99) if p50 and p95 and p99 else None


def _count(histogram: Histogram | None) -> float | None:
    return None if histogram is None else histogram.count


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _plus_one(value: float | None) -> float | None:
    return None if value is None else 1 + value


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None
