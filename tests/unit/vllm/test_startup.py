"""Why a server did not start is read from its log: real ones, and messages of releases that do not run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from specdecode.vllm.startup import QUOTED, Diagnosis, Ending, diagnose
from specdecode.vllm.startup_failures import SIGNATURES, Failure

DATA = Path(__file__).parents[2] / "data/startup"
QUOTES: list[dict[str, Any]] = yaml.safe_load((DATA / "from-source.yaml").read_text(encoding="utf-8"))

LOGS: dict[str, tuple[Failure, str]] = {
    "unknown-argument": (Failure.UNKNOWN_ARGUMENT, "the argument --speculative-disable-by-batch-size"),
    "unknown-key": (Failure.UNKNOWN_ARGUMENT, "the key disable_by_batch_size"),
    "invalid-value": (Failure.INVALID_ARGUMENT, "the argument --max-num-seqs has a value"),
    "malformed-json": (Failure.INVALID_ARGUMENT, "the argument --speculative-config/-sc has a value"),
    "short-and-long-flag": (Failure.INVALID_ARGUMENT, "remove --spec-tokens"),
    "lookup-range": (Failure.INVALID_ARGUMENT, "(5) is longer than the longest (2)"),
    "unknown-method": (Failure.METHOD_UNKNOWN, "no speculative method medusa2"),
    "no-draft-named": (Failure.METHOD_UNSUPPORTED, "names no draft model"),
    "no-arctic-inference": (Failure.DEPENDENCY_MISSING, "arctic-inference"),
    "k-missing": (Failure.TOKENS_OUT_OF_RANGE, "set numSpeculativeTokens"),
    "k-zero": (Failure.TOKENS_OUT_OF_RANGE, "num_speculative_tokens of 0"),
    "k-negative": (Failure.TOKENS_OUT_OF_RANGE, "num_speculative_tokens of -1"),
    "k-no-number": (Failure.TOKENS_OUT_OF_RANGE, "num_speculative_tokens of 'three'"),
    "schedule-start": (Failure.SCHEDULE_INVALID, "begin at 1"),
    "schedule-overlap": (Failure.SCHEDULE_INVALID, "not overlap"),
    "schedule-shape": (Failure.SCHEDULE_INVALID, "[first, last, K]"),
    "vocabulary": (
        Failure.VOCABULARIES_DIFFER,
        "the draft's vocabulary (320) differs from the target's (49,152): use a draft of the same family",
    ),
    "no-draft-at-path": (Failure.MODEL_MISSING, "no model at /models/absent in the container"),
    "no-target": (Failure.MODEL_MISSING, "no model at /models/absent in the container"),
    "no-such-repository": (Failure.MODEL_MISSING, "no model acme/absent on the hub"),
    "draft-without-config": (Failure.MODEL_MISSING, "/models/bare, or it has no config.json"),
    "draft-without-weights": (Failure.MODEL_MISSING, "/models/weightless has no weights"),
    "gated-repository": (Failure.MODEL_GATED, "acme/gated is gated"),
    "hub-unreachable": (Failure.HUB_UNREACHABLE, "acme/unreachable is not in the container's cache"),
    "corrupt-weights": (Failure.MODEL_UNUSABLE, "invalid header length"),
    "unknown-architecture": (Failure.MODEL_UNUSABLE, "architecture AlienForCausalLM"),
    "unknown-model-type": (Failure.MODEL_UNUSABLE, "models of type odd"),
    "remote-code": (Failure.MODEL_UNUSABLE, "--trust-remote-code"),
    "draft-quantization": (Failure.MODEL_UNUSABLE, "not quantised with awq"),
    "eagle-head-is-no-head": (Failure.MODEL_UNUSABLE, "LlamaModel has no model"),
    "draft-max-model-len": (Failure.CONTEXT_TOO_LONG, "100,000 tokens was asked for, and a model is made for 4,096"),
    "max-model-len": (Failure.CONTEXT_TOO_LONG, "1,000,000 tokens"),
    "draft-tensor-parallel": (Failure.TENSOR_PARALLEL, "over 2 GPUs"),
    "tensor-parallel-key": (Failure.TENSOR_PARALLEL, "draftModel.tensorParallelSize"),
    "tensor-parallel-too-many": (Failure.TENSOR_PARALLEL, "4 attention heads cannot be split over 64 GPUs"),
    "pipeline-parallel": (Failure.PIPELINE_PARALLEL, "pipeline parallelism"),
    "lora-budget": (Failure.BATCH_BUDGET, "max_num_seqs x (numSpeculativeTokens + 1)"),
    "async-scheduling": (Failure.ASYNC_SCHEDULING, "remove --async-scheduling"),
    "logits-processors": (Failure.FEATURE_CONFLICT, "--logits-processors"),
    "request-metrics-without-speculation": (Failure.FEATURE_CONFLICT, "--per-request-spec-decode-metrics"),
    "kv-cache-too-small": (Failure.KV_CACHE_TOO_SMALL, "1,024 tokens takes 0.02 GiB"),
    "kv-cache-none": (Failure.KV_CACHE_TOO_SMALL, "no room for a KV cache"),
    "allocation-failed": (Failure.HOST_OUT_OF_MEMORY, "4000.0 GiB"),
    "engine-killed": (Failure.HOST_OUT_OF_MEMORY, "was killed while it started"),
    "port-in-use": (Failure.PORT_IN_USE, "port"),
}


def log(name: str) -> str:
    return (DATA / f"{name}.log").read_text(encoding="utf-8")


def test_every_recorded_log_is_expected_to_say_something() -> None:
    assert {path.stem for path in DATA.glob("*.log")} == set(LOGS)


@pytest.mark.parametrize("name", LOGS)
def test_a_real_log_tells_what_is_wrong(name: str) -> None:
    failure, words = LOGS[name]
    found = diagnose(log(name))
    assert found is not None
    assert (found.failure, words in str(found)) == (failure, True), str(found)


@pytest.mark.parametrize("quote", QUOTES, ids=[f"{q['failure']}-{q['source']}" for q in QUOTES])
def test_a_message_of_another_release_tells_what_is_wrong(quote: dict[str, Any]) -> None:
    found = diagnose(quote["text"])
    assert found is not None
    assert (found.failure.value, quote["says"] in str(found)) == (quote["failure"], True), str(found)


def test_every_signature_has_a_message_that_it_was_made_for() -> None:
    texts = [log(name) for name in LOGS] + [quote["text"] for quote in QUOTES]
    assert not [s.pattern.pattern for s in SIGNATURES if not any(s.match(text) for text in texts)]


def test_a_log_prefixed_by_vllm_reads_like_one_that_is_not() -> None:
    text = "NotImplementedError: Unsupported speculative method: 'x'"
    plain = diagnose(text)
    assert plain is not None
    for prefix in (
        "(EngineCore_DP0 pid=12) ERROR 09-12 08:11:02 [core.py:718] ",
        "ERROR 01-22 08:11:02 core.py:387] ",
        "(APIServer pid=1) ",
    ):
        assert diagnose(prefix + text) == plain


def test_warnings_are_no_failure() -> None:
    warning = "(APIServer pid=1) WARNING 09-12 08:11:02 [utils.py:1] No space left on device: going on without a cache"
    assert diagnose(warning) is None


@pytest.mark.parametrize(
    ("ending", "failure", "words"),
    [
        (Ending(reason="OOMKilled", exit_code=137), Failure.HOST_OUT_OF_MEMORY, "memory limit"),
        (Ending(waiting="ImagePullBackOff"), Failure.IMAGE_UNAVAILABLE, "ImagePullBackOff"),
        (
            Ending(waiting="CreateContainerConfigError", message='secret "hub" not found'),
            Failure.CONTAINER_NOT_CREATED,
            'secret "hub" not found',
        ),
        (Ending(reason="Error", exit_code=137), Failure.KILLED, "startup or liveness probe"),
        (Ending(reason="Error", exit_code=3), Failure.UNRECOGNISED, "exit code 3"),
        (
            Ending(
                reason="Error",
                exit_code=1,
                message="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB",
            ),
            Failure.GPU_OUT_OF_MEMORY,
            "another 1 GiB",
        ),
    ],
)
def test_without_a_log_kubernetes_own_word_counts(ending: Ending, failure: Failure, words: str) -> None:
    found = diagnose("", ending)
    assert found is not None
    assert (found.failure, words in str(found)) == (failure, True), str(found)


def test_a_container_at_its_memory_limit_is_told_so_whatever_its_log_says() -> None:
    found = diagnose(log("port-in-use"), Ending(reason="OOMKilled", exit_code=137))
    assert found is not None
    assert found.failure is Failure.HOST_OUT_OF_MEMORY


def test_an_error_that_nobody_knows_is_quoted_in_short() -> None:
    text = f"ValueError: {'x' * 1000}\nRuntimeError: Engine core initialization failed."
    found = diagnose(text)
    assert found is not None
    assert found.failure is Failure.UNRECOGNISED
    assert found.cause.startswith("its log ends with “ValueError: xxx")
    assert len(found.cause) < QUOTED + 40


def test_a_server_that_runs_has_no_failure() -> None:
    assert diagnose("INFO 09-12 08:11:02 [api_server.py:1] Application startup complete.") is None


def test_no_secret_in_an_argument_is_repeated() -> None:
    found = diagnose("vllm: error: unrecognized arguments: --apikey s3cret --speculative-model x")
    assert found is not None
    assert "s3cret" not in str(found)


@given(st.text(max_size=2000), st.sampled_from([None, 0, 1, 137]))
def test_whatever_a_log_holds_it_is_read(text: str, code: int | None) -> None:
    found = diagnose(text, Ending(exit_code=code))
    assert found is None or isinstance(found, Diagnosis)
    assert found is None or not re.search(r"\{\w+\}", found.cure)
