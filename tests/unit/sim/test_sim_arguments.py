"""vLLM's command line by version: what the simulated server takes and what it refuses, with which exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specdecode.sim.arguments import ArgumentsError, parse_arguments, strip_launcher
from specdecode.vllm.speculation import BatchRange, Method
from specdecode.vllm.version import Version

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
DRAFT = {"method": "draft_model", "model": "org/draft", "num_speculative_tokens": 3}
SCHEDULE = "num_speculative_tokens_per_batch_size"


def version(text: str) -> Version:
    found = Version.parse(text)
    assert found is not None
    return found


def config(value: Any) -> list[str]:
    return ["m", "--speculative-config", json.dumps(value)]


@pytest.mark.parametrize(
    ("release", "argv", "status", "says"),
    [
        (
            "0.24.0",
            ["m", "--speculative-disable-by-batch-size", "4"],
            2,
            "unrecognized arguments: --speculative-disabl",
        ),
        ("0.8.3", ["m", "--speculative-model", "d"], 2, "unrecognized arguments: --speculative-model"),
        ("0.8.1", config(NGRAM), 2, "unrecognized arguments: --speculative-config"),
        ("0.18.0", ["m", "-sc", json.dumps(NGRAM)], 2, "unrecognized arguments: -sc"),
        ("0.21.0", ["m", "--spec-method", "ngram"], 2, "unrecognized arguments: --spec-method"),
        ("0.24.0", ["m", "--no-such-flag"], 2, "vllm serve: error: unrecognized arguments: --no-such-flag"),
        ("0.24.0", ["m", "--max-num-seqs", "many"], 2, "invalid int value: 'many'"),
        ("0.17.0", config({**NGRAM, "disable_by_batch_size": 8}), 1, "disable_by_batch_size\n  Unexpected keyword"),
        ("0.23.0", config({**NGRAM, SCHEDULE: [[1, 8, 3]]}), 1, "num_speculative_tokens_per_batch_size\n  Unexpected"),
        ("0.32.0", config({**NGRAM, "surprise": 1}), 1, "input_value=1, input_type=int"),
        ("0.9.1", config({**NGRAM, "surprise": 1}), 1, r"TypeError: SpeculativeConfig.__init__\(\) got an unexpected"),
        ("0.10.0", config(DRAFT), 1, "NotImplementedError: Draft model speculative decoding is not supported yet"),
        ("0.14.1", config(DRAFT), 1, "NotImplementedError"),
        ("0.33.0", config({"method": "medusa", "num_speculative_tokens": 3}), 1, "method='medusa'"),
        ("0.24.0", config({"method": "suffix", "num_speculative_tokens": 3}), 1, "Arctic Inference is required"),
        ("0.24.0", config({"method": "ngram"}), 1, "num_speculative_tokens must be provided"),
        ("0.24.0", config({"num_speculative_tokens": 3}), 1, "without speculative model"),
        ("0.24.0", config({**NGRAM, "num_speculative_tokens": 0}), 1, "greater than 0"),
        ("0.24.0", config({**NGRAM, "num_speculative_tokens": "three"}), 1, "num_speculative_tokens"),
        ("0.24.0", config({**NGRAM, "prompt_lookup_min": 9}), 1, "prompt_lookup_min=9 must be <= prompt_lookup_max=4"),
        ("0.24.0", config({**NGRAM, SCHEDULE: {"1-8": 3}}), 1, "valid tuple"),
        ("0.24.0", config({**DRAFT, "draft_tensor_parallel_size": 2}), 1, "draft_tensor_parallel_size"),
        ("0.16.0", config({**NGRAM, "disable_by_batch_size": 1}), 1, "batch size threshold"),
        ("0.32.0", config({**NGRAM, "tensor_parallel_size": 1}), 1, "Please pass 'draft_tensor_parallel_size'"),
        ("0.24.0", config({}), 1, "empty"),
        ("0.24.0", config([1]), 2, "cannot be converted"),
        ("0.24.0", [*config(NGRAM), "--spec-tokens", "2"], 1, "exclude each other"),
        ("0.32.0", [*config(NGRAM), "--async-scheduling"], 1, "async scheduling is not supported with ngram"),
        ("0.32.0", ["m", "--per-request-spec-decode-metrics", "summary"], 1, "requires a speculative config"),
        ("0.24.0", ["m", "--config", "settings.json"], 1, "must be of a yaml/yml type"),
    ],
)
def test_what_a_version_refuses_ends_with_its_message_and_status(
    release: str, argv: list[str], status: int, says: str
) -> None:
    with pytest.raises(ArgumentsError, match=says) as caught:
        parse_arguments(argv, version(release))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("release", "argv"),
    [
        ("0.8.2", ["m", "--speculative-model", "[ngram]", "--num-speculative-tokens", "3"]),
        ("0.8.3", config(NGRAM)),
        ("0.9.2", config(DRAFT)),
        ("0.15.0", config(DRAFT)),
        ("0.19.0", ["m", "-sc", json.dumps(NGRAM)]),
        ("0.22.0", ["m", "--spec-method", "ngram", "--spec-tokens", "3"]),
        ("0.24.0", ["m", f"--speculative_config={json.dumps(NGRAM)}"]),
        ("0.24.0", config({"num-speculative-tokens": 3, "model": "org/draft"})),
        ("0.24.0", ["m", "--speculative-config.method", "ngram", "--speculative-config.num_speculative_tokens=3"]),
        ("0.32.0", ["serve", "m", "--trust-remote-code", "-tp", "2", *config(NGRAM)[1:]]),
    ],
)
def test_every_spelling_a_version_has_means_the_same(release: str, argv: list[str]) -> None:
    speculation = parse_arguments(argv, version(release)).speculation
    assert speculation is not None
    assert speculation.method in (Method.NGRAM, Method.DRAFT_MODEL)
    assert speculation.num_speculative_tokens == 3


@pytest.mark.parametrize("value", ["null", ""])
def test_null_and_nothing_mean_no_speculation(value: str) -> None:
    assert parse_arguments(["m", f"--speculative-config={value}"], Version(0, 24)).speculation is None


@pytest.mark.parametrize(
    ("release", "spec", "honoured"),
    [("0.8.5", NGRAM, 8), ("0.9.2", NGRAM, None), ("0.9.2", DRAFT, 8), ("0.16.0", DRAFT, None)],
)
def test_the_old_threshold_counts_only_where_the_engine_read_it(
    release: str, spec: dict[str, Any], honoured: int | None
) -> None:
    speculation = parse_arguments(config({**spec, "disable_by_batch_size": 8}), version(release)).speculation
    assert speculation is not None
    assert speculation.disable_by_batch_size == honoured


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        ([], "must not be empty"),
        ([[2, 8, 3]], "must start at 1"),
        ([[1, 8, 3], [4, 9, 1]], "must not overlap"),
        ([[1, 8, 3], [20, 9, 1]], r"invalid range \[20, 9, 1\]"),
        ([[1, 8, -1]], "invalid range"),
    ],
)
def test_a_bad_schedule_passes_the_arguments_and_kills_the_engine_later(ranges: list[list[int]], says: str) -> None:
    args = parse_arguments(config({**NGRAM, SCHEDULE: ranges}), Version(0, 24))
    assert args.fails_late is not None
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(args.fails_late)


def test_a_good_schedule_is_kept_and_dropped_with_data_parallelism() -> None:
    argv = config({**NGRAM, SCHEDULE: [[1, 64, 3], [65, 512, 0]]})
    kept = parse_arguments(argv, Version(0, 24)).speculation
    dropped = parse_arguments([*argv, "-dp", "2"], Version(0, 26)).speculation
    assert kept is not None
    assert dropped is not None
    assert kept.schedule == (BatchRange(1, 64, 3), BatchRange(65, 512, 0))
    assert dropped.schedule == ()


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"synthetic_acceptance_rates": [0.7, 0.49, 0.343]}, (0.7, 0.49, 0.343)),
        ({"synthetic_acceptance_length": 2.5}, (1.0, 0.5, 0.0)),
    ],
)
def test_synthetic_acceptance_is_read_as_vllm_reads_it(rates: dict[str, Any], expected: tuple[float, ...]) -> None:
    args = parse_arguments(config({**NGRAM, "rejection_sample_method": "synthetic", **rates}), Version(0, 24))
    assert args.synthetic_rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("argv", "prog", "rest"),
    [
        (["serve", "m"], "vllm serve", ["m"]),
        (["vllm", "serve", "m", "--port", "1"], "vllm serve", ["m", "--port", "1"]),
        (["/usr/local/bin/vllm", "serve", "m"], "vllm serve", ["m"]),
        (["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"], "api_server.py", ["--model", "m"]),
        (
            ["python", "-u", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"],
            "api_server.py",
            ["--model", "m"],
        ),
        (["python3", "-m", "vllm.entrypoints.cli.main", "serve", "m"], "vllm serve", ["m"]),
        (["--model", "m"], "vllm serve", ["--model", "m"]),
        ([], "vllm serve", []),
    ],
)
def test_every_way_to_start_vllm_leads_to_the_same_server(argv: list[str], prog: str, rest: list[str]) -> None:
    assert strip_launcher(argv) == (prog, rest)


def test_sizes_names_and_switches_are_read() -> None:
    argv = (
        "m --served-model-name a b --max-model-len 4k --max-num-batched-tokens 2K --stream-interval 8 --api-key k"
        " --no-enable-prefix-caching --disable-log-stats --host 127.0.0.1 --port 9 --seed 7"
    )
    args = parse_arguments(argv.split(), Version(0, 24))
    assert (args.model, args.served_model_names, args.host, args.port) == ("m", ("a", "b"), "127.0.0.1", 9)
    assert (args.max_model_len, args.max_num_batched_tokens, args.stream_interval) == (4000, 2048, 8)
    assert (args.api_keys, args.enable_prefix_caching, args.log_stats, args.seed) == (("k",), False, False, 7)


def test_a_yaml_file_gives_arguments_that_the_command_line_overrides(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text("port: 1\nmax_num_seqs: 7\ntrust-remote-code: true\nspeculative-config:\n  method: ngram\n"
                    "  num_speculative_tokens: 2\n")  # fmt: skip
    args = parse_arguments(["m", "--config", str(file), "--port", "2"], Version(0, 24))
    assert (args.model, args.port, args.max_num_seqs) == ("m", 2, 7)
    assert args.speculation is not None
    assert args.speculation.num_speculative_tokens == 2
