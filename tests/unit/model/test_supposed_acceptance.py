"""What the model says if other shares of the drafts were accepted, and how much an option can carry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specdecode.model.cost import OfferedLoad, Option
from specdecode.model.learnt import LearntModel
from specdecode.sim.surfaces import load_surface
from specdecode.vllm.speculation import BatchRange, Speculation
from support.steps import DENSE, DRAFT, LIMIT, NGRAM, NOW, OFF, OPTIONS, drafts, known, tokens_per_step

SURFACE = load_surface(DENSE)
BATCHES = (1.0, 8.0, 64.0, 256.0)
EVIDENCE = {o.profile: known(SURFACE, o, BATCHES) for o in OPTIONS}
MODEL = LearntModel(EVIDENCE, {o.profile: o.speculation for o in OPTIONS}, 256, LIMIT, NOW)
LOAD = OfferedLoad(400.0, 300.0, SURFACE.context)
QUIET = OfferedLoad(1.0, 0.0, SURFACE.context)


def scheduled(option: Option, *ranges: BatchRange) -> Option:
    assert isinstance(option.speculation, Speculation)
    return replace(option, speculation=replace(option.speculation, schedule=ranges))


HELD = scheduled(NGRAM, BatchRange(1, 8, 5), BatchRange(9, 64, 2), BatchRange(65, 256, 0))


@pytest.mark.parametrize("option", [NGRAM, DRAFT, HELD], ids=["ngram", "draft", "schedule"])
def test_what_is_believed_is_what_is_supposed_by_default(option: Option) -> None:
    believed = MODEL.acceptance(option)
    assert believed is not None
    supposed = MODEL.predict(option, LOAD, believed.value)
    assert supposed.tpot.value == pytest.approx(MODEL.predict(option, LOAD).tpot.value)


@pytest.mark.parametrize("option", [NGRAM, DRAFT, HELD], ids=["ngram", "draft", "schedule"])
def test_the_more_is_accepted_the_faster_tokens_come(option: Option) -> None:
    tpots = [MODEL.predict(option, LOAD, a / 10).tpot.value for a in range(11)]
    assert tpots == sorted(tpots, reverse=True)
    assert tpots[0] > 1.5 * tpots[-1]


def test_acceptance_that_is_given_is_no_longer_in_doubt() -> None:
    old = {**EVIDENCE, "ngram": replace(EVIDENCE["ngram"], drafts=drafts(ago=6 * 3600.0))}
    model = LearntModel(old, {o.profile: o.speculation for o in OPTIONS}, 256, LIMIT, NOW)
    believed = model.acceptance(NGRAM)
    assert believed is not None and believed.high - believed.low > 0.3
    doubted, given = model.predict(NGRAM, LOAD).tpot, model.predict(NGRAM, LOAD, believed.value).tpot
    assert given.high / given.low < doubted.high / doubted.low


@pytest.mark.parametrize(("option", "k"), [(NGRAM, 5), (DRAFT, 3)], ids=["ngram", "draft"])
def test_all_or_nothing_accepted_is_k_tokens_or_none_beside_the_first(option: Option, k: int) -> None:
    nothing, everything = (MODEL.predict(option, QUIET, a).tpot.value for a in (0.0, 1.0))
    assert nothing / everything == pytest.approx(k + 1, rel=0.01)
    as_measured = MODEL.predict(option, QUIET).tpot.value
    assert nothing / as_measured == pytest.approx(tokens_per_step(k), rel=0.01)


def test_without_drafts_there_is_no_acceptance() -> None:
    assert MODEL.acceptance(OFF) is None


@pytest.mark.parametrize("option", [OFF, NGRAM, DRAFT, HELD], ids=["off", "ngram", "draft", "schedule"])
@pytest.mark.parametrize("prompts", [0.0, 2.0], ids=["no prompts", "prompts"])
def test_at_its_capacity_an_option_has_no_headroom_left(option: Option, prompts: float) -> None:
    load = OfferedLoad(400.0, 400.0 * prompts, SURFACE.context)
    p = MODEL.predict(option, load)
    assert p.capacity is not None and p.capacity.low <= p.capacity.value <= p.capacity.high
    assert p.headroom == pytest.approx(p.capacity.value / 400.0)
    full = MODEL.predict(option, OfferedLoad(p.capacity.value, p.capacity.value * prompts, SURFACE.context))
    assert full.headroom == pytest.approx(1.0), "more tokens bring more prompts, which take their share"
