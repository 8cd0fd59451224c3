"""The conditions of a policy: what is thought of the workload, its metrics, the change, the traffic and the operator's
own memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from specdecode.api.conditions import ConditionType
from specdecode.api.v1alpha1 import Condition, Mode, SpecDecodePolicyStatus
from specdecode.model.memory import Unusable
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.live import NotLive, hindrance, wanted
from specdecode.policy.observation import Observation
from specdecode.policy.options import Menu
from specdecode.policy.past import failures
from specdecode.policy.traffic import traffic
from specdecode.rollout.phases import Step
from specdecode.vllm.capabilities import capabilities
from specdecode.vllm.command import Server, read
from specdecode.vllm.effective import disagreements

FAILURES_THAT_DEGRADE = 3


@dataclass(frozen=True)
class Troubles:
    """What is wrong with the operator's own objects."""

    memory: Unusable | None = None
    schedule_file: str | None = None


NO_TROUBLES = Troubles()


def conditions(
    o: Observation, d: Decision, step: Step, before: SpecDecodePolicyStatus, troubles: Troubles
) -> list[Condition]:
    """All conditions of the policy after a tick."""
    memory = troubles.memory
    unmanaged = d.reason in (Reason.WORKLOAD_MISSING, Reason.NOT_MANAGEABLE, Reason.FIELD_CONTESTED)
    reason = o.problem.reason if d.reason is Reason.NOT_MANAGEABLE and o.problem else d.reason.value
    blind = d.reason is Reason.METRICS_MISSING
    answered = any(p.answered for p in o.pods) and not blind and d.reason is not Reason.METRICS_STALE
    history = [step.finished, *before.history] if step.finished else before.history
    change = step.rollout
    made: list[tuple[ConditionType, bool | None, str, str]] = [
        (
            ConditionType.READY,
            not unmanaged,
            reason if unmanaged else "Suspended" if o.policy.suspend else _MODES[o.policy.mode],
            d.message if unmanaged or o.menu is None else _managed(o, o.menu),
        ),
        (
            ConditionType.METRICS_AVAILABLE,
            answered or (False if blind else None),
            "PodsAnswer" if answered else d.reason.value,
            "" if answered else d.message,
        ),
        (
            ConditionType.PROGRESSING,
            change is not None,
            change.phase.value if change else "NoChange",
            change.message if change else "",
        ),
        (
            ConditionType.RECOMMENDED,
            None if d.target is None or change is not None or d.reason in _NO_JUDGEMENT else not d.change,
            change.reason if change else (d.held_back[0] if d.held_back else d.reason).value,
            d.message if d.held_back is None else f"{d.message}; {d.held_back[1]}",
        ),
        _degraded(d, failures(history), history[0].message if history else ""),
        _mixed(o, before),
        (
            ConditionType.MEMORY_USABLE,
            memory is None,
            memory.reason if memory else "MemoryKept",
            memory.message if memory else "",
        ),
        _as_configured(o),
    ]
    if wanted(o):
        made.append(_live(o, troubles.schedule_file))
    return [_made(o, before, *c) for c in made]


def _managed(o: Observation, menu: Menu) -> str:
    notes = [f"profile {profile} cannot run: {why}" for profile, why in o.estimates.unavailable.items()]
    if menu.server.config_file is not None:
        notes.append(f"what {menu.server.config_file} says is not seen")
    if menu.server.unseen:
        notes.append(f"what {' '.join(menu.server.unseen)} stands for is not seen")
    if menu.server.may_bring_speculation and menu.server.speculation is None:
        notes.append("by its name the model brings a speculative configuration of its own, which arguments do not show")
    return "; ".join([f"vLLM {menu.version} in {o.policy.target_ref.name}", *notes])


_NO_JUDGEMENT = (Reason.IDLE, Reason.TOO_FEW_SAMPLES)
"""What runs stays, but not because it would have been found to be best."""

_MODES = {Mode.OBSERVE: "Observing", Mode.RECOMMEND: "Recommending", Mode.AUTO: "Managing"}


def _degraded(d: Decision, failed: int, last: str) -> tuple[ConditionType, bool, str, str]:
    if d.reason is Reason.FIELD_CONTESTED:
        return ConditionType.DEGRADED, True, d.reason.value, d.message
    if failed >= FAILURES_THAT_DEGRADE:
        return (
            ConditionType.DEGRADED,
            True,
            "ChangesFail",
            f"the last {failed} changes did not succeed (see status.history); the very last: {last}",
        )
    return ConditionType.DEGRADED, False, "AsExpected", ""


def _as_configured(o: Observation) -> tuple[ConditionType, bool | None, str, str]:
    type_, w = ConditionType.ENGINE_AS_CONFIGURED, o.workload
    seen = [p for p in o.pods if p.answered and p.revision == (w.revision if w else None) and not p.terminating]
    server = read(w.container, o.menu.version) if w and o.menu else None
    if not seen or o.menu is None or not isinstance(server, Server):
        return type_, None, "NotSeen", ""
    can = capabilities(o.menu.version)
    for pod in seen:
        page = pod.window.readings[-1].page if pod.window.readings else None
        found = disagreements(server.speculation, can, server.data_parallel_size, page, pod.told)
        if (first := next(found, None)) is not None:
            return type_, False, first.reason.value, f"pod {pod.name}: {first.message}"
    return type_, True, "AsConfigured", ""


def _live(o: Observation, trouble: str | None) -> tuple[ConditionType, bool | None, str, str]:
    type_ = ConditionType.LIVE_TUNING
    if trouble is not None:
        return type_, False, NotLive.FILE_NOT_WRITTEN.value, trouble
    if o.active is None or o.active.speculation is None or not any(p.answered for p in o.pods):
        return type_, None, "NothingToTune", ""
    found = hindrance(o)
    if found is None:
        return type_, True, "PodsFollow", ""
    # To be started without a schedule is no fault: the first one has to come by a roll.
    return type_, None if found.reason is NotLive.NO_SCHEDULE else False, found.reason.value, found.message


def _mixed(o: Observation, before: SpecDecodePolicyStatus) -> tuple[ConditionType, bool | None, str, str]:
    was = condition(before, ConditionType.MIXED_TRAFFIC)
    found = traffic(o, was_mixed=was is not None and was.status == "True")
    return ConditionType.MIXED_TRAFFIC, found.mixed, found.sign.value, found.message


def _made(
    o: Observation, before: SpecDecodePolicyStatus, type_: ConditionType, value: bool | None, reason: str, message: str
) -> Condition:
    status = {True: "True", False: "False", None: "Unknown"}[value]
    was = condition(before, type_)
    since = was.last_transition_time if was is not None and was.status == status else text_of(o.now)
    return Condition(
        type=type_.value,
        status=status,
        reason=reason,
        message=message[:1024],
        last_transition_time=since,
        observed_generation=o.generation,
    )


def condition(status: SpecDecodePolicyStatus, type_: ConditionType) -> Condition | None:
    """One of the conditions by its type."""
    return next((c for c in status.conditions if c.type == type_.value), None)
