"""n-gram on Model Runner V1 and V2: other counters for the same traffic, the same tokens per step, the same verdict.

V1 drafts nothing where there is no match, V2 (on GPUs since vLLM 0.32) drafts K tokens there too.
"""

from __future__ import annotations

import gzip
import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from specdecode.model.knowledge import learn
from specdecode.model.measure import Measurement, Unmeasured, measure
from specdecode.model.tokens import matched, tokens
from specdecode.policy.decision import Reason
from specdecode.policy.guards import acceptance_below_floor
from specdecode.vllm.metrics import read_page
from specdecode.vllm.speculation import Method
from support.world import NOW, menu, observation, option, spec

DATA = Path(__file__).parents[2] / "data"
FLOOR = 0.5
ROUNDS = 3
"""Of learning, two in a window: one page of a few drafts leaves the later positions like the first."""


def between(before: Path, after: Path) -> Measurement:
    pages = [read_page(gzip.decompress(path.read_bytes())) for path in (before, after)]
    measured = measure(*pages, 60.0)
    assert not isinstance(measured, Unmeasured), measured
    return measured


def built(version: str) -> Measurement:
    folder = DATA / "vllm-built" / version
    return between(folder / "v1-ngram.before.prom.gz", folder / "v1-ngram.after.prom.gz")


@cache
def recorded() -> list[Measurement]:
    paths = sorted((DATA / "vllm-metrics/0.32.0/ngram").glob("*.prom.gz"))
    return [between(*pair) for pair in itertools.pairwise(paths)]


def padded(m: Measurement, k: int) -> Measurement:
    """What V2 counts where V1 counted this."""
    assert m.drafts is not None and m.request_steps is not None
    assert m.accepted_tokens is not None and m.per_position is not None
    drafts = m.request_steps
    return replace(
        m,
        drafts=drafts,
        draft_tokens=drafts * k,
        acceptance_rate=m.accepted_tokens / (drafts * k),
        accepted_length=1 + m.accepted_tokens / drafts,
        per_position=tuple(share * m.drafts / drafts for share in m.per_position),
    )


def off_by_the_floor(m: Measurement, k: int, version: str = "0.32.0") -> bool:
    """Whether the floor switches n-gram off, where nothing else is known."""
    made = menu(policy := spec(guards={"acceptance": {"disableBelow": FLOOR}}), version=version)
    rate = m.acceptance_rate
    assert rate is not None
    running = option(made, "ngram")
    o = observation(policy, menu=made, active=running)
    known = None
    for _ in range(ROUNDS):
        known = learn(known, m, (rate, rate, rate, rate), k, (), NOW)
    assert known is not None
    candidates = (running, option(made, "disabled"))
    estimates = replace(o.estimates, measured=m, acceptance=(rate, rate, rate, rate), candidates=candidates)
    decision = acceptance_below_floor(replace(o, estimates=estimates, knowledge={"ngram": known}))
    assert decision is None or decision.reason is Reason.ACCEPTANCE_BELOW_FLOOR
    return decision is not None


def test_the_pages_of_both_runners_give_the_same_tokens_per_step_and_the_same_verdict() -> None:
    v1, v2 = built("0.31.0"), built("0.32.0")
    assert (v1.acceptance_rate, v2.acceptance_rate) == (0.75, 0.375)
    assert v1.tokens_per_step == v2.tokens_per_step == 2.5
    assert not off_by_the_floor(v1, 4)
    assert not off_by_the_floor(v2, 4)


@pytest.mark.parametrize("number", range(len(recorded())))
def test_a_recorded_server_is_judged_alike_on_both_runners(number: int) -> None:
    v1 = recorded()[number]
    v2 = padded(v1, 5)
    assert off_by_the_floor(v2, 5) is off_by_the_floor(v1, 5)
    es = []
    for m in (v1, v2):
        known = learn(None, m, None, 5, (), NOW)
        es.append(tokens(Method.NGRAM, known.drafts, 5, NOW).per_step)
    assert es[1] == pytest.approx(es[0], rel=0.1)


def test_a_step_costs_what_is_drafted_misses_included() -> None:
    v1, v2 = (learn(None, built(version), None, 4, (), NOW).drafts for version in ("0.31.0", "0.32.0"))
    assert tokens(Method.NGRAM, v1, 4, NOW).drafted == pytest.approx(2)
    assert tokens(Method.NGRAM, v2, 4, NOW).drafted == pytest.approx(4)


def test_other_methods_mean_every_token_that_they_draft() -> None:
    known = learn(None, built("0.32.0"), None, 4, (), NOW)
    assert matched(Method.NGRAM, known.drafts) < 1
    assert matched(Method.DRAFT_MODEL, known.drafts) == 1
    assert matched(Method.NGRAM, None) == 1


def test_a_version_that_has_no_such_runner_drafts_only_what_it_means() -> None:
    assert off_by_the_floor(built("0.32.0"), 4, version="0.31.0")


def test_bad_matches_are_still_switched_off_on_model_runner_v2() -> None:
    bad = padded(recorded()[-1], 5)
    assert bad.acceptance_rate is not None and bad.acceptance_rate < 0.02
    assert off_by_the_floor(bad, 5)
