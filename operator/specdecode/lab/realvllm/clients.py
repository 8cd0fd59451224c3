"""Clients of real vLLM servers: the `openai` package, streaming, and what its users would feel."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from openai import AsyncOpenAI, OpenAIError

from specdecode.sim.load import Endpoints, Record

MOST = 16
"""Clients of one workload."""
ANSWERED_WITHIN = 180.0
"""Seconds that a client waits for a whole answer."""


@dataclass(frozen=True)
class Traffic:
    """What clients ask for: so many of them at a time, each again as soon as it is answered."""

    name: str
    clients: int
    prompt: Callable[[random.Random], str]
    tokens: tuple[int, int]
    """Length of the answers, from and to."""
    temperature: float = 0.0


class Clients:
    """The clients of one workload, who begin at once. `records` gets the answers.

    Every request is sent once: a failed one stays visible. It goes to the ready pod with the fewest outstanding ones.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        traffic: Traffic,
        *,
        model: str,
        seed: int,
        records: list[Record] | None = None,
    ) -> None:
        self.records: list[Record] = [] if records is None else records
        self._traffic, self._phase = traffic, traffic.name
        self._endpoints, self._model, self._rng = endpoints, model, random.Random(seed)
        self._began = time.monotonic()
        self._pods: dict[str, AsyncOpenAI] = {}
        self._outstanding: dict[str, int] = {}
        self._turn = 0
        self._over = False
        self._task = asyncio.gather(*(self._client(i) for i in range(MOST)))

    @property
    def failures(self) -> list[str]:
        """Requests that were not answered as they should be."""
        return [f"{r.start:.1f} s: {r.error} from {r.pod}" for r in self.records if r.error]

    def ask(self, traffic: Traffic, phase: str | None = None) -> None:
        """Asks for this from now on. `phase`: its name in the records, where it is not the traffic's own."""
        self._traffic, self._phase = traffic, phase or traffic.name

    async def pause(self) -> None:
        """Asks no more for now, and waits for what is being answered."""
        self._traffic = replace(self._traffic, clients=0)
        while any(self._outstanding.values()):
            await asyncio.sleep(0.05)

    def now(self) -> float:
        """Seconds since the start, as in the records."""
        return time.monotonic() - self._began

    async def stop(self) -> list[Record]:
        """Asks no more, and waits for what is being answered; all records."""
        self._over = True
        await self._task
        await self.close()
        return self.records

    async def close(self) -> None:
        """Stops at once."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._pods.values()))

    async def _client(self, number: int) -> None:
        while not self._over:
            if number >= self._traffic.clients or not (pods := self._endpoints()):
                await asyncio.sleep(0.1)
                continue
            record = await self._request(self._pick(pods), self._traffic, self._phase)
            self.records.append(record)
            if record.error:
                await asyncio.sleep(0.5)  # a client that is refused at once must not spin

    def _pick(self, pods: Sequence[str]) -> str:
        self._turn += 1
        turned = [*pods[self._turn % len(pods) :], *pods[: self._turn % len(pods)]]
        return min(turned, key=lambda pod: self._outstanding.get(pod, 0))

    async def _request(self, pod: str, traffic: Traffic, phase: str) -> Record:
        if pod not in self._pods:
            self._pods[pod] = AsyncOpenAI(base_url=f"{pod}/v1", api_key="none", max_retries=0, timeout=ANSWERED_WITHIN)
        self._outstanding[pod] = self._outstanding.get(pod, 0) + 1
        start = self.now()
        first = last = None
        tokens, error = 0, None
        try:
            stream = await self._pods[pod].chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": traffic.prompt(self._rng)}],
                max_tokens=self._rng.randint(*traffic.tokens),
                temperature=traffic.temperature,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    last = self.now()
                    first = first or last
                if chunk.usage:
                    tokens = chunk.usage.completion_tokens
        except OpenAIError as e:
            error = f"{type(e).__name__}: {e}"
        finally:
            self._outstanding[pod] -= 1
        if error is None and not tokens:
            error = "the stream was cut"
        return Record(
            start=start,
            phase=phase,
            kind=traffic.name,
            temperature=traffic.temperature,
            pod=pod,
            tokens=tokens,
            ttft=first - start if first else None,
            tpot=(last - first) / (tokens - 1) if first and last and tokens > 1 else None,
            end=self.now(),
            error=error,
        )


# --- what is asked ------------------------------------------------------------------------------------------------

_SENTENCES = (
    "The harbour was built in 1584, when the old town was flooded and the sea broke through the dunes.",
    "Ships from the Baltic brought timber, tar and grain, and left again with cloth, salt and beer.",
    "In 1722 the emperor founded a trading company, which sent eleven ships to Bengal before it was closed.",
    "The lighthouse on the east pier is 65 metres high; its lamp can be seen from a distance of 27 nautical miles.",
    "A railway reached the town in 1838, and with it came the first summer guests from Brussels and Cologne.",
    "Most of the quays were rebuilt after the war, and the fishing fleet moved to a new basin behind the lock.",
    "Today the harbour serves wind farms at sea: crews leave before dawn and come back with the evening tide.",
    "The museum keeps a trawler from 1937, a collection of nautical charts, and the log of the last pilot cutter.",
)
_TOPICS = ("dragons", "the sea", "a clock", "winter", "a lost letter", "robots", "a garden", "thunder")


def quotations(rng: random.Random) -> str:
    """A summary in the text's own words: most of the answer stands in the prompt."""
    text = " ".join(rng.sample(_SENTENCES, 6))
    return f"Quote the most important sentences of this text, word for word.\n\n{text}"


def small_talk(rng: random.Random) -> str:
    """A question that the prompt does not answer."""
    one, other = rng.sample(_TOPICS, 2)
    return (
        f"Tell me a strange dream about {one} and {other}, and what it may mean (it is my dream {rng.randint(2, 99)})."
    )


def summaries(clients: int, tokens: tuple[int, int] = (48, 64)) -> Traffic:
    """Summaries at temperature 0: n-gram guesses most of them."""
    return Traffic("summaries", clients, quotations, tokens)


def hot_chat(clients: int) -> Traffic:
    """Chat at temperature 1: what n-gram guesses is wrong."""
    return Traffic("hot chat", clients, small_talk, (24, 32), temperature=1.0)
