"""What may be written for a vLLM version, and what its engine does with it.

A boundary is the first release whose source shows it; file paths are relative to a vLLM source distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specdecode.vllm.version import Version

OLDEST = Version(0, 6, 3)
"""The first version whose speculative arguments we write (0.4.3 to 0.6.2 know a part of them)."""
NEWEST = Version(0, 33, 0)
"""The newest version whose arguments were read. A newer one is treated like it."""


@dataclass(frozen=True)
class Span:
    """Versions from `since` up to, but without, `until`."""

    since: Version = OLDEST
    until: Version | None = None

    def __contains__(self, version: Version) -> bool:
        return version >= self.since and (self.until is None or version < self.until)


def _since(minor: int, patch: int = 0) -> Span:
    return Span(Version(0, minor, patch))


def _until(minor: int, patch: int = 0) -> Span:
    return Span(until=Version(0, minor, patch))


def _from_to(since: tuple[int, int], until: tuple[int, int]) -> Span:
    return Span(Version(0, *since), Version(0, *until))


METHODS: Mapping[str, tuple[Span, ...]] = {
    "ngram": (Span(),),
    # V0 up to 0.9.2; "not supported yet" (engine/arg_utils.py) from 0.10 to 0.14; V1 from 0.15
    "draft_model": (_until(10), _since(15)),
    # 0.8.2 overwrites an explicit method by what it detects (config.py:2080-2089)
    "eagle": (_since(8, 3),),
    "eagle3": (_since(8, 5),),
    "mtp": (_since(11),),
    "suffix": (_since(11, 1),),
    "medusa": (_until(33),),
    # the V1 engine has never had a class that drafts with one (v1/worker/gpu_model_runner.py)
    "mlp_speculator": (_until(10),),
    "extract_hidden_states": (_since(17),),
    "ngram_gpu": (_since(18),),
    "dflash": (_since(20),),
    "custom_class": (_since(22),),
    "dspark": (_since(25),),
}
"""`SpeculativeMethod` (config/speculative.py; config.py up to 0.10). Names in `_mtp` are older spellings of mtp."""

KEYS: Mapping[str, Span] = {
    "method": _since(8, 2),
    "model": Span(),
    "num_speculative_tokens": Span(),
    "draft_tensor_parallel_size": Span(),
    "quantization": Span(),
    "max_model_len": Span(),
    "prompt_lookup_max": Span(),
    "prompt_lookup_min": Span(),
    "disable_by_batch_size": _until(17),
    "num_speculative_tokens_per_batch_size": _since(24),
    "revision": _since(8, 2),
    "code_revision": _since(8, 2),
    "disable_mqa_scorer": _until(10),
    "acceptance_method": _until(10),
    "posterior_threshold": _until(10),
    "posterior_alpha": _until(10),
    "disable_logprobs": _until(11, 1),
    "speculative_token_tree": _from_to((9, 0), (21, 0)),
    "enforce_eager": _since(11),
    "disable_padded_drafter_batch": _since(11),
    "suffix_decoding_max_tree_depth": _since(11, 1),
    "suffix_decoding_max_cached_requests": _since(11, 1),
    "suffix_decoding_max_spec_factor": _since(11, 1),
    "suffix_decoding_min_token_prob": _since(11, 1),
    "parallel_drafting": _since(16),
    "draft_load_config": _since(17),
    "use_local_argmax_reduction": _since(17),
    "rejection_sample_method": _since(18),
    "moe_backend": _since(19),
    "synthetic_acceptance_rate": _from_to((19, 0), (20, 0)),
    "synthetic_acceptance_rates": _since(20),
    "synthetic_acceptance_length": _since(20),
    "attention_backend": _since(21),
    "draft_sample_method": _since(21),
    "use_heterogeneous_vocab": _since(25),
    "kv_cache_dtype": _since(26),
    "enable_adaptive_verification": _since(28),
    "dspark_draft_topk": _since(28),
    "index_share_for_mtp_iteration": _since(29),
    "disable_eagle_block_drop": _since(30),
    "disable_lookahead_block_hashes": _since(33),
    "draft_lm_head_quantization": _since(33),
    "xpress_topc": _since(33),
    "fly_window_size": _since(33),
    "fly_entropy_threshold": _since(33),
    "fly_entropy_top_k": _since(33),
}
"""The keys of `SpeculativeConfig` that users may set. vLLM refuses to start with any other."""


@dataclass(frozen=True)
class Capabilities:
    """What one version accepts and does. Made by `capabilities`."""

    version: Version

    @property
    def legacy_flags(self) -> bool:
        """Whether `--speculative-model` and its kin are accepted: up to 0.8.2 (engine/arg_utils.py:788-898)."""
        return self.version in _until(8, 3)

    @property
    def speculative_config(self) -> bool:
        """Whether `--speculative-config` may be *written*: from 0.8.3.

        0.8.2 has the flag but reads its value as a Python literal, so `true` and `null` crash it
        (engine/arg_utils.py:1255), and chooses its engine without looking at it (1641), so a draft model meets an
        engine that cannot run it.
        """
        return self.version in _since(8, 3)

    @property
    def reads_speculative_config(self) -> bool:
        """Whether `--speculative-config` is accepted at all: from 0.8.2 (engine/arg_utils.py:783)."""
        return self.version in _since(8, 2)

    @property
    def short_config_flag(self) -> bool:
        """Whether `-sc` is accepted: from 0.19 (engine/arg_utils.py:1304)."""
        return self.version in _since(19)

    @property
    def short_flags(self) -> bool:
        """Whether `--spec-method`, `-model` and `-tokens` are accepted: from 0.22 (engine/arg_utils.py:1463)."""
        return self.version in _since(22)

    @property
    def per_request_metrics(self) -> bool:
        """Whether `--per-request-spec-decode-metrics` is accepted: from 0.29; refused without a speculative config."""
        return self.version in _since(29)

    @property
    def needs_ngram_window(self) -> bool:
        """Whether n-gram is refused without `prompt_lookup_max`: it has a default from 0.8.2 (config.py:2020)."""
        return self.version in _until(8, 2)

    @property
    def ngram_may_pad(self) -> bool:
        """Whether n-gram may draft K tokens where it found no match: Model Runner V2 does, which runs it from 0.32."""
        return self.version in _since(32)

    @property
    def schedule(self) -> bool:
        """Whether K by batch size is accepted: from 0.24 (v1/spec_decode/dynamic/utils.py)."""
        return "num_speculative_tokens_per_batch_size" in self.keys

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the speculative configuration that this version accepts."""
        return frozenset(key for key, span in KEYS.items() if self.version in span)

    def method(self, name: str, v1_engine_forced: bool = False) -> bool:
        """Whether a method, named as vLLM names it, works. `v1_engine_forced`: the container sets `VLLM_USE_V1=1`."""
        if name == "draft_model" and v1_engine_forced and self.version in _from_to((8, 0), (10, 0)):
            return False  # "not supported with VLLM_USE_V1=1" (engine/arg_utils.py, _raise_or_fallback)
        if name.endswith("_mtp"):
            return self.version in _since(8, 3)
        spans = METHODS.get(name)
        return self.version > NEWEST if spans is None else any(self.version in span for span in spans)

    @property
    def finds_eagle3(self) -> bool:
        """Whether a draft model named like EAGLE3 is taken for one: from 0.10; before it is EAGLE (config.py:2687)."""
        return self.version in _since(10)

    def disable_by_batch_size(self, method: str, v1_engine_forced: bool = False) -> bool:
        """Whether the engine honours `disable_by_batch_size` for a method (vLLM's name); only the V0 engine ever did.

        0.8 runs speculation on V0 unless told otherwise, 0.9 draft models alone; 0.10 to 0.16 ignore the key and
        0.17 rejects it.
        """
        if self.version in _until(8):
            return True
        if v1_engine_forced:
            return False
        return self.version in _until(9) or (method == "draft_model" and self.version in _until(10))

    def schedule_method(self, method: str) -> bool:
        """Whether K by batch size works with a method (vLLM's name); 0.33 drops it for most (config/vllm.py:1088)."""
        served = {"ngram", "eagle", "eagle3", "mtp", "draft_model", "dflash"}
        return self.schedule and (method in served or self.version in _until(33))

    @property
    def schedule_dropped_with_data_parallel(self) -> bool:
        """Whether data parallelism silently turns K by batch size off: from 0.26 (config/vllm.py:1058)."""
        return self.version in _since(26)

    @property
    def schedule_unsafe_with_data_parallel(self) -> bool:
        """Whether replicas may choose different K and wait for each other forever: 0.24 and 0.25 have no guard."""
        return self.schedule and not self.schedule_dropped_with_data_parallel

    @property
    def request_tpot_metric(self) -> str | None:
        """The histogram of time per output token by request: from 0.11 (v1/metrics/loggers.py)."""
        return "vllm:request_time_per_output_token_seconds" if self.version in _since(11) else None

    @property
    def kv_usage_metric(self) -> str:
        """The gauge of KV-cache use, 0 to 1; renamed in 0.9.2 (v1/metrics/loggers.py)."""
        return "vllm:kv_cache_usage_perc" if self.version in _since(9, 2) else "vllm:gpu_cache_usage_perc"


def capabilities(version: Version) -> Capabilities:
    """What `version` accepts and does. A version newer than `NEWEST` is taken to be like it."""
    return Capabilities(version)
