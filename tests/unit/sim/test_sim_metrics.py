"""The simulated page against pages recorded from real vLLM."""

from __future__ import annotations

import gzip
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest

from specdecode.sim.acceptance import Acceptance
from specdecode.sim.engine import Engine, EngineConfig, Request
from specdecode.sim.exposition import Family, go_float, render
from specdecode.sim.metrics import VllmMetrics
from specdecode.sim.surfaces import load_surface
from specdecode.vllm.metrics import read_page
from specdecode.vllm.speculation import Method, Speculation
from specdecode.vllm.version import Version

RECORDED = Path(__file__).parents[2] / "data" / "sim"
SURFACE = load_surface("h200-llama32b-draft1b")
SAMPLE = re.compile(r"^([^{\s]+)(?:\{(.*)\})? (\S+)$")


class Families(dict[str, tuple[str, str, frozenset[tuple[str, ...]], tuple[str, ...]]]):
    """name -> type, help, label sets (values kept where they are part of the format), buckets."""

    def __init__(self, page: str) -> None:
        kinds: dict[str, str] = {}
        helps: dict[str, str] = {}
        labels: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        buckets: dict[str, dict[str, None]] = defaultdict(dict)
        for line in page.splitlines():
            if line.startswith("# HELP "):
                _, _, name, helps[name] = line.split(" ", 3)
            elif line.startswith("# TYPE "):
                _, _, name, kinds[name] = line.split(" ")
            else:
                found = SAMPLE.match(line)
                assert found is not None, line
                sample = found[1]
                base = sample if sample in kinds else re.sub("_(bucket|sum|count)$", "", sample)
                assert base in kinds, line
                pairs = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or ""))
                if (bound := pairs.pop("le", None)) is not None:
                    buckets[base][bound] = None
                loose = base == "vllm:cache_config_info" or base == "python_info" or base.startswith("http_")
                labels[base].add(
                    tuple(k if loose or k in ("model_name", "engine") else f"{k}={v}" for k, v in sorted(pairs.items()))
                )
        super().__init__({n: (kinds[n], helps[n], frozenset(labels[n]), tuple(buckets[n])) for n in kinds})


def recorded(name: str) -> str:
    return gzip.open(RECORDED / f"{name}.prom.gz", "rt", encoding="utf-8").read()


def simulated(
    version: Version,
    speculation: Speculation | None,
    requests: int = 3,
    accept: float = 0.7,
) -> tuple[str, Engine]:
    engine = Engine(EngineConfig(speculation), SURFACE, lambda kind, method, t: Acceptance((accept,)), random.Random(1))
    metrics = VllmMetrics(version, engine, model_name="m", max_model_len=4096, now=1_795_000_000.5)
    for i in range(requests):
        engine.add(Request(f"r{i}", 0.0, 256, 160))
    now = 0.0
    while (step := engine.schedule(now)) is not None:
        now += step.seconds
        metrics.record(engine.complete(step, now))
    metrics.record_http("/v1/completions", "POST", 200, 0.2, 100, 1000)
    return metrics.page(), engine


@pytest.mark.parametrize(
    ("page", "version", "speculation"),
    [
        ("vllm-0.24.0-off", Version(0, 24), None),
        ("vllm-0.24.0-draft-k3", Version(0, 24), Speculation(Method.DRAFT_MODEL, 3, model="d")),
        ("vllm-0.32.0-off", Version(0, 32), None),
        ("vllm-0.32.0-ngram-k5", Version(0, 32), Speculation(Method.NGRAM, 5)),
    ],
)
def test_the_page_has_the_families_labels_and_buckets_of_the_recorded_one(
    page: str, version: Version, speculation: Speculation | None
) -> None:
    real, ours = Families(recorded(page)), Families(simulated(version, speculation)[0])
    assert list(ours) == list(real), "the same families in the same order"
    for name, family in real.items():
        if name == "vllm:cache_config_info":  # every release adds fields of its own
            assert ours[name][:2] == family[:2]
            assert ours[name][2] == family[2]
        else:
            assert ours[name] == family, name


def test_the_counters_say_what_happened() -> None:
    text, _ = simulated(Version(0, 24), Speculation(Method.DRAFT_MODEL, 3, model="d"), requests=8)
    (sample,) = read_page(text.encode()).engines
    assert sample.drafts is not None
    assert sample.draft_tokens == 3 * sample.drafts
    assert sample.accepted_tokens == sum(sample.accepted_per_position)
    assert sample.generation_tokens == 8 * 160
    tpot, itl = sample.tpot, sample.inter_token
    assert tpot is not None
    assert itl is not None
    length = 1 + sample.accepted_tokens / sample.drafts
    assert (itl.sum / itl.count) / (tpot.sum / tpot.count) == pytest.approx(length, rel=0.03), "T / TPOT = E"


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [
        ((0, 8, 2), ["gpu_cache_usage_perc", "time_per_output_token_seconds"], ["kv_cache_usage_perc", "spec_decode_"]),
        ((0, 8, 5), ["spec_decode_num_drafts_total", "gpu_prefix_cache_hits_total"], ["inter_token_latency_seconds"]),
        ((0, 10, 0), ["kv_cache_usage_perc", "gpu_cache_usage_perc"], ["inter_token_latency_seconds"]),
        ((0, 10, 2), ["inter_token_latency_seconds"], ["request_time_per_output_token_seconds"]),
        ((0, 11, 0), ["request_time_per_output_token_seconds"], ["gpu_cache_usage_perc", "engine_sleep_state"]),
        ((0, 20, 0), ["num_requests_waiting_by_reason", "engine_sleep_state"], ["vllm:time_per_output_token_seconds"]),
        ((0, 30, 0), ["request_num_preemptions"], ["admission_rejections_total"]),
    ],
)
def test_families_come_and_go_with_the_version(version: tuple[int, int, int], has: list[str], lacks: list[str]) -> None:
    text, _ = simulated(Version(*version), Speculation(Method.NGRAM, 2))
    assert all(f"{name}" in text for name in has)
    assert not [name for name in lacks if name in text]


def test_no_engine_label_before_0_8_3() -> None:
    assert 'engine="0"' not in simulated(Version(0, 8, 2), None)[0]
    assert 'vllm:num_requests_running{engine="0",model_name="m"} 0.0' in simulated(Version(0, 8, 3), None)[0]


def test_the_kv_pool_can_be_read_off_the_page() -> None:
    text, _ = simulated(Version(0, 24), None)
    assert 'kv_cache_size_tokens="231168"' in text
    assert 'num_gpu_blocks="14448"' in text


def test_without_log_stats_the_engine_is_not_on_the_page() -> None:
    engine = Engine(EngineConfig(), SURFACE, lambda kind, method, t: Acceptance((0.7,)), random.Random(1))
    metrics = VllmMetrics(Version(0, 24), engine, model_name="m", max_model_len=4096, now=1.0)
    assert "vllm:" not in metrics.page(engine=False)
    assert "process_start_time_seconds" in metrics.page(engine=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (1227.0, "1227.0"),
        (517888.0, "517888.0"),
        (8484548608.0, "8.484548608e+09"),
        (1795336317.25, "1.79533631725e+09"),
        (1910514.0, "1.910514e+06"),
        (0.11972, "0.11972"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
    ],
)
def test_numbers_are_written_as_prometheus_writes_them(value: float, text: str) -> None:
    assert go_float(value) == text


def test_a_histogram_is_cumulative_and_labels_are_escaped() -> None:
    family = Family("h", "histogram", "Help.", (1.0, 2.0))
    sample = family.child({"model_name": 'a"b\\c'})
    for value in (0.5, 1.0, 1.5, 3.0):
        sample.observe(value)
    lines = render([family]).splitlines()
    assert lines[2:] == [
        r'h_bucket{le="1.0",model_name="a\"b\\c"} 2.0',
        r'h_bucket{le="2.0",model_name="a\"b\\c"} 3.0',
        r'h_bucket{le="+Inf",model_name="a\"b\\c"} 4.0',
        r'h_count{model_name="a\"b\\c"} 4.0',
        r'h_sum{model_name="a\"b\\c"} 6.0',
    ]
