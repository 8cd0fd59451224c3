"""The plugin on a real vLLM server: schedules change under load, without a restart and without a failed request."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from specdecode_vllm import SIZE_LIMIT, TESTED
from support.real_vllm import MODEL, Mount, serving, with_plugin

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

POD, HOST = "vllm-chat-1", "127.0.0.83"
K = 3
STARTED = [[1, 16, K]]
SPECULATION = {
    "method": "ngram",
    "num_speculative_tokens": K,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 4,
    "num_speculative_tokens_per_batch_size": STARTED,
}
ABOUT = {key: SPECULATION[key] for key in SPECULATION if not key.startswith("prompt_lookup")}
PROMPT = "one two three four " * 4


def _file(schedule: list[list[int]], **more: object) -> bytes:
    return json.dumps({"version": 1, "started_with": ABOUT, "schedule": schedule, **more}).encode()


@dataclass(frozen=True)
class Page:
    state: str
    schedule: list[list[int]]
    source: str
    problem: str
    changes: int
    errors: int
    drafted: int
    drafts: int
    started: float
    failed: int


class Server:
    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.http = httpx.AsyncClient(base_url=f"http://{HOST}:8083", timeout=60)

    async def page(self) -> Page:
        text = (await self.http.get("/metrics")).text

        def value(name: str) -> float:
            return sum(float(v) for v in re.findall(rf"^{name}(?:\{{.*?\}})? (\S+)$", text, re.M))

        info = dict(re.findall(r'(\w+)="(.*?)"', re.findall(r"^specdecode_schedule_info\{(.*)\} 1", text, re.M)[0]))
        return Page(
            state=info["state"],
            schedule=json.loads(info["schedule"]),
            source=info["source"],
            problem=info["problem"],
            changes=int(value("specdecode_schedule_changes_total")),
            errors=int(value("specdecode_schedule_errors_total")),
            drafted=int(value("vllm:spec_decode_num_draft_tokens_total")),
            drafts=int(value("vllm:spec_decode_num_drafts_total")),
            started=value("process_start_time_seconds"),
            failed=int(value(r'vllm:request_success_total\{[^}]*finished_reason="error"[^}]*\}')),
        )

    async def until(self, what: object, **wanted: object) -> Page:
        for _ in range(500):
            page = await self.page()
            if all(getattr(page, key) == value for key, value in wanted.items()):
                return page
            await asyncio.sleep(0.01)
        pytest.fail(f"after {what} the server did not get to {wanted}: {page}")

    async def ask(self, tokens: int = 48) -> None:
        """One request; raises if it fails or is cut short."""
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = (await self.http.post("/v1/completions", json=body)).raise_for_status().json()
        assert answer["usage"]["completion_tokens"] == tokens

    async def drafted_for_one(self) -> tuple[int, int]:
        """Drafted tokens and drafts of one request that is served alone."""
        before = await self.page()
        await self.ask()
        after = await self.page()
        return after.drafted - before.drafted, after.drafts - before.drafts

    @asynccontextmanager
    async def load(self, clients: int) -> AsyncIterator[list[float]]:
        """Clients that ask one request after the other; yields the seconds that each took, as they finish."""
        took: list[float] = []

        async def client() -> None:
            while True:
                at = time.perf_counter()
                await self.ask()
                took.append(time.perf_counter() - at)

        tasks = [asyncio.create_task(client()) for _ in range(clients)]
        try:
            yield took
            failed = [t.exception() for t in tasks if t.done()]
            assert not failed, failed
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    folder = tmp_path_factory.mktemp("live")
    mount = Mount(folder / "mount")
    environment = with_plugin(folder, mount, POD)
    with serving(HOST, folder, ["--speculative-config", json.dumps(SPECULATION)], environment):
        yield mount


@pytest.fixture
async def server(process: Mount) -> AsyncIterator[Server]:
    server = Server(process)
    process.clear()
    await server.until("no file", source="arguments")
    await server.ask()
    yield server
    await server.http.aclose()


async def test_the_schedule_in_force_is_told(server: Server) -> None:
    page = await server.page()
    assert (page.state, page.schedule, page.source, page.problem) == ("Live", STARTED, "arguments", "")
    assert TESTED[-1] in (await server.http.get("/version")).text


async def test_a_change_shows_in_the_counters_without_a_restart(server: Server) -> None:
    started = (await server.page()).started
    tokens, drafts = await server.drafted_for_one()
    assert tokens > 2 * drafts > 0
    server.mount.put(_file([[1, 16, 0]]))
    await server.until("K = 0", schedule=[[1, 16, 0]], source="file")
    assert await server.drafted_for_one() == (0, 0)
    server.mount.put(_file([[1, 16, 1]]))
    await server.until("K = 1", schedule=[[1, 16, 1]])
    tokens, drafts = await server.drafted_for_one()
    assert tokens == drafts > 0
    server.mount.clear()
    await server.until("the file was taken away", schedule=STARTED, source="arguments")
    tokens, drafts = await server.drafted_for_one()
    assert tokens > 2 * drafts > 0
    assert (await server.page()).started == started


async def test_a_threshold_holds_by_batch_size(server: Server) -> None:
    server.mount.put(_file([[1, 1, K], [2, 16, 0]]))
    await server.until("a threshold of 2", schedule=[[1, 1, K], [2, 16, 0]])
    alone, _ = await server.drafted_for_one()
    before = await server.page()
    await asyncio.gather(*(server.ask(200) for _ in range(6)))
    together = (await server.page()).drafted - before.drafted
    # The last one of the six may be alone for some steps.
    assert alone > 0
    assert together < alone * 6


async def test_one_pod_gets_its_own(server: Server) -> None:
    server.mount.put(_file([[1, 16, 0]], pods={POD: [[1, 16, 1]], "another": [[1, 16, 2]]}))
    await server.until("an entry for this pod", schedule=[[1, 16, 1]], source="pod")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "NotJson"),
        (_file([[1, 16, 0]])[:-9], "NotJson"),
        (_file([[1, 16, 0]]) + b" " * SIZE_LIMIT * 400, "TooLarge"),
        (b"[]", "WrongType"),
        (_file([[1, 16]]), "WrongType"),
        (b'{"version": 1, "started_with": {}, "schedule": [[1, 16, "0"]]}', "WrongType"),
        (_file([[1, 16, K + 1]]), "OutOfRange"),
        (_file([[2, 16, 1]]), "OutOfRange"),
    ],
    ids=["empty", "truncated", "huge", "a list", "a short row", "text", "K too large", "a hole at 1"],
)
async def test_a_bad_file_changes_nothing_and_is_told(server: Server, content: bytes, problem: str) -> None:
    server.mount.put(_file([[1, 16, 1]]))
    before = await server.until("a good file", schedule=[[1, 16, 1]])
    async with server.load(4):
        server.mount.put(content)
        page = await server.until("a bad file", problem=problem)
    assert (page.schedule, page.changes, page.errors) == ([[1, 16, 1]], before.changes, before.errors + 1)
    tokens, drafts = await server.drafted_for_one()
    assert tokens == drafts > 0
    server.mount.put(_file([[1, 16, 2]]))
    await server.until("a good file again", schedule=[[1, 16, 2]], problem="")


async def test_a_thousand_changes_under_load_fail_no_request(server: Server) -> None:
    schedules = itertools.cycle([[[1, 16, k]] for k in range(K + 1)] + [[[1, 2, K], [3, 6, 1], [7, 16, 0]]])
    before = await server.page()
    async with server.load(8) as took:
        for i in range(1000):
            schedule = next(schedules)
            server.mount.put(_file(schedule))
            await server.until(f"change {i}", schedule=schedule)
    after = await server.page()
    assert after.changes - before.changes == 1000
    assert after.drafted > before.drafted
    assert (after.started, after.errors, after.failed) == (before.started, before.errors, before.failed)
    print(f"1,000 changes; {len(took)} requests in between, none failed; slowest {max(took):.2f} s")
    assert len(took) >= 100
