"""The `/metrics` page of an emulated vLLM version: how an engine's steps feed its families."""

from __future__ import annotations

import gc
import os
import platform
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path

from specdecode.sim.engine import Engine, Outcome, Request
from specdecode.sim.exposition import Family, Kind, Sample, render
from specdecode.sim.families import (
    CACHE_CONFIG,
    CACHE_CONFIG_0_24,
    CACHE_CONFIG_0_32,
    FAMILIES,
    RECORDED,
    RECORDED_LATER,
    SPECULATION,
    one_two_five,
)
from specdecode.vllm.version import Version

HTTP_FINE = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    2.5,
    3.0,
    3.5,
    4.0,
    4.5,
    5.0,
    7.5,
    10.0,
    30.0,
    60.0,
)


class VllmMetrics:
    """The page of one engine. `now` is Unix time at the start, for the `_created` gauges."""

    def __init__(
        self,
        version: Version,
        engine: Engine,
        *,
        model_name: str,
        max_model_len: int,
        now: float,
        enable_prefix_caching: bool = True,
        gpu_memory_utilization: float = 0.9,
    ) -> None:
        self._engine = engine
        self._started = now
        self._prefix_caching = enable_prefix_caching
        self._labels = {"model_name": model_name, **({"engine": "0"} if version >= Version(0, 8, 3) else {})}
        positions = tuple(str(i) for i in range(engine.k_static))
        specs = [*(SPECULATION if engine.config.speculation else ()), *FAMILIES]
        self._families: dict[str, Family] = {}
        self._children: dict[tuple[str, str], Sample] = {}
        for spec in specs:
            if not spec.exists_in(version):
                continue
            bounds = one_two_five(max_model_len) if isinstance(spec.bounds, str) else spec.bounds
            family = Family(f"vllm:{spec.name}", spec.kind, spec.help, bounds, created=now)
            for value in (positions if spec.label == "position" else spec.values) or ("",):
                own = {spec.label: value} if value else {}
                shared = self._labels if spec.by_engine else {"model_name": model_name}
                self._children[spec.name, value] = family.child({**shared, **own})
            self._families[spec.name] = family
        cache = Family("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig")
        cache.child(
            _cache_labels(version, engine, max_model_len, enable_prefix_caching, gpu_memory_utilization)
        ).value = 1.0
        self._families["cache_config_info"] = cache
        self._http = _HttpMetrics(now)

    def _child(self, name: str, value: str = "") -> Sample:
        """A sample by its short name; one that goes nowhere where this version lacks the family."""
        return self._children.get((name, value)) or Sample()

    def record(self, outcome: Outcome) -> None:
        """Count one completed step (IterationStats, SpecDecodingStats), finished requests included."""
        if outcome.drafts:
            self._child("spec_decode_num_drafts_total").inc(outcome.drafts)
            self._child("spec_decode_num_draft_tokens_total").inc(outcome.draft_tokens)
            self._child("spec_decode_num_accepted_tokens_total").inc(sum(outcome.accepted_per_position))
            for position, accepted in enumerate(outcome.accepted_per_position):
                self._child("spec_decode_num_accepted_tokens_per_pos_total", str(position)).inc(accepted)
        if not outcome.outputs:
            return
        self._child("prompt_tokens_total").inc(outcome.prompt_tokens)
        self._child("prompt_tokens_by_source_total", "local_compute").inc(outcome.prompt_tokens)
        if self._prefix_caching:
            self._child("prefix_cache_queries_total").inc(outcome.prompt_tokens)
            self._child("gpu_prefix_cache_queries_total").inc(outcome.prompt_tokens)
        self._child("generation_tokens_total").inc(outcome.generated_tokens)
        self._child("iteration_tokens_total").observe(outcome.prompt_tokens + outcome.generated_tokens)
        latencies = [self._child(n) for n in ("inter_token_latency_seconds", "time_per_output_token_seconds")]
        for output in outcome.outputs:
            if output.since_last is None:
                self._child("time_to_first_token_seconds").observe(outcome.at - output.request.arrival)
            else:
                for latency in latencies:
                    latency.observe(output.since_last)
            if output.request.finished:
                self._finished(output.request, outcome.at)

    def record_abort(self) -> None:
        """Count a request whose client went away."""
        self._child("request_success_total", "abort").inc()

    def record_http(self, handler: str, method: str, status: int, seconds: float, size_in: int, size_out: int) -> None:
        """Count one HTTP request, as the instrumentator of vLLM's API server does."""
        self._http.record(handler, method, status, seconds, size_in, size_out)

    def _finished(self, request: Request, now: float) -> None:
        scheduled, first = request.scheduled_at or request.arrival, request.first_token_at or now
        tokens = request.generated
        for name, value in (
            ("request_prompt_tokens", request.prompt_tokens),
            ("request_generation_tokens", tokens),
            ("request_max_num_generation_tokens", tokens),
            ("request_params_n", 1),
            ("request_params_max_tokens", request.max_tokens),
            ("request_time_per_output_token_seconds", (now - first) / (tokens - 1) if tokens > 1 else 0.0),
            ("e2e_request_latency_seconds", now - request.arrival),
            ("request_queue_time_seconds", scheduled - request.arrival),
            ("request_inference_time_seconds", now - scheduled),
            ("request_prefill_time_seconds", first - scheduled),
            ("request_decode_time_seconds", now - first),
            ("request_num_preemptions", request.preemptions),
            ("request_prefill_kv_computed_tokens", request.prompt_tokens),
        ):
            self._child(name).observe(value)
        self._child("request_success_total", "length").inc()

    def page(self, *, engine: bool = True) -> str:
        """The page, gauges as of now; without the engine's families where vLLM runs with `--disable-log-stats`."""
        families = self._engine_families() if engine else ()
        return render((*_process_families(self._started), *families, *self._http.families))

    def _engine_families(self) -> Iterable[Family]:
        engine = self._engine
        waiting = len(engine.waiting)
        for name, value in (
            ("num_requests_running", len(engine.running)),
            ("num_requests_waiting", waiting),
            ("kv_cache_usage_perc", engine.kv_usage),
            ("gpu_cache_usage_perc", engine.kv_usage),
            ("num_preemptions_total", engine.preemptions),
        ):
            self._child(name).value = float(value)
        self._child("num_requests_waiting_by_reason", "capacity").value = waiting
        self._child("engine_sleep_state", "awake").value = 1.0
        return self._families.values()


def _cache_labels(
    version: Version, engine: Engine, max_model_len: int, caching: bool, utilization: float
) -> Mapping[str, str]:
    release = CACHE_CONFIG_0_32 if version >= RECORDED_LATER else CACHE_CONFIG_0_24 if version >= RECORDED else {}
    tokens = engine.config.blocks * engine.config.block_size
    sizes = (
        {"kv_cache_size_tokens": str(tokens), "kv_cache_max_concurrency": str(tokens / max_model_len)}
        if release
        else {}
    )
    return {
        **CACHE_CONFIG,
        **release,
        **sizes,
        "block_size": str(engine.config.block_size),
        "enable_prefix_caching": str(caching),
        "gpu_memory_utilization": str(utilization),
        "num_gpu_blocks": str(engine.config.blocks),
        **({"engine": "0"} if version >= Version(0, 8, 3) else {}),
    }


class _HttpMetrics:
    """The families that prometheus-fastapi-instrumentator adds to vLLM's page."""

    def __init__(self, now: float) -> None:
        sized = "Only value of header is respected. Otherwise ignored. No percentile calculated. "
        self.requests = Family(
            "http_requests_total", "counter", "Total number of requests by method, status and handler.", created=now
        )
        self.size_in = Family(
            "http_request_size_bytes",
            "summary",
            f"Content length of incoming requests by handler. {sized}",
            created=now,
        )
        self.size_out = Family(
            "http_response_size_bytes",
            "summary",
            f"Content length of outgoing responses by handler. {sized}",
            created=now,
        )
        self.fine = Family(
            "http_request_duration_highr_seconds",
            "histogram",
            "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ",
            HTTP_FINE,
            now,
        )
        self.coarse = Family(
            "http_request_duration_seconds",
            "histogram",
            "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ",
            (0.1, 0.5, 1.0),
            now,
        )
        self.families = (self.requests, self.size_in, self.size_out, self.fine, self.coarse)
        self.fine.child({})

    def record(self, handler: str, method: str, status: int, seconds: float, size_in: int, size_out: int) -> None:
        self.requests.child({"handler": handler, "method": method, "status": f"{status // 100}xx"}).inc()
        self.size_in.child({"handler": handler}).observe(size_in)
        self.size_out.child({"handler": handler}).observe(size_out)
        self.fine.child({}).observe(seconds)
        self.coarse.child({"handler": handler, "method": method}).observe(seconds)


def _process_families(started: float) -> Iterable[Family]:
    """The families that prometheus_client adds by itself: of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages = [int(n) * resource.getpagesize() for n in Path("/proc/self/statm").read_text().split()[:2]]
    for name, key, text in (
        ("objects_collected", "collected", "Objects collected during gc"),
        ("objects_uncollectable", "uncollectable", "Uncollectable objects found during GC"),
        ("collections", "collections", "Number of times this generation was collected"),
    ):
        family = Family(f"python_gc_{name}_total", "counter", text)
        for generation, stats in enumerate(gc.get_stats()):
            family.child({"generation": str(generation)}).value = stats[key]
        yield family
    python = Family("python_info", "gauge", "Python platform information")
    major, minor, patch = platform.python_version_tuple()
    version = {"version": platform.python_version(), "major": major, "minor": minor, "patchlevel": patch}
    python.child({"implementation": platform.python_implementation(), **version}).value = 1.0
    yield python
    kinds: tuple[tuple[str, Kind, str, float], ...] = (
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", pages[0]),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", pages[1]),
        ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", started),
        (
            "cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            usage.ru_utime + usage.ru_stime,
        ),
        ("open_fds", "gauge", "Number of open file descriptors.", len(os.listdir("/proc/self/fd"))),  # noqa: PTH208
        ("max_fds", "gauge", "Maximum number of open file descriptors.", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    )
    for name, kind, text, value in kinds:
        family = Family(f"process_{name}", kind, text)
        family.child({}).value = float(value)
        yield family
