"""The documentation is true: its links lead somewhere, its commands exist, what the operator says is explained."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from prometheus_client import CollectorRegistry

from specdecode.api.conditions import ConditionType
from specdecode.api.v1alpha1 import API_VERSION, KIND, Outcome, RolloutPhase, SpecDecodePolicySpec
from specdecode.cli.main import app
from specdecode.controller.telemetry import Telemetry
from specdecode.model.memory import Trouble
from specdecode.policy import decision
from specdecode.policy.brakes import BRAKES
from specdecode.policy.gates import CHAIN
from specdecode.policy.live import NotLive
from specdecode.policy.observation import Obstacle
from specdecode.rollout.ending import Ending
from specdecode.vllm import unmanageable
from specdecode.vllm.effective import Mismatch
from specdecode.vllm.startup_failures import Failure

REPOSITORY = Path(__file__).parents[3]
SOURCE = REPOSITORY / "operator/specdecode"
DOCUMENTS = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "charts/*/*.md",
        "operator/specdecode/data/*.md",
        "benchmarks/*.md",
        "plugin/*.md",
    )
    for path in sorted(REPOSITORY.glob(pattern))
}
OPERATIONS = DOCUMENTS["docs/operations.md"]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """A document without its code blocks."""
    return _FENCE.sub("", text)


def code(text: str) -> Iterator[str]:
    """Lines of code blocks, comments left out, and spans of code."""
    for _, language, block in _FENCE.findall(text):
        if language in ("", "console", "bash", "sh"):
            yield from (line.split(" #")[0].strip().removeprefix("$ ") for line in block.splitlines())
    yield from (line.strip() for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE))
    yield from _SPAN.findall(prose(text))


def code_of_all() -> list[tuple[str, str]]:
    """Every piece of code with the document that it is in."""
    return [(name, piece) for name, text in DOCUMENTS.items() for piece in code(text)]


def anchors(text: str) -> set[str]:
    """What a link into the document may name, by GitHub's rule."""
    headings = re.findall(r"^#+ +(.+?)\s*$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- what it points to exists ---


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in _LINK.findall(prose(DOCUMENTS[name])):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (REPOSITORY / name).parent / target if target else REPOSITORY / name
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


def test_every_document_is_in_the_index() -> None:
    index = DOCUMENTS["docs/README.md"]
    listed = {(REPOSITORY / "docs" / link.partition("#")[0]).resolve() for link in _LINK.findall(index)}
    documents = {REPOSITORY / name for name in DOCUMENTS if name.startswith("docs/") and name != "docs/README.md"}
    assert not documents - listed


def test_files_that_are_named_exist() -> None:
    named = {
        (name, span)
        for name, text in DOCUMENTS.items()
        for span in _SPAN.findall(prose(text))
        if re.fullmatch(r"(\.?[\w-]+/)+[\w.-]+\.(py|md|yaml|json|jsonl|svg|sh|gz|mod)", span)
    }
    roots = (REPOSITORY, REPOSITORY / "operator", SOURCE, SOURCE / "data")
    elsewhere = ("demo-output/", "v1/", "config/", "engine/")  # what the demo writes; files of vLLM
    missing = {(name, span) for name, span in named if not any((root / span).exists() for root in roots)}
    assert not {(name, span) for name, span in missing if not span.startswith(elsewhere)}


# --- what it shows can be used ---

_COMMAND = re.compile(r"(?:^|\$\(|&& |\.venv/bin/|kubectl )specdecode ([^)&|;\"`]+)")


def commands() -> set[tuple[str, str]]:
    """Every `specdecode …` that a document names, with the document."""
    return {(name, found.strip()) for name, piece in code_of_all() for found in _COMMAND.findall(piece)}


def test_commands_of_the_command_line_exist() -> None:
    assert len(commands()) > 10, "the documents name more commands than that: does the search still find them?"
    unknown = [(name, line) for name, line in commands() if not _known(line.split())]
    assert not unknown


def _known(words: list[str]) -> bool:
    """Whether a command line is one that `specdecode` takes; its arguments may be left out."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    if any(word.startswith("-") and word.partition("=")[0] not in options for word in words):
        return False
    if hasattr(command, "commands"):  # a group does nothing by itself
        return bool(words) and words[0].startswith("-")
    takes_words = any(p.param_type_name == "argument" for p in command.params)
    return takes_words or not words or words[0].startswith("-")


@pytest.mark.parametrize(
    ("line", "known"),
    {
        "lab up --gpus 4": True,
        "replay DIR -o json": True,
        "--version": True,
        "lab": False,
        "lab sideways": False,
        "crd now": False,
        "status --loud": False,
    }.items(),
)
def test_the_check_of_commands_tells_good_from_bad(line: str, known: bool) -> None:
    assert _known(line.split()) is known


def test_targets_of_make_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {(name, t) for name, piece in code_of_all() for t in re.findall(r"(?:^|&& )make ([a-z-]+)", piece)}
    assert {("README.md", "demo"), ("README.md", "test")} <= named
    assert not {(name, target) for name, target in named if target not in targets}


def policies() -> list[tuple[str, dict[str, Any]]]:
    """Every policy in a document or an example."""
    texts = [
        (name, block) for name, text in DOCUMENTS.items() for _, lang, block in _FENCE.findall(text) if lang == "yaml"
    ]
    texts += [
        (path.name, path.read_text(encoding="utf-8")) for path in sorted((REPOSITORY / "examples").glob("*.yaml"))
    ]
    found = [(name, part) for name, text in texts for part in yaml.safe_load_all(text)]
    return [(name, part) for name, part in found if isinstance(part, dict) and part.get("kind") == KIND]


@pytest.mark.parametrize(("name", "policy"), policies(), ids=[name for name, _ in policies()])
def test_policies_can_be_applied(name: str, policy: dict[str, Any]) -> None:
    assert policy["apiVersion"] == API_VERSION
    spec = SpecDecodePolicySpec.model_validate(policy["spec"])
    written = spec.model_dump(by_alias=True, mode="json")
    assert not set(_paths(policy["spec"])) - set(_paths(written)), (
        "a field that the API does not know is dropped silently"
    )


def _paths(value: Any, at: str = "") -> Iterator[str]:
    """Paths of all fields."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{at}.{key}"
            yield from _paths(inner, f"{at}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, f"{at}[]")


# --- what the operator says is explained ---


def rows(text: str, cell: int) -> set[str]:
    """The words in code in one column of all tables."""
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {word for row in cells if len(row) > cell for word in _SPAN.findall(row[cell])}


def test_every_condition_is_explained() -> None:
    assert {c.value for c in ConditionType} <= rows(OPERATIONS, 0)


def test_every_reason_is_explained() -> None:
    assert {r.value for r in decision.Reason} <= rows(OPERATIONS, 0)


def test_every_reason_not_to_manage_a_workload_is_explained() -> None:
    obstacles = {o.value for o in Obstacle}
    assert {r.value for r in unmanageable.Reason} | obstacles <= rows(OPERATIONS, 0)


def test_every_way_in_which_an_engine_may_differ_and_a_schedule_not_be_live_is_explained() -> None:
    assert {m.value for m in Mismatch} | {n.value for n in NotLive} <= rows(OPERATIONS, 0)


def test_every_reason_why_the_memory_cannot_be_used_is_explained() -> None:
    assert {t.value for t in Trouble} <= rows(OPERATIONS, 0)


def test_every_end_of_a_change_is_explained() -> None:
    assert {e.value for e in Ending} <= rows(OPERATIONS, 1)


def test_every_failure_to_start_is_explained() -> None:
    assert {f.value for f in Failure} <= rows(OPERATIONS, 0)


def test_every_phase_and_outcome_and_its_event_is_explained() -> None:
    phases, outcomes = {p.value for p in RolloutPhase}, {o.value for o in Outcome}
    entered = phases - {RolloutPhase.STARTING.value} | {"Started"}
    assert phases | outcomes | {f"Change{word}" for word in entered | outcomes} <= rows(OPERATIONS, 0)


def test_every_metric_is_explained() -> None:
    registry = CollectorRegistry()
    Telemetry(registry)
    families = {f"{f.name}_total" if f.type == "counter" else f.name for f in registry.collect()}
    assert len(families) > 10
    assert families == {word for word in rows(OPERATIONS, 0) if word.startswith("specdecode_")}


def test_the_gates_and_brakes_are_listed_in_their_order() -> None:
    names = re.findall(r"^\| `(\w+)` \|", DOCUMENTS["docs/architecture.md"], re.MULTILINE)
    order = [rule.__name__ for rule in (*CHAIN, *BRAKES)]
    assert [name for name in names if name in order] == order


def test_the_figures_of_the_readme_are_those_of_its_picture() -> None:
    text = " ".join(DOCUMENTS["README.md"].split())
    why = runpy.run_path(str(REPOSITORY / "docs/images/why.py"))
    ratios = why["ratios"]()
    ngram, draft, held = ratios[why["NGRAM"]], ratios[why["DRAFT"]], ratios[why["HELD"]]
    assert f"{ngram[1]:.1f} times as fast at batch size 1, and {ngram[256]:.2f} times as fast at 256" in text
    assert f"{draft[1]:.1f} times and {draft[256]:.2f} times" in text
    assert f"{1 - max(held.values()):.0%}"[:-1] + f" to {1 - min(held.values()):.0%}".replace("%", " %") in text
    assert ngram[32] > draft[32] and draft[64] > ngram[64] > 1 > draft[128] > ngram[128]
