"""Streaming clients that ask for tokens until they are told to stop; they follow the ready pods, as a Service does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence

import aiohttp

from specdecode.sim.load import LoadGenerator, Record
from specdecode.sim.workload import Arrival, Phase

SUMMARIES = Phase("summaries", 1.0, rate=6.0, mix={"summarise": 1.0}, prompt_tokens=(100, 200), output_tokens=(30, 50))
"""Requests that n-gram speeds up a lot."""
HOT_CHAT = Phase(
    "hot chat", 1.0, rate=9.0, mix={"chat": 1.0}, temperature=1.0, prompt_tokens=(100, 200), output_tokens=(100, 140)
)
"""Requests of which n-gram guesses little: it finds few matches, and those are wrong."""

NOTHING = Phase("nothing", 1.0, rate=1e-9)


class Traffic:
    """The clients of one workload. What they ask for (`kind`) can be changed at any time; `records` has the answers."""

    def __init__(self, session: aiohttp.ClientSession, endpoints: Callable[[], Sequence[str]], kind: Phase) -> None:
        self.kind = kind
        self.records: list[Record] = []
        self._rng = random.Random(1)
        generator = LoadGenerator(session, endpoints, self.records.append, rng=self._rng)
        self._over = False
        self._task = asyncio.create_task(generator.replay(self._arrivals()))

    def _arrivals(self) -> Iterator[Arrival]:
        at = 0.0
        while not self._over:
            at += self._rng.expovariate(self.kind.rate or 1.0)
            yield Arrival(at, self.kind.name, self.kind.ask(self._rng))

    async def stop(self) -> list[Record]:
        """Asks no more, and waits for what is being answered; all records."""
        self._over = True
        await self._task
        return self.records

    def cancel(self) -> None:
        self._task.cancel()

    @property
    def failures(self) -> list[str]:
        """Requests that were not answered as they should be."""
        return [f"{r.start:.1f} s: {r.error} from {r.pod}" for r in self.records if r.error]
