"""What each version accepts, at the versions where it changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specdecode.vllm.capabilities import KEYS, METHODS, Capabilities, capabilities
from specdecode.vllm.version import Version


def at(text: str) -> Capabilities:
    version = Version.parse(text)
    assert version is not None
    return capabilities(version)


BOUNDARIES: list[tuple[str, Callable[[Capabilities], bool], str, str]] = [
    ("legacy flags end", lambda c: not c.legacy_flags, "0.8.2", "0.8.3"),
    ("--speculative-config is accepted", lambda c: c.reads_speculative_config, "0.8.1", "0.8.2"),
    ("--speculative-config is written", lambda c: c.speculative_config, "0.8.2", "0.8.3"),
    ("-sc", lambda c: c.short_config_flag, "0.18.1", "0.19.0"),
    ("--spec-method", lambda c: c.short_flags, "0.21.0", "0.22.0"),
    ("--per-request-spec-decode-metrics", lambda c: c.per_request_metrics, "0.28.0", "0.29.0"),
    ("K by batch size", lambda c: c.schedule, "0.23.0", "0.24.0"),
    ("data parallelism drops K by batch size", lambda c: c.schedule_dropped_with_data_parallel, "0.25.1", "0.26.0"),
    ("K by batch size no longer hangs", lambda c: not c.schedule_unsafe_with_data_parallel, "0.25.1", "0.26.0"),
    ("suffix decoding drops K by batch size", lambda c: not c.schedule_method("suffix"), "0.32.0", "0.33.0"),
    ("draft models end with V0", lambda c: not c.method("draft_model"), "0.9.2", "0.10.0"),
    ("draft models come back", lambda c: c.method("draft_model"), "0.14.1", "0.15.0"),
    ("suffix decoding", lambda c: c.method("suffix"), "0.11.0", "0.11.1"),
    ("MLP speculators end with V0", lambda c: not c.method("mlp_speculator"), "0.9.2", "0.10.0"),
    ("n-gram has a default window", lambda c: not c.needs_ngram_window, "0.8.1", "0.8.2"),
    ("medusa ends", lambda c: not c.method("medusa"), "0.32.0", "0.33.0"),
    ("TPOT by request", lambda c: c.request_tpot_metric is not None, "0.10.2", "0.11.0"),
    ("KV-cache use has its new name", lambda c: c.kv_usage_metric == "vllm:kv_cache_usage_perc", "0.9.1", "0.9.2"),
    ("disable_by_batch_size is rejected", lambda c: "disable_by_batch_size" not in c.keys, "0.16.0", "0.17.0"),
]


@pytest.mark.parametrize(("what", "holds", "before", "since"), BOUNDARIES, ids=[b[0] for b in BOUNDARIES])
def test_a_boundary_is_where_the_source_has_it(
    what: str, holds: Callable[[Capabilities], bool], before: str, since: str
) -> None:
    assert not holds(at(before)), what
    assert holds(at(since)), what


@pytest.mark.parametrize(
    ("version", "method", "v1_engine_forced", "honoured"),
    [
        ("0.7.3", "eagle", False, True),
        ("0.8.5", "ngram", False, True),
        ("0.8.5", "ngram", True, False),
        ("0.9.2", "draft_model", False, True),
        ("0.9.2", "ngram", False, False),
        ("0.10.0", "ngram", False, False),
        ("0.15.0", "draft_model", False, False),
        ("0.32.0", "draft_model", False, False),
    ],
)
def test_the_threshold_is_honoured_by_the_v0_engine_alone(
    version: str, method: str, v1_engine_forced: bool, honoured: bool
) -> None:
    assert at(version).disable_by_batch_size(method, v1_engine_forced) is honoured


def test_a_version_newer_than_the_newest_known_is_like_it() -> None:
    new, newest = at("0.99.0"), at("0.33.0")
    assert new.keys == newest.keys
    assert [new.method(m) for m in METHODS] == [newest.method(m) for m in METHODS]
    assert new.method("something_new")
    assert not newest.method("something_new")


def test_no_version_knows_a_key_outside_the_table() -> None:
    assert all(at(version).keys <= KEYS.keys() for version in ("0.6.3", "0.8.3", "0.12.0", "0.33.0"))
