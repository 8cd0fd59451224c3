"""The clients of real vLLM, on a server that answers in OpenAI's protocol."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from specdecode.lab.realvllm.clients import Clients, Traffic, hot_chat, quotations, small_talk, summaries

SHORT = Traffic("short", 2, lambda rng: "Say it.", (3, 3))


class Server:
    """Streams a token each 5 ms. `asked` has the requests; `fault` refuses (a status) or cuts (0) those from now on."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.fault: int | None = None
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.asked.append(asked)
        if self.fault:
            return web.json_response({"error": {"message": "no"}}, status=self.fault)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        base = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "chat"}
        for i in range(asked["max_tokens"]):
            choice = {"index": 0, "delta": {"content": f"{i}"}, "finish_reason": None}
            await response.write(f"data: {json.dumps({**base, 'choices': [choice]})}\n\n".encode())
            await asyncio.sleep(0.005)
        if self.fault is None:
            usage = {"prompt_tokens": 5, "completion_tokens": asked["max_tokens"], "total_tokens": 8}
            await response.write(f"data: {json.dumps({**base, 'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    application = web.Application()
    application.router.add_post("/v1/chat/completions", made.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def until(clients: Clients, records: int) -> None:
    async with asyncio.timeout(20):
        while len(clients.records) < records:
            await asyncio.sleep(0.01)


async def test_clients_ask_again_and_again_and_measure_what_they_get(server: Server) -> None:
    clients = Clients(lambda: [server.url], SHORT, model="chat", seed=1)
    await until(clients, 4)
    records = await clients.stop()
    assert not clients.failures
    assert {(r.phase, r.tokens, r.pod) for r in records} == {("short", 3, server.url)}
    assert all(r.ttft and r.tpot and r.end > r.start for r in records)
    assert server.asked[0]["temperature"] == 0 and server.asked[0]["stream"] and server.asked[0]["ignore_eos"]
    seen = len(server.asked)
    await asyncio.sleep(0.05)
    assert len(server.asked) == seen == len(records)


async def test_what_is_asked_can_be_changed_under_another_name(server: Server) -> None:
    clients = Clients(lambda: [server.url], SHORT, model="chat", seed=1)
    clients.ask(Traffic("hot", 1, lambda rng: "And?", (2, 2), temperature=1.0), phase="later")
    await until(clients, 3)
    await clients.stop()
    assert {(r.phase, r.kind, r.temperature, r.tokens) for r in clients.records} == {("later", "hot", 1.0, 2)}


async def test_clients_that_pause_end_what_they_began_and_go_on_when_they_are_asked(server: Server) -> None:
    clients = Clients(lambda: [server.url], SHORT, model="chat", seed=1)
    await until(clients, 2)
    await clients.pause()
    seen = len(clients.records)
    await asyncio.sleep(0.05)
    assert len(server.asked) == seen == len(clients.records)
    clients.ask(SHORT)
    await until(clients, seen + 1)
    await clients.stop()
    assert not clients.failures


@pytest.mark.parametrize(("fault", "error"), [(400, "BadRequestError"), (503, "InternalServerError"), (0, "cut")])
async def test_a_request_that_is_refused_or_cut_fails_once(server: Server, fault: int, error: str) -> None:
    server.fault = fault
    clients = Clients(lambda: [server.url], SHORT, model="chat", seed=1)
    await until(clients, 2)
    await clients.stop()
    assert len(server.asked) == len(clients.records) == len(clients.failures)
    assert all(error in failure for failure in clients.failures)


async def test_requests_go_to_the_pod_with_the_fewest_outstanding_and_wait_for_one(server: Server) -> None:
    pods: list[str] = []
    clients = Clients(lambda: pods, SHORT, model="chat", seed=1)
    await asyncio.sleep(0.15)
    assert not clients.records
    nobody = server.url.replace("127.0.0.1", "127.0.0.2")
    pods += [server.url, nobody]
    await until(clients, 6)
    await clients.stop()
    assert {r.pod for r in clients.records} == {server.url, nobody}
    assert {r.error is None for r in clients.records if r.pod == nobody} == {False}


async def test_clients_that_are_closed_leave_nothing_behind(server: Server) -> None:
    clients = Clients(lambda: [server.url], Traffic("long", 2, lambda rng: "Go on.", (900, 900)), model="chat", seed=1)
    async with asyncio.timeout(20):
        while len(server.asked) < 2:
            await asyncio.sleep(0.01)
    await clients.close()
    assert not clients.records


def test_the_same_seed_asks_the_same() -> None:
    for prompt in (quotations, small_talk):
        assert prompt(random.Random(3)) == prompt(random.Random(3)) != prompt(random.Random(4))
    assert (summaries(2).temperature, hot_chat(3).temperature) == (0.0, 1.0)
