"""From measurements to knowledge: what the pods show about the option that each of them runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from specdecode.model.cost import OfferedLoad, Option, Prediction
from specdecode.model.knowledge import ENOUGH_REQUEST_STEPS, MOST_RESIDUAL, Knowledge, Residual, StepTime, learn
from specdecode.model.measure import Change, Measurement, measurement
from specdecode.model.service import Glance, add
from specdecode.model.window import ENOUGH_DRAFTED, Window, acceptance_spread, pods_together, queue_growth
from specdecode.policy.ageing import aged, served
from specdecode.policy.clock import seconds_of
from specdecode.policy.observation import Observation, Pod

LEARNING = 0.4
"""Share of the window after which something is learnt again."""

CLEAR_OF_EDGE = 1.25
"""Factor by which a stretch's mean batch size must be off a range's edge for all of its steps to have had one K."""

STEADY = math.log(1.25)
"""By how much the mean time from step to step may be off the steps' own time, as a log (`_off_pace`): where it is more,
the engine stood still or only computed prompts for a part of the time."""

FEW = 4.0
"""Batch size below which an engine is idle between steps as a matter of course."""


def learnt_from(o: Observation, windows: Mapping[str, Window]) -> Mapping[str, Knowledge]:
    """Adds what the ready pods show about the option that each of them runs; the same object where that is nothing."""
    groups: list[tuple[Option, list[Pod]]] = []
    for pod in o.pods:
        if pod.ready and pod.answered and pod.option is not None:
            alike = next((pods for option, pods in groups if option == pod.option), None)
            if alike is None:
                groups.append((pod.option, [pod]))
            else:
                alike.append(pod)
    learnt: dict[str, Knowledge] = {}
    for option, pods in groups:
        known = learnt.get(option.profile) or o.knowledge.get(option.profile) or Knowledge()
        if 0 < o.now - known.learnt_at < LEARNING * o.policy.metrics.window:
            continue
        ours = [windows[p.name] for p in pods]
        k, measured = _drafting(option, ours)
        # Reading by reading, if it can be: the longer the stretch, the more batch sizes are in its mean.
        new = [s for w in ours for s in w.since(known.learnt_at).stretches(ENOUGH_REQUEST_STEPS)]
        variance = _unevenness([stretch for _, stretch in new]) ** 2
        steps = [step for t, stretch in new if (step := _step(option, stretch, t, variance)) is not None]
        if (measured is None or not measured.request_steps) and not steps:
            continue
        acceptance = acceptance_of(measured, ours)
        now_known = learn(known, measured, acceptance, k, steps, o.now)
        learnt[option.profile] = aged(now_known, _by_age(o, option, pods, windows, known.learnt_at), o.now)
    return _beside({**o.knowledge, **learnt}, learnt, o.policy.metrics.window) if learnt else o.knowledge


def _beside(knowledge: dict[str, Knowledge], learnt: Mapping[str, Knowledge], window: float) -> Mapping[str, Knowledge]:
    """Notes for what was just learnt which other profile ran in the same minutes."""
    for name, known in learnt.items():
        drafts = known.drafts
        others = [(n, k.drafts) for n, k in knowledge.items() if n != name and k.drafts is not None]
        if drafts is None or known.measured_at != drafts.measured_at:
            continue
        near = [(n, d.extra) for n, d in others if abs(d.measured_at - drafts.measured_at) <= window]
        knowledge[name] = replace(known, drafts=replace(drafts, beside=near[0] if near else None))
    return knowledge


def _by_age(
    o: Observation, option: Option, pods: list[Pod], windows: Mapping[str, Window], since: float
) -> Iterator[tuple[float, Measurement]]:
    """For how long each pod has served, and what it did at the profile's full K since then."""
    if option.speculation is None:
        return
    for pod in pods:
        seconds = served(pod, o.now, o.policy.rollout.progress_deadline)
        k, measured = _drafting(option, [windows[pod.name].since(since)])
        if seconds is not None and measured is not None and k == option.speculation.num_speculative_tokens:
            yield seconds, measured


def _drafting(option: Option, windows: list[Window]) -> tuple[int | None, Measurement | None]:
    """K, and what the pods did while it was in force. Under a schedule: the highest K that there is enough of; steps
    that it held at K = 0 say nothing about the drafts."""
    speculation = option.speculation
    if speculation is None or not (speculation.schedule or speculation.disable_by_batch_size):
        return speculation.num_speculative_tokens if speculation else None, pods_together(windows)
    by_k: dict[int, list[Change]] = {}
    for reading in (r for w in windows for r in w.readings[1:]):
        if isinstance(change := reading.change, Change) and (k := _clear_k(option, change.requests_per_step)):
            by_k.setdefault(k, []).append(change)
    for k, changes in sorted(by_k.items(), reverse=True):
        together = measurement(changes)
        if (together.draft_tokens or 0.0) >= ENOUGH_DRAFTED:
            return k, together
    return None, None


def _clear_k(option: Option, batch: float | None) -> int | None:
    """K at a mean batch size; None where some of the steps may have had another."""
    speculation = option.speculation
    if speculation is None or batch is None:
        return 0 if speculation is None else None
    if not (speculation.schedule or speculation.disable_by_batch_size):
        return speculation.num_speculative_tokens or 1
    low, high = (speculation.k_at(max(1.0, batch * f)) for f in (1 / CLEAR_OF_EDGE, CLEAR_OF_EDGE))
    return low if low == high else None


def _off_pace(stretch: Change) -> float | None:
    """log of the mean time from step to step over the steps' own time, as their requests felt it. Below 0: the steps
    differed, and more requests felt the long ones; above: the engine was idle between them. None where it is idle as a
    matter of course, or nothing was measured."""
    steps, step_seconds = stretch.steps, stretch.totals.mean("inter_token")
    if not steps or not step_seconds or (stretch.requests_per_step or 0.0) <= FEW:
        return None
    return math.log(stretch.seconds / steps * stretch.engines / step_seconds)


def _unevenness(stretches: Iterable[Change]) -> float:
    """By how much stretches are off their pace on average: where bursts are shorter than a stretch, one that is not
    off is so by chance."""
    off = [abs(pace) for stretch in stretches if (pace := _off_pace(stretch)) is not None]
    return sum(off) / len(off) if off else 0.0


def _step(option: Option, stretch: Change, t: float, variance: float) -> StepTime | None:
    """The mean step of a pod in a stretch that ended at `t`; `variance` where its batch is not a small one."""
    totals, steps, b = stretch.totals, stretch.steps, stretch.requests_per_step
    k, seconds = _clear_k(option, b), totals.mean("inter_token")
    if k is None or not b or not seconds or not steps:
        return None
    pace = _off_pace(stretch)
    if pace is not None and abs(pace) > STEADY:
        return None
    drafted = (totals.counter("draft_tokens") or 0.0) / (stretch.request_steps or 1.0)
    prompt = (totals.counter("prompt_tokens") or 0.0) / steps
    length, now = totals.mean("prompt_length"), stretch.gauges
    context = _context(now.running, now.kv_usage, now.kv_cache_tokens, length, totals.mean("output_length"))
    noise = 0.0 if pace is None else variance
    return StepTime(b, b * (1 + drafted), seconds, prompt, length or 0.0, context, k, t, noise)


def context_of(m: Measurement) -> float:
    """Tokens of context of a running request: from the KV cache, else from the requests that finished."""
    return _context(m.batch_size, m.kv_usage, m.kv_cache_tokens, m.prompt_length, m.output_length)


def _context(
    running: float | None,
    kv_usage: float | None,
    kv_cache_tokens: float | None,
    prompt_length: float | None,
    output_length: float | None,
) -> float:
    if kv_usage and kv_cache_tokens and running and running >= 1:
        return kv_usage * kv_cache_tokens / running
    return (prompt_length or 0.0) + (output_length or 0.0) / 2


def acceptance_of(measured: Measurement | None, windows: list[Window]) -> tuple[float, float, float, float] | None:
    """Mean, P10, P50 and P90. Where no pod drafted enough for a spread of its own, they are all the mean."""
    rate = measured.acceptance_rate if measured else None
    if measured is None or rate is None or (measured.draft_tokens or 0.0) < ENOUGH_DRAFTED:
        return None
    spread = acceptance_spread(windows)
    return (rate, spread.p10, spread.p50, spread.p90) if spread else (rate, rate, rate, rate)


def held_against(
    knowledge: Mapping[str, Knowledge],
    o: Observation,
    profile: str,
    measured: Measurement | None,
    load: OfferedLoad | None,
    modelled: Prediction | None,
) -> Mapping[str, Knowledge]:
    """Notes how far the model is off what pods of a profile show, as often as anything is learnt of it."""
    known = knowledge.get(profile)
    if known is None or known.learnt_at != o.now:
        return knowledge
    if measured is None or not measured.tpot_seconds or load is None or modelled is None:
        return knowledge
    # Requests that finish tell of the time that they took.
    lasted = measured.tpot_seconds * (measured.output_length or math.inf)
    if measured.finished < ENOUGH_FINISHED or lasted > SHORT * o.policy.metrics.window:
        return knowledge
    log_ratio = math.log(measured.tpot_seconds / modelled.tpot.value) + modelled.unexplained
    if abs(log_ratio) > MOST_RESIDUAL:
        return knowledge
    residual = Residual(load.tokens_per_second, log_ratio, o.now)
    return {**knowledge, profile: known.with_residual(residual)}


ENOUGH_FINISHED = 30
"""Requests whose mean TPOT the model is held against."""
SHORT = 0.1
"""Share of the window that they may have lasted, so that what they felt was the load of the window."""


def with_service(
    knowledge: Mapping[str, Knowledge],
    o: Observation,
    profile: str,
    measured: Measurement | None,
    windows: Sequence[Window],
) -> Mapping[str, Knowledge]:
    """Notes what users got since something was last learnt of a profile, where all pods ran it for as long as is looked
    back."""
    known, before, m = knowledge.get(profile), o.knowledge.get(profile), measured
    pods = sum(isinstance(w.change, Change) for w in windows)
    if known is None or before is None or known.learnt_at != o.now or m is None or not pods:
        return knowledge
    if o.workload is not None and not o.workload.settled:
        return knowledge
    if o.history and o.now - seconds_of(o.history[0].finished_at) < o.policy.metrics.window:
        return knowledge
    # Of the steps, if it can be: requests that finish tell of the time that they took.
    tpot, served = m.tpot_of_steps or m.tpot_seconds, m.generation_tokens_per_second
    if not tpot or not served or m.output_length is None:
        return knowledge
    asked = max(0.0, served + math.fsum(map(queue_growth, windows)) * m.output_length)
    seen = Glance(asked / pods, served / pods, tpot, m.prompt_length or 0.0)
    since = min(o.now - before.learnt_at, o.policy.metrics.window)
    return {**knowledge, profile: replace(known, service=add(known.service, o.now, since, seen))}
