"""The rule: an ordered chain of small questions; the first gate that has an answer decides.

Each gate asks one question, in the order in which a careful engineer would. To find out why the operator did something,
look for its reason here. The brakes (`policy.brakes`) come last: they do not change what is right, only
whether it may be done now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from specdecode.api.quantities import format_duration, format_minutes, format_percent
from specdecode.api.v1alpha1 import DISABLED, Mode
from specdecode.model.cost import Option
from specdecode.model.estimate import Estimate
from specdecode.model.loads import DAY
from specdecode.model.tokens import MEMORY
from specdecode.policy.ageing import restart_restores
from specdecode.policy.back_to_own import manifest_was_faster, manifest_would_be_faster, overloaded_by_ours
from specdecode.policy.brakes import held_back
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.guards import (
    acceptance_below_floor,
    breaks_tpot_limit,
    fills_kv_cache,
    kv_squeezed,
    of_what_was_meant,
    ttft_bound,
)
from specdecode.policy.observation import AT_THE_LIMIT, Observation
from specdecode.policy.options import configuration, describe
from specdecode.policy.outlook import Outlook, worth_of_trying
from specdecode.policy.past import backoff, last_failed, last_tried, was_worse
from specdecode.policy.spare import cannot_go_back, cannot_spare_much, one_is_given_up, waits_for_room

Gate = Callable[[Observation], Decision | None]


def decide(o: Observation) -> Decision:
    """The decision for one observation."""
    decision = next(d for gate in CHAIN if (d := gate(o)) is not None)
    if not decision.change:
        return decision
    return replace(decision, held_back=held_back(o, decision))


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
    last = o.last_success
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
    # Of the steps themselves: TPOT is observed when requests finish, and speaks of what was.
    seen = m.tpot_of_steps if m is not None else None
    if seen is None or modelled is None:
        return None
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
        if not _pays(o, option, gain, outlook) or not _admissible(o, option) or _no_time_for(o, option, gain):
            continue
        if best is None or outlook.benefit > best[0]:
            best = outlook.benefit, option, gain
    return None if best is None else _change_to(o, best[1], best[2])


def _pays(o: Observation, option: Option, gain: Estimate, outlook: Outlook) -> bool:
    if waits_for_room(o, option):
        # It was found to be worth it: when it gains more, no pod can be spared.
        return gain.value >= 0
    # What the manifest says, where it is surely faster, is owed to the user whatever it costs.
    return _is_owed(o, option, gain) or (gain.value >= _least_gain(o, option) and outlook.benefit > 0)


def _no_time_for(o: Observation, option: Option, gain: Estimate) -> bool:
    """Whether requests pile up on what the user did not choose, and an option is neither sure to be faster nor what
    they did choose: its canary would cost the time that the way back takes."""
    m = o.estimates.measured
    piles_up = m is not None and (m.waiting or 0.0) > PILE * (m.batch_size or 0.0)
    return piles_up and not o.is_own(o.active) and not o.is_own(option) and gain.low <= 0


PILE = 0.1
"""Share of the running requests from which those that wait are more than chance."""


def _is_owed(o: Observation, option: Option, gain: Estimate) -> bool:
    return _goes_back(o, option) and gain.low > 0


def _change_to(o: Observation, option: Option, gain: Estimate) -> Decision:
    prediction, outlook = o.estimates.predictions[option.profile], o.estimates.outlooks[option.profile]
    sure, owed = gain.low > 0, _is_owed(o, option, gain)
    text = (
        f"{describe(option)} is expected to need {prediction.tpot.value * 1e3:.1f} ms per token,"
        f" {_percent(gain)} faster"
    )
    if owed:
        text += ", and is what the manifest asks for"
    elif outlook.payback is not None:
        lasts, paid = (format_minutes(t) for t in (outlook.duration, outlook.payback))
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
        required_gain=0.0 if waits_for_room(o, option) else _least_gain(o, option),
        protect_tail=_needs_review(o, option),
        urgent=owed or o.estimates.relieved_by(option),
    )


def _above_band(o: Observation) -> bool:
    """Whether what runs is above the batch sizes at which it pays."""
    batch = o.estimates.measured.requests_per_step if o.estimates.measured else None
    if o.active is None or batch is None or o.active.profile not in o.estimates.bands:
        return False
    band = o.estimates.bands[o.active.profile]
    return band is None or batch > band.end


def no_baseline(o: Observation) -> Decision | None:
    """Nobody has seen this workload without speculation: what it gains is not known before one pod runs without."""
    if o.policy.mode is not Mode.AUTO:
        return None
    off = o.estimates.candidate(DISABLED)
    known = o.knowledge.get(DISABLED)
    if off is None or o.active is None or o.active.speculation is None or (known is not None and known.step_times):
        return None
    if not _admissible(o, off) or o.now - last_failed(o, DISABLED) < DAY:
        return None
    if cannot_spare_much(o) or _stuck(o, off):
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
    if o.estimates.running is None or cannot_spare_much(o):
        return None
    best: tuple[float, Option, Estimate] | None = None
    for option in o.estimates.candidates:
        gain, cost, least = o.estimates.gain(option), o.estimates.cost, _least_gain(o, option)
        if gain is None or cost is None or not gain.low < least < gain.high or option.profile == o.active.profile:
            continue
        rest = PROBE_EVERY * backoff(o, option.profile)
        if o.now - last_failed(o, option.profile) < PROBE_EVERY / 2 or o.now - last_tried(o, option.profile) < rest:
            continue
        # While the pods fall behind, a canary of what is not expected to carry the load either does no harm.
        saturated = o.estimates.predictions[option.profile].saturated
        if _barred(o, option) or _stuck(o, option) or (saturated and not o.estimates.overloaded):
            continue
        if _no_time_for(o, option, gain):
            continue
        outlook = o.estimates.outlooks.get(option.profile)
        lasts = min(MEMORY, outlook.duration) if outlook else MEMORY
        value = worth_of_trying(gain, least, lasts, cost, o.serving)
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
    lasts, paid = (format_minutes(t) for t in (outlook.duration, outlook.payback))
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
    overloaded_by_ours,
    manifest_was_faster,
    manifest_would_be_faster,
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


# --- helpers ------------------------------------------------------------------------------------------------------


def _is_other(o: Observation, option: Option) -> bool:
    return o.active is None or option.profile != o.active.profile or option.speculation != o.active.speculation


def _least_gain(o: Observation, option: Option) -> float:
    """What a change must gain to be worth it: to switch off half as much, for speculation has to earn its place; to go
    back to what the manifest says nothing, for that needs no reason."""
    if _goes_back(o, option):
        return 0.0
    return o.policy.objective.minimum_gain * (1.0 if option.speculation is not None else 0.5)


def _goes_back(o: Observation, option: Option) -> bool:
    """Whether that is back to what the manifest says."""
    return o.is_own(option) and not o.is_own(o.active)


def _admissible(o: Observation, option: Option) -> bool:
    prediction = o.estimates.predictions.get(option.profile)
    if prediction is None or not _is_other(o, option) or _barred(o, option):
        return False
    # Where nothing carries the load, more capacity is still a relief.
    return not prediction.saturated or o.estimates.makes_room(option.profile)


def _breaks_a_promise(o: Observation, option: Option) -> str | None:
    """Why an option is out of the question: users would wait longer than was promised, or for ever."""
    return breaks_tpot_limit(o, option) or fills_kv_cache(o, option) or was_worse(o, option.profile)


def _barred(o: Observation, option: Option) -> str | None:
    """Why a candidate may not be tried now: it would break a promise, could not be taken back, or its acceptance was
    just seen to be low and it is not sure to pay."""
    if broken := _breaks_a_promise(o, option):
        return broken
    if o.active is not None and option.profile == o.active.profile:
        # Another schedule of what runs.
        return None
    if option.speculation is not None and (stuck := _stuck(o, option) or _short_of_the_last_peak(o, option)):
        return stuck
    known = o.knowledge.get(option.profile)
    rate = _acceptance_rate(o, option)
    floor = o.policy.guards.acceptance.disable_below
    if known is None or known.measured_at is None or rate is None or rate >= floor:
        return None
    age = o.now - known.measured_at
    if age >= 2 * o.policy.rollout.cooldown * backoff(o, option.profile) or o.estimates.surely_faster(option):
        return None
    return f"its acceptance was {rate:.2f} {format_duration(round(age))} ago, below {floor:g}"


def _short_of_the_last_peak(o: Observation, option: Option) -> str | None:
    """That an option which the manifest does not say carries less of the last hours' highest load than what runs: a
    spike like that comes faster than a change is taken back."""
    e, peak = o.estimates, o.loads.between(o.now - RECENT, o.now)
    here, other, load = e.running, e.predictions.get(option.profile), e.load
    if here is None or other is None or load is None or peak is None or o.is_own(option):
        return None
    highest = peak[1] / o.serving
    if highest <= AT_THE_LIMIT * load.tokens_per_second:
        # It is there: what can carry the load of now is asked elsewhere.
        return None
    ours, theirs = (p.headroom * load.tokens_per_second for p in (here, other))
    if theirs * AT_THE_LIMIT >= min(highest, ours):
        return None
    hours = format_duration(RECENT)
    return f"it carries {theirs:.0f} tokens/s per pod, and {highest:.0f} were asked within the last {hours}"


RECENT = 2 * 3600.0
"""Seconds after which a spike is not expected again as a matter of course."""


def _stuck(o: Observation, option: Option) -> str | None:
    """Why a change could not be taken back, where it is known that no canary has room beside the other pods."""
    return cannot_go_back(o, option) if one_is_given_up(o, for_sure=True) else None


def _acceptance_rate(o: Observation, option: Option) -> float | None:
    known = o.knowledge.get(option.profile)
    if option.speculation is None or known is None or known.acceptance_rate is None:
        return None
    return of_what_was_meant(o, option, known.acceptance_rate)


def _needs_review(o: Observation, option: Option) -> bool:
    """Between the floors a profile must also keep the tail on its canary; so must one that was never measured."""
    rate = _acceptance_rate(o, option)
    return option.speculation is not None and (rate is None or rate < o.policy.guards.acceptance.review_below)


def _percent(gain: Estimate) -> str:
    return f"{gain.value * 100:.0f} % ({gain.low * 100:.0f} to {gain.high * 100:.0f} %)"
