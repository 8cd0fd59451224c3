"""Holds what the operator writes for a version against what the release itself says to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from compatibility.cases import MAX_NUM_SEQS, Case, Line
from specdecode.vllm.capabilities import Span
from specdecode.vllm.dialect import SCHEDULE, encode
from specdecode.vllm.speculation import Speculation
from specdecode.vllm.version import Version


@dataclass(frozen=True)
class Caution:
    """What the operator does not write though the release would do as meant."""

    cases: tuple[str, ...]
    versions: Span
    reason: str


CAUTIONS = (
    Caution(
        ("EAGLE", "Medusa", "MLP speculator", "EAGLE, off from batch size 32", "Medusa, off from batch size 32"),
        Span(until=Version(0, 8, 3)),
        "the flags have no word for the method: the checkpoint alone decides which one runs",
    ),
    Caution(
        ("n-gram, K by batch size, data-parallel",),
        Span(Version(0, 24), Version(0, 26)),
        "replicas may choose different K and wait for each other forever; 0.26 has the guard",
    ),
    Caution(
        ("n-gram on the GPU, K by batch size", "DSpark, K by batch size", "custom class, K by batch size"),
        Span(Version(0, 33)),
        "Model Runner V1 drops it, and which runner a server has is not on its pages",
    ),
)


class Outcome(StrEnum):
    """What a release does with a command line."""

    AS_MEANT = "as meant"
    REFUSED = "refused"
    OTHERWISE = "otherwise"
    """Accepted, and something else is done: a key is ignored, or another method runs."""


@dataclass(frozen=True)
class Result:
    """One case on one release."""

    case: str
    words: tuple[str, ...]
    """What is, or would be, written about speculation."""
    refusal: str | None
    """Why the operator does not write it; None: it does."""
    outcome: Outcome
    detail: str
    """Where the release is not as meant, in its own words or in the difference."""
    engine: str | None
    model_runner: str | None
    drafter: str | None
    caution: str | None
    """Why it is not written though the release does as meant."""

    @property
    def agrees(self) -> bool:
        """Whether the operator writes what the release does as meant, and nothing else."""
        if self.refusal is None or self.caution is None:
            return (self.refusal is None) == (self.outcome is Outcome.AS_MEANT)
        return True


def result(
    case: Case, line: Line, version: Version, answer: Mapping[str, Any], threshold_read_by: Sequence[str]
) -> Result:
    """What the release's answer to a line means."""
    caution = next((c.reason for c in CAUTIONS if case.name in c.cases and version in c.versions), None)
    words = _about_speculation(line.words)
    engine, runner, drafter = (answer.get(key) for key in ("engine", "model_runner", "drafter"))
    if "refused_by" in answer:
        outcome, detail = Outcome.REFUSED, f"{answer['refused_by']}: {_first_lines(answer['message'])}"
    elif "drafter" in answer and drafter is None:
        outcome, detail = Outcome.REFUSED, "model runner: no class drafts for this method"
    else:
        wrong = _differences(case.speculation, answer["config"], engine, threshold_read_by)
        outcome, detail = (Outcome.OTHERWISE if wrong else Outcome.AS_MEANT), "; ".join(wrong)
    return Result(case.name, words, line.refusal, outcome, detail, engine, runner, drafter, caution)


def _about_speculation(words: Sequence[str]) -> tuple[str, ...]:
    start = next((i for i, word in enumerate(words) if "spec" in word or "ngram" in word), len(words))
    return tuple(words[start:])


def _first_lines(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines()[:3] if "pydantic.dev" not in line)[:160]


def _differences(
    meant: Speculation | None, config: Mapping[str, Any] | None, engine: str | None, threshold_read_by: Sequence[str]
) -> list[str]:
    if meant is None or config is None:
        return [] if meant is None and config is None else [f"speculation is {'off' if config is None else 'on'}"]
    asked = encode(meant)
    schedule = asked.pop(SCHEDULE, None)
    wrong = [f"{key} is {config.get(key)}" for key, value in asked.items() if key in config and config[key] != value]
    if schedule is not None:
        expected = [meant.k_at(b) for b in range(1, MAX_NUM_SEQS + 1)]
        if config["k_by_batch_size"] is None:
            wrong.append("K by batch size is dropped")
        elif config["k_by_batch_size"] != expected:
            wrong.append("K by batch size is another")
    if meant.disable_by_batch_size is not None and engine not in threshold_read_by:
        wrong.append(f"the {engine} engine never reads disable_by_batch_size")
    return wrong
