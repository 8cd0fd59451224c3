"""Shell scripts, checked against a real shell: what it hands to `vllm` is what we read."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdecode.vllm.command import Form, Rewritten, Server, Unmanageable, read, rewrite
from specdecode.vllm.environment import Environment
from specdecode.vllm.speculation import Method, Speculation
from specdecode.vllm.version import Version

CASES = [
    case
    for case in yaml.safe_load((Path(__file__).parent / "containers.yaml").read_text())
    if "server" in case
    and any("vllm" in word and " " in word for key in ("command", "args") for word in case["container"].get(key, ()))
]
MODEL = Speculation(Method.DRAFT_MODEL, 2, model="""a "b" 'c' $(D) `e` \\ $f""")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH on which `vllm` and `python3 -m …` write down their arguments and everything else does nothing."""
    path = tmp_path_factory.mktemp("bin")
    scripts = {
        "vllm": f'printf "%s\\0" "$@" > {path}/argv',
        "python3": f'shift 2; printf "%s\\0" serve "$@" > {path}/argv',
        "tee": "exec cat > /dev/null",
        **dict.fromkeys(("pip", "apt-get", "ray", "sleep", "curl", "nvidia-smi"), "exit 0"),
    }
    for name, script in scripts.items():
        (path / name).write_text(f"#!/bin/sh\n{script}\n")
        (path / name).chmod(0o755)
    for name in ("sh", "bash", "cat", "wc"):
        real = shutil.which(name)
        assert real is not None
        (path / name).symlink_to(real)
    return path


def what_vllm_gets(container: dict[str, Any], programs: Path) -> list[str]:
    environment = Environment.of(container)
    words = [environment.expand(word) for word in [*container.get("command", ["bash"]), *container.get("args", ())]]
    assert None not in words
    words[0] = str(programs / Path(words[0] or "").name)
    words = ["-c" if word == "-lc" else word for word in words]  # a login shell has a PATH of its own
    known = {name: value for name, value in environment.values.items() if value is not None}
    subprocess.run(
        [str(w) for w in words], env={**known, "PATH": str(programs)}, check=True, timeout=10, capture_output=True
    )
    argv = (programs / "argv").read_text().split("\0")[:-1]
    (programs / "argv").unlink()
    return argv


def version_of(case: dict[str, Any]) -> Version:
    version = Version.parse(case["version"])
    assert version is not None
    return version


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_the_server_that_we_read_is_the_one_that_the_shell_starts(case: dict[str, Any], programs: Path) -> None:
    version, container = version_of(case), dict(case["container"])
    if container.pop("envFrom", None) is not None:
        container["env"] = [{"name": "MODEL", "value": "m"}, {"name": "EXTRA_ARGS", "value": "--enforce-eager"}]
    wanted: list[Speculation | None] = [None, Speculation(Method.NGRAM, 3)]
    if not Version(0, 10, 0) <= version < Version(0, 15, 0):
        wanted.append(MODEL)
    for speculation in wanted:
        rewritten = rewrite(container, version, speculation)
        assert isinstance(rewritten, Rewritten)
        for shell in (container, rewritten.container):
            ours = read(shell, version)
            real = read({"command": ["vllm", *what_vllm_gets(shell, programs)]}, version)
            assert isinstance(ours, Server)
            assert isinstance(real, Server)
            for field in dataclasses.fields(ours):
                known = getattr(ours, field.name) is not None or field.name == "speculation"
                if known and field.name != "form":
                    assert getattr(real, field.name) == getattr(ours, field.name), field.name


WORDS = [
    ("plain", "plain"),
    ("'single \"x\" $HOME'", 'single "x" $HOME'),
    ('"double \\"x\\" \\$HOME \\\\ \\a $KNOWN"', 'double "x" $HOME \\ \\a a  b'),
    ("back\\ slash\\'", "back slash'"),
    ('"two"\'parts\'and" three"', "twopartsand three"),
    ('"line \\\ncontinued"', "line continued"),
    ('"${KNOWN}"', "a  b"),
    ("$(KUBE)'s'", "from the kubelets"),
    ("'$(KUBE)'", "from the kubelet"),
    ("$$HOME'$$'", None),
    ('"$UNKNOWN"', None),
    ('"$(cat f)"', None),
    ("~/x", None),
    ("a*", None),
    ("{a,b}", None),
    ('{"a":1,"b":2}', None),
    ("x$KNOWN", None),
    ("$'\\n'", None),
    ("$((1 + 1))", None),
    ("`cat f`", None),
    ('""', ""),
]


@pytest.mark.parametrize(("word", "means"), WORDS)
def test_a_word_is_what_the_shell_makes_of_it_or_unknown(word: str, means: str | None, programs: Path) -> None:
    container: dict[str, Any] = {
        "command": ["bash", "-c", f"vllm serve m --served-model-name {word}"],
        "env": [{"name": "KNOWN", "value": "a  b"}, {"name": "KUBE", "value": '"from the kubelet"'}],
    }
    if "'$(KUBE)'" in word:
        container["env"][1]["value"] = "from the kubelet"
    server = read(container, Version(0, 24, 0))
    assert isinstance(server, Server)
    assert server.served_model_name == means
    if means is not None:
        assert what_vllm_gets(container, programs)[-1] == means


ASSIGNED = [
    ("M=a; vllm serve $M", "a"),
    ("export M='a'\nvllm serve $M", "a"),
    ("M=; vllm serve x$M", "x"),
    ("M=a; M=b; vllm serve $M", None),
    ("M=a; M+=b; vllm serve $M", None),
    ("true && M=a; vllm serve $M", None),
    ("if true; then M=a; fi; vllm serve $M", None),
    ("for M in a b; do :; done; vllm serve $M", None),
    ("read M; vllm serve $M", None),
    ("vllm serve $M; M=a", None),
    ("M=$(cat f); vllm serve $M", None),
    ("M=a vllm serve $M", "from the environment"),
    ("IFS=x; vllm serve $M", None),
]


@pytest.mark.parametrize(("script", "model"), ASSIGNED)
def test_a_variable_is_known_if_it_is_set_once_and_for_all(script: str, model: str | None) -> None:
    script = script.replace("vllm serve $M", 'vllm serve "$M"') if "IFS" not in script else script
    server = read({"command": ["bash", "-c", script], "env": [{"name": "M", "value": "from the environment"}]}, None)
    assert isinstance(server, Server)
    assert server.model == model


def test_a_variable_that_the_script_sets_is_no_reference_to_the_environment() -> None:
    script = """S='{"method":"ngram","num_speculative_tokens":1}'; vllm serve m --speculative-config "$S" """
    server = read({"command": ["sh", "-c", script], "env": [{"name": "S", "value": "null"}]}, Version(0, 24, 0))
    assert isinstance(server, Server)
    assert (server.form, server.speculation) == (Form.SHELL, Speculation(Method.NGRAM, 1))


NOT_OURS = [
    "echo vllm serve m",
    "pgrep -f 'vllm serve' || true",
    "cat > run.sh <<'EOF'\nvllm serve m\nEOF\nsh run.sh",
    "command -v vllm",
    "# vllm serve m",
    "vllm bench serve",
    "vllm --version",
    "",
]


@pytest.mark.parametrize("script", NOT_OURS)
def test_what_only_names_the_server_does_not_start_it(script: str) -> None:
    result = read({"command": ["sh", "-c", script]}, None)
    assert isinstance(result, Unmanageable)
    assert result.reason == "NoVllmServer"


DOUBTFUL = [
    "eval 'vllm serve m'",
    "tmux new -d 'exec vllm serve m'",
    "vllm serve a & vllm serve b & wait",
    'run() { vllm serve "$@"; }; run m',
    "true && vllm serve m > log --port 1",
    "vllm serve m 2>&1 --port 1",
    "vllm serve m >log 2>&1 --port 1 | cat",
    "vllm serve m < in --speculative-config null",
    "vllm serve m <<EOF --port 1\nEOF",
    "echo --speculative-config x > args; vllm serve m $(cat args)",
    "vllm serve m && (",
    "vllm serve m --port 80\\\n80",
    "vllm serve m\\\n--port 80",
]


@pytest.mark.parametrize("script", DOUBTFUL)
def test_what_is_in_doubt_is_not_understood(script: str) -> None:
    result = read({"command": ["sh", "-c", script]}, None)
    assert isinstance(result, Unmanageable)
    assert result.reason == "CommandNotUnderstood"


def test_what_is_in_doubt_elsewhere_does_not_matter() -> None:
    script = 'curl $"x" a\\\nb http://h?a=[1]; vllm serve m --port 80'
    server = read({"command": ["bash", "-c", script]}, None)
    assert isinstance(server, Server)
    assert (server.model, server.port) == ("m", 80)


def test_letters_of_more_than_one_byte_keep_their_places() -> None:
    script = "echo 'größer — ünïcode'; vllm serve m --served-model-name 'é' --speculative-config null --x 'ß'"
    result = rewrite({"command": ["sh", "-c", script]}, Version(0, 24, 0), Speculation(Method.NGRAM, 1))
    assert isinstance(result, Rewritten)
    assert result.container["command"][2] == script.replace(
        "null", """'{"method":"ngram","num_speculative_tokens":1}'"""
    )


@pytest.mark.parametrize(
    "script",
    [
        "}[1]{\U000f1234}[1]$(\x1fif`$(A)&$(A)}serve#}",
        "|\udc80\r\udc80{\U000f1234\n\n{ \U000f1234=<<E|${B:-x}",
        "vllm serve m " + "(" * 5000,
        "vllm serve m " + '"$(' * 2000,
    ],
    ids=["letters beyond the scanner's tables", "a here-document among them", "parentheses", "substitutions"],
)
def test_no_script_brings_the_process_down(script: str) -> None:
    assert isinstance(read({"command": ["sh", "-c", script]}, None), Unmanageable)


def test_a_carriage_return_is_no_blank_to_the_shell_and_so_in_doubt() -> None:
    result = read({"command": ["bash", "-c", "vllm serve m --port 80\r\n"]}, None)
    assert isinstance(result, Unmanageable)
    assert result.reason == "CommandNotUnderstood"


def test_words_around_what_the_kubelet_puts_in_keep_their_places() -> None:
    script = "echo $$HOME $(A) $$$$; vllm serve $(A)/m --speculative-config null $(B) --port 1"
    container = {
        "command": ["sh", "-c", script],
        "env": [{"name": "A", "value": "a long value"}, {"name": "B", "value": "--x 1"}],
    }
    result = rewrite(container, Version(0, 24, 0), None, args={"--port": "2"})
    assert isinstance(result, Rewritten)
    assert result.container["command"][2] == script.replace("--port 1", "--port 2")
    result = rewrite(container, Version(0, 24, 0), Speculation(Method.NGRAM, 1))
    assert isinstance(result, Rewritten)
    assert result.container["command"][2] == script.replace(
        "null", """'{"method":"ngram","num_speculative_tokens":1}'"""
    )
