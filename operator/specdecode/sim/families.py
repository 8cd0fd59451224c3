"""The metric families of vLLM by version: names, types, help texts, labels, buckets.

Taken from pages recorded from vLLM 0.24.0 and 0.32.0, and for other versions from vllm/v1/metrics/loggers.py of the
releases. A family whose first release we do not know appears from 0.24.0, where it was first recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdecode.sim.exposition import Kind
from specdecode.vllm.version import Version

TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TTFT_LONG = (*TTFT, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
TPOT = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
REQUEST = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
    7680.0,
)
ITERATION = tuple(float(2**n) for n in (0, *range(3, 15)))
FIRST = Version(0, 8, 0)
RECORDED = Version(0, 24, 0)
RECORDED_LATER = Version(0, 32, 0)


@dataclass(frozen=True)
class Spec:
    """One family: when it exists, and its labels beside `model_name` and `engine`."""

    name: str
    kind: Kind
    help: str
    since: Version = FIRST
    until: Version | None = None
    """The first release without it."""
    bounds: tuple[float, ...] | str = ()
    """Buckets; `tokens` for 1-2-5 up to the model's length."""
    label: str = ""
    values: tuple[str, ...] = ()
    by_engine: bool = True
    """Whether it has an `engine` label; the API server's own families have none."""

    def exists_in(self, version: Version) -> bool:
        """Whether a version exposes the family."""
        return version >= self.since and (self.until is None or version < self.until)


SPECULATION = (
    Spec("spec_decode_num_drafts_total", "counter", "Number of spec decoding drafts.", Version(0, 8, 5)),
    Spec("spec_decode_num_draft_tokens_total", "counter", "Number of draft tokens.", Version(0, 8, 3)),
    Spec("spec_decode_num_accepted_tokens_total", "counter", "Number of accepted tokens.", Version(0, 8, 3)),
    Spec(
        "spec_decode_num_accepted_tokens_per_pos_total",
        "counter",
        "Accepted tokens per draft position.",
        Version(0, 8, 5),
        label="position",
    ),
)

_FLOPS = "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations)."
_READS = "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations)."
_WRITES = "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations)."
_WAITING = (
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity;"
    " 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status)."
    " Sum of all reasons equals vllm:num_requests_waiting."
)
_SLEEP = (
    "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake;"
    " weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2."
)
_QUERIES, _HITS = ", in terms of number of queried tokens.", ", in terms of number of cached tokens."
_EXTERNAL = " from KV connector cross-instance cache sharing"
_BY_TIER = (
    "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk,"
    " p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to"
    " vllm:prefix_cache_hits + vllm:external_prefix_cache_hits."
)
_PREFILL = "Number of prefill tokens processed."
_GENERATION = "Number of generation tokens processed."

FAMILIES = (
    Spec("estimated_flops_per_gpu_total", "counter", _FLOPS, RECORDED),
    Spec("estimated_read_bytes_per_gpu_total", "counter", _READS, RECORDED),
    Spec("estimated_write_bytes_per_gpu_total", "counter", _WRITES, RECORDED),
    Spec("num_requests_running", "gauge", "Number of requests in model execution batches."),
    Spec("num_requests_waiting", "gauge", "Number of requests waiting to be processed."),
    Spec(
        "num_requests_waiting_by_reason",
        "gauge",
        _WAITING,
        Version(0, 20, 0),
        label="reason",
        values=("capacity", "deferred"),
    ),
    Spec(
        "engine_sleep_state",
        "gauge",
        _SLEEP,
        Version(0, 11, 1),
        label="sleep_state",
        values=("awake", "weights_offloaded", "discard_all"),
    ),
    Spec("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", Version(0, 9, 2)),
    Spec("gpu_cache_usage_perc", "gauge", "GPU KV-cache usage. 1 means 100 percent usage.", until=Version(0, 11, 0)),
    Spec("prefix_cache_queries_total", "counter", f"Prefix cache queries{_QUERIES}", Version(0, 9, 2)),
    Spec("prefix_cache_hits_total", "counter", f"Prefix cache hits{_HITS}", Version(0, 9, 2)),
    Spec("gpu_prefix_cache_queries_total", "counter", f"GPU prefix cache queries{_QUERIES}", until=Version(0, 11, 0)),
    Spec("gpu_prefix_cache_hits_total", "counter", f"GPU prefix cache hits{_HITS}", until=Version(0, 11, 0)),
    Spec(
        "external_prefix_cache_queries_total",
        "counter",
        f"External prefix cache queries{_EXTERNAL}{_QUERIES}",
        RECORDED,
    ),
    Spec("external_prefix_cache_hits_total", "counter", f"External prefix cache hits{_EXTERNAL}{_HITS}", RECORDED),
    Spec(
        "mm_cache_queries_total", "counter", "Multi-modal cache queries, in terms of number of queried items.", RECORDED
    ),
    Spec("mm_cache_hits_total", "counter", "Multi-modal cache hits, in terms of number of cached items.", RECORDED),
    Spec("num_preemptions_total", "counter", "Cumulative number of preemption from the engine."),
    Spec("prompt_tokens_total", "counter", _PREFILL),
    Spec(
        "prompt_tokens_by_source_total",
        "counter",
        "Number of prompt tokens by source.",
        RECORDED,
        label="source",
        values=("local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    Spec("prompt_tokens_cached_total", "counter", "Number of cached prompt tokens (local + external).", RECORDED),
    Spec(
        "prompt_tokens_cached_by_source_total",
        "counter",
        _BY_TIER,
        RECORDED_LATER,
        label="source",
        values=("device", "host", "p2p", "disk", "external_unspecified"),
    ),
    Spec("generation_tokens_total", "counter", _GENERATION),
    Spec(
        "request_success_total",
        "counter",
        "Count of successfully processed requests.",
        until=RECORDED,
        label="finished_reason",
        values=("stop", "length", "abort"),
    ),
    Spec(
        "request_success_total",
        "counter",
        "Count of successfully processed requests.",
        RECORDED,
        label="finished_reason",
        values=("stop", "length", "abort", "error", "repetition"),
    ),
    Spec(
        "admission_rejections_total",
        "counter",
        "Number of admission attempts rejected by a queue limit, by reason.",
        RECORDED_LATER,
        label="reason",
        values=("max_num_queued_reqs", "max_num_queued_tokens"),
        by_engine=False,
    ),
    Spec("request_prompt_tokens", "histogram", _PREFILL, bounds="tokens"),
    Spec("request_generation_tokens", "histogram", _GENERATION, bounds="tokens"),
    Spec("iteration_tokens_total", "histogram", "Histogram of number of tokens per engine_step.", bounds=ITERATION),
    Spec(
        "request_max_num_generation_tokens",
        "histogram",
        "Histogram of maximum number of requested generation tokens.",
        bounds="tokens",
    ),
    Spec("request_params_n", "histogram", "Histogram of the n request parameter.", bounds=(1.0, 2.0, 5.0, 10.0, 20.0)),
    Spec("request_params_max_tokens", "histogram", "Histogram of the max_tokens request parameter.", bounds="tokens"),
    Spec(
        "time_to_first_token_seconds",
        "histogram",
        "Histogram of time to first token in seconds.",
        until=Version(0, 8, 5),
        bounds=TTFT,
    ),
    Spec(
        "time_to_first_token_seconds",
        "histogram",
        "Histogram of time to first token in seconds.",
        Version(0, 8, 5),
        bounds=TTFT_LONG,
    ),
    Spec(
        "time_per_output_token_seconds",
        "histogram",
        "Histogram of time per output token in seconds.",
        until=Version(0, 12, 0),
        bounds=TPOT,
    ),
    Spec(
        "inter_token_latency_seconds",
        "histogram",
        "Histogram of inter-token latency in seconds.",
        Version(0, 10, 2),
        bounds=TPOT,
    ),
    Spec(
        "request_time_per_output_token_seconds",
        "histogram",
        "Histogram of time_per_output_token_seconds per request.",
        Version(0, 11, 0),
        bounds=TPOT,
    ),
    Spec("e2e_request_latency_seconds", "histogram", "Histogram of e2e request latency in seconds.", bounds=REQUEST),
    Spec(
        "request_queue_time_seconds",
        "histogram",
        "Histogram of time spent in WAITING phase for request.",
        bounds=REQUEST,
    ),
    Spec(
        "request_inference_time_seconds",
        "histogram",
        "Histogram of time spent in RUNNING phase for request.",
        bounds=REQUEST,
    ),
    Spec(
        "request_prefill_time_seconds",
        "histogram",
        "Histogram of time spent in PREFILL phase for request.",
        bounds=REQUEST,
    ),
    Spec(
        "request_decode_time_seconds",
        "histogram",
        "Histogram of time spent in DECODE phase for request.",
        bounds=REQUEST,
    ),
    Spec(
        "request_num_preemptions",
        "histogram",
        "Histogram of the number of times a request was preempted.",
        Version(0, 30, 0),
        bounds=(1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0),
    ),
    Spec(
        "request_prefill_kv_computed_tokens",
        "histogram",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        RECORDED,
        bounds="tokens",
    ),
)

CACHE_CONFIG = {
    "block_size": "16",
    "cache_dtype": "auto",
    "is_attention_free": "False",
    "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None",
    "sliding_window": "None",
}
CACHE_CONFIG_0_24 = {
    "_block_size_resolved": "True",
    "calculate_kv_scales": "False",
    "hash_block_size": "None",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_memory_bytes": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "auto",
    "prefix_caching_hash_algo": "sha256",
    "user_specified_block_size": "False",
    "user_specified_mamba_block_size": "False",
}
CACHE_CONFIG_0_32 = {
    **{
        k: v
        for k, v in CACHE_CONFIG_0_24.items()
        if k not in ("calculate_kv_scales", "user_specified_mamba_block_size")
    },
    "cache_hit_alignment_tokens": "None",
    "effective_attention_block_size": "16",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "kv_cache_layout": "None",
    "mamba_ssm_cache_dtype": "float32",
    "prefix_cache_retention_interval": "0",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
}


def one_two_five(top: int) -> tuple[float, ...]:
    """1, 2, 5, 10, … up to `top`: vLLM's build_1_2_5_buckets."""
    buckets, scale = [], 1
    while scale <= top:
        buckets += [float(m * scale) for m in (1, 2, 5) if m * scale <= top]
        scale *= 10
    return tuple(buckets)
