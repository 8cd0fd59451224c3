"""A schedule that holds K at 0, on a real server: nothing is drafted, and yet it is no server without speculation."""

from __future__ import annotations

import gzip
from pathlib import Path

from specdecode.model.knowledge import learn
from specdecode.model.measure import Measurement, Unmeasured, measure
from specdecode.vllm.metrics import read_page

DATA = Path(__file__).parents[2] / "data/vllm-schedule"


def between(before: str, after: str) -> Measurement:
    pages = [read_page(gzip.decompress((DATA / f"{name}.prom.gz").read_bytes())) for name in (before, after)]
    measured = measure(*pages, 10.0)
    assert not isinstance(measured, Unmeasured), measured
    return measured


def test_below_the_threshold_every_k_is_that_of_the_schedule() -> None:
    m = between("start", "one-request")
    assert m.drafts and m.draft_tokens
    assert 2 < m.draft_tokens / m.drafts <= 3
    assert m.tokens_per_step is not None and m.tokens_per_step > 1.2


def test_above_it_nothing_is_drafted_and_acceptance_is_not_known() -> None:
    m = between("one-request", "six-requests")
    assert (m.drafts, m.draft_tokens, m.acceptance_rate, m.accepted_length) == (0, 0, None, None)
    assert m.tokens_per_step == 1.0
    assert m.finished == 6


def test_k_0_teaches_nothing_about_drafts_nor_about_a_server_without_speculation() -> None:
    known = learn(None, between("start", "one-request"), None, 3, (), 1000.0)
    later = learn(known, between("one-request", "six-requests"), None, 0, (), 2000.0)
    assert later.drafts == known.drafts
    assert later.latencies == ()
