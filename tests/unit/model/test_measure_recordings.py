"""What the estimators say of real servers, against what the servers' clients counted and what is known of the runs."""

import gzip
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from specdecode.model.measure import Activity, Measurement, measure
from specdecode.vllm.metrics import Page, read_page

RECORDINGS = Path(__file__).parents[2] / "data" / "vllm-metrics"
H200 = ("off", "ngram-k4", "draft05b-k3")


def index(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDINGS / run / "index.jsonl").read_text().splitlines()]


def page(run: str, i: int) -> Page:
    return read_page(gzip.decompress((RECORDINGS / run / f"{i:04d}.prom.gz").read_bytes()))


def between(run: str, first: dict[str, Any], last: dict[str, Any]) -> Measurement:
    found = measure(page(run, first["i"]), page(run, last["i"]), last["t"] - first["t"])
    assert isinstance(found, Measurement)
    return found


def phase(run: str, **wanted: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """First and last row of the phase with this load."""
    for load, group in groupby(index(run), key=lambda row: row["phase"]):
        rows = list(group)
        if load is not None and wanted.items() <= load.items() and len(rows) > 1:
            return rows[0], rows[-1]
    raise LookupError(f"{run} has no phase {wanted}")


@pytest.mark.parametrize("profile", H200)
@pytest.mark.parametrize("c", [8, 64, 192])
def test_tokens_and_requests_are_those_that_the_clients_counted(profile: str, c: int) -> None:
    """Clients count a request when its answer is whole, so what is on its way at the two ends is between them."""
    run = f"0.24.0-h200/{profile}"
    first, last = phase(run, c=c)
    found = between(run, first, last)
    done, tokens = (last["client"][key] - first["client"][key] for key in ("done", "tokens"))
    assert found.generation_tokens is not None and found.tokens_per_step is not None
    assert found.finished == pytest.approx(done, abs=c / 4)
    assert found.generation_tokens == pytest.approx(tokens, rel=0.02, abs=160 * c)
    assert found.output_length == pytest.approx(160)
    assert found.prompt_length == pytest.approx(256)
    assert (found.errored, found.client_errors, found.server_errors) == (0, 0, 0)


@pytest.mark.parametrize("profile", H200)
def test_when_all_is_done_the_counts_agree_exactly(profile: str) -> None:
    run = f"0.24.0-h200/{profile}"
    last = index(run)[-1]
    (sample,) = page(run, last["i"]).engines
    assert sample.running == 0
    assert sum(sample.requests.values()) == last["client"]["done"]
    assert sample.generation_tokens == last["client"]["tokens"]


@pytest.mark.parametrize("profile", H200)
@pytest.mark.parametrize("c", [8, 64, 192])
def test_three_estimates_of_tokens_per_step_agree_where_almost_every_step_drafts(profile: str, c: int) -> None:
    run = f"0.24.0-h200/{profile}"
    found = between(run, *phase(run, c=c))
    assert found.step_seconds and found.tpot_seconds and found.tokens_per_step
    assert found.step_seconds / found.tpot_seconds == pytest.approx(found.tokens_per_step, rel=0.06)
    if profile == "off":
        assert found.tokens_per_step == 1.0
    else:
        assert found.tokens_per_step == pytest.approx(found.accepted_length, rel=0.04)
        assert found.accepted_length and found.tokens_per_step < found.accepted_length, "answers end inside a draft"


@pytest.mark.parametrize("profile", H200)
@pytest.mark.parametrize("c", [8, 64])
def test_requests_per_step_is_the_load_of_a_closed_loop(profile: str, c: int) -> None:
    run = f"0.24.0-h200/{profile}"
    first, last = phase(run, c=c)
    found = between(run, first, last)
    assert found.requests_per_step is not None
    assert 0.75 * c < found.requests_per_step <= c


@pytest.mark.parametrize(
    ("profile", "rates"), [("ngram-k4", (0.7, 0.49, 0.343, 0.24)), ("draft05b-k3", (0.7, 0.49, 0.343))]
)
def test_acceptance_is_what_the_synthetic_sampler_was_set_to(profile: str, rates: tuple[float, ...]) -> None:
    run = f"0.24.0-h200/{profile}"
    rows = index(run)
    found = between(run, rows[0], rows[-1])
    assert found.per_position == pytest.approx(rates, abs=0.01)
    assert found.acceptance_rate == pytest.approx(sum(rates) / len(rates), abs=0.01)
    assert found.accepted_length == pytest.approx(1 + sum(rates), rel=0.02)


@pytest.mark.parametrize(
    ("run", "load", "rate", "length"),
    [
        ("ngram", {"mix": "sum", "T": 0}, 0.75, 4.75),
        ("ngram", {"mix": "chat", "T": 0}, 0.40, 3.0),
        ("ngram", {"mix": "chat", "T": 1.0}, 0.02, 1.1),
        ("draft-good", {"mix": "sum", "T": 0}, 1.0, 4.0),
        ("draft-good", {"mix": "chat", "T": 0}, 1.0, 4.0),
        ("draft-good", {"mix": "chat", "T": 1.0}, 0.0, 1.0),
    ],
)
def test_acceptance_follows_prompts_and_temperature(run: str, load: dict[str, Any], rate: float, length: float) -> None:
    found = between(f"0.32.0/{run}", *phase(f"0.32.0/{run}", **load))
    assert found.acceptance_rate == pytest.approx(rate, abs=0.02)
    assert found.accepted_length == pytest.approx(length, abs=0.1)


def test_tokens_per_step_counts_the_steps_that_drafted_nothing() -> None:
    """n-gram on Model Runner V1 drafts only where it finds a match: the accepted length overstates what is gained."""
    found = between("0.32.0/ngram", *phase("0.32.0/ngram", mix="chat", T=0))
    assert found.accepted_length and found.tokens_per_step and found.step_seconds and found.tpot_seconds
    assert found.accepted_length > 2.8
    assert found.tokens_per_step < 1.3
    assert found.tokens_per_step == pytest.approx(found.step_seconds / found.tpot_seconds, rel=0.03)


@pytest.mark.parametrize("run", ["off", "ngram", "draft-good"])
def test_a_server_without_requests_is_idle(run: str) -> None:
    last = index(f"0.32.0/{run}")[-1]
    still = page(f"0.32.0/{run}", last["i"])
    found = measure(still, still, 300.0)
    assert isinstance(found, Measurement)
    assert (found.activity, found.generation_tokens_per_second, found.tpot_seconds) == (Activity.IDLE, 0.0, None)


def test_quantiles_of_a_fast_gpu_are_bounds() -> None:
    run = "0.24.0-h200/ngram-k4"
    found = between(run, *phase(run, c=8))
    assert found.tpot is not None and found.ttft is not None
    assert (found.tpot.p50.high, found.tpot.p50.value) == (0.01, None)
    assert found.ttft.p95.value is not None and 0.02 < found.ttft.p95.value < 0.1
