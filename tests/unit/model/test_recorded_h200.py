"""A recorded server on an H200: what the model, having seen it without speculation only, says of n-gram and of a draft
model, against what they then did.

vLLM 0.24.0, a target shaped like a 14B, prompts of 256 tokens, answers of 160, a fixed number of clients that each send
the next request when the last is answered.
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

from specdecode.model.cost import CostModel, OfferedLoad, Option
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Knowledge, learn
from specdecode.model.measure import Measurement, measure
from specdecode.model.window import Window
from specdecode.policy.estimating import DEFAULT_GRAPH_LIMIT, DEFAULT_MAX_NUM_SEQS, Evidence, Modeller, estimate
from specdecode.vllm.metrics import Page, read_page
from support.world import menu, observation, option, pod, spec

RECORDINGS = Path(__file__).parents[2] / "data" / "h200-closed-loop"
RUNS = {"disabled": "off", "ngram": "ngram-k4", "draft": "draft05b-k3"}
PROFILES = [
    {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 4},
    {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "small"}},
]
POLICY = spec(profiles=PROFILES, metrics={"interval": "2s", "window": "10s"})
MENU = menu(POLICY)
OPTIONS: Mapping[str, Option] = {name: option(MENU, name) for name in RUNS}
CLIENTS = (1, 8, 32, 64, 128, 192)
UNDISTURBED = CLIENTS[:-1]
"""With 192 clients the run without speculation had 104 requests in flight, by Little's law: the machine was busy with
the clients, and slower steps are what shows of it."""
ANSWER = 160.0


@dataclass(frozen=True)
class Recorded:
    """One page of a run."""

    t: float
    clients: int
    page: Page


@cache
def run(profile: str) -> tuple[Recorded, ...]:
    text = lzma.decompress((RECORDINGS / f"{RUNS[profile]}.jsonl.xz").read_bytes()).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(Recorded(row["t"], row["clients"], read_page(row["page"].encode())) for row in rows)


@cache
def phases(profile: str) -> Mapping[int, Measurement]:
    """What was measured at each number of clients: the first time, for those that came twice."""
    found: dict[int, Measurement] = {}
    for clients, group in groupby(run(profile), key=lambda r: r.clients):
        pages = list(group)
        measured = measure(pages[0].page, pages[-1].page, pages[-1].t - pages[0].t)
        assert isinstance(measured, Measurement)
        found.setdefault(clients, measured)
    return found


@cache
def model() -> CostModel:
    """Fitted to the run without speculation, learnt page by page as the operator would, and to how the drafts fare."""
    window, modeller = Window(60.0), Modeller()
    o = observation(POLICY, menu=MENU, pods=())
    for recorded in run("disabled"):
        window = window.add(recorded.page, recorded.t)
        here = pod("p", "old", OPTIONS["disabled"], window)
        o = estimate(replace(o, now=recorded.t, pods=(here,)), modeller)
    known = dict(o.knowledge)
    assert set(known) == {"disabled"}
    assert len(known["disabled"].step_times) >= len(CLIENTS)
    for profile in ("ngram", "draft"):
        speculation = OPTIONS[profile].speculation
        assert speculation is not None
        known[profile] = drafting(profile, speculation.num_speculative_tokens or 0, o.now)
    return modeller(
        Evidence(
            known,
            {name: found.speculation for name, found in OPTIONS.items()},
            DEFAULT_MAX_NUM_SEQS,
            DEFAULT_GRAPH_LIMIT,
            o.now,
        )
    )


def drafting(profile: str, k: int, now: float) -> Knowledge:
    """What the acceptance was, and nothing else."""
    return learn(None, phases(profile)[64], None, k, [], now)


@dataclass(frozen=True)
class Loop:
    """What a number of clients get from an option."""

    tokens_per_second: float
    tpot: float


def closed_loop(profile: str, clients: int, figure: Callable[[Estimate], float]) -> Loop:
    """Where the load balances: clients = X (tpot + ttft / answer). The time to the first token is that of the engine
    without speculation."""
    off = phases("disabled")[clients]
    assert off.ttft_seconds is not None
    wait = off.ttft_seconds / ANSWER

    def tpot(rate: float) -> float:
        context = 256 + ANSWER / 2
        return figure(model().predict(OPTIONS[profile], OfferedLoad(rate, rate * 256 / ANSWER, context)).tpot)

    low, high = 1.0, 1e5
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if middle * (tpot(middle) + wait) < clients else (low, middle)
    return Loop(low, clients / low - wait)


def truth(profile: str, clients: int) -> Loop:
    m = phases(profile)[clients]
    assert m.generation_tokens_per_second is not None and m.tpot_seconds is not None
    return Loop(m.generation_tokens_per_second, m.tpot_seconds)


CASES = [(profile, clients) for profile in ("ngram", "draft") for clients in CLIENTS]


@pytest.mark.parametrize(("profile", "clients"), CASES)
def test_what_speculation_would_do_is_within_the_intervals(profile: str, clients: int) -> None:
    real = truth(profile, clients)
    fast, slow = (closed_loop(profile, clients, f) for f in (lambda e: e.low, lambda e: e.high))
    assert slow.tokens_per_second <= real.tokens_per_second <= fast.tokens_per_second
    assert fast.tpot <= real.tpot <= slow.tpot


@pytest.mark.parametrize(("profile", "clients"), CASES)
def test_the_intervals_are_narrow_enough_to_decide_by(profile: str, clients: int) -> None:
    fast, slow = (closed_loop(profile, clients, f) for f in (lambda e: e.low, lambda e: e.high))
    assert fast.tokens_per_second / slow.tokens_per_second < 4


@pytest.mark.parametrize("clients", UNDISTURBED)
def test_what_runs_is_told_closely(clients: int) -> None:
    real, found = truth("disabled", clients), closed_loop("disabled", clients, lambda e: e.value)
    assert found.tokens_per_second == pytest.approx(real.tokens_per_second, rel=0.12)
    assert found.tpot == pytest.approx(real.tpot, rel=0.15)


@pytest.mark.parametrize("clients", UNDISTURBED)
def test_the_profile_that_it_would_choose_is_the_best_or_within_a_tenth_of_it(clients: int) -> None:
    expected = {p: closed_loop(p, clients, lambda e: e.value).tokens_per_second for p in RUNS}
    real = {p: truth(p, clients).tokens_per_second for p in RUNS}
    chosen = max(expected, key=lambda p: expected[p])
    assert real[chosen] >= 0.9 * max(real.values())
