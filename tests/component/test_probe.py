"""The temperature sweep against the simulated server, over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from specdecode.cluster.scrape import Scraper
from specdecode.probe.acceptance import Plan
from specdecode.probe.prompts import completion
from specdecode.probe.sweep import ProbeError, Sweep, SweepResult, target

DRAFT = json.dumps({"method": "draft_model", "model": "d", "num_speculative_tokens": 3})
PROMPTS = [completion(f"Summarise chapter {i} of the book.") for i in range(8)]


@asynccontextmanager
async def server(*args: str) -> AsyncIterator[str]:
    """The URL of a simulated server that runs 50 times as fast as a real one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"SPECDECODE_SIM_SPEED": "50", "SPECDECODE_SIM_SEED": "1", "POD_IP": "127.0.0.1"}
    words = (sys.executable, "-m", "specdecode.sim", "vllm", "serve", "m", "--port", str(port), *args)
    process = await asyncio.create_subprocess_exec(*words, env=env, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30), httpx.AsyncClient() as http:
            while True:
                try:
                    if (await http.get(f"http://127.0.0.1:{port}/health")).is_success:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def sweep(url: str, plan: Plan) -> SweepResult:
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(timeout=60) as http, Scraper() as scraper:
        maker = Sweep(http, scraper, target(url, (), None, None), loop.time, asyncio.sleep)
        return await maker.run(plan, PROMPTS, random.Random(0))


async def test_acceptance_falls_with_temperature_on_the_simulated_server() -> None:
    async with server("--speculative-config", DRAFT) as url:
        found = await sweep(url, Plan((0.0, 1.0), requests=20, concurrency=2, max_tokens=50))
    cold, hot = (a.acceptance for a in found.temperatures)
    assert cold is not None and hot is not None
    assert cold.low > hot.value and hot.high < cold.value
    assert not found.warnings
    for a in found.temperatures:
        assert a.tokens == 1000 and a.foreign_tokens == 0
        assert a.accepted_length is not None and a.tokens_per_step is not None
        # A draft model drafts in every step; the last one of an answer is cut.
        assert a.tokens_per_step.value == pytest.approx(a.accepted_length.value, rel=0.1)
        assert len(a.per_position) == 3 and sorted(a.per_position, reverse=True) == list(a.per_position)


async def test_somebody_elses_requests_are_noticed() -> None:
    async with server("--speculative-config", DRAFT) as url, httpx.AsyncClient(timeout=60) as http:

        async def others() -> None:
            while True:
                body = {"model": "m", "prompt": "Hello", "max_tokens": 20}
                await http.post(f"{url}/v1/completions", json=body)

        busy = asyncio.create_task(others())
        found = await sweep(url, Plan((0.0, 1.0), requests=4, max_tokens=50))
        busy.cancel()
    assert any(a.disturbed for a in found.temperatures)
    assert any("others used the servers" in w for w in found.warnings)


async def test_a_simulated_server_without_speculation_is_refused() -> None:
    async with server() as url:
        with pytest.raises(ProbeError, match="does not speculate"):
            await sweep(url, Plan((0.0,), requests=2))
