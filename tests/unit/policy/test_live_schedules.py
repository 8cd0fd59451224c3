"""What the schedule file says, and where another schedule needs no restart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import specdecode_vllm as plugin
from specdecode.api.v1alpha1 import Configuration, HistoryEntry, Outcome
from specdecode.policy.brakes import strategy_forbids
from specdecode.policy.clock import text_of
from specdecode.policy.live import NotLive, by_file, by_report, can_be_live, file_of, hindrance, is_about, live_schedule
from specdecode.policy.observation import Observation
from specdecode.vllm.live_schedule import ScheduleReport
from specdecode.vllm.speculation import BatchRange
from support.live import FOLLOWS, OTHER, STARTED, better, following, live_spec, scheduled, server
from support.world import NOW, option


def started(o: Observation) -> Any:
    assert o.workload is not None and o.workload.option is not None
    return o.workload.option.speculation


def test_the_plugin_reads_what_the_operator_writes() -> None:
    text = file_of(live_schedule(started(following()), STARTED, "p1", OTHER))
    assert text is not None
    of = plugin.Server("ngram", None, 5, ((1, 16, 5), (17, 256, 0)), "p1")
    assert plugin.read(text.encode(), of) == plugin.InForce(((1, 32, 5), (33, 256, 0)), "pod")
    assert plugin.read(text.encode(), replace(of, pod="p2")) == plugin.InForce(of.schedule, "file")
    assert plugin.read(text.encode(), replace(of, k=4)).source == "arguments"


def test_a_draft_model_is_named_in_the_file() -> None:
    drafting = replace(started(following()), model="small")
    text = file_of(live_schedule(drafting, OTHER))
    assert text is not None and json.loads(text)["started_with"]["model"] == "small"


def test_where_the_arguments_say_it_there_is_no_file() -> None:
    assert live_schedule(started(following()), STARTED) is None
    assert file_of(None) is None


def test_a_file_counts_for_what_it_is_about_alone() -> None:
    o = following()
    assert o.menu is not None
    live = live_schedule(started(o), OTHER)
    assert live is not None and is_about(live, o.active)
    assert by_file(o.active, live) == scheduled(o.menu, OTHER)
    for other in (scheduled(o.menu, OTHER), option(o.menu, "ngram"), option(o.menu, "disabled"), None):
        assert by_file(other, live) == other
    assert by_file(o.active, None) == o.active


def test_a_pod_runs_what_its_plugin_tells() -> None:
    o = following()
    assert o.menu is not None
    assert by_report(o.active, ScheduleReport("Live", OTHER)) == scheduled(o.menu, OTHER)
    for silent in (None, ScheduleReport("VersionNotTested")):
        assert by_report(o.active, silent) == o.active
    assert by_report(option(o.menu, "disabled"), FOLLOWS) == option(o.menu, "disabled")


def can(o: Observation, schedule: tuple[BatchRange, ...] = OTHER) -> bool:
    target = better(o, schedule).target
    assert target is not None
    return can_be_live(o, target)


def test_another_schedule_of_what_runs_needs_no_restart_where_the_pods_follow() -> None:
    assert can(following())


def test_the_policy_has_to_ask_for_it() -> None:
    assert not can(following(live_spec(batchSizeTuning={"apply": "Roll"})))


def test_no_schedule_at_all_takes_a_restart() -> None:
    assert not can(following(), ())


def test_a_k_that_the_engine_was_not_started_with_takes_a_restart_where_there_are_cuda_graphs() -> None:
    o = following()
    assert o.menu is not None
    new = (BatchRange(1, 16, 5), BatchRange(17, 256, 2))
    assert not can(o, new)
    eager = replace(o, menu=replace(o.menu, server=replace(o.menu.server, enforce_eager=True)))
    assert can(eager, new)


@pytest.mark.parametrize(("apply", "held_back"), [("Live", False), ("Roll", True)])
def test_a_strategy_that_forbids_two_versions_does_not_hold_back_what_needs_no_restart(
    apply: str, held_back: bool
) -> None:
    o = following(live_spec(batchSizeTuning={"apply": apply}))
    assert o.workload is not None
    spec = {**o.workload.deployment["spec"], "strategy": {"type": "Recreate"}}
    o = replace(o, workload=replace(o.workload, deployment={**o.workload.deployment, "spec": spec}))
    assert (strategy_forbids(o, better(o)) is not None) is held_back
    assert strategy_forbids(o, better(o, restart=True)) is not None


def test_another_profile_takes_a_restart() -> None:
    o = following()
    assert o.menu is not None
    assert not can_be_live(o, option(o.menu, "disabled"))


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (None, NotLive.PLUGIN_MISSING),
        (ScheduleReport("VersionNotTested"), NotLive.VERSION_NOT_TESTED),
        (ScheduleReport("NoSchedule"), NotLive.NO_SCHEDULE),
        (ScheduleReport("NotStarted"), NotLive.PLUGIN_NOT_STARTED),
        (ScheduleReport("of a later plugin"), NotLive.PLUGIN_NOT_STARTED),
        (ScheduleReport("Live", STARTED, "NotJson"), NotLive.FILE_REJECTED),
    ],
)
def test_one_pod_that_does_not_follow_makes_it_a_roll(report: ScheduleReport | None, reason: NotLive) -> None:
    o = following()
    assert o.menu is not None
    o = replace(o, pods=(*o.pods, server("p4", o.menu, report)))
    found = hindrance(o)
    assert found is not None and found.reason is reason and "p4" in found.message
    assert not can(o)


def test_a_pod_that_is_not_ready_does_not_matter() -> None:
    o = following()
    assert o.menu is not None
    assert can(replace(o, pods=(*o.pods, server("p4", o.menu, None, ready=False))))


def last(**fields: Any) -> HistoryEntry:
    entry = {
        "id": "ngram-1",
        "policy_generation": 1,
        "source": Configuration(profile="ngram"),
        "target": Configuration(profile="ngram"),
        "reason": "BetterThreshold",
        "live": True,
        "outcome": Outcome.FAILED,
        "outcome_reason": "NotInForce",
        "started_at": text_of(NOW - 60),
        "finished_at": text_of(NOW),
    }
    return HistoryEntry(**(entry | fields))


@pytest.mark.parametrize(
    ("fields", "follows"),
    [
        ({}, False),
        ({"policy_generation": 0}, True),
        ({"outcome_reason": "Slower"}, True),
        ({"live": False}, True),
    ],
    ids=["not taken over", "the policy was edited since", "measured to be slower", "a roll"],
)
def test_pods_that_did_not_take_a_schedule_over_are_rolled_until_the_policy_is_edited(
    fields: dict[str, Any], follows: bool
) -> None:
    o = following(history=(last(**fields),))
    assert can(o) is follows
    found = hindrance(o)
    assert (found is None) is follows and (found is None or found.reason is NotLive.NOT_TAKEN_OVER)
