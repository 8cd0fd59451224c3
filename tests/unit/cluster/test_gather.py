"""What is observed of a Deployment and its pods, in the states that they come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from specdecode.api.v1alpha1 import Configuration, Original, RolloutPhase, SpecDecodePolicyStatus
from specdecode.cluster.gather import Gatherer
from specdecode.cluster.kube import ApiError, Json, Resource
from specdecode.cluster.scrape import Scraper
from specdecode.controller.report import report
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.observation import Observation
from specdecode.policy.options import fields_of, fingerprint, marked
from specdecode.rollout.phases import advance
from support.fake_api import FakeKube, deployed, policy, replicaset, running
from support.world import CONTAINER, NOW, SPEC, deployment, menu, merged, observation, option, rendered, spec

NOTHING = SpecDecodePolicyStatus()
MENU = menu(spec())
EDITED = {**CONTAINER, "args": [*CONTAINER["args"], "--max-model-len", "4096"]}


class World:
    """A Deployment of a container with one ReplicaSet and its pods, and a server behind each."""

    def __init__(self, container: Mapping[str, Any] = CONTAINER, *, pods: int = 2, **fields: Any) -> None:
        self.deployment = deployment(container, pods, **fields)
        template = self.deployment["spec"]["template"]
        self.objects: list[tuple[Resource, Json]] = [deployed(self.deployment), replicaset("old", template)]
        self.objects += [running(f"p{i}", "old", template, f"10.0.0.{i + 1}") for i in range(pods)]
        self.asked: list[str] = []
        self.version: Any = {"version": "0.24.0"}
        self.now = NOW

    @property
    def template(self) -> Json:
        template: Json = self.deployment["spec"]["template"]
        return template

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        if request.url.path == "/version" and self.version is not None:
            return httpx.Response(200, json=self.version)
        return httpx.Response(503)

    async def observe(self, status: SpecDecodePolicyStatus = NOTHING, **changes: Any) -> Observation:
        self.kube = FakeKube(*self.objects)
        written = merged(SPEC, changes)
        async with Scraper(httpx.MockTransport(self.answer)) as scraper:
            gatherer = Gatherer(self.kube, scraper, lambda: self.now)
            return await gatherer.observe(policy(written)[1], spec(**changes), status)


def remembering(container: Mapping[str, Any] = CONTAINER, **fields: Any) -> SpecDecodePolicyStatus:
    original = Original(**fields_of(container).model_dump(), adopted_at=text_of(NOW - 3600))
    return SpecDecodePolicyStatus(original=original, **fields)


async def test_a_workload_is_seen_as_it_is() -> None:
    o = await World().observe()
    assert o.workload is not None and o.menu is not None and o.problem is None
    assert (o.workload.name, o.workload.replicas, o.workload.revision) == ("chat", 2, "old")
    assert o.workload.settled
    assert o.active == option(o.menu, "disabled")
    assert str(o.menu.version) == "0.24.0"
    assert [(p.name, p.ready, p.option, p.answered) for p in o.pods] == [
        ("p0", True, o.active, False),
        ("p1", True, o.active, False),
    ]
    assert o.pods[0].problem == "http://10.0.0.1:8000/metrics: HTTP status 503"
    assert o.adopted_at == NOW


async def test_a_workload_that_is_not_there_is_none_and_an_api_server_that_fails_is_an_error() -> None:
    world = World()
    world.objects = []
    assert (await world.observe()).workload is None
    kube = FakeKube()
    kube.failures["get deployments"] = ApiError(500, "InternalError", "etcd is away")
    async with Scraper(httpx.MockTransport(world.answer)) as scraper:
        with pytest.raises(ApiError, match="etcd"):
            await Gatherer(kube, scraper, lambda: NOW).observe(policy(SPEC)[1], spec(), NOTHING)


def unfinished(d: Json, **status: Any) -> None:
    d["status"] |= status


UNSETTLED: dict[str, Any] = {
    "no status yet": lambda d: d.update(status={}),
    "the controller has not seen it": lambda d: unfinished(d, observedGeneration=0),
    "a pod of the old template is left": lambda d: unfinished(d, replicas=3),
    "not all are of the new template": lambda d: unfinished(d, updatedReplicas=1),
    "a pod is not available": lambda d: unfinished(d, availableReplicas=1),
    "a count is absent, which means none": lambda d: d["status"].pop("availableReplicas"),
    "paused": lambda d: d["spec"].update(paused=True),
}


@pytest.mark.parametrize("case", UNSETTLED)
async def test_a_workload_is_settled_only_when_all_is_as_its_spec_says(case: str) -> None:
    world = World()
    UNSETTLED[case](world.deployment)
    o = await world.observe()
    assert o.workload is not None and not o.workload.settled


async def test_a_workload_scaled_to_0_is_settled_and_has_no_pods() -> None:
    world = World(pods=0)
    world.deployment["status"] = {"observedGeneration": 1}
    o = await world.observe()
    assert o.workload is not None and o.workload.settled and o.pods == ()
    assert str(o.menu and o.menu.version) == "0.24.0", "from the image's tag"


async def test_a_replica_count_left_out_is_one() -> None:
    world = World(pods=1)
    del world.deployment["spec"]["replicas"]
    o = await world.observe()
    assert o.workload is not None and o.workload.replicas == 1 and o.workload.settled


async def test_the_revision_is_that_of_the_replicaset_with_the_template_and_no_other() -> None:
    world = World()
    world.template["metadata"]["annotations"] = {"kubectl.kubernetes.io/restartedAt": "now"}
    o = await world.observe()
    assert o.workload is not None and o.workload.revision is None, "its ReplicaSet is not made yet"
    world.objects.append(replicaset("new", world.template))
    o = await world.observe()
    assert o.workload is not None and o.workload.revision == "new"


async def test_pods_are_known_by_their_owner_not_by_their_labels() -> None:
    world = World()
    stray, other = running("stray", "old", world.template), running("other", "x", world.template)
    stray[1]["metadata"]["ownerReferences"] = []
    twin = replicaset("x", world.template, owner="another Deployment")
    world.objects += [stray, other, twin]
    assert [p.name for p in (await world.observe()).pods] == ["p0", "p1"]


async def test_ipv6_pods_are_asked_at_their_bracketed_address() -> None:
    world = World(pods=0)
    world.objects.append(running("p", "old", world.template, "fd00::7"))
    await world.observe()
    assert world.asked == ["http://[fd00::7]:8000/version", "http://[fd00::7]:8000/metrics"]


@pytest.mark.parametrize(
    "changes",
    [
        {"ip": None},
        {"status": {"conditions": []}},
        {"status": {"conditions": [{"type": "Ready", "status": "False"}]}},
    ],
    ids=["no address yet", "no conditions yet", "not ready"],
)
async def test_a_pod_that_is_not_there_yet_is_not_asked(changes: dict[str, Any]) -> None:
    world = World(pods=0)
    world.objects.append(running("p", "old", world.template, **changes))
    o = await world.observe()
    assert world.asked == []
    assert len(o.pods) == 1 and not o.pods[0].answered and o.pods[0].problem is None


async def test_a_pod_says_how_it_fares() -> None:
    world = World(pods=0)
    state = {"name": "vllm", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    pending = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": text_of(NOW)}
    world.objects += [
        running(
            "broken", "old", world.template, status={"containerStatuses": [{"name": "proxy"}, state], "conditions": []}
        ),
        running("pending", "old", world.template, None, status={"conditions": [pending], "containerStatuses": None}),
        running("leaving", "old", world.template, deletionTimestamp=text_of(NOW)),
    ]
    broken, waiting, leaving = (await world.observe()).pods
    assert (broken.restarts, broken.waiting) == (3, "CrashLoopBackOff")
    assert waiting.unschedulable_since == NOW and waiting.restarts == 0
    assert leaving.terminating and not broken.terminating


READY: dict[str, tuple[Any, float | None]] = {
    "ready": ({"type": "Ready", "status": "True", "lastTransitionTime": text_of(NOW - 600)}, NOW - 600),
    "ready, but nobody says since when": ({"type": "Ready", "status": "True"}, None),
    "no longer ready": ({"type": "Ready", "status": "False", "lastTransitionTime": text_of(NOW - 600)}, None),
    "not seen yet": ({"type": "PodScheduled", "status": "True", "lastTransitionTime": text_of(NOW)}, None),
}


@pytest.mark.parametrize("case", READY)
async def test_a_pod_says_since_when_it_is_ready(case: str) -> None:
    condition, since = READY[case]
    world = World(pods=0)
    world.objects.append(running("p", "old", world.template, status={"conditions": [condition]}))
    (seen,) = (await world.observe()).pods
    assert seen.ready_since == since


async def test_fresh_pods_and_old_ones_run_the_same_option() -> None:
    """During a restart the template has the mark, and the old ReplicaSet has it not."""
    world = World(marked(CONTAINER, text_of(NOW)), pods=1)
    before = deployment(CONTAINER)["spec"]["template"]
    world.objects += [replicaset("before", before), running("p-before", "before", before, "10.0.0.9")]
    o = await world.observe(remembering())
    assert o.menu is not None and o.active == option(o.menu, "disabled")
    assert [(p.name, p.option) for p in o.pods] == [("p0", o.active), ("p-before", o.active)]
    assert o.menu.original.get("env") is None, "a mark is not the owner's"


PORTS = {
    "the server's own argument": ({}, None, 8000),
    "a number": ({}, 9000, 9000),
    "a name": ({"ports": [{"containerPort": 1}, {"name": "http", "containerPort": 8123}]}, "http", 8123),
    "vLLM's default": ({"args": ["--model", "m"]}, None, 8000),
    "another argument": ({"args": ["--model", "m", "--port=8200"]}, None, 8200),
}


@pytest.mark.parametrize("case", PORTS)
async def test_the_port_is_the_policys_or_the_servers(case: str) -> None:
    fields, port, expected = PORTS[case]
    world = World({**CONTAINER, **fields}, pods=1)
    await world.observe(**({} if port is None else {"metrics": {"port": port}}))
    assert f"http://10.0.0.1:{expected}/metrics" in world.asked


async def test_a_port_name_that_the_container_lacks_is_said() -> None:
    o = await World().observe(metrics={"port": "metrics"})
    assert o.problem is not None and o.problem.reason == "PortUnknown"
    assert "metrics" in o.problem.message and "spec.metrics.port" in o.problem.message


VERSIONS: dict[str, tuple[str, Any, dict[str, Any], str | None]] = {
    "a running server before all": (
        "vllm/vllm-openai:v0.10.0",
        {"version": "0.24.0"},
        {"vllmVersion": "0.9.0"},
        "0.24.0",
    ),
    "the image's tag": ("vllm/vllm-openai:v0.10.0", None, {"vllmVersion": "0.9.0"}, "0.10.0"),
    "the policy, where the tag says nothing": ("mirror/vllm:latest", None, {"vllmVersion": "0.9.0"}, "0.9.0"),
    "nobody knows": ("mirror/vllm:latest", None, {}, None),
    "a digest is no version": ("vllm@sha256:0110", None, {}, None),
    "an answer that is none": ("mirror/vllm:latest", {"hello": "world"}, {}, None),
}


@pytest.mark.parametrize("case", VERSIONS)
async def test_the_version_comes_from_who_knows_best(case: str) -> None:
    image, answer, changes, version = VERSIONS[case]
    world = World({**CONTAINER, "image": image})
    world.version = answer
    o = await world.observe(**changes)
    if version is None:
        assert o.menu is None and o.problem is not None and o.problem.reason == "VersionUnknown"
        assert "spec.vllmVersion" in o.problem.message and image in o.problem.message
    else:
        assert str(o.menu and o.menu.version) == version


async def test_a_pod_of_another_image_does_not_speak_for_the_template() -> None:
    world = World({**CONTAINER, "image": "vllm/vllm-openai:v0.10.0"})
    for _, pod in world.objects[2:]:
        pod["spec"]["containers"][1]["image"] = "vllm/vllm-openai:v0.24.0"
    o = await world.observe()
    assert str(o.menu and o.menu.version) == "0.10.0"


async def test_the_version_is_asked_once_per_pod() -> None:
    world = World(pods=1)
    async with Scraper(httpx.MockTransport(world.answer)) as scraper:
        gatherer = Gatherer(FakeKube(*world.objects), scraper, lambda: NOW)
        for _ in range(3):
            await gatherer.observe(policy(SPEC)[1], spec(), NOTHING)
    assert sum(url.endswith("/version") for url in world.asked) == 1


def under_way(phase: RolloutPhase = RolloutPhase.STARTING, **fields: Any) -> SpecDecodePolicyStatus:
    """A status of a change from disabled to ngram."""
    d = Decision(Reason.CHEAPER_PROFILE, "it pays", option(MENU, "ngram"), change=True)
    rollout = advance(observation(), d).rollout
    assert rollout is not None
    return remembering(rollout=rollout.model_copy(update={"phase": phase}), **fields)


async def test_a_change_under_way_is_managed_even_while_no_server_tells_its_version() -> None:
    """One replica given up for a canary that never becomes ready: it must still be taken back."""
    image = {"image": "mirror/vllm:latest"}
    world = World({**rendered(MENU, "ngram"), **image}, pods=0)
    o = await world.observe(under_way(vllm_version="0.24.0"))
    assert o.problem is None and o.menu is not None and o.workload is not None
    assert (await world.observe(remembering(vllm_version="0.24.0"))).problem is not None


async def test_until_it_is_promoted_what_ran_before_is_what_runs() -> None:
    world = World(rendered(MENU, "ngram"))
    for phase in RolloutPhase:
        o = await world.observe(under_way(phase))
        proven = phase in (RolloutPhase.VERIFYING, RolloutPhase.FINISHING)
        assert o.active is not None and o.active.profile == ("ngram" if proven else "disabled")
        assert {p.option and p.option.profile for p in o.pods} == {"ngram"}


async def test_our_own_command_line_keeps_the_original() -> None:
    o = await World(rendered(MENU, "ngram")).observe(remembering())
    assert o.active is not None and o.active.profile == "ngram"
    assert o.menu is not None and o.menu.original["args"] == CONTAINER["args"]
    assert o.adopted_at == NOW - 3600


async def test_somebody_elses_command_line_becomes_the_original() -> None:
    o = await World(EDITED).observe(remembering())
    assert o.menu is not None and o.menu.original["args"] == EDITED["args"]
    assert o.adopted_at == NOW and o.active is not None and o.active.profile == "disabled"


async def test_somebody_elses_command_line_is_not_adopted_in_the_middle_of_a_change() -> None:
    o = await World(EDITED).observe(under_way())
    assert o.menu is not None and o.menu.original["args"] == CONTAINER["args"]


async def test_a_command_line_that_superseded_a_change_is_adopted_when_the_change_is_over() -> None:
    """From the tick that sees it to the one that finds a new original: it is never taken for our own."""
    world, status = World(EDITED), under_way(active=Configuration(profile="disabled"), applied="ours")
    for _ in range(4):
        o = await world.observe(status)
        d = Decision(Reason.CHANGE_IN_PROGRESS, "going on")
        step = advance(o, d)
        status = report(o, d, step, status)
        if step.desired is not None:
            world.deployment["spec"]["strategy"] = dict(step.desired.strategy)
    assert status.rollout is None and status.history[0].outcome_reason == "Superseded"
    assert status.applied != fingerprint(EDITED)
    assert status.original is not None and status.original.args == EDITED["args"]


async def test_an_edited_profile_that_runs_is_still_ours() -> None:
    live = rendered(MENU, "ngram")
    status = remembering(applied=fingerprint(live), active=Configuration(profile="ngram"))
    edited = [{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 3}]
    o = await World(live).observe(status, profiles=edited)
    assert o.active is not None and o.active.speculation is not None and o.menu is not None
    assert (o.active.profile, o.active.speculation.num_speculative_tokens) == ("ngram", 5)
    assert o.menu.original["args"] == CONTAINER["args"]
    assert all(p.option == o.active for p in o.pods)


async def test_a_profile_that_the_version_cannot_run_leaves_the_others() -> None:
    """The observation stands; what cannot be rendered is left out by the estimates."""
    o = await World({**CONTAINER, "image": "vllm/vllm-openai:v0.24.0"}).observe(
        profiles=[
            {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5},
            {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "small"}},
        ]
    )
    assert o.problem is None and o.menu is not None
    assert {x.profile for x in o.menu.options} == {"ngram", "draft", "disabled"}


async def test_a_command_line_that_is_not_understood_is_a_problem_with_a_way_out() -> None:
    o = await World({**CONTAINER, "command": ["sh", "-c", "vllm serve a & vllm serve b"], "args": None}).observe()
    assert o.workload is None and o.problem is not None and o.problem.message


@pytest.mark.parametrize(
    ("selector", "query"),
    [
        ({"matchLabels": {"app": "chat", "tier": "gpu"}}, "app=chat,tier=gpu"),
        (
            {
                "matchExpressions": [
                    {"key": "a", "operator": "In", "values": ["x", "y"]},
                    {"key": "b", "operator": "NotIn", "values": ["z"]},
                    {"key": "c", "operator": "Exists"},
                    {"key": "d", "operator": "DoesNotExist"},
                ]
            },
            "a in (x,y),b notin (z),c,!d",
        ),
        ({}, ""),
    ],
)
async def test_pods_are_asked_for_by_the_deployments_own_selector(selector: Json, query: str) -> None:
    world, asked = World(), []
    world.deployment["spec"]["selector"] = selector

    class Listening(FakeKube):
        async def list(self, resource: Resource, namespace: str | None = None, selector: str = "") -> list[Json]:
            asked.append((resource.plural, namespace, selector))
            return await super().list(resource, namespace, selector)

    async with Scraper(httpx.MockTransport(world.answer)) as scraper:
        await Gatherer(Listening(*world.objects), scraper, lambda: NOW).observe(policy(SPEC)[1], spec(), NOTHING)
    assert asked == [("replicasets", "serving", query), ("pods", "serving", query)]


async def test_what_is_remembered_of_pods_goes_with_them() -> None:
    world = World(pods=1)
    async with Scraper(httpx.MockTransport(world.answer)) as scraper:
        kube = FakeKube(*world.objects)
        gatherer = Gatherer(kube, scraper, lambda: NOW)
        await gatherer.observe(policy(SPEC)[1], spec(), NOTHING)
        assert gatherer._versions
        del kube.objects["pods", "p0"]
        await gatherer.observe(policy(SPEC)[1], spec(), NOTHING)
        assert not gatherer._versions and not gatherer._windows


@pytest.mark.parametrize(
    ("phase", "read"),
    [(None, []), (RolloutPhase.STARTING, [("p0", True)]), (RolloutPhase.ROLLING_BACK, [])],
)
async def test_logs_are_read_of_failed_pods_of_a_change_only(phase: RolloutPhase | None, read: list[Any]) -> None:
    world = World()
    _, failed = world.objects[2]
    failed["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    failed["status"]["containerStatuses"] = [{"name": "vllm", "restartCount": 1, "state": {}, "lastState": ended}]
    change = None
    if phase is not None:
        step = advance(observation(), Decision(Reason.CHEAPER_PROFILE, "", option(MENU, "ngram"), change=True))
        assert step.rollout is not None
        change = step.rollout.model_copy(update={"phase": phase})
    o = await world.observe(remembering(rollout=change))
    assert world.kube.logs_read == read
    assert [p.name for p in o.pods if p.diagnosis is not None] == [name for name, _ in read]
