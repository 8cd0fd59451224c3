"""The rule: an ordered chain of small questions; the first gate that has an answer decides.

Each gate asks one question, in the order in which a careful engineer would. To find out why the operator did something,
look for its reason here. `BRAKES` come last: they do not change what is right, only whether it may be done now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import takewhile

from specdecode.api.quantities import format_duration, format_percent
from specdecode.api.v1alpha1 import DISABLED, HistoryEntry, Mode, Outcome
from specdecode.model.cost import Option
from specdecode.model.estimate import Estimate
from specdecode.model.tokens import MEMORY, moved
from specdecode.policy.ageing import restart_restores, restarts_are_rationed
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.guards import (
    TRAFFIC_TURNED,
    acceptance_below_floor,
    breaks_tpot_limit,
    fills_kv_cache,
    kv_squeezed,
    of_what_was_meant,
    ttft_bound,
)
from specdecode.policy.live import can_be_live
from specdecode.policy.observation import Observation
from specdecode.policy.options import configuration, describe
from specdecode.policy.outlook import worth_of_trying

Gate = Callable[[Observation], Decision | None]
Brake = Callable[[Observation, Decision], tuple[Reason, str] | None]

DAY = 86_400.0
MAX_BACKOFF = 16
"""A change that failed again and again is tried again after at most this many cool-downs."""


def decide(o: Observation) -> Decision:
    """The decision for one observation."""
    decision = next(d for gate in CHAIN if (d := gate(o)) is not None)
    if not decision.change:
        return decision
    held = next((h for brake in BRAKES if (h := brake(o, decision)) is not None), None)
    return replace(decision, held_back=held)


# --- may we judge? ------------------------------------------------------------------------------------------------


def suspended(o: Observation) -> Decision | None:
    """The policy is suspended."""
    if o.policy.suspend:
        return Decision(Reason.SUSPENDED, "the policy is suspended (spec.suspend)")
    return None


def not_manageable(o: Observation) -> Decision | None:
    """The workload is missing, or its command line cannot be understood."""
    if o.workload is None and o.problem is None:
        return Decision(Reason.WORKLOAD_MISSING, f"there is no Deployment {o.policy.target_ref.name}")
    if o.problem is not None:
        return Decision(Reason.NOT_MANAGEABLE, o.problem.message)
    return None


def contested(o: Observation) -> Decision | None:
    """Somebody took our last change back: do not fight over the field (until the policy is edited)."""
    last = next((h for h in o.history if h.outcome is Outcome.SUCCESSFUL), None)
    if last is None or o.active is None or configuration(o.active) == last.target:
        return None
    if last.policy_generation != o.generation or seconds_of(last.finished_at) < o.adopted_at:
        return None
    return Decision(
        Reason.FIELD_CONTESTED,
        f"another owner took the arguments that the last change wrote ({last.target.profile}) back to"
        f" {describe(o.active)}; leaving them alone. Let the arguments reference $(SPECDECODE_CONFIG), or exclude them"
        " from that owner, then edit the policy",
    )


def change_in_progress(o: Observation) -> Decision | None:
    """One change at a time: ours."""
    if o.rollout is not None:
        return Decision(Reason.CHANGE_IN_PROGRESS, o.rollout.message)
    return None


def workload_rolling(o: Observation) -> Decision | None:
    """One change at a time: somebody else's. Nor is a workload judged whose pods are not all there."""
    w = o.workload
    if w is None or w.settled:
        return None
    if w.deployment["spec"].get("paused"):
        return Decision(Reason.WORKLOAD_ROLLING, f"Deployment {w.name} is paused (spec.paused): resume it first")
    status = w.deployment.get("status") or {}
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    return Decision(
        Reason.WORKLOAD_ROLLING,
        f"waiting for Deployment {w.name}, which is being rolled or scaled or lacks pods: of {w.replicas},"
        f" {updated} are of its current template and {available} available",
    )


def metrics_are_missing(o: Observation) -> Decision | None:
    """No metrics, no decision."""
    pods = o.running(o.active)
    if any(p.answered for p in pods):
        return None
    problems = {p.problem for p in pods if p.problem}
    detail = f": {min(problems)}" if problems else ""
    what = f"none of {len(pods)} ready pods answered {o.policy.metrics.path}" if pods else "no pod is ready"
    if o.workload is not None and o.workload.replicas == 0:
        what = f"Deployment {o.workload.name} is scaled to 0"
    return Decision(Reason.METRICS_MISSING, f"{what}{detail}")


def metrics_are_stale(o: Observation) -> Decision | None:
    """What was measured is not of now."""
    if o.estimates.measured is None:
        return Decision(
            Reason.METRICS_STALE, f"less than two good scrapes in the last {format_duration(o.policy.metrics.window)}"
        )
    return None


def idle(o: Observation) -> Decision | None:
    """Nobody asks for anything: there is nothing to make faster."""
    if o.estimates.load is None:
        return Decision(
            Reason.IDLE, f"no tokens were generated in the last {format_duration(o.policy.metrics.window)}", o.active
        )
    return None


def too_few_samples(o: Observation) -> Decision | None:
    """A handful of requests is no evidence."""
    measured = o.estimates.measured
    if measured is not None and (measured.request_steps or 0) < MINIMUM_REQUEST_STEPS:
        return Decision(
            Reason.TOO_FEW_SAMPLES,
            f"{measured.request_steps or 0:.0f} request-steps in the window; it takes {MINIMUM_REQUEST_STEPS} to judge",
            o.active,
        )
    return None


MINIMUM_REQUEST_STEPS = 200


def model_misfits(o: Observation) -> Decision | None:
    """The model does not explain what is measured: what it says of other options is worth nothing then."""
    m, modelled = o.estimates.measured, o.estimates.modelled
    if m is None or modelled is None or not m.step_seconds or not m.tokens_per_step:
        return None
    # Of the steps themselves: TPOT is observed when requests finish, and speaks of what was.
    seen = m.step_seconds / m.tokens_per_step
    if 1 / MISFIT < modelled.tpot.value / seen < MISFIT:
        return None
    return Decision(
        Reason.MODEL_MISFIT,
        f"a token takes {seen * 1e3:.1f} ms, and by the model {modelled.tpot.value * 1e3:.1f} ms: until it"
        " explains what is measured, nothing is changed for its sake",
        o.active,
    )


MISFIT = 2.0
"""Factor between modelled and measured TPOT from which the model is not believed."""


# --- what pays ----------------------------------------------------------------------------------------------------


def a_change_pays(o: Observation) -> Decision | None:
    """Another option makes tokens faster at the load that users offer, for long enough to be worth the change."""
    best: tuple[float, Option, Estimate] | None = None
    for option in o.estimates.candidates:
        gain, outlook = o.estimates.gain(option), o.estimates.outlooks.get(option.profile)
        if gain is None or outlook is None:
            continue
        if gain.value < _least_gain(o, option) or outlook.benefit <= 0 or not _admissible(o, option):
            continue
        if best is None or outlook.benefit > best[0]:
            best = outlook.benefit, option, gain
    return None if best is None else _change_to(o, best[1], best[2])


def _change_to(o: Observation, option: Option, gain: Estimate) -> Decision:
    prediction, outlook = o.estimates.predictions[option.profile], o.estimates.outlooks[option.profile]
    sure = gain.low > 0
    text = (
        f"{describe(option)} is expected to need {prediction.tpot.value * 1e3:.1f} ms per token,"
        f" {_percent(gain)} faster"
    )
    if outlook.payback is not None:
        lasts, paid = (format_duration(round(t / 60) * 60) for t in (outlook.duration, outlook.payback))
        text += f", paid back after {paid}; loads like this are expected to last {lasts} more"
    reason = Reason.CHEAPER_PROFILE if sure else Reason.WORTH_A_CANARY
    if o.active is not None and option.profile == o.active.profile:
        reason = Reason.BETTER_THRESHOLD
    elif option.speculation is None and _above_band(o):
        reason = Reason.BATCH_ABOVE_BREAK_EVEN
    return Decision(
        reason,
        text if sure else f"{text}; that is not sure, a canary will tell",
        option,
        change=True,
        gain=gain,
        required_gain=_least_gain(o, option),
        protect_tail=_needs_review(o, option),
        urgent=o.estimates.relieved_by(option),
    )


def _above_band(o: Observation) -> bool:
    """Whether what runs is above the batch sizes at which it pays."""
    batch = o.estimates.measured.requests_per_step if o.estimates.measured else None
    if o.active is None or batch is None or o.active.profile not in o.estimates.bands:
        return False
    band = o.estimates.bands[o.active.profile]
    return band is None or batch > band.end


def _cannot_spare(o: Observation) -> bool:
    """Whether a probe may cost a pod that the others would miss."""
    running, pods = o.estimates.running, max(1, len(o.running(o.active)))
    if not o.policy.rollout.allow_unavailable or running is None:
        return False
    return running.headroom_without_one(pods) < AMPLE


AMPLE = 1.5
"""Headroom that the other pods must have before one is given up only to find something out."""


def no_baseline(o: Observation) -> Decision | None:
    """Nobody has seen this workload without speculation: what it gains is not known before one pod runs without."""
    if o.policy.mode is not Mode.AUTO:
        return None
    off = o.estimates.candidate(DISABLED)
    known = o.knowledge.get(DISABLED)
    if off is None or o.active is None or o.active.speculation is None or (known is not None and known.step_times):
        return None
    if not _admissible(o, off) or o.now - _last_failed(o, DISABLED) < DAY or _cannot_spare(o):
        return None
    return Decision(
        Reason.NO_BASELINE,
        f"the workload was never seen without speculation, so nobody knows what {describe(o.active)} gains: a canary"
        " will tell",
        off,
        change=True,
        gain=o.estimates.gain(off),
        required_gain=_least_gain(o, off),
    )


def worth_a_probe(o: Observation) -> Decision | None:
    """A win is plausible, though not likely, and what it would bring outweighs one pod's time: a canary tells.

    Only where canaries are made: to try something is no recommendation to run it.
    """
    if o.policy.mode is not Mode.AUTO or o.active is None:
        return None
    if o.estimates.running is None or _cannot_spare(o):
        return None
    best: tuple[float, Option, Estimate] | None = None
    for option in o.estimates.candidates:
        gain, cost, least = o.estimates.gain(option), o.estimates.cost, _least_gain(o, option)
        if gain is None or cost is None or not gain.low < least < gain.high or option.profile == o.active.profile:
            continue
        rest = PROBE_EVERY * backoff(o, option.profile)
        if o.now - _last_failed(o, option.profile) < PROBE_EVERY / 2 or o.now - _last_tried(o, option.profile) < rest:
            continue
        if not _admissible(o, option):
            continue
        outlook = o.estimates.outlooks.get(option.profile)
        lasts = min(MEMORY, outlook.duration) if outlook else MEMORY
        value = worth_of_trying(gain, least, lasts, cost, max(1, len(o.running(o.active))))
        if value > 0 and (best is None or value > best[0]):
            best = value, option, gain
    if best is None:
        return None
    _, option, gain = best
    return Decision(
        Reason.WORTH_A_PROBE,
        f"{describe(option)} is expected to be {_percent(gain)} faster: a win is not likely, but would outweigh one"
        " pod's time many times over; a canary will tell",
        option,
        change=True,
        gain=gain,
        required_gain=_least_gain(o, option),
        protect_tail=_needs_review(o, option),
    )


LOAD_TURNED = 1.5
"""Factor in load from which an earlier failure proves nothing."""
HALF_AN_HOUR = 1800.0
PROBE_EVERY = 4 * 3600.0
"""Seconds between two tries of one profile, doubled after each that failed: what is known of it has faded by then."""


def keep_what_runs(o: Observation) -> Decision | None:
    """Nothing is enough better."""
    others = [(g, c) for c in o.estimates.candidates if _is_other(o, c) and (g := o.estimates.gain(c)) is not None]
    active = describe(o.active) if o.active else "what runs"
    if not others:
        refused = [f"{profile} cannot run: {why}" for profile, why in o.estimates.unavailable.items()]
        return Decision(Reason.BEST_ALREADY, "; ".join([f"{active} stays: there is nothing else", *refused]), o.active)
    gain, best = max(others, key=lambda pair: pair[0].value)
    least = _least_gain(o, best)
    if gain.value < least / 2:
        nearly = "" if gain.value <= 0 else ", or nearly so"
        return Decision(Reason.BEST_ALREADY, f"{active} is expected to be the fastest{nearly}", o.active)
    outlook = o.estimates.outlooks.get(best.profile)
    if barred := _barred(o, best):
        return _too_small(o, best, gain, f", but {barred}")
    if gain.value < least:
        return _too_small(o, best, gain, f"; {format_percent(least)} is the least that is worth a change")
    if not _admissible(o, best) or outlook is None or outlook.payback is None:
        return _too_small(o, best, gain, ", but could not carry the load")
    lasts, paid = (format_duration(round(t / 60) * 60) for t in (outlook.duration, outlook.payback))
    return Decision(
        Reason.LOAD_TOO_SHORT,
        f"{describe(best)} would be {_percent(gain)} faster now and paid back after {paid}, but loads like this are"
        f" expected to last {lasts} more only, and it would lose after that",
        o.active,
        gain=gain,
    )


def _too_small(o: Observation, option: Option, gain: Estimate, why: str) -> Decision:
    text = f"{describe(option)} might be {_percent(gain)} faster{why}"
    return Decision(Reason.GAIN_TOO_SMALL, text, o.active, gain=gain)


CHAIN: tuple[Gate, ...] = (
    # may we judge?
    suspended,
    not_manageable,
    change_in_progress,
    contested,
    workload_rolling,
    metrics_are_missing,
    metrics_are_stale,
    idle,
    too_few_samples,
    # guards
    acceptance_below_floor,
    kv_squeezed,
    ttft_bound,
    model_misfits,
    # what pays
    a_change_pays,
    restart_restores,
    no_baseline,
    worth_a_probe,
    keep_what_runs,
)


# --- brakes -------------------------------------------------------------------------------------------------------


def cooling_down(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """Rest after a change, longer for a profile whose last changes had to be taken back. What is urgent waits for
    those only."""
    if not o.history or d.target is None:
        return None
    profile, cooldown = d.target.profile, o.policy.rollout.cooldown
    until = _last_tried(o, profile) + cooldown * backoff(o, profile)
    if not d.urgent:
        until = max(until, seconds_of(o.history[0].finished_at) + cooldown)
    elif not failures(_tries(o, profile)):
        return None
    if o.now >= until:
        return None
    return Reason.COOLING_DOWN, f"resting after the last change for {format_duration(round(until - o.now))} more"


def changes_exhausted(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """The policy allows so many changes a day. What is tried in vain takes at most half of them, and the last one is
    kept for switching off: what users feel must be answered whatever was tried before."""
    limit = o.policy.rollout.max_changes_per_day
    # A canary that found no node changed nothing.
    today = [h for h in o.history if seconds_of(h.started_at) > o.now - DAY and h.outcome_reason != NO_CAPACITY]
    in_vain = [h for h in today if h.reason in FINDING_OUT and h.outcome is not Outcome.SUCCESSFUL]
    turns_on = d.target is not None and d.target.speculation is not None
    said = f"{len(today)} changes in 24 hours; spec.rollout.maxChangesPerDay allows {limit}"
    if len(today) >= limit:
        return Reason.CHANGES_EXHAUSTED, said
    if turns_on and len(today) >= max(1, limit - 1):
        return Reason.CHANGES_EXHAUSTED, f"{said}, and the last is kept for switching off"
    if d.reason in FINDING_OUT and len(in_vain) >= max(1, limit // 2):
        return Reason.CHANGES_EXHAUSTED, f"{len(in_vain)} of {said}, and half of them at most for what is tried in vain"
    return None


FINDING_OUT = frozenset({Reason.WORTH_A_CANARY, Reason.WORTH_A_PROBE, Reason.NO_BASELINE})
"""Reasons of changes that are not sure to pay."""


def strategy_forbids(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """`Recreate` says that two versions must not run side by side."""
    workload = o.workload
    if workload is None or workload.strategy.get("type") != "Recreate" or o.policy.rollout.allow_unavailable:
        return None
    if d.target is not None and not d.restart and can_be_live(o, d.target):
        return None
    return (
        Reason.STRATEGY_FORBIDS,
        f"Deployment {workload.name} has strategy Recreate: set spec.rollout.allowUnavailable or use RollingUpdate",
    )


BRAKES: tuple[Brake, ...] = (strategy_forbids, cooling_down, restarts_are_rationed, changes_exhausted)


def may_act(o: Observation, d: Decision) -> bool:
    """Whether the decision is carried out now."""
    return d.change and d.held_back is None and o.policy.mode is Mode.AUTO


# --- helpers ------------------------------------------------------------------------------------------------------


def failures(history: Iterable[HistoryEntry]) -> int:
    """How many of the last changes, newest first, did not succeed in a row."""
    return sum(1 for _ in takewhile(lambda entry: entry.outcome is not Outcome.SUCCESSFUL, history))


def lost_today(o: Observation, profile: str) -> int:
    """How many canaries of a profile were compared in a row without success, whatever the load was then."""
    return failures(
        entry
        for entry in o.history
        if entry.target.profile == profile and entry.reason != Reason.RESTART_RESTORES
        if entry.outcome is Outcome.SUCCESSFUL or entry.outcome_reason in COMPARED
        if seconds_of(entry.finished_at) > o.now - DAY
    )


def backoff(o: Observation, profile: str) -> int:
    """Factor on the cool-down: doubles with each of the last changes to a profile that did not succeed, as far as they
    tell something about today."""
    return int(min(2 ** failures(_tries(o, profile)), MAX_BACKOFF))


def _tries(o: Observation, profile: str) -> Iterator[HistoryEntry]:
    """The last changes to a profile, newest first, but for restarts, and those that were measured in another traffic or
    at another load, beyond what it varies by in an hour: what lost then may win today. Where a pod can be given up for
    a canary by now, those do not count that found no room."""
    turned = moved(o.knowledge, profile) > TRAFFIC_TURNED
    now = o.loads.at(o.now)
    room = o.policy.rollout.allow_unavailable and o.estimates.carried_without_one(len(o.running(o.active)))
    for entry in o.history:
        if entry.target.profile != profile or entry.reason == Reason.RESTART_RESTORES:
            continue
        then = o.loads.around(seconds_of(entry.started_at), HALF_AN_HOUR)
        elsewhere = now and then and not then[0] / LOAD_TURNED < now < then[1] * LOAD_TURNED
        if (turned or elsewhere) and entry.outcome_reason in MEASURED:
            continue
        if room and entry.outcome_reason == NO_CAPACITY:
            continue
        yield entry


NO_CAPACITY = "NoCapacity"
"""Ending of a change whose canary found no node."""
COMPARED = frozenset({"Slower", "TailWorse", "GainTooSmall", "NotSure"})
"""Endings of changes whose canary could have been promoted for what it showed, and was not."""
MEASURED = COMPARED | {"UnequalLoad", "TooFewRequests"}
"""Endings (`rollout.ending`) of changes that failed for what was measured, not because the profile does not run."""


def _is_other(o: Observation, option: Option) -> bool:
    return o.active is None or option.profile != o.active.profile or option.speculation != o.active.speculation


def _least_gain(o: Observation, option: Option) -> float:
    """What a change must gain to be worth it: to switch off half as much, for speculation has to earn its place."""
    return o.policy.objective.minimum_gain * (1.0 if option.speculation is not None else 0.5)


def _admissible(o: Observation, option: Option) -> bool:
    prediction = o.estimates.predictions.get(option.profile)
    if prediction is None or not _is_other(o, option) or _barred(o, option):
        return False
    # Where nothing carries the load, more capacity is still a relief.
    return not prediction.saturated or o.estimates.makes_room(option.profile)


def _barred(o: Observation, option: Option) -> str | None:
    """Why a candidate may not be tried now: it would break a promise, or its acceptance was just seen to be low and it
    is not sure to pay."""
    if broken := breaks_tpot_limit(o, option) or fills_kv_cache(o, option):
        return broken
    if o.active is not None and option.profile == o.active.profile:
        # Another schedule of what runs.
        return None
    known, gain = o.knowledge.get(option.profile), o.estimates.gain(option)
    rate = _acceptance_rate(o, option)
    floor = o.policy.guards.acceptance.disable_below
    if known is None or known.measured_at is None or rate is None or rate >= floor:
        return None
    age = o.now - known.measured_at
    if age >= 2 * o.policy.rollout.cooldown * backoff(o, option.profile) or (gain is not None and gain.low > 0):
        return None
    return f"its acceptance was {rate:.2f} {format_duration(round(age))} ago, below {floor:g}"


def _acceptance_rate(o: Observation, option: Option) -> float | None:
    known = o.knowledge.get(option.profile)
    if option.speculation is None or known is None or known.acceptance_rate is None:
        return None
    return of_what_was_meant(o, option, known.acceptance_rate)


def _needs_review(o: Observation, option: Option) -> bool:
    """Between the floors a profile must also keep the tail on its canary; so must one that was never measured."""
    rate = _acceptance_rate(o, option)
    return option.speculation is not None and (rate is None or rate < o.policy.guards.acceptance.review_below)


def _last_failed(o: Observation, profile: str) -> float:
    """Unix seconds of the end of the last change to a profile that did not succeed, whatever the load was then."""
    failed = (h for h in o.history if h.target.profile == profile and h.outcome is not Outcome.SUCCESSFUL)
    return max((seconds_of(h.finished_at) for h in failed), default=-math.inf)


def _last_tried(o: Observation, profile: str) -> float:
    """Unix seconds of the end of the last of `_tries`; minus infinity where there is none."""
    return next((seconds_of(h.finished_at) for h in _tries(o, profile)), -math.inf)


def _percent(gain: Estimate) -> str:
    return f"{gain.value * 100:.0f} % ({gain.low * 100:.0f} to {gain.high * 100:.0f} %)"
