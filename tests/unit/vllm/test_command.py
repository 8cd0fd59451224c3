"""Reading and rewriting real command lines."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdecode.vllm.command import Form, Rewritten, Server, Unmanageable, find_container, read, rewrite
from specdecode.vllm.dialect import encode
from specdecode.vllm.speculation import BatchRange, Method, Speculation
from specdecode.vllm.version import Version

CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "containers.yaml").read_text())
MANAGED = [case for case in CASES if "server" in case]
LEFT_ALONE = [case for case in CASES if "reason" in case]

NGRAM = Speculation(Method.NGRAM, 4, prompt_lookup_min=2, prompt_lookup_max=4)
DRAFT = Speculation(Method.DRAFT_MODEL, 3, model="/models/it's 1B", draft_tensor_parallel_size=1)


def by_name(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case["case"] for case in cases])


def version_of(case: dict[str, Any]) -> Version:
    version = Version.parse(case["version"])
    assert version is not None
    return version


def served(container: Any, version: Version | None) -> Server:
    server = read(container, version)
    assert isinstance(server, Server), server
    return server


def changed(container: Any, version: Version, speculation: Speculation | None, **profile: Any) -> dict[str, Any]:
    before = copy.deepcopy(container)
    result = rewrite(container, version, speculation, **profile)
    assert container == before, "the container that was given must stay as it is"
    assert isinstance(result, Rewritten), result
    return result.container


def test_there_are_enough_cases() -> None:
    assert len(MANAGED) >= 40


@by_name(MANAGED)
def test_a_server_is_read_as_vllm_would(case: dict[str, Any]) -> None:
    server = served(case["container"], version_of(case))
    expected = dict(case["server"])
    ignored = {key: server.speculation.extra[key] for key in expected.pop("ignored", []) if server.speculation}
    if "speculation" in expected:
        config = expected.pop("speculation")
        assert (server.speculation and encode(server.speculation)) == (config and {**config, **ignored})
    read_fields = dataclasses.asdict(server)
    read_fields["unseen"] = list(server.unseen)
    assert {key: read_fields[key] for key in expected} == expected


@by_name(LEFT_ALONE)
def test_what_is_in_doubt_is_left_alone_with_a_way_out(case: dict[str, Any]) -> None:
    for result in (read(case["container"], version_of(case)), rewrite(case["container"], version_of(case), NGRAM)):
        assert isinstance(result, Unmanageable)
        assert result.reason == case["reason"]
        assert ";" in result.message, "what is wrong; what to do"


@by_name(MANAGED)
@pytest.mark.parametrize("wanted", [NGRAM, DRAFT, None], ids=["ngram", "draft", "off"])
def test_a_rewritten_server_runs_what_was_asked_for_and_all_else_as_before(
    case: dict[str, Any], wanted: Speculation | None
) -> None:
    version, container = version_of(case), case["container"]
    if wanted is DRAFT and Version(0, 10, 0) <= version < Version(0, 15, 0):
        assert isinstance(rewrite(container, version, wanted), Unmanageable)
        return
    before, rewritten = served(container, version), changed(container, version, wanted)
    after = served(rewritten, version)
    assert after == dataclasses.replace(before, speculation=wanted)
    assert changed(rewritten, version, wanted) == rewritten
    differing = {key for key in {*container, *rewritten} if container.get(key) != rewritten.get(key)}
    assert differing <= ({"env"} if before.form is Form.ENV_REFERENCE else {"command", "args"})


@by_name(MANAGED)
def test_speculation_that_comes_and_goes_leaves_no_trace(case: dict[str, Any]) -> None:
    version, container = version_of(case), case["container"]
    off = changed(changed(container, version, NGRAM), version, None)
    assert changed(changed(off, version, NGRAM), version, None) == off
    server = served(container, version)
    if server.speculation is None and not server.unseen and not server.config_file:
        assert changed(container, version, None) == container


@by_name(MANAGED)
def test_what_already_runs_is_not_touched(case: dict[str, Any]) -> None:
    version, container = version_of(case), case["container"]
    speculation = served(container, version).speculation
    if speculation is not None:
        assert changed(container, version, speculation) == container


REWRITTEN = [
    (
        "the form with an equals sign is kept, and the place",
        "0.24.0",
        ["vllm", "serve", "m", '--speculative_config={"method":"suffix"}', "--port=1"],
        NGRAM,
        [
            *("vllm", "serve", "m"),
            '--speculative_config={"method":"ngram","num_speculative_tokens":4,'
            '"prompt_lookup_min":2,"prompt_lookup_max":4}',
            "--port=1",
        ],
    ),
    (
        "the short name is kept",
        "0.24.0",
        ["vllm", "serve", "m", "-sc", '{"method":"suffix"}'],
        Speculation(Method.NGRAM, 1),
        ["vllm", "serve", "m", "-sc", '{"method":"ngram","num_speculative_tokens":1}'],
    ),
    (
        "dotted flags become one value at the place of the first",
        "0.24.0",
        ["vllm", "serve", "m", "-sc.method", "suffix", "--port=1", "-sc.num_speculative_tokens=2"],
        Speculation(Method.NGRAM, 1),
        ["vllm", "serve", "m", "--speculative-config", '{"method":"ngram","num_speculative_tokens":1}', "--port=1"],
    ),
    (
        "legacy flags stay legacy flags",
        "0.7.3",
        ["vllm", "serve", "m", "--speculative-model", "d", "--port=1", "--num-speculative-tokens", "2"],
        Speculation(Method.NGRAM, 1, prompt_lookup_max=3, disable_by_batch_size=8),
        [
            *("vllm", "serve", "m", "--speculative-model", "[ngram]", "--num-speculative-tokens", "1"),
            *("--speculative-disable-by-batch-size", "8", "--ngram-prompt-lookup-max", "3", "--port=1"),
        ],
    ),
    (
        "0.8.2 gets legacy flags even where it was given JSON",
        "0.8.2",
        ["vllm", "serve", "m", "--speculative-config", '{"model":"[ngram]","num_speculative_tokens":2}'],
        Speculation(Method.DRAFT_MODEL, 1, model="d$(HOME)"),
        ["vllm", "serve", "m", "--speculative-model", "d$$(HOME)", "--num-speculative-tokens", "1"],
    ),
    (
        "metrics by request go with the speculation",
        "0.32.0",
        ["vllm", "serve", "m", "--spec-method=ngram", "--per-request-spec-decode-metrics", "detailed", "--port=1"],
        None,
        ["vllm", "serve", "m", "--port=1"],
    ),
    (
        "a configuration file is overruled",
        "0.32.0",
        ["vllm", "serve", "m", "--config", "f.yaml"],
        None,
        ["vllm", "serve", "m", "--config", "f.yaml", "--speculative-config", "null"],
    ),
    (
        "K by batch size",
        "0.24.0",
        ["vllm", "serve", "m"],
        Speculation(Method.NGRAM, 3, schedule=(BatchRange(1, 4, 3), BatchRange(5, 64, 0))),
        [
            "vllm",
            "serve",
            "m",
            "--speculative-config",
            '{"method":"ngram","num_speculative_tokens":3,"num_speculative_tokens_per_batch_size":[[1,4,3],[5,64,0]]}',
        ],
    ),
]


@pytest.mark.parametrize(("says", "version", "command", "wanted", "expected"), REWRITTEN, ids=[r[0] for r in REWRITTEN])
def test_arguments_are_spelled_as_before(
    says: str, version: str, command: list[str], wanted: Speculation | None, expected: list[str]
) -> None:
    parsed = Version.parse(version)
    assert parsed is not None
    assert changed({"command": command}, parsed, wanted) == {"command": expected}, says


def test_only_our_words_change_in_a_shell_string() -> None:
    script = """\
export A='x'   # why
vllm serve m \\
  --speculative-config "{\\"method\\":\\"suffix\\"}" \\
  --port 1 | tee log
"""
    new = changed({"args": ["bash", "-c", script]}, Version(0, 24, 0), Speculation(Method.DRAFT_MODEL, 2, model="it's"))
    json = r"""'{"method":"draft_model","model":"it\u0027s","num_speculative_tokens":2}'"""
    assert new["args"][2] == script.replace(r'"{\"method\":\"suffix\"}"', json)
    off = changed({"args": ["bash", "-c", script]}, Version(0, 24, 0), None)
    assert off["args"][2] == script.replace(' \\\n  --speculative-config "{\\"method\\":\\"suffix\\"}"', "")


def test_a_speculative_argument_out_of_a_variable_is_read_but_not_changed() -> None:
    container = {
        "command": ["sh", "-c", "vllm serve m $ARGS"],
        "env": [{"name": "ARGS", "value": "--port 1 --spec-method ngram --spec-tokens 2"}],
    }
    version = Version(0, 24, 0)
    assert served(container, version).speculation == Speculation(Method.NGRAM, 2)
    result = rewrite(container, version, None)
    assert isinstance(result, Unmanageable)
    assert "$ARGS" in result.message


CANNOT: list[tuple[str, Speculation, dict[str, Any], str]] = [
    ("0.12.0", DRAFT, {}, "cannot run the method draft_model"),
    ("0.9.2", DRAFT, {"env": [{"name": "VLLM_USE_V1", "value": "1"}]}, "VLLM_USE_V1=1"),
    ("0.11.0", Speculation(Method.SUFFIX, 4), {}, "cannot run the method suffix"),
    ("0.33.0", Speculation(Method.OTHER, 4, model="m", extra={"method": "medusa"}), {}, "cannot run the method medusa"),
    ("0.8.2", Speculation(Method.EAGLE, 4, model="eagle-1"), {}, "cannot run the method eagle"),
    ("0.6.2", NGRAM, {}, "too old"),
    ("0.12.0", Speculation(Method.NGRAM, 4, disable_by_batch_size=8), {}, "does not honour disable_by_batch_size"),
    ("0.9.2", Speculation(Method.NGRAM, 4, disable_by_batch_size=8), {}, "does not honour disable_by_batch_size"),
    ("0.7.3", Speculation(Method.NGRAM, 4, prompt_lookup_max=4, disable_by_batch_size=1), {}, "2 or more"),
    ("0.7.3", Speculation(Method.NGRAM, 4), {}, "no default for prompt_lookup_max"),
    ("0.23.0", Speculation(Method.NGRAM, 4, schedule=(BatchRange(1, 8, 4),)), {}, "does not know num_speculative"),
    ("0.24.0", Speculation(Method.NGRAM, 4, schedule=(BatchRange(2, 8, 4),)), {}, "start at 1"),
    ("0.24.0", Speculation(Method.NGRAM, 4, schedule=(BatchRange(1, 8, 5),)), {}, "K must be"),
    ("0.24.0", Speculation(Method.NGRAM, 4, schedule=(BatchRange(1, 8, 4), BatchRange(8, 9, 1))), {}, "ascending"),
    ("0.24.0", Speculation(Method.NGRAM, 4, schedule=(BatchRange(1, 0, 4),)), {}, "ascending"),
    ("0.33.0", Speculation(Method.SUFFIX, 4, schedule=(BatchRange(1, 8, 4),)), {}, "drops K by batch size"),
    (
        "0.24.0",
        Speculation(Method.NGRAM, 4, schedule=(BatchRange(1, 8, 4),)),
        {"args": ["-dp", "2"]},
        "data parallelism",
    ),
    ("0.24.0", Speculation(Method.NGRAM, 4, extra={"posterior_alpha": 0.3}), {}, "does not know posterior_alpha"),
    ("0.24.0", Speculation(Method.DRAFT_MODEL, 4, model="org/eagle3"), {}, "differently"),
    ("0.8.1", Speculation(Method.NGRAM, 4, prompt_lookup_max=4, extra={"revision": "x"}), {}, "not know revision"),
    ("0.24.0", Speculation(Method.DISABLED), {}, "no speculation"),
]


@pytest.mark.parametrize(("version", "wanted", "more", "says"), CANNOT)
def test_what_a_version_cannot_express_is_refused(
    version: str, wanted: Speculation, more: dict[str, Any], says: str
) -> None:
    parsed = Version.parse(version)
    assert parsed is not None
    result = rewrite({"command": ["vllm", "serve", "m"], **more}, parsed, wanted)
    assert isinstance(result, Unmanageable)
    assert result.reason == "VersionCannotExpress"
    assert says in result.message


PROFILES: list[tuple[str, list[str], dict[str, str | None], list[str]]] = [
    ("a new flag goes to the end", ["-tp", "2"], {"--max-num-seqs": "8"}, ["-tp", "2", "--max-num-seqs", "8"]),
    (
        "a value is replaced in its place",
        ["--max_num_seqs=4", "-x"],
        {"--max-num-seqs": "8"},
        ["--max_num_seqs=8", "-x"],
    ),
    ("a short name is the same flag", ["-tp", "2"], {"--tensor-parallel-size": "4"}, ["-tp", "4"]),
    ("the last one counts", ["--a", "1", "--a", "2"], {"--a": "3"}, ["--a", "1", "--a", "3"]),
    ("a switch is added once", ["--async-scheduling"], {"--async-scheduling": None}, ["--async-scheduling"]),
    (
        "a switch is turned",
        ["--async-scheduling", "m"],
        {"--no-async-scheduling": None},
        ["--no-async-scheduling", "m"],
    ),
    ("one key of a value", ["--c.a", "1", "--c.b", "2"], {"--c.b": "3"}, ["--c.a", "1", "--c.b", "3"]),
    ("all of a value", ["--c.a", "1", "--c.b", "2"], {"--c": "{}"}, ["--c", "{}"]),
]


@pytest.mark.parametrize(("says", "before", "profile", "after"), PROFILES, ids=[p[0] for p in PROFILES])
def test_a_profile_sets_its_own_flags(
    says: str, before: list[str], profile: dict[str, str | None], after: list[str]
) -> None:
    container = {"command": ["vllm", "serve"], "args": before}
    new = changed(container, Version(0, 24, 0), None, args=profile)
    assert new == {"command": ["vllm", "serve"], "args": after}, says
    assert changed(new, Version(0, 24, 0), None, args=profile) == new


def test_a_profile_sets_its_flags_in_a_shell_string_too() -> None:
    container = {"command": ["sh", "-c", "vllm serve m --max-num-seqs=4 && true"]}
    new = changed(
        container, Version(0, 24, 0), Speculation(Method.NGRAM, 1), args={"--max-num-seqs": "8", "--x": "a b"}
    )
    assert new["command"][2] == (
        "vllm serve m --max-num-seqs=8 --speculative-config "
        """'{"method":"ngram","num_speculative_tokens":1}' --x 'a b' && true"""
    )


@pytest.mark.parametrize(
    ("flag", "speculation", "says"),
    [
        ("--speculative-config", NGRAM, "written by the operator"),
        ("--spec_tokens", NGRAM, "written by the operator"),
        ("--num-speculative-tokens", None, "written by the operator"),
        ("--per-request-spec-decode-metrics", None, "without speculation"),
        ("--per-request-spec-decode-metrics", NGRAM, "not known to vLLM 0.24.0"),
        ("--config", NGRAM, "hides"),
        ("max-num-seqs", NGRAM, "no flag"),
        ("--a b", NGRAM, "no flag"),
    ],
)
def test_a_profile_leaves_our_arguments_to_us(flag: str, speculation: Speculation | None, says: str) -> None:
    result = rewrite({"command": ["vllm", "serve", "m"]}, Version(0, 24, 0), speculation, args={flag: "1"})
    assert isinstance(result, Unmanageable)
    assert result.reason == "InvalidProfileArgument"
    assert says in result.message


def test_a_profile_sets_variables_by_name_and_leaves_the_others() -> None:
    entries = [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {}}, {"name": "C", "value": "3"}]
    container = {"command": ["vllm", "serve", "m"], "env": entries}
    new = changed(container, Version(0, 24, 0), None, env={"B": "2", "VLLM_USE_V2_MODEL_RUNNER": "0"})
    assert new["env"] == [
        entries[0],
        {"name": "B", "value": "2"},
        entries[2],
        {"name": "VLLM_USE_V2_MODEL_RUNNER", "value": "0"},
    ]


def test_a_hidden_configuration_cannot_be_turned_off_before_0_8_3() -> None:
    result = rewrite({"command": ["vllm", "serve", "m", "--config", "f.yaml"]}, Version(0, 8, 1), None)
    assert isinstance(result, Unmanageable)
    assert result.reason == "ConfigFileHidesArguments"


def test_a_variable_with_the_configuration_needs_a_version_that_reads_json() -> None:
    container = {
        "command": ["vllm", "serve", "m", "--speculative-config=$(S)"],
        "env": [{"name": "S", "value": '{"model":"[ngram]","num_speculative_tokens":1}'}],
    }
    result = rewrite(container, Version(0, 8, 2), NGRAM)
    assert isinstance(result, Unmanageable)
    assert result.reason == "VersionCannotExpress"


def test_without_a_version_every_spelling_is_read() -> None:
    for words in (
        ["--spec-method=ngram", "--spec-tokens=2"],
        ["--speculative-model=ngram", "--num-speculative-tokens=2"],
    ):
        assert served({"command": ["vllm", "serve", "m", *words]}, None).speculation == Speculation(Method.NGRAM, 2)


VLLM = {"name": "vllm", "image": "vllm/vllm-openai:v0.24.0", "args": ["--model", "m"]}
SIDECARS = [
    {"name": "vllm-router", "image": "lmcache/lmstack-router:0.1", "args": ["--port", "8001"]},
    {"name": "vllm-exporter", "image": "example.com/vllm-exporter:1"},
    {"name": "vllm-proxy", "image": "nginx:1.27", "command": ["nginx", "-g", "daemon off;"]},
    {"name": "lmcache", "image": "lmcache/vllm-openai:v0.3", "command": ["lmcache_server", "0.0.0.0", "65432"]},
    {"name": "llama", "image": "ghcr.io/ggml-org/llama.cpp:server", "args": ["--model", "/m.gguf"]},
    {"name": "wait", "image": "busybox", "command": ["sh", "-c", "until curl vllm:8000; do sleep 1; done"]},
]


def test_sidecars_are_not_the_server() -> None:
    assert find_container({"containers": [*SIDECARS, VLLM]}) is VLLM


def test_a_named_container_is_taken_at_its_word() -> None:
    other = {"name": "llm", "image": "example.com/llm:1", "args": ["--model", "m"]}
    assert find_container({"containers": [other, VLLM]}, "llm") is other
    assert served(other, Version(0, 24, 0)).model == "m"


def test_a_server_that_is_not_understood_is_found_all_the_same() -> None:
    broken = {"name": "x", "command": ["sh", "-c", "vllm serve a; vllm serve b"]}
    assert find_container({"containers": [broken]}) is broken


@pytest.mark.parametrize(
    ("containers", "name", "reason"),
    [
        (SIDECARS, None, "NoVllmServer"),
        ([], None, "NoVllmServer"),
        ([VLLM], "chat", "NoVllmServer"),
        ([VLLM, {**VLLM, "name": "decode"}], None, "AmbiguousContainer"),
    ],
)
def test_no_server_or_two_are_said_with_their_names(containers: list[Any], name: str | None, reason: str) -> None:
    result = find_container({"containers": containers}, name)
    assert isinstance(result, Unmanageable)
    assert result.reason == reason
    assert all(str(c["name"]) in result.message for c in containers)
