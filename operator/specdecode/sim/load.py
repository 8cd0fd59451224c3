"""Clients that load vLLM servers, real or simulated, and measure what their users would feel.

Every request is sent once: a failed one stays visible, there is no retry. The number in flight and the time of each are
bounded.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import aiohttp

from specdecode.sim.workload import Arrival, Ask, Phase, poisson

Endpoints = Callable[[], Sequence[str]]
"""The base URLs that are ready now, read again for every request: a Service's endpoints."""


@dataclass(frozen=True)
class Record:
    """One request as its client saw it. Seconds; `start` counts from the start of the load."""

    start: float
    phase: str
    kind: str
    temperature: float
    pod: str
    """Base URL of the server that was asked."""
    tokens: int
    ttft: float | None = None
    """Time to first token."""
    tpot: float | None = None
    """Time per output token: (last - first) / (tokens - 1); None for less than two tokens."""
    end: float = 0.0
    error: str | None = None
    """Why it failed: `no endpoint`, `connection`, `http 400`, `cut`, `timeout`, `overload` (too many in flight)."""


@dataclass(frozen=True)
class Limits:
    """What the generator may use."""

    in_flight: int = 1000
    """Requests at a time; what comes above fails as `overload`."""
    request_seconds: float = 300.0


class LoadGenerator:
    """Sends requests to whichever endpoint has the fewest outstanding, round robin between equals.

    Made inside a running event loop; times count from then. `record` is called once for each request when it ends.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoints: Endpoints,
        record: Callable[[Record], None],
        *,
        rng: random.Random,
        model: str | None = None,
        api_key: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._session = session
        self._endpoints = endpoints
        self._record = record
        self._rng = rng
        self._model = model
        self._headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
        }
        self._limits = limits or Limits()
        self._outstanding: dict[str, int] = {}
        self._turn = 0
        self._now = asyncio.get_running_loop().time
        self._began = self._now()

    async def run(self, phases: Iterable[Phase]) -> None:
        """Play phases one after the other; requests still in flight at the end of the last are waited for."""
        async with asyncio.TaskGroup() as group:
            start = self._now() - self._began
            for phase in phases:
                if phase.clients is None:
                    await self._open(poisson(phase, self._rng, start), group)
                else:
                    for _ in range(phase.clients):
                        group.create_task(self._client(phase, start + phase.seconds))
                start += phase.seconds
                await self._until(start)

    async def replay(self, arrivals: Iterable[Arrival]) -> None:
        """Play a trace."""
        start = self._now() - self._began
        async with asyncio.TaskGroup() as group:
            await self._open((Arrival(start + a.at, a.phase, a.ask) for a in arrivals), group)

    async def _open(self, arrivals: Iterable[Arrival], group: asyncio.TaskGroup) -> None:
        for arrival in arrivals:
            await self._until(arrival.at)
            group.create_task(self.send(arrival.ask, arrival.phase))

    async def _client(self, phase: Phase, end: float) -> None:
        while (now := self._now() - self._began) < end:
            record = await self.send(phase.ask(self._rng), phase.name)
            if record.error and self._now() - self._began - now < 0.1:
                await asyncio.sleep(0.1)  # a closed client that is refused at once must not spin

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, self._began + at - self._now()))

    def _pick(self) -> str | None:
        ready = list(self._endpoints())
        if not ready:
            return None
        self._turn += 1
        turned = ready[self._turn % len(ready) :] + ready[: self._turn % len(ready)]
        return min(turned, key=lambda url: self._outstanding.get(url, 0))

    async def send(self, ask: Ask, phase: str) -> Record:
        """Send one request and stream its answer."""
        start = self._now()
        pod = self._pick()
        if pod is None:
            return self._done(start, ask, phase, "", error="no endpoint")
        if sum(self._outstanding.values()) >= self._limits.in_flight:
            return self._done(start, ask, phase, pod, error="overload")
        self._outstanding[pod] = self._outstanding.get(pod, 0) + 1
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                return await self._stream(start, ask, phase, pod)
        except TimeoutError:
            return self._done(start, ask, phase, pod, error="timeout")
        except aiohttp.ClientConnectorError:
            return self._done(start, ask, phase, pod, error="connection")
        except (aiohttp.ClientError, OSError):
            return self._done(start, ask, phase, pod, error="cut")
        finally:
            self._outstanding[pod] -= 1

    async def _stream(self, start: float, ask: Ask, phase: str, pod: str) -> Record:
        first = last = None
        tail = b""
        headers = {**self._headers, "x-request-kind": ask.kind}
        async with self._session.post(
            f"{pod}/v1/completions", data=_body(ask, self._model), headers=headers
        ) as response:
            if response.status != 200:
                return self._done(start, ask, phase, pod, error=f"http {response.status}")
            async for piece in response.content.iter_any():
                last = self._now()
                first = first or last
                tail = piece if len(piece) > 2048 else (tail + piece)[-4096:]
        tokens = _usage(tail)
        if first is None or last is None or tokens is None:
            return self._done(start, ask, phase, pod, error="cut")
        tpot = (last - first) / (tokens - 1) if tokens > 1 else None
        return self._done(start, ask, phase, pod, tokens=tokens, ttft=first - start, tpot=tpot)

    def _done(
        self,
        start: float,
        ask: Ask,
        phase: str,
        pod: str,
        *,
        tokens: int = 0,
        ttft: float | None = None,
        tpot: float | None = None,
        error: str | None = None,
    ) -> Record:
        end = self._now() - self._began
        record = Record(start - self._began, phase, ask.kind, ask.temperature, pod, tokens, ttft, tpot, end, error)
        self._record(record)
        return record


def new_session() -> aiohttp.ClientSession:
    """A session for the generator: a connection per request, as a Service balances by connection, and no limit of its
    own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
    )


@lru_cache(maxsize=4096)
def _body(ask: Ask, model: str | None) -> bytes:
    return json.dumps(
        {
            **({"model": model} if model else {}),
            "prompt": [1 + i % 1000 for i in range(ask.prompt_tokens)],
            "max_tokens": ask.output_tokens,
            "temperature": ask.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


def _usage(tail: bytes) -> int | None:
    """Output tokens of a stream that ended as it should, from its usage chunk; None for one that was cut."""
    *_, usage, done = [line for line in tail.split(b"\n") if line.startswith(b"data: ")][-2:] or [b"", b""]
    if done.strip() != b"data: [DONE]":
        return None
    try:
        return int(json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return None


def summarise(records: Sequence[Record]) -> dict[str, dict[str, object]]:
    """A summary per phase, in order of appearance, and of all (`total`)."""
    phases = dict.fromkeys(r.phase for r in records)
    groups = {phase: [r for r in records if r.phase == phase] for phase in phases}
    return {name: _summary(group) for name, group in (*groups.items(), ("total", list(records)))}


def _summary(records: Sequence[Record]) -> dict[str, object]:
    answered = [r for r in records if r.error is None]
    errors: dict[str, int] = {}
    for record in records:
        if record.error:
            errors[record.error] = errors.get(record.error, 0) + 1
    tokens = sum(r.tokens for r in answered)
    decoded = [(r.tpot, r.tokens - 1) for r in answered if r.tpot is not None]
    span = max((r.end for r in records), default=0.0) - min((r.start for r in records), default=0.0)
    weight = sum(n for _, n in decoded)
    return {
        "requests": len(records),
        "failures": sum(errors.values()),
        "errors": errors,
        "tokens": tokens,
        "tokens_per_second": tokens / span if span > 0 else 0.0,
        "tpot_token_weighted_mean": sum(t * n for t, n in decoded) / weight if weight else None,
        "tpot": _distribution([t for t, _ in decoded]),
        "ttft": _distribution([r.ttft for r in answered if r.ttft is not None]),
    }


def _distribution(values: Iterable[float]) -> Mapping[str, float] | None:
    """Mean, P50, P95 and P99 in seconds (nearest rank); None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    at = {f"p{q}": ordered[max(0, -(-q * len(ordered) // 100) - 1)] for q in (50, 95, 99)}
    return {"mean": sum(ordered) / len(ordered), **at}


def report(records: Sequence[Record]) -> dict[str, object]:
    """The result file: the summary and every request."""
    return {"summary": summarise(records), "requests": [asdict(r) for r in records]}
