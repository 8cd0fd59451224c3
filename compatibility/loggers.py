"""Metrics pages written by a release's own loggers, which count the traffic of `story`. Runs beside the release."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import prometheus_client

from compatibility import story

Config = Callable[..., Any]
"""Makes a configuration object of vLLM's whose unset fields are None."""


def pages(config: Config, v0: bool, speculates: bool, padded: bool) -> tuple[str, str]:
    """Two pages with the traffic of `story` between them, and once before (some series begin with their first sample).

    `v0`: of the V0 engine; `padded`: n-gram pads its misses, as Model Runner V2 does.
    """
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    for collector in list(prometheus_client.REGISTRY._collector_to_names):
        prometheus_client.REGISTRY.unregister(collector)
    traffic = (_v0 if v0 else _v1)(_whole(config, speculates), speculates, padded)
    traffic()
    before = _page()
    traffic()
    return before, _page()


def _page() -> str:
    return prometheus_client.generate_latest().decode()


class _CacheConfig(SimpleNamespace):
    def metrics_info(self) -> dict[str, str]:
        return {"block_size": str(story.BLOCK_SIZE), "num_gpu_blocks": str(story.BLOCKS)}


_SIZES = [1, 2, 4, 8, 512]


def _whole(config: Config, speculates: bool) -> Any:
    return config(
        model_config=config(served_model_name="model", max_model_len=8192),
        cache_config=_CacheConfig(),
        compilation_config=config(cudagraph_capture_sizes=_SIZES, capture_sizes=_SIZES),
        observability_config=config(show_hidden_metrics=False),
        parallel_config=config(data_parallel_size=1, api_process_count=1),
        speculative_config=config(num_speculative_tokens=story.K, method="ngram") if speculates else None,
    )


def _takes(call: Any, argument: str) -> bool:
    return argument in call.__code__.co_varnames


# --- V1 -----------------------------------------------------------------------------------------------------------


def _v1(whole: Any, speculates: bool, padded: bool) -> Callable[[], None]:
    stats: Any = importlib.import_module("vllm.v1.metrics.stats")
    logger = importlib.import_module("vllm.v1.metrics.loggers").PrometheusStatLogger(whole)
    if hasattr(logger, "log_engine_initialized"):
        logger.log_engine_initialized()

    def step(drafts: bool, **figures: Any) -> None:
        iteration = _iteration(stats)
        for name, value in figures.items():
            _set(iteration, name, value)
        logger.record(_scheduler_stats(stats, drafts, padded), iteration)

    def traffic() -> None:
        step(False, prompt_tokens=2 * story.PROMPT, generation_tokens=2, first_tokens=[story.TTFT_SECONDS] * 2)
        decode = {"generation_tokens": sum(story.tokens(speculates)), "latencies": [story.STEP_SECONDS] * 2}
        for _ in range(story.STEPS - 1):
            step(speculates, **decode)
        step(speculates, finished=_finished(stats, speculates), **decode)

    return traffic


def _iteration(stats: Any) -> Any:
    """Figures of one step, without what a step of real requests would put there."""
    made = stats.IterationStats
    return made(False) if _takes(made.__init__, "log_stats") else made()


_NAMES = {
    "prompt_tokens": ("num_prompt_tokens",),
    "generation_tokens": ("num_generation_tokens",),
    "first_tokens": ("time_to_first_tokens_iter",),
    "latencies": ("inter_token_latencies_iter", "time_per_output_tokens_iter"),
    "finished": ("finished_requests",),
}
"""How the fields of `IterationStats` have been called."""


def _set(iteration: Any, name: str, value: Any) -> None:
    if name == "prompt_tokens" and hasattr(iteration, "prompt_token_stats"):
        iteration.prompt_token_stats.computed = iteration.prompt_token_stats.total = value
        return
    setattr(iteration, next(known for known in _NAMES[name] if hasattr(iteration, known)), value)


def _scheduler_stats(stats: Any, drafts: bool, padded: bool) -> Any:
    now = stats.SchedulerStats(num_running_reqs=story.RUNNING, num_waiting_reqs=story.WAITING)
    setattr(now, "kv_cache_usage" if hasattr(now, "kv_cache_usage") else "gpu_cache_usage", story.KV_USAGE)
    if drafts and hasattr(now, "spec_decoding_stats"):  # V1 did not count drafts before 0.8.3
        counts: Any = importlib.import_module("vllm.v1.spec_decode.metrics").SpecDecodingStats
        counted = counts.new(story.K) if hasattr(counts, "new") else counts()
        for drafted, accepted in story.drafts(padded):
            if hasattr(counted, "observe_draft"):
                counted.observe_draft(num_draft_tokens=drafted, num_accepted_tokens=accepted)
            else:  # 0.8.3
                counted.observe(drafted, accepted)
        now.spec_decoding_stats = counted
    return now


def _finished(stats: Any, speculates: bool) -> list[Any]:
    reason = importlib.import_module("vllm.v1.engine").FinishReason.LENGTH
    made, decode = stats.FinishedRequestStats, story.STEPS * story.STEP_SECONDS

    def request(length: int, tpot: float) -> Any:
        figures = {
            "finish_reason": reason,
            "e2e_latency": story.TTFT_SECONDS + decode,
            "num_prompt_tokens": story.PROMPT,
            "num_generation_tokens": length,
            "max_tokens_param": length,
            "queued_time": story.QUEUE_SECONDS,
            "prefill_time": story.TTFT_SECONDS,
            "inference_time": story.TTFT_SECONDS + decode,
            "decode_time": decode,
            "mean_time_per_output_token": tpot,
        }
        return made(**{name: value for name, value in figures.items() if name in made.__dataclass_fields__})

    return [request(*of) for of in zip(story.lengths(speculates), story.tpots(speculates), strict=True)]


# --- V0 -----------------------------------------------------------------------------------------------------------


def _v0(whole: Any, speculates: bool, padded: bool) -> Callable[[], None]:
    made: Any = importlib.import_module("vllm.engine.metrics").PrometheusStatLogger
    kind: Any = importlib.import_module("vllm.engine.metrics_types").Stats
    later = {"max_model_len": 8192, "vllm_config": whole}
    given = {name: value for name, value in later.items() if _takes(made.__init__, name)}
    logger = made(local_interval=0.0, labels={"model_name": "model"}, **given)
    logger.info("cache_config", whole.cache_config)
    empty: dict[str, Any] = {n: [] if "List" in str(of.type) else 0 for n, of in kind.__dataclass_fields__.items()}
    system = {
        "num_running_sys": story.RUNNING,
        "num_waiting_sys": story.WAITING,
        "gpu_cache_usage_sys": story.KV_USAGE,
        "spec_decode_metrics": None,
    }
    totals = SimpleNamespace(
        draft_tokens=0, accepted_tokens=0, emitted_tokens=0, num_spec_tokens=story.K, system_efficiency=0.5
    )

    def log(tokens: int, **figures: Any) -> None:
        values = empty | system | {"now": time.time(), "num_generation_tokens_iter": tokens} | figures
        values["num_tokens_iter"] = tokens + values["num_prompt_tokens_iter"]
        logger.log(kind(**{name: value for name, value in values.items() if name in empty}))

    def traffic() -> None:
        first = [story.TTFT_SECONDS] * 2
        log(2, num_prompt_tokens_iter=2 * story.PROMPT, time_to_first_tokens_iter=first)
        for number in range(story.STEPS):
            figures: dict[str, Any] = {"time_per_output_tokens_iter": [story.STEP_SECONDS] * 2}
            if speculates:
                figures["spec_decode_metrics"] = _drafted(totals, padded)
            if number == story.STEPS - 1:
                figures |= {
                    "num_prompt_tokens_requests": [story.PROMPT] * 2,
                    "num_generation_tokens_requests": list(story.lengths(speculates)),
                    "finished_reason_requests": ["length"] * 2,
                    "time_queue_requests": [story.QUEUE_SECONDS] * 2,
                }
            log(sum(story.tokens(speculates)), **figures)

    return traffic


def _drafted(totals: SimpleNamespace, padded: bool) -> SimpleNamespace:
    """The totals since the start, which is what V0 hands to its counters at every step."""
    for drafted, accepted in story.drafts(padded):
        totals.draft_tokens += drafted
        totals.accepted_tokens += accepted
        totals.emitted_tokens += accepted + 1
    totals.draft_acceptance_rate = totals.accepted_tokens / totals.draft_tokens
    return totals
