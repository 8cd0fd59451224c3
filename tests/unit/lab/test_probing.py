import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from specdecode.lab.probes import Probe
from specdecode.lab.probing import succeeds

CONTAINER = {"name": "c", "ports": [{"name": "http", "containerPort": 8000}]}


async def never(_: Sequence[str], __: float) -> bool:
    raise AssertionError("nothing to execute here")


async def probe_http(action: dict[str, Any], answer: httpx.Response | Exception) -> tuple[bool, httpx.Request]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        result = await succeeds(Probe({"httpGet": action}), CONTAINER, "127.10.1.1", http, never)
    return result, seen[0]


@pytest.mark.parametrize(("status", "success"), [(200, True), (204, True), (399, True), (400, False), (503, False)])
async def test_an_http_probe_succeeds_from_200_to_399(status: int, success: bool) -> None:
    result, _ = await probe_http({"port": "http"}, httpx.Response(status))
    assert result is success


async def test_an_http_probe_asks_the_pods_address_unless_told_otherwise() -> None:
    header = {"name": "X-Probe", "value": "1"}
    _, request = await probe_http({"port": "http", "path": "/ready", "httpHeaders": [header]}, httpx.Response(200))
    assert (str(request.url), request.headers["X-Probe"]) == ("http://127.10.1.1:8000/ready", "1")
    _, request = await probe_http({"port": 1, "host": "example.org", "scheme": "HTTPS"}, httpx.Response(200))
    assert str(request.url) == "https://example.org:1/"


async def test_an_http_probe_that_gets_no_answer_fails() -> None:
    result, _ = await probe_http({"port": 1}, httpx.ConnectError("refused"))
    assert result is False


async def test_a_tcp_probe_succeeds_when_somebody_listens() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    probe = Probe({"tcpSocket": {"port": port}})
    async with httpx.AsyncClient() as http:
        assert await succeeds(probe, CONTAINER, "127.0.0.1", http, never)
        server.close()
        await server.wait_closed()
        assert not await succeeds(probe, CONTAINER, "127.0.0.1", http, never)


@pytest.mark.parametrize("status", [True, False])
async def test_an_exec_probe_runs_its_command_within_the_timeout(status: bool) -> None:
    calls = []

    async def execute(command: Sequence[str], timeout: float) -> bool:
        calls.append((list(command), timeout))
        return status

    async with httpx.AsyncClient() as http:
        probe = Probe({"exec": {"command": ["a", "b"]}}, timeout=3)
        assert await succeeds(probe, CONTAINER, "127.0.0.1", http, execute) is status
    assert calls == [(["a", "b"], 3)]
