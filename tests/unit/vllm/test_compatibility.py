"""What the operator takes a vLLM version for is what the release's own code answered (compatibility/results)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from specdecode.vllm.capabilities import KEYS, METHODS, NEWEST, capabilities
from specdecode.vllm.dialect import LEGACY
from specdecode.vllm.version import Version

RESULTS = Path(__file__).parents[3] / "compatibility/results"
RELEASES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
releases = pytest.mark.parametrize("found", RELEASES.values(), ids=RELEASES.keys())

Found = Mapping[str, Any]

_FROM_ELSEWHERE = {
    "target_model_config", "target_parallel_config", "draft_model_config", "draft_parallel_config",
    "enable_chunked_prefill", "disable_log_stats", "ngram_prompt_lookup_max", "ngram_prompt_lookup_min",
}  # fmt: skip
"""Fields that vLLM fills in itself."""
_TRAPS = {"tensor_parallel_size"}
"""Accepted by the class, and then refused with a hint at the right name."""


def version_of(found: Found) -> Version:
    version = Version.parse(found["version"])
    assert version is not None
    return version


def test_every_release_line_from_the_oldest_to_the_newest_was_checked() -> None:
    lines = {(v.major, v.minor) for v in map(version_of, RELEASES.values())}
    assert lines == {(0, minor) for minor in range(6, NEWEST.minor + 1)}
    assert max(map(version_of, RELEASES.values())) == NEWEST


@releases
def test_the_release_does_what_is_written_and_not_what_is_refused(found: Found) -> None:
    assert found["method"] == "executed"
    assert [case["case"] for case in found["cases"] if not case["agrees"]] == []


@releases
def test_the_keys_of_a_configuration_are_the_fields_of_the_class(found: Found) -> None:
    version = version_of(found)
    if version < Version(0, 8, 3):
        flags = {flag.key for flag in LEGACY}
        assert capabilities(version).keys - {"method", "revision", "code_revision"} == flags
        return
    fields = set(found["keys"]) - _FROM_ELSEWHERE - _TRAPS
    assert capabilities(version).keys == fields & KEYS.keys()
    assert fields <= KEYS.keys(), "keys that the table does not have"


@pytest.mark.parametrize("found", [f for f in RELEASES.values() if f["methods"]], ids=lambda f: f["version"])
def test_the_methods_of_a_version_are_those_that_the_release_names_and_drafts_with(found: Found) -> None:
    able, named = capabilities(version_of(found)), set(found["methods"])
    if version_of(found) >= Version(0, 10):  # before, the class took any name
        assert {method for method in METHODS if able.method(method)} <= named
    refused = {m for m in named & METHODS.keys() if not able.method(m)}
    assert refused <= {"draft_model", "mlp_speculator"}, "refused though the release names them"


@releases
def test_the_flags_of_a_version_are_those_of_its_parser(found: Found) -> None:
    able, flags = capabilities(version_of(found)), set(found["flags"])
    assert able.reads_speculative_config is ("--speculative-config" in flags)
    assert able.short_config_flag is ("-sc" in flags)
    assert able.short_flags is ({"--spec-method", "--spec-model", "--spec-tokens"} <= flags)
    assert able.per_request_metrics is ("--per-request-spec-decode-metrics" in flags)
    assert able.legacy_flags is ({flag.flag for flag in LEGACY} <= flags)


@releases
def test_the_threshold_is_honoured_just_where_the_engine_that_runs_reads_it(found: Found) -> None:
    able = capabilities(version_of(found))
    for case, method, forced in (
        ("n-gram, off from batch size 32", "ngram", False),
        ("draft model, off from batch size 32", "draft_model", False),
        ("EAGLE, off from batch size 32", "eagle", False),
        ("Medusa, off from batch size 32", "medusa", False),
        ("n-gram, off from batch size 32, V1 forced", "ngram", True),
    ):
        answer = next(c for c in found["cases"] if c["case"] == case)
        honoured = answer["outcome"] == "as meant" or answer.get("engine") in found["threshold_read_by"]
        assert able.disable_by_batch_size(method, forced) is honoured


@releases
def test_ngram_may_pad_from_the_release_that_runs_it_on_model_runner_v2(found: Found) -> None:
    assert capabilities(version_of(found)).ngram_may_pad is found["pads_ngram"]


@releases
def test_every_figure_that_is_read_from_the_pages_of_a_release_is_right_or_missing(found: Found) -> None:
    for seen in found["observed"].values():
        assert set(seen.values()) <= {"right", "missing"}


@releases
def test_what_the_pages_of_a_release_lack_is_known(found: Found) -> None:
    able = capabilities(version_of(found))
    for server, seen in found["observed"].items():
        families = {family.split()[0] for family in found["families"][server]}
        assert (seen["tpot_seconds"] == "right") is (able.request_tpot_metric is not None)
        assert able.kv_usage_metric in families or server.startswith("V0")
