"""What `specdecode status` and `specdecode explain` show."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from specdecode.api.v1alpha1 import (
    BatchRangeStatus,
    Configuration,
    HistoryEntry,
    Interval,
    Outcome,
    RolloutPhase,
    SpecDecodePolicySpec,
    SpecDecodePolicyStatus,
)
from specdecode.cli import cluster, status
from specdecode.cli.main import app
from specdecode.cluster.kube import ApiError, Json, KubeconfigError
from specdecode.controller.report import report
from specdecode.policy.clock import text_of
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation, Problem
from specdecode.rollout.phases import advance
from support.world import NOW, SPEC, merged, observation, option, spec, traffic

EMPTY = SpecDecodePolicyStatus()


def after(o: Observation) -> SpecDecodePolicyStatus:
    d = decide(o)
    return report(o, d, advance(o, d), EMPTY)


def explained(s: SpecDecodePolicyStatus, policy: SpecDecodePolicySpec | None = None, now: float = NOW + 90) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(status.explanation("serving/chat", policy or spec(), s, now))
    return out.getvalue()


def listed(monkeypatch: pytest.MonkeyPatch, *policies: Json, arguments: tuple[str, ...] = ("status",)) -> Any:
    async def found(*_: Any) -> list[Json]:
        return list(policies)

    monkeypatch.setattr(status, "policies", found)
    monkeypatch.setattr(cluster, "policies", found)
    return CliRunner().invoke(app, list(arguments))


def policy(s: SpecDecodePolicyStatus, namespace: str = "serving", **changes: Any) -> Json:
    dumped = s.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"metadata": {"name": "chat", "namespace": namespace}, "spec": merged(SPEC, changes), "status": dumped}


RECOMMENDING = observation(spec(mode="Recommend"))


def test_each_policy_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = {"metadata": {"name": "new", "namespace": "serving"}, "spec": SPEC}
    suspended = policy(after(replace(RECOMMENDING, policy=spec(suspend=True))), suspend=True)
    result = listed(
        monkeypatch, policy(after(RECOMMENDING), mode="Recommend"), policy(after(observation())), fresh, suspended
    )
    assert result.exit_code == 0
    head, *lines = [line.split() for line in result.output.splitlines()]
    assert head == ["NAMESPACE", "NAME", "MODE", "ACTIVE", "RECOMMENDED", "GAIN", "ACCEPT", "BATCH", "TPOT", "STATE"]
    assert [line[:5] for line in lines] == [
        ["serving", "chat", "Recommend", "disabled", "ngram"],
        ["serving", "chat", "Auto", "disabled", "ngram"],
        ["serving", "new", "Auto", "-", "-"],
        ["serving", "chat", "suspended", "disabled", "-"],
    ]
    assert lines[0][8:] == ["8.0", "20.0", "ms", "WorthACanary"]
    assert [" ".join(line[-2:]) for line in lines[1:3]] == ["Starting ngram", "at yet"]


def test_no_policies_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed(monkeypatch).output == "No policies in any namespace.\n"
    assert listed(monkeypatch, arguments=("status", "-n", "a")).output == "No policies in namespace a.\n"


@pytest.mark.parametrize(
    ("o", "state"),
    [
        (replace(RECOMMENDING, workload=None, menu=None), "WorkloadMissing"),
        (replace(RECOMMENDING, problem=Problem("VersionUnknown", "set spec.vllmVersion")), "VersionUnknown"),
        (observation(spec(mode="Recommend"), pods=()), "MetricsMissing"),
        (RECOMMENDING, "WorthACanary"),
        (observation(), "Starting ngram"),
    ],
)
def test_the_state_is_what_matters_most(o: Observation, state: str) -> None:
    assert str(status._line(o.policy, after(o))[-1]) == state


def test_a_policy_that_nobody_looked_at_says_so() -> None:
    assert "Is it running?" in explained(EMPTY)


def test_a_recommendation_is_explained() -> None:
    text = explained(after(RECOMMENDING), RECOMMENDING.policy)
    assert "serving/chat: Deployment chat, mode Recommend" in text
    assert "disabled on vLLM 0.24.0" in text
    assert "run ngram, expected gain +" in text
    assert "WorthACanary: " in text and "a canary will tell" in text
    assert "3 pods, 402 tokens/s each, 8 requests per step, 0 waiting, KV cache 30% full" in text
    assert "written 1m30s ago; looks every 5s, 1m back" in text
    assert "*disabled" in text and "Problems" not in text and "Change under way" not in text


def test_a_change_is_explained_by_its_phase_and_its_age() -> None:
    first = after(observation())
    assert first.rollout is not None
    update = {
        "phase": RolloutPhase.ANALYSING,
        "started_at": text_of(NOW - 600),
        "phase_started_at": text_of(NOW - 30),
        "gain": Interval(value=0.25, low=0.1, high=0.4),
    }
    text = explained(first.model_copy(update={"rollout": first.rollout.model_copy(update=update)}), now=NOW)
    assert "disabled to ngram, Analysing for 30s, begun 10m ago" in text
    assert "canary's gain +25 % (+10 to +40 %)" in text
    assert "Decision" not in text, "what it decided is what it does"


def test_problems_and_past_changes_are_listed_word_for_word() -> None:
    """Messages quote command lines: `[red]` is text there, not a colour, and `:bug:` no picture."""
    quoted = "'vllm serve m [red] --x=[1, 2] :bug:' starts in 2 places"
    s = after(replace(RECOMMENDING, problem=Problem("CommandNotUnderstood", quoted)))
    ended = HistoryEntry(
        id="x",
        policy_generation=1,
        source=Configuration(profile="disabled"),
        target=Configuration(profile="ngram", schedule=[BatchRangeStatus(start=1, end=31, k=5)]),
        reason="CheaperProfile",
        outcome=Outcome.FAILED,
        outcome_reason="Slower",
        message="took [bold]too long[/bold]",
        started_at=text_of(NOW - 600),
        finished_at=text_of(NOW - 30),
    )
    text = explained(s.model_copy(update={"history": [ended]}))
    assert f"Ready: CommandNotUnderstood. {quoted}" in text
    assert "took [bold]too long[/bold]" in " ".join(text.split())
    assert "ngram (K=5 for 1 to 31 requests)" in " ".join(text.split())
    assert "2m ago" in text and "Failed" in text


def test_what_speculation_showed_is_in_the_table() -> None:
    o = observation(active=option(RECOMMENDING.menu, "ngram"), window=traffic(acceptance=0.75))  # type: ignore[arg-type]
    text = explained(after(o))
    assert "0.75 0.75 0.75" in text and "acceptance 0.75, accepted length 4.75" in text


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        (None, "unknown"),
        (Configuration(profile="ngram"), "ngram"),
        (Configuration(profile="ngram", disable_by_batch_size=32), "ngram, off from batch size 32"),
    ],
)
def test_a_configuration_in_words(configuration: Configuration | None, words: str) -> None:
    assert status.configured(configuration) == words


# --- finding the policy -------------------------------------------------------------------------------------------


def test_explain_finds_the_policy_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    result = listed(monkeypatch, policy(after(RECOMMENDING)), arguments=("explain", "chat"))
    assert result.exit_code == 0 and "serving/chat: Deployment chat" in result.output


@pytest.mark.parametrize(
    ("policies", "arguments", "says"),
    [
        ((), ("explain", "chat"), "there is no policy chat in any namespace"),
        ((), ("explain", "chat", "-n", "a"), "there is no policy chat in namespace a"),
        ((policy(EMPTY, "a"), policy(EMPTY, "b")), ("explain", "chat"), "several policies are named chat: add -n"),
    ],
)
def test_a_policy_that_is_not_clear_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, policies: tuple[Json, ...], arguments: tuple[str, ...], says: str
) -> None:
    result = listed(monkeypatch, *policies, arguments=arguments)
    assert result.exit_code == 1 and says in result.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ApiError(404, "NotFound", "no such resource"), "is the CRD installed"),
        (ApiError(403, "Forbidden", "may not list"), "403 Forbidden: may not list"),
        (ConnectionRefusedError("refused"), "the API server cannot be reached: refused"),
        (KubeconfigError("cannot use the kubeconfig x: empty"), "--kubeconfig"),
    ],
)
def test_what_the_cluster_refuses_is_a_message_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    async def refuse(*_: Any) -> list[Json]:
        raise error

    monkeypatch.setattr(status, "policies", refuse)
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert says in result.stderr
