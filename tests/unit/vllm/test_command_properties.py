"""What must hold for every command line, version and configuration."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from typing import Any

from hypothesis import assume, event, given
from hypothesis import strategies as st

from specdecode.vllm.capabilities import capabilities
from specdecode.vllm.command import Form, Rewritten, Server, Unmanageable, find_container, read, rewrite
from specdecode.vllm.dialect import encode, from_legacy_flags, to_legacy_flags
from specdecode.vllm.environment import Environment, literal
from specdecode.vllm.shell import read_script
from specdecode.vllm.speculation import BatchRange, Method, Speculation
from specdecode.vllm.unmanageable import UnmanageableError
from specdecode.vllm.version import Version

VERSIONS = [
    Version(0, *rest)
    for rest in (
        *((6, 3), (7, 3), (8, 1), (8, 2), (8, 3), (8, 5), (9, 2), (10, 2), (11,), (12,), (15,), (16,)),
        *((17,), (19,), (22,), (24,), (26,), (30,), (32,), (33,), (40,)),
    )
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAMES = st.one_of(
    st.sampled_from(
        ["meta-llama/Llama-3.2-1B", "/models/draft", "yuhuili/EAGLE3-x", "org/eagle-7b", "a'b\"c$(D)`e`\\"]
    ),
    TEXT.filter(bool),
)
COUNTS = st.integers(1, 64)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT, lambda v: st.lists(v, max_size=2), max_leaves=3
)


@st.composite
def speculations(draw: st.DrawFn) -> Speculation:
    method = draw(st.sampled_from([m for m in Method if m is not Method.DISABLED]))
    k = draw(st.integers(1, 8))
    extra: dict[str, Any] = {}
    if method is Method.OTHER:
        extra["method"] = draw(st.sampled_from(["medusa", "ngram_gpu", "dflash", "deepseek_mtp", "unheard_of"]))
    if draw(st.booleans()):
        key = st.sampled_from(
            ["draft_sample_method", "disable_logprobs", "acceptance_method", "revision", "unheard_of"]
        )
        extra[draw(key)] = draw(VALUES)
    ngram = method is Method.NGRAM
    ends = sorted(draw(st.sets(COUNTS, max_size=3)))
    return Speculation(
        method=method,
        num_speculative_tokens=draw(st.none() | st.just(k)),
        model=None if ngram else draw(NAMES),
        draft_tensor_parallel_size=draw(st.none() | st.just(1)),
        quantization=draw(st.none() | st.just("fp8")),
        max_model_len=draw(st.none() | COUNTS),
        prompt_lookup_min=draw(st.none() | st.just(2)) if ngram else None,
        prompt_lookup_max=draw(st.none() | COUNTS) if ngram else None,
        disable_by_batch_size=draw(st.none() | COUNTS),
        schedule=tuple(
            BatchRange(start + 1, end, draw(st.integers(0, k))) for start, end in zip([0, *ends], ends, strict=False)
        ),
        extra=extra,
    )


FLAGS = [
    "--enforce-eager",
    "--port=8080",
    "--max_num_seqs",
    "-tp",
    "--served-model-name",
    "--kv-transfer-config",
    "--x.y",
]
ARGUMENTS = st.lists(
    st.one_of(
        st.sampled_from(["--enforce-eager", "--no-async-scheduling", "--port=8080", "--max_num_seqs=7"]).map(
            lambda a: [a]
        ),
        st.tuples(st.sampled_from(["-tp", "--max-num-seqs", "--dtype"]), st.integers(1, 9).map(str)).map(list),
        st.tuples(st.just("--served-model-name"), TEXT.filter(lambda t: not t.startswith("-"))).map(list),
        st.tuples(st.just("--kv-transfer-config"), st.just('{"a": {"b": "it\'s $(HOME)"}}')).map(list),
    ),
    max_size=4,
)


def spelled(speculation: Speculation, how: str, flag: str) -> list[str]:
    config = encode(speculation)
    match how:
        case "joined":
            return [f"{flag}={json.dumps(config)}"]
        case "dotted":
            return [word for key, value in config.items() for word in (f"{flag}.{key}", json.dumps(value))]
        case "legacy":
            return to_legacy_flags(speculation)
    return [flag, json.dumps(config)]


@st.composite
def containers(draw: st.DrawFn) -> tuple[dict[str, Any], Version]:
    """A container in any form, with or without speculation, and a version that takes its arguments."""
    version = draw(st.sampled_from(VERSIONS))
    can = capabilities(version)
    blocks = [[word.replace("$(", "$$(") for word in block] for block in draw(ARGUMENTS)]
    env: list[dict[str, Any]] = [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {}}]
    if draw(st.booleans()):
        how = draw(st.sampled_from(["two words", "joined", "dotted"] if can.speculative_config else ["legacy"]))
        flags = ["--speculative-config", "--speculative_config", *(["-sc"] if can.short_config_flag else [])]
        speculation = Speculation(Method.NGRAM, draw(st.integers(1, 9)), prompt_lookup_max=3)
        blocks.insert(draw(st.integers(0, len(blocks))), spelled(speculation, how, draw(st.sampled_from(flags))))
    elif can.speculative_config and draw(st.booleans()):
        env.append({"name": "S", "value": draw(st.sampled_from(["null", "", '{"method":"ngram"}']))})
        blocks.append(["--speculative-config=$(S)"])
    if draw(st.booleans()) and can.per_request_metrics:
        blocks.insert(0, ["--per-request-spec-decode-metrics", "summary"])
    words = ["vllm", "serve", "m", *(word for block in blocks for word in block)]
    if draw(st.booleans()):
        python = ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"]
        words = [*python, *words[3:]]
    container: dict[str, Any] = {"name": "c", "image": "vllm/vllm-openai:v1", "env": env}
    if draw(st.booleans()):
        cut = draw(st.integers(1, len(words)))
        return {**container, "command": words[:cut], "args": words[cut:]}, version
    space = draw(st.sampled_from([" ", " \\\n  ", "\t"]))
    line = space.join(f"'{word}'" if "$(S)" in word else shlex.quote(word) for word in words)
    before = draw(
        st.sampled_from(["", "export X='é' && ", "set -e\n# vllm serve\npip install y; exec ", "if true; then "])
    )
    after = "; fi" if "if" in before else draw(st.sampled_from(["", " | tee log", " > log 2>&1 &\nwait", "\n"]))
    return {**container, "command": ["bash", "-c"], "args": [before + line + after]}, version


PROFILE = st.dictionaries(
    st.sampled_from(["--max-num-seqs", "--dtype", "--kv-cache-dtype"]), st.sampled_from(["1", "a b'"])
)


@given(containers(), st.none() | speculations(), PROFILE)
def test_what_was_asked_for_is_read_back_and_nothing_else_changes(
    given_container: tuple[dict[str, Any], Version], wanted: Speculation | None, profile: dict[str, str | None]
) -> None:
    container, version = given_container
    before = read(container, version)
    assert isinstance(before, Server)
    event(str(before.form))
    result = rewrite(container, version, wanted)
    if isinstance(result, Unmanageable):
        assert wanted is not None
        assert result.reason == "VersionCannotExpress"
        return
    after = read(result.container, version)
    assert isinstance(after, Server)
    assert after.speculation == wanted
    for field in (
        "model",
        "served_model_name",
        "port",
        "tensor_parallel_size",
        "max_num_seqs",
        "enforce_eager",
        "form",
    ):
        assert getattr(after, field) == getattr(before, field)
    assert rewrite(result.container, version, wanted) == result
    assert strip(result.container, version) == strip(container, version)

    bundled = rewrite(container, version, wanted, args=profile, env={"A": "2", "C": "3"})
    assert isinstance(bundled, Rewritten)
    assert rewrite(bundled.container, version, wanted, args=profile, env={"A": "2", "C": "3"}) == bundled
    assert read(bundled.container, version).speculation == wanted  # type: ignore[union-attr]


def strip(container: dict[str, Any], version: Version) -> dict[str, Any]:
    """A container without its speculation."""
    result = rewrite(container, version, None)
    assert isinstance(result, Rewritten)
    off = result.container
    if isinstance(server := read(off, version), Server) and server.form is Form.ENV_REFERENCE:
        off["env"] = [entry if entry["name"] != "S" else {**entry, "value": "null"} for entry in off["env"]]
    return off


@given(containers())
def test_what_already_runs_stays_as_it_is_written(given_container: tuple[dict[str, Any], Version]) -> None:
    container, version = given_container
    server = read(container, version)
    assert isinstance(server, Server)
    assume(server.speculation is not None)
    assert rewrite(container, version, server.speculation) == Rewritten(container)


FRAGMENTS = st.sampled_from(
    (
        *("vllm", "serve", "--speculative-config", "--spec-tokens=", "-sc.a+", "--model", '{"a":', "[1]", "}", "null"),
        *("'", '"', "$(A)", "$(", "$$", "${B:-x}", "$@", "\\\n", "\\", "#", "&&", "||", ";", "|", "&", "(", ")", "{"),
        *("if", "fi", "<<E", "\n", " ", "`", "=", "-m", "vllm.entrypoints.openai.api_server", "bash", "-c", "--", "-"),
        *("é", "\udc80", "1", ">"),
    )
)
ANYTHING = st.lists(FRAGMENTS | TEXT, max_size=12).map("".join)


@given(
    st.lists(ANYTHING | st.sampled_from(["vllm", "serve", "bash", "-c"]), max_size=5),
    st.none() | st.lists(ANYTHING, max_size=3),
    ANYTHING,
    st.booleans(),
    st.sampled_from([None, *VERSIONS]),
)
def test_whatever_the_text_there_is_an_answer(
    command: list[str], args: list[str] | None, value: str, in_a_shell: bool, version: Version | None
) -> None:
    container: dict[str, Any] = {"command": ["sh", "-c", " ".join(command)] if in_a_shell else command, "args": args}
    container["env"] = [{"name": "A", "value": value}, {"name": "B"}, {"value": "x"}, {"name": "C", "valueFrom": {}}]
    assert isinstance(read(container, version), Server | Unmanageable)
    assert find_container({"containers": [container]}) is not None
    if version is not None:
        for speculation in (None, Speculation(Method.NGRAM, 2)):
            result = rewrite(container, version, speculation, args={"--max-num-seqs": "1"})
            assert isinstance(result, Rewritten | Unmanageable)
            if isinstance(result, Rewritten) and isinstance(again := read(result.container, version), Server):
                assert again.speculation == speculation


PIECES = st.sampled_from(
    (
        *(
            "a",
            "b c",
            "'q r'",
            '"s t"',
            '"$A"',
            "$A",
            "${A}",
            '"${B}"',
            "\\\\",
            "\\ ",
            "\\'",
            "é",
            '"\\""',
            "'\\'",
            "$",
        ),
        *(
            "=",
            "--x",
            " ",
            "  ",
            " \\\n",
            "\t",
            "{",
            "}",
            ",",
            "*",
            "~",
            "#",
            '""',
            "''",
            "$'x'",
            "!",
            "%",
            "@",
            "$(K)",
        ),
        *("'$(K)'", "$$", "["),
    )
)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_the_words_are_those_of_a_real_shell(text: str) -> None:
    environment = Environment({"A": "1  2", "B": "it's", "K": 'k "k'})
    source = f"vllm serve {text}"
    try:
        script = read_script(source, environment, has_arguments=False)
    except UnmanageableError:
        return
    assert script is not None
    if any(word.text is None for word in script.words):
        return
    expanded = environment.expand(source)
    assert expanded is not None
    stub = f"vllm() {{ printf '%s\\0' \"$@\"; }}\n{expanded}"
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-c", stub], env={"A": "1  2", "B": "it's"}, capture_output=True, check=False, timeout=10
    )
    assert done.stdout.decode().split("\0")[1:-1] == [word.text for word in script.words]


@given(TEXT)
def test_a_kubelet_leaves_escaped_text_as_it_was(text: str) -> None:
    assert Environment({"A": "x"}).expand(literal(text)) == text


@given(st.dictionaries(st.sampled_from(["--speculative-model", "--num-speculative-tokens"]), st.none() | TEXT))
def test_legacy_values_of_the_wrong_kind_are_said(values: dict[str, str | None]) -> None:
    try:
        config = from_legacy_flags(values)
    except UnmanageableError as error:
        assert "--num-speculative-tokens" in error.unmanageable.message
    else:
        assert isinstance(config.get("num_speculative_tokens", 0), int)
