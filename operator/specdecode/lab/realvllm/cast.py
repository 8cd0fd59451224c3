"""The demo with real vLLM: a small model on this machine's processor, and clients of the `openai` package."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from specdecode.api.v1alpha1 import DISABLED
from specdecode.lab.demo import MANAGED, OFF, TITLES, Act, Endpoints, Run, figures, kept
from specdecode.lab.images import Image
from specdecode.lab.realvllm.clients import Clients, Traffic, hot_chat, summaries
from specdecode.lab.realvllm.image import fork_server
from specdecode.lab.realvllm.installation import Installation

ALONE, COMPARED = 240, 60
"""Seconds of the two parts of an act, at most: the operator has the cores to itself to find out what pays; then all
are asked the same, and compared."""
ROUNDS, TURN = 2, 7
"""All are asked in turns, so many times for so many seconds: a few cores do not carry three servers at once, and what
servers take from each other would be compared."""
FINDS_OUT = 40
"""Seconds that an act lasts at least before it is looked at what the operator made of it."""
TALKS = {"summaries": summaries(2), "hot chat": hot_chat(3), "summaries again": summaries(2)}
PARTS = [(Act(f"{name}: finding out", ALONE), Act(name, COMPARED)) for name in TALKS]
FASTER = 1.5
"""Factor by which tokens come faster than without speculation, once the operator has reacted, where it suits the
traffic."""
NO_SLOWER = 1.2
"""Factor by which they may be slower where it does not: that a process is young may take a tenth of it, so short are
the parts."""


class RealCast:
    """Three pods, one of each workload: a thread each."""

    acts = tuple(chain.from_iterable(PARTS))
    manifests = Path(__file__).with_name("demo.yaml")
    always_ngram: Mapping[str, Any] = {
        "method": "ngram",
        "num_speculative_tokens": 8,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 4,
    }
    gpus = 4
    up_within = 180.0

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def images(self) -> AbstractAsyncContextManager[Mapping[str, Image]]:
        """Real vLLM."""
        return fork_server(self._installation)

    async def load(self, run: Run, endpoints: Endpoints) -> None:
        """Clients who ask again as soon as they are answered: of the managed workload alone, then of each in turn."""
        clients = {
            name: Clients(partial(endpoints, name), summaries(0), model="chat", seed=7, records=run.records[name])
            for name in TITLES
        }
        try:
            for (alone, compared), talk in zip(PARTS, TALKS.values(), strict=True):
                run.enter(alone)
                clients[MANAGED].ask(talk, phase=alone.name)
                await _found_out(run, talk, alone.seconds)
                await clients[MANAGED].pause()
                run.enter(compared)
                for client in [*clients.values()] * ROUNDS:
                    client.ask(talk, phase=compared.name)
                    await asyncio.sleep(TURN)
                    await client.pause()
        finally:
            await asyncio.gather(*(client.stop() for client in clients.values()))

    def complaints(self, run: Run) -> Iterator[str]:
        """Speculation on for summaries and off for hot chat, and users feel it once the operator has reacted."""
        on, off = kept(run)
        if on < 2:
            yield "speculation was not turned on for both stretches of summaries"
        if off < 1:
            yield "speculation was not turned off for hot chat"
        for act, talk in TALKS.items():
            ours, alone = (figures([r for r in run.records[name] if r.phase == act]) for name in (MANAGED, OFF))
            if _pays(talk) and not alone.tpot > FASTER * ours.tpot:
                yield f"{act}: tokens came {alone.tpot / ours.tpot:.2f} times as fast, not {FASTER}"
            if not _pays(talk) and not ours.tpot < NO_SLOWER * alone.tpot:
                yield f"{act}: a token took {ours.tpot / alone.tpot:.2f} times as long"


def _pays(talk: Traffic) -> bool:
    """Whether speculation suits it: n-gram guesses nothing that is hot."""
    return talk.temperature == 0


async def _found_out(run: Run, talk: Traffic, seconds: float) -> None:
    """Until the operator runs what suits the talk, and nothing is under way; at most so long."""
    await asyncio.sleep(FINDS_OUT)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds - FINDS_OUT):
            while run.status.rollout is not None or (run.status.active_profile != DISABLED) is not _pays(talk):
                await asyncio.sleep(0.5)
