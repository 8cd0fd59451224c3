"""The temperature sweep: sends the same requests at each temperature and reads the servers' counters in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx
from pydantic import TypeAdapter

from specdecode.cluster.scrape import Scraper
from specdecode.model.measure import Change, Unmeasured, change_between, gauges
from specdecode.probe.acceptance import AtTemperature, Block, Plan, at_temperature
from specdecode.probe.prompts import Prompt
from specdecode.vllm.metrics import Page

SETTLE = 3.0
"""Seconds that the counters may lag behind the last answer, at most."""
POLL = 0.05
SHORT = 0.98
"""Share of our own tokens that the counters must show; below, they are not all servers'."""

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Progress = Callable[[int], None]
"""Told how many requests are done."""


class ProbeError(Exception):
    """The probe cannot be made, with the reason and the way out."""


@dataclass(frozen=True)
class Target:
    """Whom to ask, and where the counters are."""

    endpoint: str
    """Base URL, without /v1."""
    metrics: tuple[str, ...]
    """Pages of all servers behind the endpoint."""
    model: str | None = None
    """None: the first that the endpoint names."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep showed."""

    endpoint: str
    model: str
    servers: int
    vllm_version: str | None
    prompts: int
    max_tokens: int
    concurrency: int
    temperatures: list[AtTemperature]
    warnings: list[str]

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return _RESULT.dump_json(self, indent=2).decode()

    @classmethod
    def from_json(cls, text: str) -> SweepResult:
        """Raises ValueError."""
        return _RESULT.validate_json(text)


_RESULT: TypeAdapter[SweepResult] = TypeAdapter(SweepResult)


def target(endpoint: str, metrics: Sequence[str], model: str | None, api_key: str | None) -> Target:
    """From what a user names: the endpoint with or without /v1, metrics pages beside it unless they are named."""
    base = endpoint.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return Target(base, tuple(metrics) or (f"{base}/metrics",), model, headers)


class Sweep:
    """One sweep. `http` sends the requests, `scraper` reads the pages."""

    def __init__(self, http: httpx.AsyncClient, scraper: Scraper, aim: Target, clock: Clock, sleep: Sleep) -> None:
        self._http, self._scraper, self._target, self._clock, self._sleep = http, scraper, aim, clock, sleep
        self._before: tuple[float, list[Page]] = (0.0, [])

    async def run(
        self, plan: Plan, prompts: Sequence[Prompt], rng: random.Random, progress: Progress = lambda _: None
    ) -> SweepResult:
        """Raises `ProbeError`; takes as long as the requests do."""
        model = self._target.model or await self._first_model()
        self._before = self._clock(), await self._pages()
        _check(self._before[1])
        busy = sum(gauges(page).batch_size or 0.0 for page in self._before[1])
        # What is done once only (compilation, a cold cache) is no temperature's.
        await self._block(plan, 0.0, [prompts[0]], model)
        blocks: dict[float, list[Block]] = {t: [] for t in plan.temperatures}
        done = 0
        for temperature, numbers in plan.blocks(rng):
            block = await self._block(plan, temperature, [prompts[i % len(prompts)] for i in numbers], model)
            blocks[temperature].append(block)
            done += block.requests
            progress(done)
        found = [at_temperature(blocks[t]) for t in sorted(blocks)]
        version = await self._scraper.version(self._target.endpoint)
        return SweepResult(
            endpoint=self._target.endpoint,
            model=model,
            servers=len(self._target.metrics),
            vllm_version=str(version) if version else None,
            prompts=min(len(prompts), plan.requests),
            max_tokens=plan.max_tokens,
            concurrency=plan.concurrency,
            temperatures=found,
            warnings=warnings(found, busy),
        )

    async def _first_model(self) -> str:
        url = f"{self._target.endpoint}/v1/models"
        answer = await self._send("GET", url)
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ProbeError(f"{url} names no model: is this an OpenAI API? Else name the model") from None

    async def _block(self, plan: Plan, temperature: float, prompts: Sequence[Prompt], model: str) -> Block:
        """Sends the requests at once, and reads the counters when they have seen them all."""
        tokens = sum(await asyncio.gather(*(self._ask(plan, temperature, p, model) for p in prompts)))
        started, changes = self._clock(), None
        while changes is None or (_lags(changes, len(prompts), tokens) and self._clock() - started < SETTLE):
            if changes is not None:
                await self._sleep(POLL)
            now, pages = self._clock(), await self._pages()
            changes = _changes(self._before, (now, pages))
        if _growth(changes)[1] < SHORT * tokens:
            raise ProbeError(
                f"the answers had {tokens} tokens, the servers counted {_growth(changes)[1]:.0f}: other replicas answer"
                " behind this endpoint; name the metrics pages of all of them"
            )
        self._before = now, pages
        return Block(temperature, len(prompts), tokens, changes)

    async def _ask(self, plan: Plan, temperature: float, prompt: Prompt, model: str) -> int:
        """Tokens of the answer."""
        url = f"{self._target.endpoint}{prompt.path}"
        body = {"model": model, "temperature": temperature, "max_tokens": plan.max_tokens, **prompt.body}
        answer = await self._send("POST", url, body)
        try:
            return int(answer.json()["usage"]["completion_tokens"])
        except (ValueError, LookupError, TypeError):
            raise ProbeError(f"{url} did not say how many tokens it made: its answer has no usage") from None

    async def _send(self, method: str, url: str, body: object = None) -> httpx.Response:
        try:
            answer = await self._http.request(method, url, json=body, headers=self._target.headers)
        except httpx.TimeoutException:
            raise ProbeError(f"{url} did not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise ProbeError(f"{url} cannot be reached: {e or type(e).__name__}") from None
        if answer.status_code != httpx.codes.OK:
            raise ProbeError(f"{url} answered {answer.status_code}: {answer.text[:300]}")
        return answer

    async def _pages(self) -> list[Page]:
        found = await self._scraper.scrape({url: url for url in self._target.metrics})
        pages = []
        for scrape in found.values():
            if scrape.page is None:
                raise ProbeError(f"no metrics: {scrape.problem}")
            pages.append(scrape.page)
        return pages


def _check(pages: Sequence[Page]) -> None:
    engines = [e for page in pages for e in page.engines]
    if any(e.draft_acceptance_gauge is not None for e in engines):
        raise ProbeError(
            "this is vLLM's V0 engine, whose counters of drafted tokens cannot be used: take 0.10 or newer"
        )
    if all(e.draft_tokens is None for e in engines):
        raise ProbeError(
            "the server does not speculate (its page has no vllm:spec_decode_num_draft_tokens): run a profile that does"
        )


def _changes(before: tuple[float, list[Page]], after: tuple[float, list[Page]]) -> tuple[Change, ...]:
    # Two looks may fall on one tick of the clock; a change's rates are not used here.
    seconds = max(after[0] - before[0], 1e-6)
    found = []
    for old, new in zip(before[1], after[1], strict=True):
        change = change_between(old, new, seconds)
        if isinstance(change, Unmeasured):
            raise ProbeError(
                f"the counters cannot be compared ({change}): did a server restart, or does each look at"
                " the metrics reach another replica? Then name the metrics pages of all of them"
            )
        found.append(change)
    return tuple(found)


def _lags(changes: Sequence[Change], requests: int, tokens: int) -> bool:
    """Whether the counters have not seen all of our requests yet."""
    finished, made = _growth(changes)
    return finished < requests or made < tokens


def _growth(changes: Sequence[Change]) -> tuple[float, float]:
    """Requests that finished, tokens that were made."""
    return (
        sum(c.finished for c in changes),
        sum(c.totals.counter("generation_tokens") or 0.0 for c in changes),
    )


def warnings(found: Sequence[AtTemperature], busy: float = 0.0) -> list[str]:
    """What makes the figures doubtful; `busy` requests ran before the first of ours."""
    told = []
    disturbed = [a for a in found if a.disturbed]
    if disturbed or busy:
        requests, tokens = (sum(getattr(a, f) for a in found) for f in ("foreign_requests", "foreign_tokens"))
        own = sum(a.tokens for a in found)
        told.append(
            f"others used the servers meanwhile ({requests:.0f} requests, {tokens:.0f} tokens beside our {own}): their"
            " temperatures are in these figures, too; probe a server that nobody else uses"
        )
    if undrafted := [f"{a.temperature:g}" for a in found if a.acceptance is None]:
        told.append(
            f"nothing was drafted at temperature {', '.join(undrafted)}: K is 0 at this load, or no n-gram matched"
        )
    return told
