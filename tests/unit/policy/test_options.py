"""The options of a workload: from profile to command line and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.cost import Option
from specdecode.policy.options import (
    ORIGINAL,
    Menu,
    configuration,
    describe,
    fields_of,
    fingerprint,
    fixed_k,
    option_of,
    same,
    with_fields,
)
from specdecode.vllm.speculation import BatchRange, Method
from specdecode.vllm.unmanageable import Unmanageable
from specdecode.vllm.version import Version
from support.world import CONTAINER, menu, option, spec

PROFILES: list[dict[str, Any]] = [
    {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5},
    {
        "name": "wide",
        "method": "NGram",
        "numSpeculativeTokens": 5,
        "ngram": {"promptLookupMin": 2, "promptLookupMax": 8},
    },
    {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "small"}},
    {"name": "tuned", "method": "NGram", "numSpeculativeTokens": 4, "args": {"max-num-seqs": "64"}, "env": {"A": "1"}},
]
POLICY = spec(profiles=PROFILES)
MENU = menu(POLICY)
NAMES = ["ngram", "wide", "draft", "tuned", "disabled"]


def container(m: Menu, o: Option) -> Any:
    rendered = m.render(o)
    assert not isinstance(rendered, Unmanageable), rendered
    return rendered


def with_schedule(o: Option, threshold: int = 32) -> Option:
    assert o.speculation is not None
    k = o.speculation.num_speculative_tokens or 1
    ranges = (BatchRange(1, threshold - 1, k), BatchRange(threshold, 256, 0))
    return Option(o.profile, replace(o.speculation, schedule=ranges))


def test_the_menu_has_every_profile_and_disabled() -> None:
    assert [o.profile for o in MENU.options] == NAMES
    assert option(MENU, "disabled").speculation is None


@pytest.mark.parametrize("name", NAMES)
def test_what_was_rendered_is_identified_again(name: str) -> None:
    o = option(MENU, name)
    live = container(MENU, o)
    assert MENU.identify(live) == o
    assert {k: v for k, v in live.items() if k not in ("command", "args", "env")} == {
        k: v for k, v in CONTAINER.items() if k != "args"
    }


@given(st.sampled_from(["ngram", "draft", "tuned"]), st.integers(2, 256))
def test_so_is_a_schedule_and_the_status_names_it(name: str, threshold: int) -> None:
    o = with_schedule(option(MENU, name), threshold)
    assert MENU.identify(container(MENU, o)) == o
    assert option_of(configuration(o), MENU) == o
    assert fixed_k(o.speculation) == option(MENU, name).speculation


def test_the_original_stays_as_it_is_written() -> None:
    assert MENU.render(option(MENU, "disabled")) is MENU.original


def original(speculative: dict[str, Any]) -> Menu:
    args = [*CONTAINER["args"], "--speculative-config", json.dumps(speculative)]
    return menu(POLICY, {**CONTAINER, "args": args})


def test_an_original_that_speculates_is_the_profile_that_says_the_same_or_an_option_of_its_own() -> None:
    same_as_ngram = original({"method": "ngram", "num_speculative_tokens": 5})
    assert same_as_ngram.identify(same_as_ngram.original) == option(same_as_ngram, "ngram")
    assert [o.profile for o in same_as_ngram.options] == NAMES
    own = original({"method": "ngram", "num_speculative_tokens": 7})
    assert [o.profile for o in own.options] == [*NAMES, ORIGINAL]
    o = own.identify(own.original)
    assert o is not None and o.speculation is not None and o.speculation.num_speculative_tokens == 7
    assert own.render(o) is own.original
    assert option_of(configuration(o), own) == o
    assert container(own, option(own, "disabled"))["args"] == CONTAINER["args"]


@pytest.mark.parametrize(
    "live",
    [
        {**CONTAINER, "args": [*CONTAINER["args"], "--max-model-len", "10"]},
        {**CONTAINER, "env": [{"name": "X", "value": "1"}]},
        {**CONTAINER, "args": ["--model", "other"]},
        {**CONTAINER, "command": ["sh", "-c", "vllm serve a & vllm serve b"], "args": []},
        {
            **CONTAINER,
            "args": [*CONTAINER["args"], "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 9}'],
        },
    ],
    ids=["another argument", "another variable", "another model", "not understood", "another K"],
)
def test_what_we_would_not_have_written_is_not_ours(live: Any) -> None:
    assert MENU.identify(live) is None


def test_a_command_line_that_is_not_understood_has_no_menu() -> None:
    version = Version(0, 24, 0)
    made = Menu.of({**CONTAINER, "command": ["sh", "-c", "vllm serve a & vllm serve b"]}, version, POLICY.profiles)
    assert isinstance(made, Unmanageable) and made.message


def test_a_profile_that_is_gone_is_no_option() -> None:
    assert option_of(configuration(Option("gone", None)), MENU) is None


def test_command_and_environment_survive_the_status() -> None:
    live = container(MENU, option(MENU, "tuned"))
    assert same(with_fields(CONTAINER, fields_of(live)), live)
    bare = {"name": "vllm", "image": "i"}
    assert with_fields(bare, fields_of(bare)) == bare


def test_empty_and_absent_are_the_same_command_line() -> None:
    a, b = {"name": "vllm"}, {"name": "vllm", "args": [], "env": [], "command": None}
    assert same(a, b) and fingerprint(a) == fingerprint(b)
    assert fingerprint(a) != fingerprint({"name": "vllm", "args": ["x"]})
    assert fingerprint({"args": ["x"]}) != fingerprint({"command": ["x"]})


def test_options_in_words() -> None:
    ngram = option(MENU, "ngram")
    assert ngram.speculation is not None and ngram.speculation.method is Method.NGRAM
    assert describe(ngram) == "ngram"
    assert describe(with_schedule(ngram)) == "ngram (K=5 for 1-31, K=0 for 32-256)"
    threshold = Option("ngram", replace(ngram.speculation, disable_by_batch_size=32))
    assert describe(threshold) == "ngram, off from batch size 32"
    assert describe(option(MENU, "disabled")) == "disabled"
