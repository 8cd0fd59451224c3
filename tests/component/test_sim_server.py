"""The simulated server as a process: streams, metrics, refusals, draining, faults."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from specdecode.sim.load import Limits, LoadGenerator, Record, new_session
from specdecode.sim.workload import Ask, Phase
from specdecode.vllm.effective import Told, read_text
from specdecode.vllm.metrics import EngineSample, read_page

SPEED = {"SPECDECODE_SIM_SPEED": "20", "SPECDECODE_SIM_SEED": "1", "SPECDECODE_SIM_LINGER_SECONDS": "0.2"}
NGRAM = json.dumps({"method": "ngram", "num_speculative_tokens": 5})
DRAFT = json.dumps({"method": "draft_model", "model": "d", "num_speculative_tokens": 3})


@dataclass
class Pod:
    """One server process on a loopback address of its own."""

    process: asyncio.subprocess.Process
    url: str

    async def wait(self) -> tuple[int, str]:
        """Exit status and what it wrote to stderr."""
        _, err = await asyncio.wait_for(self.process.communicate(), 10)
        assert self.process.returncode is not None
        return self.process.returncode, err.decode()


@asynccontextmanager
async def pod(*args: str, ready: bool = True, **env: str) -> AsyncIterator[Pod]:
    """Run `vllm serve m …` and wait until it is healthy."""
    ip = f"127.{random.randint(100, 199)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
    with socket.socket() as probe:
        probe.bind((ip, 0))
        port = probe.getsockname()[1]
    settings = {**SPEED, **{f"SPECDECODE_SIM_{key}": value for key, value in env.items()}, "POD_IP": ip}
    words = [sys.executable, "-m", "specdecode.sim", "vllm", "serve", "m", "--port", str(port), *args]
    process = await asyncio.create_subprocess_exec(
        *words, env={**os.environ, **settings}, stderr=asyncio.subprocess.PIPE
    )
    found = Pod(process, f"http://{ip}:{port}")
    try:
        if ready:
            await eventually(lambda: status(found.url + "/health"), 200)
        yield found
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def status(url: str) -> int | None:
    async with new_session() as session:
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return None


async def eventually(ask: Callable[[], Awaitable[object]], wanted: object, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if await ask() == wanted:
                return
            await asyncio.sleep(0.02)


async def load(url: str, phase: Phase) -> list[Record]:
    records: list[Record] = []
    async with new_session() as session:
        await LoadGenerator(session, lambda: [url], records.append, rng=random.Random(1)).run([phase])
    return records


async def page(url: str) -> EngineSample:
    async with new_session() as session, session.get(url + "/metrics") as response:
        assert response.status == 200
        (sample,) = read_page(await response.read()).engines
        return sample


async def test_streams_are_answered_and_counted_as_the_clients_saw_them() -> None:
    async with pod("--speculative-config", DRAFT, "--stream-interval", "8") as server:
        records = await load(server.url, Phase("p", 1.0, clients=4, prompt_tokens=(50, 50), output_tokens=(80, 80)))
        sample = await page(server.url)
    assert [r.error for r in records if r.error] == []
    assert all(r.tokens == 80 and r.ttft and r.tpot for r in records)
    assert sample.generation_tokens == 80 * len(records)
    assert sample.requests["length"] == len(records)
    assert sample.drafts is not None
    assert sample.draft_tokens == 3 * sample.drafts
    assert sample.tpot is not None
    seen = sum(r.tpot for r in records if r.tpot) / len(records)
    assert sample.tpot.sum / sample.tpot.count == pytest.approx(seen, rel=0.25)


async def test_the_endpoints_of_vllm_answer() -> None:
    async with pod("--served-model-name", "chat", "--api-key", "secret", VLLM_VERSION="0.32.0") as server:
        async with new_session() as session:
            async with session.get(server.url + "/version") as response:
                assert await response.json() == {"version": "0.32.0"}
            async with session.get(server.url + "/v1/models") as response:
                assert [m["id"] for m in (await response.json())["data"]] == ["chat"]
            ask = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            async with session.post(server.url + "/v1/chat/completions", json=ask) as response:
                assert response.status == 401
            headers = {"Authorization": "Bearer secret"}
            async with session.post(server.url + "/v1/chat/completions", json=ask, headers=headers) as response:
                answer = await response.json()
        assert answer["choices"][0]["message"]["content"] == " token token token"
        assert answer["usage"]["completion_tokens"] == 3


async def test_speculation_makes_some_requests_fail_and_the_page_shows_it() -> None:
    async with pod("--speculative-config", NGRAM) as server:
        async with new_session() as session:
            ask = {"prompt": "x", "min_p": 0.1}
            async with session.post(server.url + "/v1/completions", json=ask) as response:
                assert response.status == 400
            async with session.get(server.url + "/metrics") as response:
                text = await response.text()
        assert 'http_requests_total{handler="/v1/completions",method="POST",status="4xx"} 1.0' in text


async def test_an_engine_that_drops_its_speculation_says_so_in_its_log_and_in_its_metrics() -> None:
    logs = []
    for fault in ("", "speculation-dropped"):
        async with pod("--speculative-config", NGRAM, FAULT=fault) as server, new_session() as session:
            async with session.get(server.url + "/metrics") as response:
                assert ("spec_decode" in await response.text()) is not bool(fault)
            server.process.terminate()
            logs.append((await server.wait())[1])
    told, dropped = map(read_text, logs)
    assert told is not None and (told.method, told.num_speculative_tokens) == ("ngram", 5)
    assert dropped == Told(None)


async def test_sigterm_finishes_what_is_in_flight() -> None:
    async with pod(SPEED="1") as server:
        running = asyncio.create_task(
            load(server.url, Phase("p", 0.5, clients=6, prompt_tokens=(20, 20), output_tokens=(60, 60)))
        )
        await asyncio.sleep(0.4)
        server.process.send_signal(signal.SIGTERM)
        records = await running
        code, log = await server.wait()
    assert code == 0
    assert "Application shutdown complete." in log
    assert [r.error for r in records] == [None] * 6


async def test_a_client_that_leaves_frees_its_place() -> None:
    async with pod(SPEED="1") as server:
        async with new_session() as session:
            ask = {"prompt": "x", "max_tokens": 2000, "stream": True}
            async with session.post(server.url + "/v1/completions", json=ask) as response:
                await response.content.readany()
                assert (await page(server.url)).running == 1

        async def running() -> float | None:
            return (await page(server.url)).running

        await eventually(running, 0.0)
        assert (await page(server.url)).requests["abort"] == 1


@pytest.mark.parametrize(
    ("args", "env", "code", "says"),
    [
        (["--speculative-disable-by-batch-size", "8"], {}, 2, "unrecognized arguments"),
        (["--speculative-config", DRAFT], {"VLLM_VERSION": "0.12.0"}, 1, "NotImplementedError"),
        (
            ["--speculative-config", NGRAM[:-1] + ', "num_speculative_tokens_per_batch_size": [[2, 9, 1]]}'],
            {"STARTUP_SECONDS": "0.2"},
            1,
            "must start at 1",
        ),
        (["--speculative-config", DRAFT], {"SURFACE": "h200-qwen3moe30b"}, 1, "it covers Disabled, NGram"),
        ([], {"SURFACE": "nowhere"}, 1, "no surface 'nowhere'"),
        ([], {"ACCEPTANCE": "/nowhere.json"}, 1, "cannot be read"),
        ([], {"SPEED": "fast"}, 2, "is not a number"),
        ([], {"FAULT": "crash-at-start"}, 1, "Engine core initialization failed"),
        ([], {"FAULT": "crash-after:0.1"}, 1, "EngineDeadError"),
    ],
)
async def test_a_server_that_cannot_run_ends_with_vllms_status(
    args: list[str], env: dict[str, str], code: int, says: str
) -> None:
    async with pod(*args, ready=False, **env) as server:
        ended, log = await server.wait()
    assert ended == code
    assert says in log


async def test_a_server_that_is_starting_is_not_ready() -> None:
    async with pod(ready=False, FAULT="never-ready") as server:
        await eventually(lambda: status(server.url + "/health"), 503)
        assert await status(server.url + "/metrics") == 503
        (record,) = await load(server.url, Phase("p", 0.05, clients=1))
        assert record.error == "http 503"
        server.process.send_signal(signal.SIGTERM)
        assert (await server.wait())[0] == 0


async def test_metrics_faults_leave_the_rest_alone() -> None:
    async with pod(FAULT="metrics-missing") as missing, pod(FAULT="metrics-half") as half:
        assert await status(missing.url + "/metrics") == 404
        async with new_session() as session, session.get(half.url + "/metrics") as response:
            text = await response.text()
        assert "vllm:num_requests_running" in text
        assert "vllm:cache_config_info" not in text
        for server in (missing, half):
            records = await load(server.url, Phase("p", 0.05, clients=1, output_tokens=(5, 5)))
            assert [r.error for r in records if r.error] == []


async def test_metrics_that_hang_time_out() -> None:
    async with pod(FAULT="metrics-hang") as server, new_session() as session:
        with pytest.raises(TimeoutError):
            await session.get(server.url + "/metrics", timeout=aiohttp.ClientTimeout(total=0.3))
        server.process.send_signal(signal.SIGTERM)
        assert (await server.wait())[0] == 0, "a scrape that hangs holds nobody up"


async def test_a_fault_spares_the_pods_it_is_not_meant_for() -> None:
    """A bad canary: the same environment, and only the pods that speculate fall over."""
    fault = {"FAULT": "oom-under-load:3", "FAULT_WHEN": "speculating", "SPEED": "1"}
    phase = Phase("p", 0.2, clients=4, prompt_tokens=(20, 20), output_tokens=(10, 10))
    async with pod(ready=True, **fault) as off, pod("--speculative-config", NGRAM, ready=True, **fault) as canary:
        healthy, broken = await asyncio.gather(load(off.url, phase), load(canary.url, phase))
        code, log = await canary.wait()
        assert await status(off.url + "/health") == 200
    assert [r.error for r in healthy if r.error] == []
    assert {r.error for r in broken} <= {"cut", "connection"}
    assert code == 1
    assert "CUDA out of memory" in log


async def test_requests_spread_over_the_endpoints_that_are_ready_now() -> None:
    async with pod() as one, pod() as two:
        endpoints: list[str] = []
        records: list[Record] = []
        async with new_session() as session:
            clients = LoadGenerator(session, lambda: endpoints, records.append, rng=random.Random(1))
            assert (await clients.send(Ask("chat", 5, 5), "none")).error == "no endpoint"
            endpoints.append(one.url)
            for _ in range(4):
                await clients.send(Ask("chat", 5, 5), "one")
            endpoints.append(two.url)
            await asyncio.gather(*(clients.send(Ask("chat", 5, 50), "both") for _ in range(8)))
    by_phase = {(r.phase, r.pod): 0 for r in records}
    for record in records:
        by_phase[record.phase, record.pod] += 1
    assert by_phase == {("none", ""): 1, ("one", one.url): 4, ("both", one.url): 4, ("both", two.url): 4}


async def test_the_generator_is_bounded_in_number_and_time() -> None:
    async with pod(SPEED="1") as server, new_session() as session:
        records: list[Record] = []
        limits = Limits(in_flight=2, request_seconds=0.3)
        clients = LoadGenerator(session, lambda: [server.url], records.append, rng=random.Random(1), limits=limits)
        await asyncio.gather(*(clients.send(Ask("chat", 5, 1000), "p") for _ in range(3)))
    assert sorted(str(r.error) for r in records) == ["overload", "timeout", "timeout"]


async def test_a_server_that_is_gone_refuses_connections() -> None:
    async with new_session() as session:
        clients = LoadGenerator(session, lambda: ["http://127.9.9.9:9"], lambda r: None, rng=random.Random(1))
        assert (await clients.send(Ask("chat", 5, 5), "p")).error == "connection"


async def test_the_load_command_writes_what_it_saw(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    async with pod() as server:
        words = ["load", "--url", server.url, "--phase", "a:0.5s:20rps:chat=1+code=1:T=0.4:prompt=9:output=9-12"]
        words += ["--trace", "--limit", "5", "--time-scale", "100", "-o", str(output)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "specdecode.sim", *words, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.decode().splitlines()[-1].startswith("total")
    result = json.loads(output.read_text())
    assert result["summary"]["trace"]["requests"] == 5
    assert result["summary"]["total"]["requests"] == len(result["requests"]) > 5
    assert {r["kind"] for r in result["requests"]} == {"chat", "code"}
