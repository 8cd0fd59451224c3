"""What two readings of a pod's metrics say about the time between them.

`change_between` subtracts (and refuses what cannot be subtracted), `measurement` turns one change, or those of several
pods together, into rates and means. Adding comes before dividing, so pods weigh by what they did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import sub
from typing import NamedTuple

from specdecode.model.histogram import Quantile, quantile
from specdecode.vllm.figures import HISTOGRAMS, POSITIONS, WITH_QUANTILES, EngineSample, Histogram, Page, Totals

STALL_SECONDS = 60.0
"""An engine with running requests that gives no token for so long is stalled: no prefill step takes that long."""


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


class Gauges(NamedTuple):
    """What an engine, or several together, have at a moment. None: not measurable."""

    running: float | None
    waiting: float | None
    kv_usage: float | None
    """0 to 1."""
    kv_cache_tokens: float | None
    acceptance: float | None
    """Of the V0 engine, since its process started."""


@dataclass(frozen=True)
class Change:
    """What happened on a pod between two readings. Changes of several pods add up."""

    seconds: float
    totals: Totals
    """Increase of counters and histograms, all engines of the pod together."""
    requests: Mapping[str, float]
    """Finished requests by reason."""
    gauges: Gauges
    """At the later reading."""
    engines: int
    activity: Activity
    client_errors: float
    """Answers with a 4xx status."""
    server_errors: float

    @property
    def pace(self) -> float:
        """Output tokens per second; 0 where they are not counted."""
        return (self.totals.counter("generation_tokens") or 0.0) / self.seconds

    @property
    def finished(self) -> float:
        """Requests that ended, however."""
        return sum(self.requests.values())

    @property
    def steps(self) -> float | None:
        """Engine steps."""
        return self.totals.count("iteration_tokens")

    @property
    def request_steps(self) -> float | None:
        """Decode steps summed over requests."""
        return self.totals.count("inter_token")

    @property
    def requests_per_step(self) -> float | None:
        """B, as `Measurement` has it."""
        return _ratio(self.request_steps, self.steps)


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
    now = _gauges_together([_gauges(engine) for engine in page.engines])
    return Measurement(
        seconds=0.0,
        engines=len(page.engines),
        batch_size=now.running,
        waiting=now.waiting,
        kv_usage=now.kv_usage,
        kv_cache_tokens=now.kv_cache_tokens,
    )


def change_between(before: Page, after: Page, seconds: float) -> Change | Unmeasured:
    """The change of a pod between two pages read `seconds` apart; all its engines together."""
    if not seconds > 0:
        return Unmeasured(Reason.CLOCK_WENT_BACK, f"the later page is not later: {seconds:g} s")
    if None not in (before.process_start, after.process_start) and before.process_start != after.process_start:
        return Unmeasured(Reason.RESTARTED, "the server process started anew between the pages")
    were, are = ([(e.model_name, e.engine) for e in page.engines] for page in (before, after))
    if were != are:
        return Unmeasured(Reason.ENGINES_CHANGED, f"engines were {were}, are {are}")
    answers = _answers(before, after)
    if isinstance(answers, Unmeasured):
        return answers
    grown, requests, activities = [], [], []
    for old, new in zip(before.engines, after.engines, strict=True):
        totals, finished = _growth(old, new), _finished(old, new)
        if isinstance(totals, Unmeasured):
            return totals
        if isinstance(finished, Unmeasured):
            return finished
        grown.append(totals)
        requests.append(finished)
        activities.append(_activity(old, new, totals, seconds))
    return Change(
        seconds=seconds,
        totals=_added(grown),
        requests=_by_reason(requests),
        gauges=_gauges_together([_gauges(engine) for engine in after.engines]),
        engines=len(grown),
        activity=_together(activities),
        client_errors=sum(n for (_, status), n in answers.items() if status.startswith("4")),
        server_errors=sum(n for (_, status), n in answers.items() if status.startswith("5")),
    )


def measurement(changes: Sequence[Change]) -> Measurement:
    """What the changes, of one pod or of several over the same time, say together.

    A figure that one of the pods does not expose is not measurable for all of them. Raises ValueError without changes.
    """
    if not changes:
        raise ValueError("no changes to measure")
    t = _added([c.totals for c in changes])
    now, requests = _gauges_together([c.gauges for c in changes]), _by_reason([c.requests for c in changes])
    drafts, drafted, accepted = t.counter("drafts"), t.counter("draft_tokens"), t.counter("accepted_tokens")
    steps, request_steps = t.count("iteration_tokens"), t.count("inter_token")
    return Measurement(
        seconds=max(c.seconds for c in changes),
        engines=sum(c.engines for c in changes),
        activity=_together([c.activity for c in changes]),
        acceptance_rate=now.acceptance if drafted is None else _ratio(accepted, drafted),
        accepted_length=_plus_one(_ratio(accepted, drafts)),
        per_position=tuple(n / drafts for n in t.positions) or None if drafts else None,
        tokens_per_step=_tokens_per_step(t),
        step_seconds=t.mean("inter_token"),
        tpot_seconds=t.mean("tpot"),
        ttft_seconds=t.mean("ttft"),
        queue_seconds=t.mean("queue_time"),
        tpot=_percentiles(t.histogram("tpot")),
        ttft=_percentiles(t.histogram("ttft")),
        batch_size=now.running,
        requests_per_step=_ratio(request_steps, steps),
        waiting=now.waiting,
        kv_usage=now.kv_usage,
        kv_cache_tokens=now.kv_cache_tokens,
        preemptions=t.counter("preemptions"),
        generation_tokens_per_second=_rate("generation_tokens", changes),
        prompt_tokens_per_second=_rate("prompt_tokens", changes),
        prompt_length=t.mean("prompt_length"),
        output_length=t.mean("output_length"),
        finished=sum(n for reason, n in requests.items() if reason not in ("abort", "error")),
        aborted=requests.get("abort", 0.0),
        errored=requests.get("error", 0.0),
        client_errors=sum(c.client_errors for c in changes),
        server_errors=sum(c.server_errors for c in changes),
        drafts=drafts,
        draft_tokens=drafted,
        accepted_tokens=accepted,
        generation_tokens=t.counter("generation_tokens"),
        steps=steps,
        request_steps=request_steps,
    )


def _tokens_per_step(t: Totals) -> float | None:
    """Generated tokens, less each request's first, over decode steps summed over requests.

    All three are counted as they happen. Inter-token latency over TPOT gives the same figure late: TPOT is observed
    when a request finishes, so in a short window the two speak of different steps.
    """
    made, begun = t.counter("generation_tokens"), t.count("ttft")
    return None if made is None or begun is None else _ratio(made - begun, t.count("inter_token"))


def _rate(counter: str, changes: Sequence[Change]) -> float | None:
    """Per second, all pods together."""
    if len(changes) == 1:
        return _ratio(changes[0].totals.counter(counter), changes[0].seconds)
    return _sum([_ratio(c.totals.counter(counter), c.seconds) for c in changes])


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


def _growth(before: EngineSample, after: EngineSample) -> Totals | Unmeasured:
    """Increase of the counters and histograms. What `before` did not have yet cannot be measured."""
    old, new = before.totals, after.totals
    if old.shape != new.shape:
        lost = sorted(new.shape.missing - old.shape.missing)
        if lost or new.shape.positions < old.shape.positions:
            return _vanished(lost[0] if lost else POSITIONS, after)
        longer = {POSITIONS} if new.shape.positions > old.shape.positions else set()
        old, new = old.without(longer), new.without(old.shape.missing | longer)
        for name, was, now in zip(HISTOGRAMS, old.shape.bounds, new.shape.bounds, strict=True):
            if was != now:
                return _fell(name, after)
    if (fell := old.beyond(new)) is not None:
        return _fell(fell, after)
    return Totals((*map(sub, new.row, old.row),), old.shape)


def _finished(before: EngineSample, after: EngineSample) -> Mapping[str, float] | Unmeasured:
    """Requests that finished, by reason. One that was not there before is not counted."""
    if lost := before.requests.keys() - after.requests.keys():
        return _vanished(f"requests finished by {sorted(lost)}", after)
    requests = {reason: after.requests[reason] - n for reason, n in before.requests.items()}
    return _fell("requests", after) if min(requests.values(), default=0.0) < 0 else requests


def _vanished(what: str, engine: EngineSample) -> Unmeasured:
    return Unmeasured(Reason.SERIES_VANISHED, f"{what} vanished, model {engine.model_name!r}, engine {engine.engine}")


def _fell(what: str, engine: EngineSample) -> Unmeasured:
    return Unmeasured(
        Reason.COUNTER_RESET, f"{what} fell or changed its buckets, model {engine.model_name!r}, engine {engine.engine}"
    )


def _added(parts: Sequence[Totals]) -> Totals:
    """Several engines as one. What one of them lacks, or has in other buckets, is lacking."""
    if len(parts) == 1:
        return parts[0]
    shape = parts[0].shape
    if any(part.shape != shape for part in parts):
        lacking = frozenset[str]().union(*(part.shape.missing for part in parts))
        if len({part.shape.positions for part in parts}) > 1:
            lacking |= {POSITIONS}
        for i, name in enumerate(WITH_QUANTILES):
            if len({part.shape.bounds[i] for part in parts}) > 1:
                lacking |= {name}
        parts = [part.without(lacking) for part in parts]
    return Totals((*map(math.fsum, zip(*[part.row for part in parts], strict=True)),), parts[0].shape)


def _by_reason(requests: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    if len(requests) == 1:
        return requests[0]
    reasons = dict.fromkeys(reason for of in requests for reason in of)
    return {reason: math.fsum([of.get(reason, 0.0) for of in requests]) for reason in reasons}


def _gauges(e: EngineSample) -> Gauges:
    return Gauges(e.running, e.waiting, e.kv_usage, e.kv_cache_tokens, e.draft_acceptance_gauge)


def _gauges_together(parts: Sequence[Gauges]) -> Gauges:
    """Sums, the mean for shares. What one of them lacks is lacking."""
    if len(parts) == 1:
        return parts[0]
    running, waiting, usage, sizes, acceptance = zip(*parts, strict=True)
    return Gauges(
        _sum(running),
        _sum(waiting),
        _mean_share(usage, sizes),
        _sum(sizes),
        _mean_share(acceptance, [None] * len(parts)),
    )


def _mean_share(shares: Sequence[float | None], weights: Sequence[float | None]) -> float | None:
    """Mean weighted by `weights`, a plain mean where those are not known."""
    known = [1.0] * len(shares) if None in weights else weights
    parts = [None if s is None else s * (w or 0.0) for s, w in zip(shares, known, strict=True)]
    return _ratio(_sum(parts), _sum(known))


def _activity(before: EngineSample, after: EngineSample, grown: Totals, seconds: float) -> Activity:
    made = grown.counter("generation_tokens")
    if made is None or made or grown.counter("prompt_tokens") or grown.count("iteration_tokens"):
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


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _plus_one(value: float | None) -> float | None:
    return None if value is None else 1 + value


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None
