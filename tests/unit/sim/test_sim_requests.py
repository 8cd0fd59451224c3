"""OpenAI requests and answers, settings and faults, acceptance tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specdecode.sim.acceptance import Acceptance, AcceptanceError, from_unconditional, parse_acceptance
from specdecode.sim.openai import Answer, Limits, RequestError, read_request
from specdecode.sim.settings import SettingsError, settings_from_env
from specdecode.sim.surfaces import DATA
from specdecode.vllm.speculation import Method
from specdecode.vllm.version import Version

LIMITS = Limits(("m",), 4096, ("summarise", "chat", "code"), rejects_logit_processors=True)
TABLE = parse_acceptance((DATA / "acceptance.json").read_text(encoding="utf-8"))


def ask(headers: dict[str, str] | None = None, chat: bool = False, **body: Any) -> Any:
    return read_request(json.dumps(body).encode(), headers or {}, LIMITS, chat=chat)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"prompt": "x", "model": "other"}, 404, "does not exist"),
        ({"prompt": "x", "min_p": 0.1}, 400, "min_p and logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": 2}}, 400, "min_p and logit_bias"),
        ({"prompt": "x", "n": 2}, 400, "n must be 1"),
        ({"prompt": ""}, 400, "one prompt"),
        ({}, 400, "one prompt"),
        ({"prompt": [1] * 4000, "max_tokens": 100}, 400, "maximum context length is 4096"),
        ({"prompt": "x", "max_tokens": 0}, 400, "at least 1"),
        ({"prompt": "x", "temperature": -1}, 400, "non-negative"),
        ({"prompt": "x", "metadata": {"kind": "song"}}, 400, "no request kind 'song'"),
    ],
)
def test_a_bad_request_is_answered_with_its_status(body: dict[str, Any], status: int, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        ask(**body)
    assert caught.value.status == status
    assert json.loads(caught.value.body())["error"]["code"] == status


def test_a_body_that_is_no_json_is_a_bad_request() -> None:
    with pytest.raises(RequestError, match="parsing the body"):
        read_request(b"{", {}, LIMITS, chat=False)


def test_min_p_of_nothing_is_no_min_p() -> None:
    assert ask(prompt="x", min_p=0.0).max_tokens == 16


@pytest.mark.parametrize(
    ("headers", "body", "kind"),
    [
        ({"x-request-kind": "code"}, {"prompt": "Summarise this"}, "code"),
        ({}, {"prompt": "x", "metadata": {"kind": "summarise"}}, "summarise"),
        ({}, {"prompt": "x", "user": "code"}, "code"),
        ({}, {"prompt": "x", "user": "u-123"}, "chat"),
        ({}, {"prompt": "Please summarize:"}, "summarise"),
        ({}, {"prompt": "```py\n```"}, "code"),
        ({}, {"prompt": [1, 2, 3]}, "chat"),
    ],
)
def test_the_kind_comes_from_what_a_plain_client_can_send(
    headers: dict[str, str], body: dict[str, Any], kind: str
) -> None:
    assert ask(headers, **body).kind == kind


def test_token_counts_and_temperature_are_read() -> None:
    generation = ask(prompt=[5] * 30, max_tokens=20, temperature=0, stream=True, stream_options={"include_usage": True})
    assert (generation.prompt_tokens, generation.max_tokens, generation.temperature) == (30, 20, 0.0)
    assert (generation.stream, generation.include_usage) == (True, True)
    chat = ask(chat=True, messages=[{"role": "user", "content": [{"type": "text", "text": "a" * 40}]}])
    assert (chat.prompt_tokens, chat.max_tokens, chat.temperature) == (14, 256, 1.0)


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_ends_with_usage_and_done(chat: bool) -> None:
    generation = ask(prompt=[1], max_tokens=3, stream=True, stream_options={"include_usage": True})
    answer = Answer("id", "a@b", 7, generation, chat=chat)
    stream = (answer.chunk(1, finished=False) + answer.chunk(2, finished=True)).decode()
    *events, done = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    parsed = [json.loads(e) for e in events]
    texts = [c["delta"]["content"] if chat else c["text"] for e in parsed for c in e["choices"]]
    assert texts == [" token", " token token"]
    assert [e["choices"][0]["finish_reason"] for e in parsed[:2]] == [None, "length"]
    assert parsed[2]["usage"] == {"prompt_tokens": 1, "total_tokens": 4, "completion_tokens": 3}
    assert done == "[DONE]"


def test_a_whole_answer_has_all_tokens() -> None:
    answer = json.loads(Answer("id", "m", 7, ask(prompt="x", max_tokens=3), chat=False).whole())
    assert answer["choices"][0]["text"].split() == ["token"] * 3
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"SPEED": "fast"}, "SPECDECODE_SIM_SPEED='fast' is not a number"),
        ({"SPEED": "0"}, "at least 0.001"),
        ({"VLLM_VERSION": "latest"}, "write a vLLM version from 0.8.0 on"),
        ({"VLLM_VERSION": "0.7.3"}, "write a vLLM version from 0.8.0 on"),
        ({"FAULT": "sulk"}, "no fault 'sulk'; there are never-ready"),
        ({"FAULT": "slow:very"}, "needs a number"),
        ({"FAULT": "never-ready:3"}, "takes no value"),
        ({"FAULT_WHEN": "tuesday"}, "not one of speculating, off"),
    ],
)
def test_a_bad_setting_is_named(env: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        settings_from_env({f"SPECDECODE_SIM_{key}": value for key, value in env.items()})


@pytest.mark.parametrize(
    ("when", "strikes"),
    [
        ("", {Method.DISABLED, Method.NGRAM, Method.DRAFT_MODEL}),
        ("speculating", {Method.NGRAM, Method.DRAFT_MODEL}),
        ("off", {Method.DISABLED}),
        ("Disabled", {Method.DISABLED}),
        ("NGram", {Method.NGRAM}),
        ("DraftModel", {Method.DRAFT_MODEL}),
    ],
)
def test_a_fault_strikes_the_pods_it_is_meant_for(when: str, strikes: set[Method]) -> None:
    settings = settings_from_env({"SPECDECODE_SIM_FAULT": "slow:3,metrics-half", "SPECDECODE_SIM_FAULT_WHEN": when})
    methods = (Method.DISABLED, Method.NGRAM, Method.DRAFT_MODEL)
    assert {m for m in methods if settings.faults_of(m)} == strikes
    assert settings.faults == {"slow": 3.0, "metrics-half": None}


def test_settings_have_defaults_and_read_the_environment() -> None:
    assert settings_from_env({}).version == Version(0, 24)
    settings = settings_from_env({"SPECDECODE_SIM_KV_TOKENS": "4096", "POD_IP": "127.1.2.3", "HOSTNAME": "pod-1"})
    assert (settings.kv_tokens, settings.pod_ip, settings.pod_name) == (4096, "127.1.2.3", "pod-1")


@pytest.mark.parametrize(
    ("release", "runner", "pads"),
    [("0.31.0", "", False), ("0.32.0", "", True), ("0.32.0", "0", False), ("0.26.0", "1", True)],
)
def test_ngram_pads_its_drafts_on_model_runner_v2(release: str, runner: str, pads: bool) -> None:
    env = {"SPECDECODE_SIM_VLLM_VERSION": release, "VLLM_USE_V2_MODEL_RUNNER": runner}
    assert settings_from_env(env).pads_drafts() is pads


def accepted_share(acceptance: Acceptance, k: int) -> float:
    return (acceptance.accepted_length(k) - 1) / k


@pytest.mark.parametrize(
    ("kind", "method", "temperature", "k", "share"),
    [
        ("chat", Method.DRAFT_MODEL, 0.0, 3, 0.81),
        ("chat", Method.DRAFT_MODEL, 0.4, 3, 0.71),
        ("chat", Method.DRAFT_MODEL, 0.8, 3, 0.52),
        ("chat", Method.DRAFT_MODEL, 1.0, 3, 0.38),
        ("summarise", Method.NGRAM, 0.0, 5, 0.75),
        ("chat", Method.NGRAM, 0.0, 5, 0.40),
        ("chat", Method.NGRAM, 1.0, 5, 0.02),
    ],
)
def test_the_table_gives_the_measured_shares(
    kind: str, method: Method, temperature: float, k: int, share: float
) -> None:
    assert accepted_share(TABLE.at(kind, method, temperature), k) == pytest.approx(share, abs=0.01)


def test_code_edits_get_the_tokens_per_step_of_the_benchmark() -> None:
    acceptance = TABLE.at("code", Method.NGRAM, 0.0)
    per_step = 1 + acceptance.match * (acceptance.accepted_length(5) - 1)
    assert per_step == pytest.approx(2.29, abs=0.03)


def test_acceptance_falls_steadily_with_the_temperature() -> None:
    for kind in TABLE.kinds:
        for method in (Method.NGRAM, Method.DRAFT_MODEL):
            shares = [accepted_share(TABLE.at(kind, method, t / 20), 3) for t in range(30)]
            assert shares == sorted(shares, reverse=True)


def test_a_request_of_its_own_lies_around_the_typical_one() -> None:
    typical = TABLE.at("chat", Method.DRAFT_MODEL, 0.4)
    low, high = typical.of_request(-1.28), typical.of_request(1.28)
    assert low.position(0) < typical.position(0) < high.position(0) < 1
    assert typical.of_request(0.0) is typical


def test_unconditional_rates_become_chances_per_position() -> None:
    assert from_unconditional((0.7, 0.49, 0.0, 0.0)).accept == pytest.approx((0.7, 0.7, 0.0, 0.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "JSONDecodeError"),
        ("{}", "KeyError"),
        ('{"kinds": {}}', "at least one temperature"),
        ('{"kinds": {"chat": {"NGram": [{"temperature": 0, "accept": [1.5]}]}}}', "between 0 and 1"),
        ('{"kinds": {"chat": {"Guess": []}}}', "ValueError"),
    ],
)
def test_a_broken_table_is_named(text: str, says: str) -> None:
    with pytest.raises(AcceptanceError, match=f"mine.json.*{says}"):
        parse_acceptance(text, "mine.json")


def test_a_kind_or_method_that_the_table_lacks_is_an_error() -> None:
    with pytest.raises(AcceptanceError, match="no acceptance for 'chat' requests with Eagle; kinds: summarise"):
        TABLE.at("chat", Method.EAGLE, 0.0)
