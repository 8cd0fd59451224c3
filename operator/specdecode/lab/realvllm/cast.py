"""The demo with real vLLM: a small model on this machine's processor, and clients of the `openai` package."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

from specdecode.lab.demo import MANAGED, OFF, TITLES, Act, Endpoints, Figures, Run, figures, kept
from specdecode.lab.images import Image
from specdecode.lab.realvllm.clients import Clients, hot_chat, summaries
from specdecode.lab.realvllm.image import fork_server
from specdecode.lab.realvllm.installation import Installation

ACTS = (Act("summaries", 150), Act("hot chat", 130), Act("summaries again", 130))
REACTED = 50.0
"""Seconds at the end of an act by which the operator has reacted to it."""
FASTER = 1.5
"""Factor by which tokens then come faster than without speculation, where it suits the traffic."""
NO_SLOWER = 1.1
"""Factor by which they may be slower where it does not."""


class RealCast:
    """Three pods, one of each workload: a thread each."""

    acts = ACTS
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
        """As many clients for each of the workloads, who ask again as soon as they are answered."""
        talks = (summaries(2), hot_chat(2), summaries(2))
        clients = [
            Clients(partial(endpoints, name), talks[0], model="chat", seed=7, records=run.records[name])
            for name in TITLES
        ]
        try:
            for act, talk in zip(self.acts, talks, strict=True):
                for client in clients:
                    client.ask(talk, phase=act.name)
                await asyncio.sleep(act.seconds)
        finally:
            await asyncio.gather(*(client.stop() for client in clients))

    def complaints(self, run: Run) -> Iterator[str]:
        """Speculation on for summaries and off for hot chat, and users feel it once the operator has reacted."""
        on, off = kept(run)
        if on < 2:
            yield "speculation was not turned on for both stretches of summaries"
        if off < 1:
            yield "speculation was not turned off for hot chat"
        at = 0.0
        for act in self.acts:
            at += act.seconds
            ours, alone = (self._late(run, name, act, at) for name in (MANAGED, OFF))
            if "summaries" in act.name and not alone.tpot > FASTER * ours.tpot:
                yield f"{act.name}: at the end tokens came {alone.tpot / ours.tpot:.2f} times as fast, not {FASTER}"
            if "summaries" not in act.name and not ours.tpot < NO_SLOWER * alone.tpot:
                yield f"{act.name}: at the end a token took {ours.tpot / alone.tpot:.2f} times as long"

    @staticmethod
    def _late(run: Run, name: str, act: Act, end: float) -> Figures:
        return figures([r for r in run.records[name] if r.phase == act.name and r.start > end - REACTED])
