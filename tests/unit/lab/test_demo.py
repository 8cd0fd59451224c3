"""Whether a demo's operator did its job, from what clients measured and from the history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from specdecode.api.v1alpha1 import DISABLED, HistoryEntry, Outcome, SpecDecodePolicySpec, SpecDecodePolicyStatus
from specdecode.lab.demo import MANAGED, NGRAM, OFF, Cast, Run, judge, kept, twin
from specdecode.lab.realvllm.cast import TALKS, RealCast
from specdecode.lab.realvllm.installation import Installation
from specdecode.lab.simulated_cast import SimulatedCast
from specdecode.sim.load import Record

AT = "2026-01-01T00:00:00Z"


def entry(source: str, target: str, outcome: Outcome = Outcome.SUCCESSFUL) -> HistoryEntry:
    return HistoryEntry.model_validate(
        {
            "id": "x",
            "policyGeneration": 1,
            "source": {"profile": source},
            "target": {"profile": target},
            "reason": "CheaperProfile",
            "outcome": outcome,
            "outcomeReason": "Promoted",
            "message": "",
            "startedAt": AT,
            "finishedAt": AT,
        }
    )


CHANGES = [entry(DISABLED, "ngram"), entry("ngram", DISABLED), entry(DISABLED, "ngram")]


def run(cast: Cast, changes: list[HistoryEntry], tpot: dict[str, dict[str, float]]) -> Run:
    """One request a second in every act. `tpot` by act and workload, milliseconds."""
    made = Run(cast)
    made.status = SpecDecodePolicyStatus(history=changes)
    at = 0.0
    for act in cast.acts:
        for name, milliseconds in tpot[act.name].items():
            for second in range(int(act.seconds)):
                start = at + second
                made.records[name].append(
                    Record(start, act.name, "", 0.0, "", 30, ttft=0.1, tpot=milliseconds / 1e3, end=start + 1)
                )
        at += act.seconds
    return made


REAL = RealCast(Installation(Path()))
GOOD, EVEN = {MANAGED: 20.0, OFF: 60.0, NGRAM: 20.0}, {MANAGED: 61.0, OFF: 60.0, NGRAM: 90.0}
ALONE = {MANAGED: 25.0}
AS_HOPED = {
    **{act.name: ALONE for act in REAL.acts},
    **dict(zip(TALKS, (GOOD, EVEN, GOOD), strict=True)),
}


def test_a_run_as_hoped_for_has_no_complaints() -> None:
    verdict = judge(run(REAL, CHANGES, AS_HOPED))
    assert not verdict.complaints
    assert verdict.phases["hot chat"][NGRAM].tpot == pytest.approx(0.09)
    assert verdict.total[MANAGED].failed == 0


def test_only_what_all_were_asked_is_compared() -> None:
    total = judge(run(REAL, CHANGES, AS_HOPED)).total
    assert total[MANAGED].tpot == pytest.approx((20.0 + 61.0 + 20.0) / 3e3)
    assert total[MANAGED].requests == sum(int(act.seconds) for act in REAL.acts), "though all count"


@pytest.mark.parametrize(
    ("act", "tpot", "words"),
    [
        ("summaries", {MANAGED: 50.0, OFF: 60.0, NGRAM: 20.0}, "1.20 times as fast"),
        ("hot chat", {MANAGED: 90.0, OFF: 60.0, NGRAM: 90.0}, "1.50 times as long"),
    ],
)
def test_users_who_feel_too_little_are_a_complaint(act: str, tpot: dict[str, float], words: str) -> None:
    (complaint,) = judge(run(REAL, CHANGES, {**AS_HOPED, act: tpot})).complaints
    assert words in complaint


def test_a_workload_that_was_asked_for_nothing_is_a_complaint() -> None:
    nothing = {**AS_HOPED, "hot chat": {OFF: 60.0}}
    assert len(judge(run(REAL, CHANGES, nothing)).complaints) == 1


@pytest.mark.parametrize("cast", [REAL, SimulatedCast()], ids=["real", "simulated"])
def test_changes_that_were_not_made_or_not_kept_are_complaints(cast: Cast) -> None:
    tpot = {act.name: GOOD for act in cast.acts}
    failed = [entry(DISABLED, "ngram", Outcome.FAILED)] * 4
    complaints = judge(run(cast, failed, tpot)).complaints
    assert any("turned on" in c for c in complaints)
    assert any("turned off" in c for c in complaints)


def test_a_request_that_failed_is_a_complaint() -> None:
    made = run(REAL, CHANGES, AS_HOPED)
    made.records[MANAGED].append(Record(1.0, "summaries", "", 0.0, "", 0, error="APITimeoutError: late"))
    assert "APITimeoutError" in " ".join(judge(made).complaints)


@pytest.mark.parametrize("cast", [REAL, SimulatedCast()], ids=["real", "simulated"])
def test_the_workload_that_always_runs_ngram_is_what_the_policy_would_make_of_it(cast: Cast) -> None:
    manifests = list(yaml.safe_load_all(cast.manifests.read_text()))
    (policy,) = (SpecDecodePolicySpec.model_validate(m["spec"]) for m in manifests if m["kind"] == "SpecDecodePolicy")
    (profile,) = policy.profiles
    assert profile.ngram is not None
    assert cast.always_ngram == {
        "method": "ngram",
        "num_speculative_tokens": profile.num_speculative_tokens,
        "prompt_lookup_min": profile.ngram.prompt_lookup_min,
        "prompt_lookup_max": profile.ngram.prompt_lookup_max,
    }
    made = twin([m for m in manifests if m["kind"] == "Deployment"], NGRAM, cast.always_ngram)
    assert made[0]["metadata"]["name"] == made[0]["spec"]["selector"]["matchLabels"]["app"] == NGRAM
    assert json.loads(made[0]["spec"]["template"]["spec"]["containers"][0]["args"][-1]) == cast.always_ngram


def test_what_was_kept_counts_by_where_it_led() -> None:
    assert kept(run(REAL, CHANGES, AS_HOPED)) == (2, 1)
