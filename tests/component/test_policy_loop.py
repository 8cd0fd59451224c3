"""One policy's loop, tick by tick, on an API server and pods in memory and a clock that is moved by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from specdecode.api.v1alpha1 import Outcome, RolloutPhase
from specdecode.cluster.kube import DEPLOYMENTS, POLICIES, ApiError
from specdecode.policy.clock import text_of
from specdecode.policy.options import fingerprint, same
from support.small_cluster import Cluster, canary_under_way
from support.world import CONTAINER, NOW, menu, rendered, spec

OFF, NGRAM = rendered(menu(spec()), "disabled"), rendered(menu(spec()), "ngram")


async def test_a_profile_that_pays_is_tried_proven_promoted_verified_and_all_else_given_back() -> None:
    cluster = Cluster()
    before = copy.deepcopy(cluster.deployment["spec"])
    await canary_under_way(cluster, acceptance=0.75, step=0.022)
    assert cluster.deployment["spec"]["paused"] is True
    assert same(cluster.container, NGRAM)
    assert cluster.told() == ["ChangeStarted", "ChangeAnalysing"]
    for _ in range(40):
        await cluster.tick()
        if cluster.phase is not RolloutPhase.ANALYSING:
            break
    assert cluster.phase is RolloutPhase.PROMOTING
    assert "paused" not in cluster.deployment["spec"]
    cluster.remove("old", 2)
    cluster.add("new", 1, acceptance=0.75, step=0.022)
    cluster.settle()
    await cluster.tick(5)
    status = cluster.status
    assert status.rollout is None and status.active_profile == "ngram"
    assert [h.outcome for h in status.history] == [Outcome.SUCCESSFUL]
    assert status.history[0].gain is not None and status.history[0].gain.low > 1
    assert cluster.told() == ["ChangePromoting", "ChangeVerifying", "ChangeFinishing", "ChangeSuccessful"]
    after = copy.deepcopy(cluster.deployment["spec"])
    after["template"] = before["template"]
    assert after == before, "but for the template all is as the user wrote it"
    assert cluster.metric("specdecode_changes_total", outcome="Successful", reason="Promoted") == 1
    assert cluster.metric("specdecode_active_profile", profile="ngram") == 1


async def test_a_canary_that_is_slower_is_taken_back_to_the_letter() -> None:
    cluster = Cluster()
    before = copy.deepcopy(cluster.deployment["spec"])
    await canary_under_way(cluster, acceptance=0.75, step=0.3)
    for _ in range(40):
        await cluster.tick()
        if cluster.phase is not RolloutPhase.ANALYSING:
            break
    assert cluster.phase is RolloutPhase.ROLLING_BACK
    cluster.remove("new", 1)
    cluster.settle()
    await cluster.tick(3)
    assert cluster.deployment["spec"] == before
    assert [(h.outcome, h.outcome_reason) for h in cluster.status.history] == [(Outcome.FAILED, "Slower")]
    changes = len(cluster.kube.written(DEPLOYMENTS))
    await cluster.tick(20)
    assert len(cluster.kube.written(DEPLOYMENTS)) == changes, "it rests after that"


async def test_the_status_is_written_before_the_deployment_is_touched() -> None:
    cluster = Cluster()
    await canary_under_way(cluster)
    kinds = [kind for kind, _ in cluster.kube.patches]
    first = kinds.index("deployments")
    assert "rollout" in cluster.kube.patches[first - 1][1]["status"]


@pytest.mark.parametrize("mode", ["Observe", "Recommend"])
async def test_a_policy_that_only_looks_touches_nothing_and_falls_silent(mode: str) -> None:
    cluster = Cluster(mode=mode)
    await cluster.tick(25)
    assert cluster.kube.written(DEPLOYMENTS) == []
    written = len(cluster.kube.written(POLICIES))
    cluster.told()
    await cluster.tick(25)
    assert cluster.kube.written(POLICIES)[written:] == [], "even traffic is not a reason to write"
    assert cluster.told() == []


async def test_a_status_that_could_not_be_written_leaves_the_deployment_alone_and_is_written_next_time() -> None:
    cluster = Cluster()
    cluster.kube.failures["patch specdecodepolicies"] = ApiError(503, "ServiceUnavailable", "later")
    with pytest.raises(ApiError):
        await cluster.tick()
    assert cluster.kube.patches == [] and cluster.told() == []
    await cluster.tick()
    assert cluster.status.conditions


@pytest.mark.parametrize("at", range(6))
async def test_an_operator_that_dies_after_any_tick_goes_on_where_it_was(at: int) -> None:
    cluster = Cluster()
    await canary_under_way(cluster, acceptance=0.75, step=0.022)
    started = cluster.status.rollout
    await cluster.tick(at)
    cluster.restart()
    await cluster.tick()
    assert cluster.status.rollout is not None and started is not None
    assert cluster.status.rollout.id == started.id
    assert cluster.status.original is not None and cluster.status.original.args == CONTAINER["args"]


async def test_an_operator_that_dies_between_status_and_deployment_makes_the_change_good() -> None:
    cluster = Cluster()
    cluster.kube.failures["patch deployments"] = ApiError(500, "InternalError", "gone")
    for _ in range(20):
        try:
            await cluster.tick()
        except ApiError:
            break
    assert cluster.phase is RolloutPhase.STARTING and same(cluster.container, OFF)
    assert cluster.told() == ["ChangeStarted"], "the Event follows the status"
    cluster.restart()
    await cluster.tick()
    assert same(cluster.container, NGRAM)
    assert cluster.told() == []


@pytest.mark.parametrize("status", [404, 409, 422], ids=["deleted", "changed", "changed, says the patch's own test"])
async def test_a_deployment_that_was_changed_meanwhile_is_looked_at_again(status: int) -> None:
    cluster = Cluster()
    for _ in range(20):
        cluster.kube.failures["patch deployments"] = ApiError(status, "Meanwhile", "somebody was quicker")
        await cluster.tick()
        if cluster.phase is not None:
            break
    assert same(cluster.container, OFF)
    cluster.kube.failures.clear()
    await cluster.tick()
    assert same(cluster.container, NGRAM)


async def test_pods_that_fall_silent_are_told_once_and_when_they_are_back() -> None:
    cluster = Cluster(mode="Recommend")
    await cluster.tick(4)
    cluster.told()
    cluster.silent = {"10.0.0.1", "10.0.0.2"}
    await cluster.tick(4)
    assert cluster.told() == ["MetricsMissing"]
    assert cluster.metric("specdecode_scrape_errors_total") == 8
    assert cluster.metric("specdecode_pods") == 0
    cluster.silent = set()
    await cluster.tick(4)
    assert "PodsAnswer" in cluster.told()


async def test_what_is_not_measured_is_absent_from_the_metrics_not_zero() -> None:
    cluster = Cluster(mode="Recommend")
    await cluster.tick()
    assert cluster.metric("specdecode_time_per_output_token_seconds") is None
    await cluster.tick(3)
    assert cluster.metric("specdecode_time_per_output_token_seconds") == pytest.approx(0.02)
    assert cluster.metric("specdecode_acceptance_rate") is None
    assert cluster.metric("specdecode_predicted_time_per_output_token_seconds", profile="ngram") is not None
    assert cluster.metric("specdecode_recommended_profile", profile="ngram") == 1
    cluster.silent = {"10.0.0.1", "10.0.0.2"}
    await cluster.tick()
    assert cluster.metric("specdecode_time_per_output_token_seconds") is None
    assert cluster.metric("specdecode_tick_seconds_count") == 5


async def changed_before(cluster: Cluster) -> None:
    """The operator has taken the workload to n-gram."""
    await cluster.tick()
    cluster.container.update(NGRAM)
    cluster.loop.status = cluster.loop.status.model_copy(update={"applied": fingerprint(NGRAM)})


async def test_a_policy_that_changed_nothing_restores_nothing() -> None:
    cluster = Cluster()
    await cluster.tick()
    cluster.container.update(NGRAM)
    await cluster.loop.clear(cluster.policy)
    assert same(cluster.container, NGRAM), "another policy, or its user, wrote that"


async def test_a_second_policy_for_the_same_workload_stays_out() -> None:
    cluster = Cluster()
    for _ in range(12):
        await cluster.loop.tick(cluster.policy, lambda _: None, rival="older")
    assert same(cluster.container, OFF)
    ready = next(c for c in cluster.loop.status.conditions if c.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "AnotherPolicy")
    assert "older" in ready.message and "delete one" in ready.message


@pytest.mark.parametrize(("deletion", "stays"), [("Restore", OFF), ("Keep", NGRAM)])
async def test_a_deleted_policy_leaves_the_workload_as_it_says(deletion: str, stays: Any) -> None:
    cluster = Cluster(deletionPolicy=deletion)
    await changed_before(cluster)
    await cluster.loop.clear(cluster.policy)
    assert same(cluster.container, stays)
    assert cluster.metric("specdecode_pods") is None
    patches = len(cluster.kube.patches)
    await cluster.tick()
    assert len(cluster.kube.patches) == patches, "nothing is done for a policy that is gone"


async def test_a_policy_deleted_in_the_middle_of_a_change_takes_it_back_whatever_it_says() -> None:
    cluster = Cluster(deletionPolicy="Keep")
    before = copy.deepcopy(cluster.deployment["spec"])
    await canary_under_way(cluster)
    await cluster.loop.clear(cluster.policy)
    assert cluster.deployment["spec"] == before


async def test_a_deletion_that_lost_a_race_is_tried_again() -> None:
    cluster = Cluster()
    await changed_before(cluster)
    cluster.kube.failures["patch deployments"] = ApiError(409, "Conflict", "changed")
    with pytest.raises(ApiError, match="again"):
        await cluster.loop.clear(cluster.policy)
    await cluster.loop.clear(cluster.policy)
    assert same(cluster.container, OFF)


async def test_a_deleted_policy_whose_workload_is_gone_has_nothing_to_do() -> None:
    cluster = Cluster()
    del cluster.kube.objects["deployments", "chat"]
    await cluster.loop.clear(cluster.policy)
    assert cluster.kube.patches == []


async def test_a_policy_that_is_being_deleted_is_not_acted_on() -> None:
    cluster = Cluster()
    cluster.policy["metadata"]["deletionTimestamp"] = text_of(NOW)
    await cluster.tick(3)
    assert cluster.kube.patches == []
