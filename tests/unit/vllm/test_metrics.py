"""The reader of /metrics pages, on recorded pages and on pages written by hand."""

import gzip
import math
import re
from pathlib import Path

import pytest

from specdecode.vllm.metrics import EngineSample, Histogram, PageError, read_page

RECORDINGS = Path(__file__).parents[2] / "data" / "vllm-metrics"
PAGES = sorted(RECORDINGS.glob("*/*/*.prom.gz"))
LABELS = 'engine="0",model_name="m"'


def page(*lines: str) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def histogram(name: str, counts: dict[str, float], total: float, labels: str = LABELS) -> list[str]:
    return [
        *(f'{name}_bucket{{{labels},le="{bound}"}} {count}' for bound, count in counts.items()),
        f"{name}_count{{{labels}}} {list(counts.values())[-1]}",
        f"{name}_sum{{{labels}}} {total}",
    ]


def engine(*lines: str) -> EngineSample:
    (only,) = read_page(page(*lines)).engines
    return only


RUNNING = f"vllm:num_requests_running{{{LABELS}}} 2.0"


def test_recorded_pages_are_there_for_two_versions_and_three_kinds_of_profile() -> None:
    assert len(PAGES) >= 36
    assert {p.parent.parent.name for p in PAGES} == {"0.24.0-h200", "0.32.0"}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: f"{p.parent.parent.name}-{p.parent.name}-{p.name[:4]}")
def test_a_recorded_page_reads_as_its_lines_say(path: Path) -> None:
    text = gzip.decompress(path.read_bytes())
    values = {
        (m[1], m[2] or ""): float(m[3])
        for line in text.decode().splitlines()
        if (m := re.fullmatch(r"([a-z_:]+)(\{.*\})? (\S+)", line))
    }
    by_name = {name: value for (name, _), value in values.items()}

    result = read_page(text)

    (sample,) = result.engines
    assert result.process_start == by_name["process_start_time_seconds"]
    for field, name in {
        "running": "num_requests_running",
        "waiting": "num_requests_waiting",
        "kv_usage": "kv_cache_usage_perc",
        "preemptions": "num_preemptions_total",
        "prompt_tokens": "prompt_tokens_total",
        "generation_tokens": "generation_tokens_total",
        "drafts": "spec_decode_num_drafts_total",
        "draft_tokens": "spec_decode_num_draft_tokens_total",
        "accepted_tokens": "spec_decode_num_accepted_tokens_total",
    }.items():
        assert getattr(sample, field) == by_name.get(f"vllm:{name}"), field
    for field, name in {
        "ttft": "time_to_first_token_seconds",
        "inter_token": "inter_token_latency_seconds",
        "tpot": "request_time_per_output_token_seconds",
        "iteration_tokens": "iteration_tokens_total",
        "queue_time": "request_queue_time_seconds",
        "prompt_length": "request_prompt_tokens",
        "output_length": "request_generation_tokens",
    }.items():
        buckets = {
            float(re.findall(r'le="([^"]+)"', labels)[0]): value
            for (of, labels), value in values.items()
            if of == f"vllm:{name}_bucket"
        }
        expected = Histogram(
            tuple(buckets), tuple(buckets.values()), by_name[f"vllm:{name}_sum"], by_name[f"vllm:{name}_count"]
        )
        assert getattr(sample, field) == expected, field
    positions = [v for (name, _), v in values.items() if name.endswith("accepted_tokens_per_pos_total")]
    assert sample.accepted_per_position == tuple(positions)
    assert sum(sample.requests.values()) == sum(v for (n, _), v in values.items() if n == "vllm:request_success_total")
    assert sample.draft_acceptance_gauge is None
    assert sum(result.http_requests.values()) == by_name.get("http_requests_total", 0.0)
    (config,) = (labels for (name, labels) in values if name == "vllm:cache_config_info")
    assert sample.kv_cache_tokens == float(re.findall(r'kv_cache_size_tokens="(\d+)"', config)[0])


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        (f"vllm:kv_cache_usage_perc{{{LABELS}}} 0.25", "kv_usage", 0.25),
        ('vllm:gpu_cache_usage_perc{model_name="m"} 0.5', "kv_usage", 0.5),
        (f"vllm:num_requests_waiting{{{LABELS}}} 7", "waiting", 7.0),
        (f"vllm:prompt_tokens_total{{{LABELS}}} 1.234e+06", "prompt_tokens", 1_234_000.0),
        (f"vllm:prompt_tokens_total{{{LABELS}}} 12E3 1700000000000", "prompt_tokens", 12_000.0),
        (f"  vllm:prompt_tokens_total {{ {LABELS} , }}   5\t1700000000000  ", "prompt_tokens", 5.0),
        (f"vllm:prompt_tokens_total{{{LABELS}}} 5\r", "prompt_tokens", 5.0),
        (f"vllm:num_requests_running{{{LABELS}}} NaN", "running", None),
        (f"vllm:kv_cache_usage_perc{{{LABELS}}} +Inf", "kv_usage", None),
        (f"vllm:generation_tokens_total{{{LABELS}}} NaN", "generation_tokens", None),
        (f"vllm:generation_tokens_total{{{LABELS}}} -1", "generation_tokens", None),
        ('vllm:spec_decode_draft_acceptance_rate{model_name="m"} 0.7', "draft_acceptance_gauge", 0.7),
        ('vllm:spec_decode_draft_acceptance_rate{model_name="m"} nan', "draft_acceptance_gauge", None),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0', "kv_cache_tokens", 1600.0),
        ('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0', "kv_cache_tokens", None),
        (
            'vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="1500",num_gpu_blocks="100"} 1.0',
            "kv_cache_tokens",
            1500.0,
        ),
        ('vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="100"} 1.0', "kv_cache_tokens", None),
    ],
)
def test_a_line_gives_its_figure(line: str, field: str, value: float | None) -> None:
    other = f"vllm:num_preemptions_total{{{LABELS}}} 0"
    assert getattr(engine(other, line), field) == value


@pytest.mark.parametrize("newest_first", [True, False])
def test_of_two_names_of_one_figure_the_new_one_counts(newest_first: bool) -> None:
    new = [
        f"vllm:kv_cache_usage_perc{{{LABELS}}} 0.2",
        *histogram("vllm:inter_token_latency_seconds", {"0.1": 1, "+Inf": 2}, 0.3),
    ]
    old = [
        f"vllm:gpu_cache_usage_perc{{{LABELS}}} 0.1",
        *histogram("vllm:time_per_output_token_seconds", {"0.1": 1, "+Inf": 1}, 0.1),
    ]
    sample = engine(*(new + old if newest_first else old + new))
    assert (sample.kv_usage, sample.inter_token and sample.inter_token.count) == (0.2, 2.0)
    sample = engine(*old)
    assert (sample.kv_usage, sample.inter_token and sample.inter_token.count) == (0.1, 1.0)
    assert sample.tpot is None, "the old name is per step, not per token"


def test_the_counters_of_the_v0_engine_are_not_read() -> None:
    sample = engine(
        'vllm:num_requests_running{model_name="m"} 1.0',
        'vllm:spec_decode_draft_acceptance_rate{model_name="m"} 0.7',
        'vllm:spec_decode_efficiency{model_name="m"} 0.6',
        'vllm:spec_decode_num_accepted_tokens_total{model_name="m"} 700.0',
        'vllm:spec_decode_num_draft_tokens_total{model_name="m"} 1000.0',
        'vllm:spec_decode_num_emitted_tokens_total{model_name="m"} 900.0',
    )
    assert (sample.engine, sample.draft_acceptance_gauge) == ("0", 0.7)
    assert (sample.drafts, sample.draft_tokens, sample.accepted_tokens) == (None, None, None)


def test_vllm_0_8_3_counts_draft_tokens_without_drafts() -> None:
    sample = engine(
        f"vllm:spec_decode_num_draft_tokens_total{{{LABELS}}} 10",
        f"vllm:spec_decode_num_accepted_tokens_total{{{LABELS}}} 7",
        RUNNING,
    )
    assert (sample.drafts, sample.draft_tokens, sample.accepted_tokens, sample.accepted_per_position) == (
        None,
        10,
        7,
        (),
    )


def test_engines_and_models_are_told_apart_and_ordered() -> None:
    result = read_page(
        page(
            'vllm:num_requests_running{engine="1",model_name="b"} 1',
            'vllm:num_requests_running{model_name="a",engine="0"} 2',
            'vllm:num_requests_running{engine="0",model_name="b"} 3',
            'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="10"} 1.0',
        )
    )
    assert [(e.model_name, e.engine, e.running, e.kv_cache_tokens) for e in result.engines] == [
        ("a", "0", 2, None),
        ("b", "0", 3, None),
        ("b", "1", 1, 160),
    ]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (r"a\"b", 'a"b'),
        (r"a\\", "a\\"),
        (r"a\nb", "a\nb"),
        ("a,b={c} d}", "a,b={c} d}"),
        ('a",engine="9'.replace('"', r"\""), 'a",engine="9'),
        ("Qwen/Qwen3-0.6B — é", "Qwen/Qwen3-0.6B — é"),
        ("", ""),
    ],
)
def test_label_values_are_unescaped_and_may_hold_what_separates_labels(written: str, name: str) -> None:
    assert engine(f'vllm:num_requests_running{{model_name="{written}",engine="3"}} 1') == EngineSample(
        model_name=name, engine="3", running=1.0
    )


def test_families_that_are_not_used_are_not_read() -> None:
    sample = engine(
        "# HELP anything at all {",
        "python_info{broken",
        'vllm:request_params_n_bucket{le="1"',
        "vllm:num_requests_running_total nonsense",
        "vllm:spec_decode_num_drafts_created{} 1",
        "",
        "vllm:num_requests",
        RUNNING,
        "# EOF",
    )
    assert sample == EngineSample(model_name="m", engine="0", running=2.0)


def test_answers_are_counted_where_text_is_generated() -> None:
    result = read_page(
        page(
            RUNNING,
            'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 5.0',
            'http_requests_total{handler="/v1/chat/completions",method="POST",status="4xx"} 2.0',
            'http_requests_total{handler="/v1/models",method="GET",status="2xx"} 9.0',
            'http_requests_total{handler="/v1/completions",method="GET",status="4xx"} 1.0',
            "process_start_time_seconds 1.79533642031e+09",
        )
    )
    assert result.http_requests == {("/v1/completions", "2xx"): 5.0, ("/v1/chat/completions", "4xx"): 2.0}
    assert result.process_start == 1795336420.31


def test_a_series_may_be_repeated_but_not_contradicted() -> None:
    assert engine(RUNNING, RUNNING).running == 2.0
    nan = f"vllm:kv_cache_usage_perc{{{LABELS}}} NaN"
    assert engine(RUNNING, nan, nan).kv_usage is None
    with pytest.raises(PageError, match=r"line 2: vllm:num_requests_running has two values, 2 and 3"):
        engine(RUNNING, 'vllm:num_requests_running{model_name="m",engine="0"} 3')


def test_a_histogram_that_saw_no_number_has_no_figures() -> None:
    lines = histogram("vllm:time_to_first_token_seconds", {"0.1": 1, "+Inf": 2}, math.nan)
    assert engine(RUNNING, *lines).ttft is None


TTFT = histogram("vllm:time_to_first_token_seconds", {"0.1": 1, "+Inf": 2}, 0.3)
DRAFTS, DRAFTED, ACCEPTED, FIRST, SECOND = (
    f"vllm:spec_decode_num_{name}{{{LABELS}{more}}} {value}"
    for name, more, value in (
        ("drafts_total", "", 10),
        ("draft_tokens_total", "", 20),
        ("accepted_tokens_total", "", 12),
        ("accepted_tokens_per_pos_total", ',position="0"', 8),
        ("accepted_tokens_per_pos_total", ',position="1"', 4),
    )
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the page is empty"),
        (b" \n\n", "the page is empty"),
        (b"<!DOCTYPE html><html>502</html>", "no metrics page but '<!DOCTYPE html>"),
        (b'{"detail":"Not Found"}', "no metrics page but"),
        (page("# HELP go_goroutines x", "go_goroutines 5"), "no vLLM metrics on the page.*--disable-log-stats"),
        (page("process_start_time_seconds 5"), "no vLLM metrics on the page"),
        (b"\x00\xff\xfe", "no vLLM metrics on the page"),
        (page(RUNNING)[:-1], "half-written: the last line stops in the middle"),
        (page(RUNNING)[:-3], "half-written: the last line stops in the middle"),
        (page(RUNNING, "# HELP vllm:num_requests_waiting Number"), "half-written: it stops after '# HELP"),
        (page(*TTFT[:1]), "half-written: ttft of model 'm', engine 0 has no count, no sum"),
        (page(*TTFT[:2]), "half-written: ttft of .* has no count, no sum"),
        (page(*TTFT[:3]), "half-written: ttft of .* has no sum"),
        (page(*TTFT[2:]), "half-written: ttft of .* has no bucket"),
        (page(TTFT[0], *TTFT[2:]), r"half-written: ttft of .* has no \+Inf bucket"),
        (page(*TTFT[:2], TTFT[2][:-1] + "3", TTFT[3]), "contradicts itself: 3 observations, 2 in its buckets"),
        (page(TTFT[0][:-1] + "5", *TTFT[1:]), "contradicts itself: its buckets do not rise"),
        (page(DRAFTS, RUNNING), "half-written: drafts without accepted_tokens, draft_tokens"),
        (page(DRAFTS, DRAFTED, RUNNING), "half-written: draft_tokens, drafts without accepted_tokens"),
        (page(DRAFTS, DRAFTED, ACCEPTED, FIRST), "half-written: it stops at .*per_pos.* add up to 8 of 12"),
        (page(DRAFTS, DRAFTED, ACCEPTED, SECOND, RUNNING), r"skip a position: \[1\]"),
        (
            page(RUNNING, RUNNING.replace('"0"', '"1"'), f"vllm:num_requests_waiting{{{LABELS}}} 1"),
            "half-written: it stops at vllm:num_requests_waiting, model 'm', engine 1",
        ),
        (page(RUNNING, f"vllm:num_requests_waiting{{{LABELS}}}"), "line 2: no value, but ''"),
        (page(RUNNING, f"vllm:num_requests_waiting{{{LABELS}}} two"), "line 2: no value, but ' two'"),
        (page(f"vllm:num_requests_waiting{{{LABELS}}} 1 2 3"), "line 1: no value"),
        (page(f"vllm:num_requests_waiting{{{LABELS} 1"), "line 1: no value"),
        (page('vllm:num_requests_waiting{engine="0} 1'), "line 1: vllm:num_requests_waiting: labels cannot be read"),
        (page('vllm:num_requests_waiting{engine="0"model_name="m"} 1'), "line 1: .*labels cannot be read"),
        (page(f"vllm:request_success_total{{{LABELS}}} 1"), "line 1: .*the label finished_reason is missing"),
        (page(*(line.replace('"0.1"', '"ten"') for line in TTFT)), "line 1: .*could not convert"),
        (page(RUNNING).replace(b'"m"', b'"\xff"'), "line 1: .*can't decode"),
    ],
)
def test_a_page_that_cannot_be_trusted_is_refused_with_what_is_wrong(text: bytes, message: str) -> None:
    with pytest.raises(PageError, match=message):
        read_page(text)


def test_a_page_may_end_in_positions_that_add_up() -> None:
    assert engine(DRAFTS, DRAFTED, ACCEPTED, FIRST, SECOND).accepted_per_position == (8.0, 4.0)
