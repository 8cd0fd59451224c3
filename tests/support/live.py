"""A workload whose pods follow a schedule file: n-gram that was started with a schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specdecode.api.v1alpha1 import SpecDecodePolicySpec
from specdecode.model.cost import Option
from specdecode.model.window import Window
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.observation import Observation, Pod
from specdecode.policy.options import Menu
from specdecode.vllm.live_schedule import Schedule, ScheduleReport
from specdecode.vllm.speculation import BatchRange
from support.world import menu, merged, observation, option, pod, spec, traffic, workload

STARTED: Schedule = (BatchRange(1, 16, 5), BatchRange(17, 256, 0))
OTHER: Schedule = (BatchRange(1, 32, 5), BatchRange(33, 256, 0))
FOLLOWS = ScheduleReport("Live", STARTED)


def live_spec(**changes: Any) -> SpecDecodePolicySpec:
    return spec(**merged({"batchSizeTuning": {"mode": "Auto", "apply": "Live"}}, changes))


def scheduled(m: Menu, schedule: Schedule) -> Option:
    """N-gram by a schedule."""
    base = option(m, "ngram")
    assert base.speculation is not None
    return Option("ngram", replace(base.speculation, schedule=schedule))


def telling(window: Window, report: ScheduleReport | None) -> Window:
    """The window of a pod whose page has the plugin's report."""
    readings = tuple(replace(r, page=replace(r.page, schedule=report)) for r in window.readings)
    return replace(window, readings=readings)


def server(name: str, m: Menu, report: ScheduleReport | None = FOLLOWS, step: float = 0.02, **fields: Any) -> Pod:
    """A pod that was started with `STARTED`, and runs what it reports."""
    runs = scheduled(m, report.schedule if report is not None and report.live else STARTED)
    return pod(name, "old", runs, telling(traffic(acceptance=0.6, step=step), report), **fields)


def following(policy: SpecDecodePolicySpec | None = None, **changes: Any) -> Observation:
    """Three pods that were started with `STARTED` and follow the file."""
    policy = policy or live_spec()
    m = menu(policy, version="0.32.0")
    started = scheduled(m, STARTED)
    container = m.render(started)
    assert isinstance(container, dict)
    seen = observation(policy, menu=m)
    base = replace(
        seen,
        workload=replace(workload(container), option=started),
        active=started,
        pods=tuple(server(f"p{i}", m) for i in range(3)),
    )
    return estimate(replace(base, **changes), Modeller())


def better(o: Observation, schedule: Schedule = OTHER, **fields: Any) -> Decision:
    """A decision for another schedule."""
    assert o.menu is not None
    return Decision(Reason.BETTER_THRESHOLD, "it pays", scheduled(o.menu, schedule), change=True, **fields)
