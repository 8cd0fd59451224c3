"""From measurements to estimates: what is known, what users ask for, what each option would do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from specdecode.api.v1alpha1 import BatchSizeTuningMode
from specdecode.model.cost import CostModel, OfferedLoad, Option, Prediction
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import ENOUGH_REQUEST_STEPS, Knowledge, learn
from specdecode.model.measure import Change, Measurement, measurement
from specdecode.model.window import ENOUGH_DRAFTED, Window, acceptance_spread, pods_together
from specdecode.policy.observation import Estimates, Observation, Pod
from specdecode.policy.options import Menu
from specdecode.vllm.capabilities import capabilities
from specdecode.vllm.speculation import BatchRange
from specdecode.vllm.unmanageable import Unmanageable

ModelFactory = Callable[[Mapping[str, Knowledge], int, float], CostModel]
"""Knowledge by profile, `max_num_seqs` and Unix seconds -> a fitted model."""

DEFAULT_MAX_NUM_SEQS = 256
"""vLLM's own default of `--max-num-seqs` on most GPUs (vllm/engine/arg_utils.py)."""

MEASUREMENT_SD = 0.03
"""Standard deviation of the logarithm of a measured mean TPOT over a window."""

SAME_THRESHOLD = 1.5
"""Thresholds within this factor of each other are not worth telling apart."""


def estimate(o: Observation, model_of: ModelFactory) -> Observation:
    """The observation with its knowledge brought up to date and its estimates filled in."""
    if o.menu is None:
        return o
    windows = {p.name: p.window.since(o.now - o.policy.metrics.window) for p in o.pods}
    knowledge = _learnt(o, windows)
    running = o.running(o.active)
    measured = pods_together(windows[p.name] for p in running if p.answered)
    load = _offered(measured, [windows[p.name] for p in running if p.answered])
    limit = o.menu.server.max_num_seqs or DEFAULT_MAX_NUM_SEQS
    model = model_of(knowledge, limit, o.now)
    break_even = {option.profile: model.break_even(option) for option in o.menu.options}
    options = [_with_threshold(o, o.menu, option, break_even, limit) for option in o.menu.options]
    refused = {c.profile: r.message for c in options if isinstance(r := o.menu.render(c), Unmanageable)}
    candidates = tuple(c for c in options if c.profile not in refused)
    modelled = model.predict(o.active, load) if load and o.active else None
    estimates = Estimates(
        load=load,
        measured=measured,
        acceptance=_acceptance(measured, [windows[p.name] for p in running]),
        candidates=candidates,
        unavailable=refused,
        predictions={c.profile: model.predict(c, load) for c in candidates} if load else {},
        modelled=modelled,
        running=modelled and _anchored(modelled, measured),
        break_even=break_even,
    )
    return replace(o, knowledge=knowledge, estimates=estimates)


def _learnt(o: Observation, windows: Mapping[str, Window]) -> Mapping[str, Knowledge]:
    """Adds what the ready pods show about the option that each of them runs."""
    knowledge = dict(o.knowledge)
    groups: dict[str, list[Pod]] = {}
    for pod in o.pods:
        if pod.ready and pod.answered and pod.option is not None:
            groups.setdefault(pod.option.profile, []).append(pod)
    for profile, pods in groups.items():
        measured = _at_full_k(pods, windows)
        acceptance = _acceptance(measured, [windows[p.name] for p in pods])
        latest = [m for p in pods if (m := windows[p.name].latest(ENOUGH_REQUEST_STEPS)) is not None]
        knowledge[profile] = learn(knowledge.get(profile), measured, acceptance, latest, o.now)
    return knowledge


CLEAR_OF_THRESHOLD = 1.25
"""Factor by which a part's mean batch size must be below a threshold for all of its steps to have drafted."""


def _at_full_k(pods: list[Pod], windows: Mapping[str, Window]) -> Measurement | None:
    """What the pods did while they drafted: steps that a schedule held at K = 0 say nothing about the drafts.

    Of use for ratios only: the parts need not follow each other.
    """
    changes = []
    for pod in pods:
        speculation = pod.option.speculation if pod.option else None
        k = speculation.num_speculative_tokens if speculation else None
        for reading in windows[pod.name].readings[1:]:
            batch = reading.part.requests_per_step if reading.part else None
            shadow = (
                speculation is not None and k is not None and speculation.k_at((batch or 0) * CLEAR_OF_THRESHOLD) < k
            )
            if isinstance(reading.change, Change) and not shadow:
                changes.append(reading.change)
    return measurement(changes) if changes else None


def _acceptance(measured: Measurement | None, windows: list[Window]) -> tuple[float, float, float, float] | None:
    """Mean, P10, P50 and P90. Where no pod drafted enough for a spread of its own, they are all the mean."""
    rate = measured.acceptance_rate if measured else None
    if measured is None or rate is None or (measured.draft_tokens or 0.0) < ENOUGH_DRAFTED:
        return None
    spread = acceptance_spread(windows)
    return (rate, spread.p10, spread.p50, spread.p90) if spread else (rate, rate, rate, rate)


def _offered(measured: Measurement | None, windows: list[Window]) -> OfferedLoad | None:
    """Output tokens per second and pod that users ask for: those served, and those of a queue that grows."""
    served = measured.generation_tokens_per_second if measured else None
    # A pod that has only just come is not in `measured`.
    windows = [w for w in windows if isinstance(w.change, Change)]
    if not served or not windows or measured is None:
        return None
    growth = math.fsum(max(0.0, _queue_growth(w)) for w in windows) * (measured.output_length or 0.0)
    return OfferedLoad((served + growth) / len(windows), (measured.prompt_tokens_per_second or 0.0) / len(windows))


def _queue_growth(window: Window) -> float:
    """Requests per second by which the queue grew."""
    first, last = window.readings[0], window.readings[-1]
    waiting = [math.fsum(e.waiting or 0.0 for e in r.page.engines) for r in (first, last)]
    return (waiting[1] - waiting[0]) / (last.t - first.t)


def _anchored(prediction: Prediction, measured: Measurement | None) -> Prediction:
    """What runs now: its TPOT is measured, where the version measures it."""
    if measured is None or measured.tpot_seconds is None:
        return prediction
    return replace(prediction, tpot=Estimate.log_normal(measured.tpot_seconds, MEASUREMENT_SD))


def _with_threshold(
    o: Observation, menu: Menu, option: Option, break_even: Mapping[str, float | None], limit: int
) -> Option:
    """The option with the batch size from which it stops drafting, where the policy and the version allow one."""
    speculation, point = option.speculation, break_even.get(option.profile)
    if o.policy.batch_size_tuning.mode is not BatchSizeTuningMode.AUTO or speculation is None or point is None:
        return option
    threshold = max(2, round(point))
    if threshold > limit:
        return option
    if o.active is not None and o.active.profile == option.profile and o.active.speculation is not None:
        live = o.active.speculation
        now = live.disable_by_batch_size or next((r.start for r in live.schedule if r.k == 0), None)
        if now is not None and max(now / threshold, threshold / now) < SAME_THRESHOLD:
            return o.active
    able, method = capabilities(menu.version), speculation.vllm_method
    if method is None:
        return option
    if able.schedule_method(method) and menu.server.data_parallel_size == 1:
        k = speculation.num_speculative_tokens or 1
        ranges = (BatchRange(1, threshold - 1, k), BatchRange(threshold, limit, 0))
        return Option(option.profile, replace(speculation, schedule=ranges))
    if able.disable_by_batch_size(method):
        return Option(option.profile, replace(speculation, disable_by_batch_size=threshold))
    return option
