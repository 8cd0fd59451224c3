"""The demo with simulated vLLM: a 32B model on a measured H200, and clients that ask for so many requests a second."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from specdecode.lab.demo import MANAGED, NGRAM, OFF, TITLES, Act, Endpoints, Run, figures, kept
from specdecode.lab.images import Image
from specdecode.sim.load import LoadGenerator
from specdecode.sim.workload import Phase

SUMMARIES, CHAT, MIXED = {"summarise": 1.0}, {"chat": 1.0}, {"summarise": 0.6, "chat": 0.4}
PHASES = (
    Phase("quiet, summaries", 50, rate=8, mix=SUMMARIES, prompt_tokens=(200, 400), output_tokens=(100, 140)),
    Phase("busy, mixed", 46, rate=29, mix=MIXED, prompt_tokens=(60, 100), output_tokens=(280, 320)),
    Phase("quiet, summaries again", 46, rate=8, mix=SUMMARIES, prompt_tokens=(200, 400), output_tokens=(100, 140)),
    Phase("quiet, hot chat", 44, rate=8, mix=CHAT, temperature=1.0, prompt_tokens=(60, 100), output_tokens=(100, 140)),
)


class SimulatedCast:
    """Six simulated pods."""

    acts = tuple(Act(p.name, p.seconds) for p in PHASES)
    manifests = Path(__file__).with_name("demo.yaml")
    always_ngram: Mapping[str, Any] = {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    }
    gpus = 8
    up_within = 60.0

    @asynccontextmanager
    async def images(self) -> AsyncIterator[Mapping[str, Image]]:
        """The lab's own."""
        yield {}

    async def load(self, run: Run, endpoints: Endpoints) -> None:
        """The same requests, at the same times, to each of the workloads."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._tell(run))
            for name in TITLES:
                # The same seed for all: the same arrivals, lengths and kinds.
                ready = partial(endpoints, name)
                generator = LoadGenerator(session, ready, run.records[name].append, rng=random.Random(7))
                group.create_task(generator.run(PHASES))

    async def _tell(self, run: Run) -> None:
        for act in self.acts:
            run.enter(act)
            await asyncio.sleep(act.seconds)

    def complaints(self, run: Run) -> Iterator[str]:
        """Speculation on in both quiet phases, off in the others, and faster than either way of leaving it alone."""
        on, off = kept(run)
        if on < 2:
            yield "speculation was not turned on in both quiet phases"
        if off < 2:
            yield "speculation was not turned off in both the busy phase and the hot one"
        total = {name: figures(records) for name, records in run.records.items()}
        for name in (OFF, NGRAM):
            if not total[MANAGED].tpot < total[name].tpot:
                yield f"tokens came no faster than {TITLES[name]}"
