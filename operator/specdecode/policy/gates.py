"""The rule: an ordered chain of small questions; the first gate that has an answer decides.

Each gate asks one question, in the order in which a careful engineer would. To find out why the operator did something,
look for its reason here. `BRAKES` come last: they do not change what is right, only whether it may be done now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import takewhile

from specdecode.api.quantities import format_duration, format_percent
from specdecode.api.v1alpha1 import DISABLED, HistoryEntry, Mode, Outcome
from specdecode.model.cost import Option, Prediction
from specdecode.model.estimate import Estimate
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.observation import Observation
from specdecode.policy.options import configuration, describe

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


# --- guards -------------------------------------------------------------------------------------------------------


def acceptance_below_floor(o: Observation) -> Decision | None:
    """Low acceptance is net negative: off, unless both sides of the cost were measured here and say otherwise."""
    floor, acceptance = o.policy.guards.acceptance.disable_below, o.estimates.acceptance
    off = _candidate(o, DISABLED)
    if o.active is None or o.active.speculation is None or acceptance is None or off is None or acceptance[0] >= floor:
        return None
    gain, known = _gain(o, off), o.knowledge.get(DISABLED)
    if gain is not None and gain.high < 0 and known is not None and known.step_times:
        return None
    return Decision(
        Reason.ACCEPTANCE_BELOW_FLOOR,
        f"{describe(o.active)} gets {acceptance[0]:.2f} of its drafted tokens accepted, below the floor of {floor:g}",
        off,
        change=True,
        gain=gain,
        required_gain=0.0,
        urgent=True,
    )


# --- what pays ----------------------------------------------------------------------------------------------------


def batch_above_break_even(o: Observation) -> Decision | None:
    """Above its break-even batch size speculation costs more than it brings."""
    off = _candidate(o, DISABLED)
    measured, active = o.estimates.measured, o.active
    if off is None or active is None or active.speculation is None or measured is None:
        return None
    limit, batch = o.estimates.break_even.get(active.profile), measured.requests_per_step
    gain = _gain(o, off)
    if limit is None or batch is None or batch < limit or gain is None or gain.value < o.policy.objective.minimum_gain:
        return None
    return Decision(
        Reason.BATCH_ABOVE_BREAK_EVEN,
        f"{batch:.0f} requests per step are above the break-even of {limit:.0f} for {active.profile}:"
        f" {DISABLED} is expected to be {_percent(gain)} faster",
        off,
        change=True,
        gain=gain,
        required_gain=o.policy.objective.minimum_gain,
    )


def cheapest_profile(o: Observation) -> Decision | None:
    """Another profile makes tokens faster at the load that users offer."""
    wanted = [(g, c) for c in o.estimates.candidates if _admissible(o, c) and (g := _gain(o, c)) is not None]
    better = [(g, c) for g, c in wanted if g.value >= o.policy.objective.minimum_gain]
    if not better:
        return None
    gain, best = max(better, key=lambda pair: pair[0].value)
    prediction = o.estimates.predictions[best.profile]
    sure = gain.low > 0
    text = (
        f"{describe(best)} is expected to need {prediction.tpot.value * 1e3:.1f} ms per token, {_percent(gain)} faster"
    )
    same_profile = o.active is not None and best.profile == o.active.profile
    reason = Reason.BETTER_THRESHOLD if same_profile else Reason.CHEAPER_PROFILE if sure else Reason.WORTH_A_CANARY
    return Decision(
        reason,
        text if sure else f"{text}; that is not sure, a canary will tell",
        best,
        change=True,
        gain=gain,
        required_gain=o.policy.objective.minimum_gain,
        protect_tail=_needs_review(o, best),
    )


def keep_what_runs(o: Observation) -> Decision | None:
    """Nothing is enough better."""
    others = [(g, c) for c in o.estimates.candidates if _is_other(o, c) and (g := _gain(o, c)) is not None]
    active = describe(o.active) if o.active else "what runs"
    if not others:
        refused = [f"{profile} cannot run: {why}" for profile, why in o.estimates.unavailable.items()]
        return Decision(Reason.BEST_ALREADY, "; ".join([f"{active} stays: there is nothing else", *refused]), o.active)
    gain, best = max(others, key=lambda pair: pair[0].value)
    if gain.value <= 0:
        return Decision(Reason.BEST_ALREADY, f"{active} is expected to be the fastest", o.active)
    if barred := _barred(o, best):
        why = f", but {barred}"
    elif gain.value >= o.policy.objective.minimum_gain:
        why = ", but could not carry the load"
    else:
        why = f"; {format_percent(o.policy.objective.minimum_gain)} is the least that is worth a change"
    return Decision(
        Reason.GAIN_TOO_SMALL, f"{describe(best)} might be {_percent(gain)} faster{why}", o.active, gain=gain
    )


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
    # what pays
    batch_above_break_even,
    cheapest_profile,
    keep_what_runs,
)


# --- brakes -------------------------------------------------------------------------------------------------------


def cooling_down(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """Rest after a change, longer after changes that had to be taken back. A guard waits for those only."""
    if not o.history or (d.urgent and o.history[0].outcome is Outcome.SUCCESSFUL):
        return None
    until = seconds_of(o.history[0].finished_at) + o.policy.rollout.cooldown * backoff(o)
    if o.now >= until:
        return None
    return Reason.COOLING_DOWN, f"resting after the last change for {format_duration(round(until - o.now))} more"


def changes_exhausted(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """The policy allows so many changes a day."""
    limit = o.policy.rollout.max_changes_per_day
    today = [h for h in o.history if seconds_of(h.started_at) > o.now - DAY]
    if len(today) < limit:
        return None
    return Reason.CHANGES_EXHAUSTED, f"{len(today)} changes in 24 hours; spec.rollout.maxChangesPerDay allows {limit}"


def strategy_forbids(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """`Recreate` says that two versions must not run side by side."""
    workload = o.workload
    if workload is None or workload.strategy.get("type") != "Recreate" or o.policy.rollout.allow_unavailable:
        return None
    return (
        Reason.STRATEGY_FORBIDS,
        f"Deployment {workload.name} has strategy Recreate: set spec.rollout.allowUnavailable or use RollingUpdate",
    )


BRAKES: tuple[Brake, ...] = (strategy_forbids, cooling_down, changes_exhausted)


def may_act(o: Observation, d: Decision) -> bool:
    """Whether the decision is carried out now."""
    return d.change and d.held_back is None and o.policy.mode is Mode.AUTO


# --- helpers ------------------------------------------------------------------------------------------------------


def failures(history: Iterable[HistoryEntry]) -> int:
    """How many of the last changes, newest first, did not succeed in a row."""
    return sum(1 for _ in takewhile(lambda entry: entry.outcome is not Outcome.SUCCESSFUL, history))


def backoff(o: Observation) -> int:
    """Factor on the cool-down: doubles with each of the last changes that did not succeed."""
    return int(min(2 ** failures(o.history), MAX_BACKOFF))


def _candidate(o: Observation, profile: str) -> Option | None:
    return next((c for c in o.estimates.candidates if c.profile == profile), None)


def _is_other(o: Observation, option: Option) -> bool:
    return o.active is None or option.profile != o.active.profile or option.speculation != o.active.speculation


def _admissible(o: Observation, option: Option) -> bool:
    prediction = o.estimates.predictions.get(option.profile)
    if prediction is None or not _is_other(o, option) or _barred(o, option):
        return False
    return not prediction.saturated or _relieves(prediction, o.estimates.running)


def _relieves(option: Prediction, active: Prediction | None) -> bool:
    """Where nothing carries the load, more capacity is still a relief."""
    return active is not None and active.saturated and option.headroom > active.headroom


def _barred(o: Observation, option: Option) -> str | None:
    """Why a candidate may not be tried now: its acceptance was just seen to be low, and it is not sure to pay."""
    known, gain = o.knowledge.get(option.profile), _gain(o, option)
    rate = known.acceptance_rate if known and option.speculation is not None else None
    floor = o.policy.guards.acceptance.disable_below
    if known is None or known.measured_at is None or rate is None or rate >= floor:
        return None
    age = o.now - known.measured_at
    if age >= 2 * o.policy.rollout.cooldown * backoff(o) or (gain is not None and gain.low > 0):
        return None
    return f"its acceptance was {rate:.2f} {format_duration(round(age))} ago, below {floor:g}"


def _needs_review(o: Observation, option: Option) -> bool:
    """Between the floors a profile must also keep the tail on its canary; so must one that was never measured."""
    known = o.knowledge.get(option.profile)
    rate = known.acceptance_rate if known else None
    return option.speculation is not None and (rate is None or rate < o.policy.guards.acceptance.review_below)


def _gain(o: Observation, option: Option) -> Estimate | None:
    """How much faster tokens come with an option than with what runs, at the load of now."""
    other, here = o.estimates.predictions.get(option.profile), o.estimates.running
    if o.active is not None and option.profile == o.active.profile:
        # The same drafts at another schedule: where model and measurement differ is not what a change would gain.
        here = o.estimates.modelled
    if other is None or here is None:
        return None
    now = here.tpot.value
    return Estimate(now / other.tpot.value - 1, now / other.tpot.high - 1, now / other.tpot.low - 1)


def _percent(gain: Estimate) -> str:
    return f"{gain.value * 100:.0f} % ({gain.low * 100:.0f} to {gain.high * 100:.0f} %)"
