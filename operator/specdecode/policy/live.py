"""Schedules that come into force without a restart: what the file says, and where it can be used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from specdecode.api.v1alpha1 import BatchSizeTuningApply, LiveSchedule
from specdecode.model.cost import Option
from specdecode.policy.observation import Observation, Pod
from specdecode.policy.options import ranges_of, status_of
from specdecode.vllm.live_schedule import PluginState, Schedule, ScheduleReport, write_file
from specdecode.vllm.speculation import Speculation


class NotLive(StrEnum):
    """Why another schedule takes a roll although the policy asks for it live: reasons of the condition LiveTuning."""

    PLUGIN_MISSING = "PluginMissing"
    VERSION_NOT_TESTED = "VersionNotTested"
    NO_SCHEDULE = "NoSchedule"
    PLUGIN_NOT_STARTED = "PluginNotStarted"
    FILE_REJECTED = "FileRejected"
    FILE_NOT_WRITTEN = "FileNotWritten"
    NOT_TAKEN_OVER = "NotTakenOver"


@dataclass(frozen=True)
class Hindrance:
    """Why it cannot be live, with the way out."""

    reason: NotLive
    message: str


# --- the file -----------------------------------------------------------------------------------------------------


def live_schedule(
    started: Speculation, schedule: Schedule, canary: str | None = None, canary_schedule: Schedule = ()
) -> LiveSchedule | None:
    """What the file shall say to servers that were started with a configuration; None: they go by their arguments."""
    if canary is None and schedule == started.schedule:
        return None
    return LiveSchedule(
        method=started.vllm_method or "",
        model=started.model,
        num_speculative_tokens=started.num_speculative_tokens or 1,
        started_with=status_of(started.schedule),
        schedule=status_of(schedule),
        canary=canary,
        canary_schedule=status_of(canary_schedule),
    )


def file_of(live: LiveSchedule | None) -> str | None:
    """The text of the file; None: there is none."""
    if live is None:
        return None
    return write_file(
        live.method,
        live.model,
        live.num_speculative_tokens,
        ranges_of(live.started_with),
        ranges_of(live.schedule),
        {} if live.canary is None else {live.canary: ranges_of(live.canary_schedule)},
    )


def is_about(live: LiveSchedule, option: Option | None) -> bool:
    """Whether the file is for servers that were started with an option."""
    s = option.speculation if option else None
    return s is not None and (live.method, live.model, live.num_speculative_tokens, ranges_of(live.started_with)) == (
        s.vllm_method,
        s.model,
        s.num_speculative_tokens,
        s.schedule,
    )


def by_file(option: Option | None, live: LiveSchedule | None) -> Option | None:
    """What servers run that were started with an option, by what the file says."""
    if option is None or live is None or not is_about(live, option):
        return option
    return _with(option, ranges_of(live.schedule))


def by_report(option: Option | None, report: ScheduleReport | None) -> Option | None:
    """What one server runs that was started with an option, by what it tells itself."""
    if option is None or report is None or not report.live:
        return option
    return _with(option, report.schedule)


def _with(option: Option, schedule: Schedule) -> Option:
    s = option.speculation
    return option if s is None or not s.schedule else replace(option, speculation=replace(s, schedule=schedule))


# --- where it can be used -----------------------------------------------------------------------------------------


def wanted(o: Observation) -> bool:
    """Whether the policy asks for live schedules."""
    return o.policy.batch_size_tuning.apply is BatchSizeTuningApply.LIVE


def can_be_live(o: Observation, target: Option) -> bool:
    """Whether the pods can come from what they run to an option without a restart."""
    now, then = o.active, target
    if not wanted(o) or now is None or now.speculation is None or then.speculation is None or o.menu is None:
        return False
    if now.profile != then.profile or not then.speculation.schedule or o.workload is None:
        return False
    if replace(now.speculation, schedule=()) != replace(then.speculation, schedule=()) or hindrance(o) is not None:
        return False
    started = o.workload.option.speculation if o.workload.option else None
    if started is None or started.num_speculative_tokens is None or started.vllm_method is None:
        return False
    # CUDA graphs were captured for the Ks of the start: with another one, steps run without (Model Runner V2,
    # v1/worker/gpu/cudagraph_utils.py).
    captured = {r.k for r in started.schedule}
    return o.menu.server.enforce_eager or {r.k for r in then.speculation.schedule} <= captured


def hindrance(o: Observation) -> Hindrance | None:
    """What keeps the pods from following the file; None while nothing is known to."""
    pods = [p for p in o.pods if p.ready and not p.terminating and p.window.readings]
    found = next((h for p in pods if (h := _of_pod(p)) is not None), None)
    if found is not None:
        return found
    last = next((h for h in o.history if h.live), None)
    if last is None or last.policy_generation != o.generation or last.outcome_reason != "NotInForce":
        return None
    return Hindrance(
        NotLive.NOT_TAKEN_OVER,
        f"the pods did not take the last schedule over ({last.message}): check that they mount the ConfigMap, then edit"
        " the policy; until then it is a roll",
    )


def _of_pod(pod: Pod) -> Hindrance | None:
    report = pod.schedule
    if report is None:
        return Hindrance(
            NotLive.PLUGIN_MISSING,
            f"pod {pod.name} shows no metric of the plugin specdecode-vllm: install and mount it, or leave"
            " batchSizeTuning.apply out",
        )
    if report.problem:
        return Hindrance(
            NotLive.FILE_REJECTED,
            f"pod {pod.name} cannot use its schedule file ({report.problem}) and stays with the last good one: its log"
            " says more",
        )
    return None if report.live else _not_live(pod, report)


def _not_live(pod: Pod, report: ScheduleReport) -> Hindrance:
    if report.state == PluginState.VERSION_NOT_TESTED:
        return Hindrance(
            NotLive.VERSION_NOT_TESTED,
            f"the plugin of pod {pod.name} was not tested with this version of vLLM: a newer plugin may be",
        )
    if report.state == PluginState.NO_SCHEDULE:
        return Hindrance(
            NotLive.NO_SCHEDULE,
            f"pod {pod.name} was started without a schedule: the first one comes by a roll, those after it live",
        )
    return Hindrance(
        NotLive.PLUGIN_NOT_STARTED,
        f"the plugin of pod {pod.name} does not follow a file ({report.state}): a scheduler class of its own, several"
        " API servers or an error, which its log tells",
    )
