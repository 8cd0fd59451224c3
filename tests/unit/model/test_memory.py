"""The memory as text: what is written comes back, and whatever else is found there does no harm."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.controller.report import PROFILES
from specdecode.model.knowledge import (
    MAX_LATENCIES,
    MAX_RESIDUALS,
    MAX_STEP_TIMES,
    Ageing,
    Drafts,
    Knowledge,
    Latencies,
    Residual,
    RunningMean,
    StepTime,
)
from specdecode.model.loads import KEPT as LOADS_KEPT
from specdecode.model.loads import LoadHistory
from specdecode.model.memory import DIGITS, FORMAT, MAX_BYTES, Memory, Trouble, Unusable, dump, load
from specdecode.model.service import KEPT, HalfHour
from support.world import menu, observation, option, spec, traffic

LEARNT = Memory(
    {
        **observation().knowledge,
        **observation(active=option(menu(spec()), "ngram"), window=traffic(acceptance=0.7)).knowledge,
    }
)
TEXT = dump(LEARNT)


def leaves(value: Any) -> Iterator[Any]:
    """What is in nested dicts and sequences, in order."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield key
            yield from leaves(value[key])
    elif isinstance(value, list | tuple):
        yield len(value)
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def assert_same(found: Memory, written: Memory) -> None:
    """But for the digits that are not kept."""
    for a, b in zip(leaves(asdict(found)), leaves(asdict(written)), strict=True):
        assert type(a) is type(b)
        assert a == (pytest.approx(b, rel=10.0**-DIGITS * 5.001) if isinstance(b, float) else b)


# --- there and back -----------------------------------------------------------------------------------------------


def test_what_was_learnt_comes_back() -> None:
    assert set(LEARNT.profiles) == {"disabled", "ngram"} and all(k != Knowledge() for k in LEARNT.profiles.values())
    back = load(TEXT)
    assert isinstance(back, Memory)
    assert_same(back, LEARNT)


@given(st.builds(Memory))
def test_whatever_is_known_comes_back_and_a_second_writing_says_the_same(memory: Memory) -> None:
    unwritable = [v for v in leaves(asdict(memory)) if isinstance(v, float) and not math.isfinite(v)]
    if unwritable:
        with pytest.raises(ValueError, match="JSON compliant"):
            dump(memory)
        return
    text = dump(memory)
    back = load(text)
    assert isinstance(back, Memory)
    assert_same(back, memory)
    assert dump(back) == text, "a restart is no reason to write"


def test_nothing_is_a_memory_too() -> None:
    assert load(dump(Memory())) == Memory()


def test_the_order_in_which_profiles_were_learnt_makes_no_difference() -> None:
    assert dump(Memory(dict(reversed(LEARNT.profiles.items())))) == TEXT


def test_times_are_kept_to_the_second() -> None:
    back = load(dump(Memory({"ngram": Knowledge(measured_at=1_800_000_123.4)})))
    assert isinstance(back, Memory)
    assert back.profiles["ngram"].measured_at == 1_800_000_123.0


def test_all_that_can_be_known_of_all_profiles_that_there_can_be_is_not_too_long() -> None:
    number, at = 12_345.6789, 1_800_000_000.0
    round_ = RunningMean(number, number, 30.0, at)
    known = Knowledge(
        measured_at=at,
        learnt_at=at,
        acceptance=(0.12345,) * 4,
        drafts=Drafts(0.98765, (0.71234,) * 16, at, number, number, number, number, ("n" * 63, number)),
        step_times=(StepTime(number, number, number, number, number, number, 16, at, number),) * MAX_STEP_TIMES,
        latencies=(Latencies(number, number, number, number, number, number, at),) * MAX_LATENCIES,
        ageing=Ageing((round_,) * 6, round_),
        residuals=(Residual(number, 0.12345, at, number),) * MAX_RESIDUALS,
        service=(HalfHour(1_000_000, 1800.0, 1e6 / 7, 1e9 / 7, 1e6 / 7, 1e5 / 7, 1e9 / 7),) * KEPT,
    )
    loads = LoadHistory(6_000_000, (number,) * LOADS_KEPT, 300.0)
    memory = Memory({f"{i:063}": known for i in range(PROFILES)}, loads)
    assert isinstance(load(dump(memory)), Memory)


def test_a_memory_that_would_be_too_long_is_not_written() -> None:
    long = Memory({"n" * 100 + str(i): Knowledge() for i in range(1000)})
    with pytest.raises(ValueError, match=rf"takes \d+ bytes, more than {MAX_BYTES}"):
        dump(long)


# --- what cannot be used ------------------------------------------------------------------------------------------


def document(**changes: Any) -> str:
    return json.dumps({"format": FORMAT, "memory": {}} | changes)


UNUSABLE: dict[str, tuple[str, Trouble, str]] = {
    "nothing": ("", Trouble.CORRUPT, "not JSON"),
    "half of it": (TEXT[: len(TEXT) // 2], Trouble.CORRUPT, "not JSON"),
    "no JSON": ("chat: fast", Trouble.CORRUPT, "not JSON"),
    "half a character": ('"\ud800"', Trouble.CORRUPT, "not JSON"),
    "JSON without an end in sight": ("[" * MAX_BYTES, Trouble.CORRUPT, "recursion"),
    "too long": (json.dumps("x" * MAX_BYTES), Trouble.CORRUPT, f"longer than {MAX_BYTES} bytes"),
    "too long, though of few letters": (f'"{"é" * (MAX_BYTES // 2)}"', Trouble.CORRUPT, "longer"),
    "somebody else's list": ("[1, 2]", Trouble.CORRUPT, "no format"),
    "somebody else's object": ('{"model": "llama"}', Trouble.CORRUPT, "no format"),
    "a format in words": (document(format="1"), Trouble.CORRUPT, "no format"),
    "a format that is no number": (document(format=True), Trouble.CORRUPT, "no format"),
    "a format that never was": (document(format=0), Trouble.CORRUPT, "format: Input should be 1"),
    "a newer format": (document(format=FORMAT + 1), Trouble.NEWER, f"knows format {FORMAT}"),
    "a newer format of which nothing is known": ('{"format": 9, "all": "new"}', Trouble.NEWER, "newer version"),
    "no memory": (json.dumps({"format": FORMAT}), Trouble.CORRUPT, "memory: Field required"),
    "a list of profiles": (document(memory={"profiles": []}), Trouble.CORRUPT, "memory.profiles: "),
    "a number in words": (
        document(memory={"profiles": {"ngram": {"measured_at": "5"}}}),
        Trouble.CORRUPT,
        "memory.profiles.ngram.measured_at: Input should be a valid number",
    ),
    "no number": (
        document(memory={"profiles": {"ngram": {"measured_at": math.nan}}}),
        Trouble.CORRUPT,
        "measured_at: Input should be a finite number",
    ),
    "a number without end": (
        document(memory={"profiles": {"ngram": {"measured_at": -math.inf}}}),
        Trouble.CORRUPT,
        "finite",
    ),
    "a number that is too large": (
        '{"format":1,"memory":{"profiles":{"ngram":{"measured_at":1e999}}}}',
        Trouble.CORRUPT,
        "finite",
    ),
    "a number of too many digits": ('{"format":' + "9" * 5000 + "}", Trouble.CORRUPT, "not JSON"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_says_why(case: str) -> None:
    text, reason, message = UNUSABLE[case]
    found = load(text)
    assert isinstance(found, Unusable)
    assert found.reason is reason
    assert message in found.message


def test_a_field_that_is_not_known_is_ignored() -> None:
    assert load(document(memory={"profiles": {"ngram": {"colour": "red"}}, "dreams": []})) == Memory(
        {"ngram": Knowledge()}
    )


@given(st.text(st.characters()) | st.binary().map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_no_text_does_any_harm(text: str) -> None:
    assert isinstance(load(text), Memory | Unusable)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a JSON document."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inner:
        yield from places(found, (*at, key))


@given(st.sampled_from([path for path in places(json.loads(TEXT)) if path]), JSON)
def test_a_document_with_anything_anywhere_does_no_harm(path: tuple[Any, ...], value: Any) -> None:
    changed = json.loads(TEXT)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = load(json.dumps(changed))
    assert isinstance(found, Unusable) or isinstance(load(dump(found)), Memory)


@given(st.integers(0, len(TEXT)), st.integers(0, len(TEXT)), st.text(max_size=3))
def test_a_document_that_was_cut_or_written_over_does_no_harm(start: int, end: int, text: str) -> None:
    assert isinstance(load(TEXT[:start] + text + TEXT[end:]), Memory | Unusable)
