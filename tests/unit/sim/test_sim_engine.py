"""The simulated engine in virtual time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.sim.acceptance import Acceptance, from_unconditional
from specdecode.sim.engine import AcceptanceOf, Engine, EngineConfig, Outcome, Request, bad_draft
from specdecode.sim.surfaces import load_surface
from specdecode.vllm.speculation import BatchRange, Method, Speculation

SURFACE = load_surface("h200-llama32b-draft1b")
NGRAM5 = Speculation(Method.NGRAM, 5)
DRAFT3 = Speculation(Method.DRAFT_MODEL, 3, model="draft")


def always(acceptance: Acceptance) -> AcceptanceOf:
    return lambda kind, method, temperature: acceptance


SEVEN_TENTHS = always(from_unconditional((0.7, 0.49, 0.343, 0.24, 0.168)))


def new_engine(config: EngineConfig, acceptance: AcceptanceOf = SEVEN_TENTHS, seed: int = 1) -> Engine:
    return Engine(config, SURFACE, acceptance, random.Random(seed))


def run(engine: Engine, steps: int = 10**6, now: float = 0.0) -> tuple[float, list[Outcome]]:
    """Step in virtual time until idle or for so many steps."""
    outcomes: list[Outcome] = []
    while engine.busy and len(outcomes) < steps:
        step = engine.schedule(now)
        assert step is not None
        now += step.seconds
        outcomes.append(engine.complete(step, now))
    return now, outcomes


def ask(i: int, *, prompt: int = 226, tokens: int = 100_000, at: float = 0.0, kind: str = "chat") -> Request:
    return Request(f"r{i}", at, prompt, tokens, kind, 0.0)


@pytest.mark.parametrize(
    ("speculation", "batch", "tokens_per_second"),
    [
        (None, 1, 56),
        (None, 64, 3093),
        (None, 128, 5216),
        (NGRAM5, 1, 143),
        (NGRAM5, 64, 3834),
        (NGRAM5, 128, 4319),
        (DRAFT3, 1, 104),
        (DRAFT3, 64, 3978),
        (DRAFT3, 128, 4534),
        (replace(NGRAM5, schedule=(BatchRange(1, 512, 0),)), 64, 2687),
    ],
)
def test_throughput_is_what_was_measured(speculation: Speculation | None, batch: int, tokens_per_second: float) -> None:
    engine = new_engine(EngineConfig(speculation, kv_tokens=10**8))
    for i in range(batch):
        engine.add(ask(i))
    began, _ = run(engine, steps=5)
    steps = 40 if batch > 1 else 600
    end, outcomes = run(engine, steps=steps, now=began)
    # a lone request's context grows while it runs; its KV reads cost next to nothing
    assert sum(o.generated_tokens for o in outcomes) / (end - began) == pytest.approx(tokens_per_second, rel=0.05)


def test_the_schedule_switches_k_by_the_batch_size_of_the_step_before() -> None:
    speculation = replace(NGRAM5, num_speculative_tokens=3, schedule=(BatchRange(1, 2, 3), BatchRange(3, 512, 0)))
    engine = new_engine(EngineConfig(speculation))
    for i in range(2):
        engine.add(ask(i))
    now, outcomes = run(engine, steps=20)
    assert all(o.draft_tokens == 6 for o in outcomes[1:])
    engine.add(ask(3))
    now, outcomes = run(engine, steps=20, now=now)
    assert [o.drafts for o in outcomes[2:]] == [0] * 18, "three requests: nothing is drafted"
    engine.abort(engine.running[-1])
    _, outcomes = run(engine, steps=20, now=now)
    assert all(o.draft_tokens == 6 for o in outcomes[1:]), "two again: drafted again"


def test_the_old_threshold_switches_drafting_off_at_its_batch_size() -> None:
    engine = new_engine(EngineConfig(replace(DRAFT3, disable_by_batch_size=3)))
    for i in range(3):
        engine.add(ask(i))
    _, outcomes = run(engine, steps=10)
    assert sum(o.drafts for o in outcomes) == 0


def test_holding_k_at_0_is_slower_than_no_speculation() -> None:
    def second(speculation: Speculation | None) -> float:
        engine = new_engine(EngineConfig(speculation))
        engine.add(ask(0, tokens=50))
        return run(engine)[0]

    assert second(replace(DRAFT3, schedule=(BatchRange(1, 512, 0),))) > 1.1 * second(None)


def test_ngram_drafts_only_where_it_found_a_match() -> None:
    engine = new_engine(EngineConfig(NGRAM5), always(Acceptance((0.8, 0.95), match=0.6)))
    for i in range(20):
        engine.add(ask(i, tokens=10**5))
    _, outcomes = run(engine, steps=100)
    steps = sum(len(o.outputs) for o in outcomes[1:])
    drafts = sum(o.drafts for o in outcomes)
    assert drafts / steps == pytest.approx(0.6, abs=0.04)
    assert sum(o.draft_tokens for o in outcomes) == 5 * drafts


def test_model_runner_v2_pads_steps_without_a_match() -> None:
    """The same traffic, a far lower acceptance rate, the same tokens per step (vLLM >= 0.32)."""
    engine = new_engine(EngineConfig(NGRAM5, pads_drafts=True), always(Acceptance((1.0,), match=0.5)))
    for i in range(20):
        engine.add(ask(i))
    _, outcomes = run(engine, steps=100)
    accepted = sum(sum(o.accepted_per_position) for o in outcomes)
    assert accepted / sum(o.draft_tokens for o in outcomes) == pytest.approx(0.5, abs=0.04)
    assert all(o.drafts == 20 for o in outcomes[1:])


def test_accepted_positions_fall_as_the_chances_say() -> None:
    engine = new_engine(EngineConfig(DRAFT3))
    for i in range(50):
        engine.add(ask(i))
    _, outcomes = run(engine, steps=100)
    drafts = sum(o.drafts for o in outcomes)
    rates = [sum(o.accepted_per_position[i] for o in outcomes) / drafts for i in range(3)]
    assert rates == pytest.approx([0.7, 0.49, 0.343], abs=0.03)


def test_prefill_shares_the_step_in_chunks() -> None:
    engine = new_engine(EngineConfig(max_num_batched_tokens=512))
    engine.add(ask(0, prompt=100))
    now, _ = run(engine, steps=1)
    engine.add(ask(1, prompt=1200, at=now))
    alone = 0.018
    steps = []
    for _ in range(4):
        step = engine.schedule(now)
        assert step is not None
        steps.append(step)
        now += step.seconds
        engine.complete(step, now)
    assert [sum(n for _, n in s.prefills) for s in steps] == [511, 511, 178, 0]
    assert all(len(s.decodes) >= 1 for s in steps), "decoding goes on beside the prefill"
    assert steps[0].seconds == pytest.approx(alone + 511 * SURFACE.prompt_token_seconds, rel=0.05)
    assert engine.running[1].generated == 2


def test_no_more_than_max_num_seqs_run() -> None:
    engine = new_engine(EngineConfig(max_num_seqs=4))
    for i in range(10):
        engine.add(ask(i, tokens=5))
    run(engine, steps=1)
    assert (len(engine.running), len(engine.waiting)) == (4, 6)


def test_a_full_kv_pool_preempts_the_youngest_which_computes_its_tokens_again() -> None:
    engine = new_engine(EngineConfig(kv_tokens=1024))
    for i in range(4):
        engine.add(ask(i, prompt=200, tokens=300))
    requests = list(engine.waiting)
    _, outcomes = run(engine)
    assert engine.preemptions == sum(r.preemptions for r in requests) > 0
    assert requests[0].preemptions == 0
    assert [r.generated for r in requests] == [300] * 4
    assert sum(o.generated_tokens for o in outcomes) == 1200
    assert sum(o.prompt_tokens for o in outcomes) == 800, "a prompt counts once, however often it is computed"
    assert engine.kv_usage == 0


def test_a_request_that_could_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="more KV tokens than the pool's 1024"):
        new_engine(EngineConfig(kv_tokens=1024)).add(ask(0, prompt=1000, tokens=100))


@pytest.mark.parametrize("speculation", [None, NGRAM5, DRAFT3])
def test_a_request_that_fills_the_pool_to_the_last_block_is_finished(speculation: Speculation | None) -> None:
    lookahead = 3 if speculation is DRAFT3 else 0
    engine = new_engine(EngineConfig(speculation, kv_tokens=160))
    engine.add(ask(0, prompt=100, tokens=60 - lookahead))
    request = engine.waiting[0]
    run(engine, steps=500)
    assert request.finished
    assert engine.preemptions == 0


def test_tokens_never_exceed_what_was_asked_for() -> None:
    engine = new_engine(EngineConfig(NGRAM5), always(Acceptance((1.0,))))
    engine.add(ask(0, tokens=10))
    _, outcomes = run(engine)
    assert [o.generated_tokens for o in outcomes] == [1, 6, 3]


def test_first_token_and_gaps_are_timed_by_the_steps() -> None:
    engine = new_engine(EngineConfig())
    engine.add(ask(0, prompt=10, tokens=3, at=1.0))
    request = engine.waiting[0]
    _, outcomes = run(engine, now=2.0)
    gaps = [o.outputs[0].since_last for o in outcomes]
    assert request.scheduled_at == 2.0
    assert request.first_token_at == outcomes[0].at
    assert gaps[0] is None
    assert gaps[1] == pytest.approx(outcomes[1].at - outcomes[0].at)


def test_an_aborted_request_frees_its_blocks_even_in_the_middle_of_a_step() -> None:
    engine = new_engine(EngineConfig())
    engine.add(ask(0))
    engine.add(ask(1))
    step = engine.schedule(0.0)
    assert step is not None
    engine.abort(engine.running[0])
    outcome = engine.complete(step, 1.0)
    assert [o.request.id for o in outcome.outputs] == ["r1"]
    engine.abort(engine.running[0])
    assert engine.kv_usage == 0
    assert not engine.busy


def test_a_bad_draft_is_accepted_as_seldom_as_it_is_told() -> None:
    engine = new_engine(EngineConfig(DRAFT3), bad_draft(SEVEN_TENTHS, 0.1))
    for i in range(50):
        engine.add(ask(i))
    _, outcomes = run(engine, steps=50)
    assert sum(o.accepted_per_position[0] for o in outcomes) / sum(o.drafts for o in outcomes) < 0.15


def test_a_slow_engine_takes_its_factor_longer() -> None:
    def end(slowdown: float) -> float:
        engine = new_engine(EngineConfig(slowdown=slowdown))
        engine.add(ask(0, tokens=20))
        return run(engine)[0]

    assert end(3.0) == pytest.approx(3 * end(1.0))


@given(
    requests=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 120)), min_size=1, max_size=25),
    kv_blocks=st.integers(35, 120),
    seqs=st.integers(1, 8),
    budget=st.integers(8, 600),
    speculation=st.sampled_from([None, NGRAM5, DRAFT3]),
    seed=st.integers(0, 5),
)
def test_every_request_gets_exactly_its_tokens_whatever_the_load(
    requests: list[tuple[int, int]],
    kv_blocks: int,
    seqs: int,
    budget: int,
    speculation: Speculation | None,
    seed: int,
) -> None:
    config = EngineConfig(speculation, kv_blocks * 16, seqs, budget)
    engine = new_engine(config, seed=seed)
    admitted = []
    for i, (prompt, tokens) in enumerate(requests):
        request = ask(i, prompt=prompt, tokens=tokens)
        try:
            engine.add(request)
        except ValueError:
            continue
        admitted.append(request)
    now, counted = 0.0, 0
    for _ in range(50_000):
        if not engine.busy:
            break
        step = engine.schedule(now)
        assert step is not None
        assert 0 <= engine.free_blocks <= config.blocks
        assert step.batch <= seqs
        now += step.seconds
        counted += engine.complete(step, now).generated_tokens
    assert [r.generated for r in admitted] == [r.max_tokens for r in admitted]
    assert counted == sum(r.max_tokens for r in admitted)
    assert engine.free_blocks == config.blocks
