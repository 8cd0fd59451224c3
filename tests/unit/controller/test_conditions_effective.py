"""The conditions EngineAsConfigured and LiveTuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specdecode.api.v1alpha1 import SpecDecodePolicyStatus
from specdecode.controller.conditions import NO_TROUBLES, Troubles, conditions
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from specdecode.rollout.phases import Step
from specdecode.vllm.effective import Told
from specdecode.vllm.live_schedule import ScheduleReport
from support.live import following, live_spec, server
from support.world import observation


def shown(o: Observation, type_: str, troubles: Troubles = NO_TROUBLES) -> tuple[str, str, str] | None:
    made = conditions(o, decide(o), Step(), SpecDecodePolicyStatus(), troubles)
    return next(((c.status, c.reason, c.message) for c in made if c.type == type_), None)


def test_engines_that_run_what_they_were_told_to_are_as_configured() -> None:
    for o in (following(), observation()):
        assert shown(o, "EngineAsConfigured") == ("True", "AsConfigured", "")


def test_the_first_engine_that_differs_is_named() -> None:
    o = following()
    o = replace(o, pods=(o.pods[0], replace(o.pods[1], told=Told("draft_model", 5)), o.pods[2]))
    found = shown(o, "EngineAsConfigured")
    assert found is not None and found[:2] == ("False", "OtherMethod") and "p1" in found[2]


@pytest.mark.parametrize("changes", [{"answered": False}, {"revision": "another"}, {"terminating": True}])
def test_engines_that_cannot_be_seen_or_are_of_another_template_say_nothing(changes: dict[str, Any]) -> None:
    o = following()
    o = replace(o, pods=tuple(replace(p, told=Told(None), **changes) for p in o.pods))
    assert shown(o, "EngineAsConfigured") == ("Unknown", "NotSeen", "")


def test_live_tuning_is_told_only_where_it_is_asked_for() -> None:
    assert shown(following(), "LiveTuning") == ("True", "PodsFollow", "")
    assert shown(following(live_spec(batchSizeTuning={"apply": "Roll"})), "LiveTuning") is None


def test_live_tuning_says_why_it_is_a_roll() -> None:
    o = following()
    assert o.menu is not None
    untested = replace(o, pods=(server("p0", o.menu, ScheduleReport("VersionNotTested")),))
    found = shown(untested, "LiveTuning")
    assert found is not None and found[:2] == ("False", "VersionNotTested")
    found = shown(replace(o, pods=(server("p0", o.menu, ScheduleReport("NoSchedule")),)), "LiveTuning")
    assert found is not None and found[:2] == ("Unknown", "NoSchedule"), "the first one comes by a roll"
    trouble = "ConfigMap vllm-schedule-chat: 403"
    assert shown(o, "LiveTuning", Troubles(schedule_file=trouble)) == ("False", "FileNotWritten", trouble)


def test_without_speculation_there_is_nothing_to_tune() -> None:
    assert shown(observation(live_spec()), "LiveTuning") == ("Unknown", "NothingToTune", "")
