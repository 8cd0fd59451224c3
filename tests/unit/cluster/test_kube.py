"""The API client, against an HTTP server of this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from specdecode.cluster.kube import (
    DEPLOYMENTS,
    JSON_PATCH,
    PODS,
    POLICIES,
    ApiError,
    Kube,
    KubeconfigError,
    Resource,
)


class Api:
    """Answers what the test wants and remembers what it was asked."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"{}"
        self.asked: list[tuple[str, str, dict[str, str], str, Any, str | None]] = []

    async def answer(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.asked.append(
            (
                request.method,
                request.path,
                dict(request.query),
                request.headers.get("Content-Type", ""),
                json.loads(raw) if raw else None,
                request.headers.get("Authorization"),
            )
        )
        return web.Response(status=self.status, body=self.body, content_type="application/json")


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[tuple[Api, Kube]]:
    fake = Api()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", fake.answer)
    async with TestServer(application) as server:
        kubeconfig = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": str(server.make_url(""))}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
        }
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(kubeconfig))
        async with await Kube.connect(str(path)) as kube:
            yield fake, kube


@pytest.mark.parametrize(
    ("resource", "arguments", "path"),
    [
        (PODS, (), "/api/v1/pods"),
        (PODS, ("serving",), "/api/v1/namespaces/serving/pods"),
        (DEPLOYMENTS, ("serving", "chat"), "/apis/apps/v1/namespaces/serving/deployments/chat"),
        (
            POLICIES,
            ("serving", "chat", "status"),
            "/apis/specdecode.dev/v1alpha1/namespaces/serving/specdecodepolicies/chat/status",
        ),
        (Resource("v1", "nodes"), (None, "n"), "/api/v1/nodes/n"),
    ],
)
def test_paths_are_those_of_the_api(resource: Resource, arguments: tuple[str, ...], path: str) -> None:
    assert resource.path(*arguments) == path


async def test_requests_are_what_the_api_server_expects(api: tuple[Api, Kube]) -> None:
    fake, kube = api
    chat = "/apis/apps/v1/namespaces/serving/deployments/chat"
    operations = [{"op": "remove", "path": "/spec/paused"}]
    await kube.get(DEPLOYMENTS, "chat", "serving")
    await kube.list(PODS, "serving", "app=chat")
    await kube.patch(DEPLOYMENTS, "chat", "serving", operations, JSON_PATCH)
    await kube.patch(POLICIES, "chat", "serving", {"status": {}}, subresource="status")
    await kube.delete(DEPLOYMENTS, "chat", "serving", grace_seconds=0)
    manager = {"fieldManager": "specdecode"}
    assert [asked[:3] for asked in fake.asked] == [
        ("GET", chat, {}),
        ("GET", "/api/v1/namespaces/serving/pods", {"labelSelector": "app=chat"}),
        ("PATCH", chat, manager),
        ("PATCH", "/apis/specdecode.dev/v1alpha1/namespaces/serving/specdecodepolicies/chat/status", manager),
        ("DELETE", chat, {"gracePeriodSeconds": "0"}),
    ]
    assert fake.asked[2][3:5] == ("application/json-patch+json", operations)
    assert fake.asked[3][3:5] == ("application/merge-patch+json", {"status": {}})
    assert {asked[5] for asked in fake.asked} == {"Bearer secret"}


async def test_what_the_server_sends_is_kept_whole(api: tuple[Api, Kube]) -> None:
    """A typed client would drop fields that it does not know, and a later write delete them."""
    fake, kube = api
    sent = {"metadata": {"name": "chat"}, "spec": {"aFieldOfTomorrow": {"x": [1, None]}}}
    fake.body = json.dumps(sent).encode()
    assert await kube.get(DEPLOYMENTS, "chat", "serving") == sent
    fake.body = json.dumps({"items": [sent]}).encode()
    assert await kube.list(DEPLOYMENTS, "serving") == [sent]
    fake.body = b'{"items": null}'
    assert await kube.list(DEPLOYMENTS, "serving") == []


@pytest.mark.parametrize(
    ("status", "body", "reason", "message"),
    [
        (404, b'{"kind": "Status", "reason": "NotFound", "message": "no chat"}', "NotFound", "no chat"),
        (503, b"upstream is away", "", "upstream is away"),
        (500, b'"a string"', "", '"a string"'),
        (401, b"", "", ""),
    ],
)
async def test_a_refusal_is_an_error_with_the_servers_words(
    api: tuple[Api, Kube], status: int, body: bytes, reason: str, message: str
) -> None:
    fake, kube = api
    fake.status, fake.body = status, body
    with pytest.raises(ApiError) as e:
        await kube.get(DEPLOYMENTS, "chat", "serving")
    assert (e.value.status, e.value.reason, e.value.message) == (status, reason, message)


async def test_what_is_not_there_is_not_found_and_any_other_refusal_is_an_error(api: tuple[Api, Kube]) -> None:
    fake, kube = api
    fake.status = 404
    assert await kube.find(DEPLOYMENTS, "chat", "serving") is None
    fake.status = 403
    with pytest.raises(ApiError):
        await kube.find(DEPLOYMENTS, "chat", "serving")


async def test_deleting_what_is_not_there_is_done(api: tuple[Api, Kube]) -> None:
    fake, kube = api
    fake.status = 404
    await kube.delete(PODS, "p", "serving")
    fake.status = 403
    with pytest.raises(ApiError):
        await kube.delete(PODS, "p", "serving")


async def test_a_watch_yields_the_events_of_the_stream(api: tuple[Api, Kube]) -> None:
    fake, kube = api
    fake.body = b'{"type": "ADDED", "object": {"n": 1}}\n\n{"type": "BOOKMARK", "object": {}}\n'
    events = [event async for event in kube.watch(PODS, "serving", "app=chat", resource_version="7")]
    assert [e["type"] for e in events] == ["ADDED", "BOOKMARK"]
    query = fake.asked[0][2]
    assert (query["watch"], query["labelSelector"], query["resourceVersion"]) == ("true", "app=chat", "7")
    fake.status = 410
    with pytest.raises(ApiError, match="410"):
        [event async for event in kube.watch(PODS)]


@pytest.mark.parametrize("content", [None, "", "just text", "contexts: 3"], ids=["none", "empty", "text", "odd"])
async def test_a_kubeconfig_that_cannot_be_used_is_said(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(KubeconfigError, match=str(path)):
        await Kube.connect(str(path))
