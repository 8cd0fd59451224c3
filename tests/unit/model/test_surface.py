"""The step-time surfaces: measured points exactly, the rest by the rules that the module states."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import specdecode
from specdecode.model.surface import Surface, SurfaceError, parse_surface
from specdecode.vllm.speculation import Method

FOLDER = Path(specdecode.__file__).parent / "data" / "surfaces"
OFF, NGRAM, DRAFT = Method.DISABLED, Method.NGRAM, Method.DRAFT_MODEL


def load(name: str) -> Surface:
    path = FOLDER / f"{name}.jsonl"
    return parse_surface(path.read_text().splitlines(), path.name)


DENSE = load("h200-llama32b-draft1b")
MOE = load("h200-qwen3moe30b")


@pytest.mark.parametrize(
    ("surface", "method", "scheduled", "k", "batch", "milliseconds"),
    [
        (DENSE, OFF, False, 0, 64, 20.692),
        (DENSE, OFF, False, 0, 256, 37.871),
        (DENSE, NGRAM, False, 5, 1, 20.119),
        (DENSE, NGRAM, False, 5, 128, 89.333),
        (DENSE, DRAFT, False, 3, 128, 72.094),
        (DENSE, DRAFT, False, 3, 256, 135.904),
        (DENSE, NGRAM, True, 0, 64, 23.817),
        (DENSE, NGRAM, True, 3, 256, 122.293),
        (MOE, NGRAM, True, 2, 128, 30.244),
        (MOE, NGRAM, True, 4, 128, 60.011),
        (MOE, NGRAM, True, 1, 256, 35.922),
    ],
)
def test_a_measured_point_is_read_exactly(
    surface: Surface, method: Method, scheduled: bool, k: int, batch: int, milliseconds: float
) -> None:
    assert surface.step_seconds(method, k, batch, scheduled=scheduled) * 1e3 == pytest.approx(milliseconds)


def test_holding_k_at_0_costs_more_than_no_speculation() -> None:
    for batch in (1, 16, 64, 128, 256):
        held, off = DENSE.step_seconds(NGRAM, 0, batch, scheduled=True), DENSE.step_seconds(OFF, 0, batch)
        assert held > 1.1 * off


@pytest.mark.parametrize(("k", "last_graphed"), [(2, 170), (4, 102), (6, 73)])
def test_a_cliff_is_not_smoothed_over(k: int, last_graphed: int) -> None:
    before = MOE.step_seconds(NGRAM, k, last_graphed)
    after = MOE.step_seconds(NGRAM, k, last_graphed + 1)
    assert before < 0.040
    assert after > 0.055


def test_a_k_between_two_measured_ones_meets_the_cliff_where_it_stands() -> None:
    assert MOE.step_seconds(NGRAM, 3, 128) < 0.040 < 0.055 < MOE.step_seconds(NGRAM, 3, 129)


def test_a_column_without_points_above_the_limit_takes_the_shape_of_its_neighbour() -> None:
    assert MOE.step_seconds(NGRAM, 1, 300) > 0.055, "K = 1 was measured up to 512 tokens only"
    at_160, at_256 = (DENSE.step_seconds(DRAFT, 3, b) for b in (160, 256))
    assert at_160 < 0.7 * at_256, "one point at 1,024 tokens must not stand for all batch sizes above 128"


@pytest.mark.parametrize("surface", [DENSE, MOE], ids=lambda s: s.name)
def test_a_dense_stretch_is_linear_in_tokens(surface: Surface) -> None:
    low, high = (surface.step_seconds(OFF, 0, b) for b in (128, 192))
    assert low < surface.step_seconds(OFF, 0, 160) < high


def test_beyond_the_largest_batch_size_cost_grows_by_token() -> None:
    a, b, c = (DENSE.step_seconds(OFF, 0, n) for n in (256, 320, 384))
    assert b - a == pytest.approx(c - b)
    assert b > a


@given(
    k=st.integers(0, 10),
    batch=st.integers(1, 500),
    prompt=st.integers(0, 8192),
    scheduled=st.booleans(),
    method=st.sampled_from([NGRAM, DRAFT]),
)
def test_any_step_takes_a_finite_positive_time(
    k: int, batch: int, prompt: int, scheduled: bool, method: Method
) -> None:
    seconds = DENSE.step_seconds(method, k, batch, scheduled=scheduled, prompt_tokens=prompt)
    assert 0.017 < seconds < 10


def test_a_draft_model_pays_for_every_drafter_pass() -> None:
    by_k = [DENSE.step_seconds(DRAFT, k, 32, scheduled=True) for k in range(8)]
    assert by_k == sorted(by_k)
    assert by_k[0] > DENSE.step_seconds(OFF, 0, 32)


def test_a_prompt_token_and_a_long_context_cost_time() -> None:
    alone = DENSE.step_seconds(OFF, 0, 64)
    assert DENSE.step_seconds(OFF, 0, 64, prompt_tokens=100) - alone == pytest.approx(100 * 104e-6)
    assert DENSE.step_seconds(OFF, 0, 64, context=256) == pytest.approx(alone)
    assert DENSE.step_seconds(OFF, 0, 64, context=2256) - alone == pytest.approx(64 * 2000 * 0.068e-6)


def test_a_step_that_verifies_fewer_tokens_costs_less() -> None:
    """n-gram steps in which not every request found a match."""
    assert DENSE.step_seconds(NGRAM, 5, 64, tokens=64 + 5 * 20) < 0.6 * DENSE.step_seconds(NGRAM, 5, 64)


def test_the_kv_pool_is_smaller_beside_a_draft() -> None:
    assert DENSE.kv_pool_tokens(OFF) == 231_168
    assert DENSE.kv_pool_tokens(DRAFT) == 193_824
    assert DENSE.kv_pool_tokens(NGRAM, scheduled=True) == 228_368
    assert DENSE.kv_pool_tokens(DRAFT, scheduled=True) == 193_824, "not measured: as the static engine's"


@pytest.mark.parametrize(
    ("surface", "method", "k", "batch", "says"),
    [
        (MOE, DRAFT, 3, 8, "no step times of DraftModel; it covers Disabled, NGram"),
        (DENSE, Method.EAGLE, 3, 8, "no step times of Eagle"),
        (DENSE, OFF, 2, 8, "without speculation"),
        (DENSE, NGRAM, 2, 0, "B=0"),
        (DENSE, NGRAM, -1, 4, "K=-1"),
    ],
)
def test_what_a_surface_does_not_cover_is_an_error(
    surface: Surface, method: Method, k: int, batch: int, says: str
) -> None:
    with pytest.raises(SurfaceError, match=says):
        surface.step_seconds(method, k, batch)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "needs a header"),
        (['{"surface": "x"}'], "needs a header line and rows of method Disabled"),
        (['{"surface": "x"}', "not json"], "line 2: JSONDecodeError"),
        (['{"surface": "x"}', '{"method": "NGram"}'], "line 2: KeyError"),
        (['{"surface": "x"}', '{"method": "Guess", "scheduled": false}'], "line 2: ValueError"),
    ],
)
def test_a_broken_file_is_named_with_its_line(lines: list[str], says: str) -> None:
    with pytest.raises(SurfaceError, match=f"mine.jsonl.*{says}"):
        parse_surface(lines, "mine.jsonl")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda p: p.stem)
def test_every_surface_of_the_package_can_be_read(path: Path) -> None:
    surface = parse_surface(path.read_text().splitlines(), path.name)
    assert surface.name == path.stem
    for method in surface.methods:
        k = 0 if method is OFF else 3
        assert surface.step_seconds(method, k, 64) > surface.step_seconds(method, k, 1) > 0.003
