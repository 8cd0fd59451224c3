"""`--speculative-config` as a given vLLM version takes it: which keys and methods it knows, what it refuses, and when.

Written from the released sources of vLLM 0.8.1 to 0.33.0 (vllm/config/speculative.py, vllm/engine/arg_utils.py,
vllm/v1/spec_decode/dynamic/utils.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdecode.vllm.speculation import BatchRange, Method, Speculation

Version = tuple[int, int, int]

FOREVER: Version = (99, 0, 0)
KEYS: Mapping[str, tuple[Version, Version]] = {
    "method": ((0, 8, 2), FOREVER),
    "model": ((0, 8, 2), FOREVER),
    "num_speculative_tokens": ((0, 8, 2), FOREVER),
    "draft_tensor_parallel_size": ((0, 8, 2), FOREVER),
    "quantization": ((0, 8, 2), FOREVER),
    "revision": ((0, 8, 2), FOREVER),
    "code_revision": ((0, 8, 2), FOREVER),
    "max_model_len": ((0, 8, 2), FOREVER),
    "prompt_lookup_min": ((0, 8, 2), FOREVER),
    "prompt_lookup_max": ((0, 8, 2), FOREVER),
    "enforce_eager": ((0, 8, 2), FOREVER),
    "disable_by_batch_size": ((0, 8, 2), (0, 17, 0)),
    "disable_mqa_scorer": ((0, 8, 2), (0, 10, 0)),
    "acceptance_method": ((0, 8, 2), (0, 10, 0)),
    "posterior_threshold": ((0, 8, 2), (0, 10, 0)),
    "posterior_alpha": ((0, 8, 2), (0, 10, 0)),
    "disable_logprobs": ((0, 8, 2), (0, 12, 0)),
    "speculative_token_tree": ((0, 11, 0), (0, 21, 0)),
    "disable_padded_drafter_batch": ((0, 11, 0), FOREVER),
    "suffix_decoding_max_tree_depth": ((0, 12, 0), FOREVER),
    "suffix_decoding_max_cached_requests": ((0, 12, 0), FOREVER),
    "suffix_decoding_max_spec_factor": ((0, 12, 0), FOREVER),
    "suffix_decoding_min_token_prob": ((0, 12, 0), FOREVER),
    "parallel_drafting": ((0, 16, 0), FOREVER),
    "use_local_argmax_reduction": ((0, 17, 0), FOREVER),
    "rejection_sample_method": ((0, 18, 0), FOREVER),
    "moe_backend": ((0, 19, 0), FOREVER),
    "synthetic_acceptance_rate": ((0, 19, 0), (0, 20, 0)),
    "synthetic_acceptance_rates": ((0, 20, 0), FOREVER),
    "synthetic_acceptance_length": ((0, 20, 0), FOREVER),
    "attention_backend": ((0, 21, 0), FOREVER),
    "draft_sample_method": ((0, 21, 0), FOREVER),
    "num_speculative_tokens_per_batch_size": ((0, 24, 0), FOREVER),
    "use_heterogeneous_vocab": ((0, 25, 0), FOREVER),
    "kv_cache_dtype": ((0, 26, 0), FOREVER),
    "enable_adaptive_verification": ((0, 28, 0), FOREVER),
}
"""Key -> the first version that takes it, and the first that no longer does."""

METHODS: Mapping[str, tuple[Version, Version, Method]] = {
    "ngram": ((0, 8, 2), FOREVER, Method.NGRAM),
    "draft_model": ((0, 8, 2), FOREVER, Method.DRAFT_MODEL),
    "eagle": ((0, 8, 2), FOREVER, Method.EAGLE),
    "eagle3": ((0, 8, 5), FOREVER, Method.EAGLE3),
    "mtp": ((0, 11, 0), FOREVER, Method.MTP),
    "deepseek_mtp": ((0, 8, 2), FOREVER, Method.MTP),
    "suffix": ((0, 12, 0), FOREVER, Method.SUFFIX),
    "medusa": ((0, 8, 2), (0, 33, 0), Method.OTHER),
    "mlp_speculator": ((0, 8, 2), (0, 33, 0), Method.OTHER),
    "ngram_gpu": ((0, 18, 0), FOREVER, Method.OTHER),
    "dflash": ((0, 20, 0), FOREVER, Method.OTHER),
    "dspark": ((0, 25, 0), FOREVER, Method.OTHER),
}
"""Name -> the first version that knows it, the first that no longer does, and our name for it."""


class ConfigError(ValueError):
    """What vLLM says before it exits with status 1."""


@dataclass(frozen=True)
class Accepted:
    """A configuration that passes vLLM's own checks."""

    speculation: Speculation
    fails_late: str | None = None
    """Why the engine dies once its weights are loaded: a schedule is only read by the scheduler."""
    synthetic_rates: tuple[float, ...] = ()
    """Unconditional acceptance per position, where `rejection_sample_method` is `synthetic`."""


def accept(
    config: Mapping[str, Any], version: Version, *, max_num_seqs: int, target_tp: int = 1, data_parallel: int = 1
) -> Accepted:
    """Check a speculative configuration as vLLM `version` would. Raises ConfigError with vLLM's words."""
    config = {key.replace("-", "_"): value for key, value in config.items()}
    for key, value in config.items():
        if key == "tensor_parallel_size" and version >= (0, 16, 0):
            raise _invalid(
                "'tensor_parallel_size' is not a valid argument in the speculative_config."
                " Please pass 'draft_tensor_parallel_size' instead."
            )
        since, until = KEYS.get(key, (FOREVER, FOREVER))
        if not since <= version < until:
            raise _unexpected_key(key, value, version)
    name = _method_name(config)
    k = config.get("num_speculative_tokens")
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k <= 0):
        raise _invalid("Input should be greater than 0", f"num_speculative_tokens={k!r}")
    first, gone, method = METHODS.get(name, (FOREVER, FOREVER, Method.OTHER))
    if not first <= version < gone:
        known = ", ".join(f"'{m}'" for m, (a, b, _) in METHODS.items() if a <= version < b)
        raise _invalid(f"Input should be {known}", f"method={name!r}")
    if method is Method.DRAFT_MODEL and (0, 10, 0) <= version < (0, 15, 0):
        raise ConfigError(
            "NotImplementedError: Draft model speculative decoding is not supported yet."
            " Please consider using other speculative decoding methods such as ngram, medusa, eagle, or mtp."
        )
    if method is Method.SUFFIX:
        raise ConfigError(
            "ImportError: Arctic Inference is required for suffix decoding."
            " Install via `pip install arctic-inference==0.1.1`."
        )
    if k is None:
        raise _invalid(
            "num_speculative_tokens must be provided with speculative model"
            " unless the draft model config contains an n_predict parameter."
        )
    draft_tp = config.get("draft_tensor_parallel_size")
    if draft_tp not in (None, 1, target_tp):
        raise _invalid(
            f"draft_tensor_parallel_size={draft_tp} cannot be other value than 1 or target model tensor_parallel_size"
        )
    low, high = _prompt_lookup(config, method)
    threshold = config.get("disable_by_batch_size")
    if threshold is not None and (not isinstance(threshold, int) or threshold < 2):
        raise _invalid(
            "Expect the batch size threshold of disabling speculative decoding is > 1,"
            f" but got speculative_disable_by_batch_size={threshold}"
        )
    schedule, fails_late = _schedule(config.get("num_speculative_tokens_per_batch_size"), max_num_seqs)
    if data_parallel > 1 and version >= (0, 26, 0):
        schedule, fails_late = (), None  # dropped with a warning
    known_keys = set(Speculation.__dataclass_fields__)
    return Accepted(
        Speculation(
            method=method,
            num_speculative_tokens=k,
            model=config.get("model"),
            draft_tensor_parallel_size=draft_tp,
            quantization=config.get("quantization"),
            max_model_len=config.get("max_model_len"),
            prompt_lookup_min=low,
            prompt_lookup_max=high,
            disable_by_batch_size=threshold if _honours_threshold(method, version) else None,
            schedule=schedule,
            extra={key: value for key, value in config.items() if key not in known_keys},
        ),
        fails_late,
        _synthetic_rates(config, k),
    )


def _method_name(config: Mapping[str, Any]) -> str:
    method, model = config.get("method"), config.get("model")
    if method is not None:
        return str(method)
    if model is None:
        raise _invalid("num_speculative_tokens was provided but without speculative model.")
    if model in ("ngram", "[ngram]"):
        return "ngram"
    name = str(model).lower()
    return "eagle3" if "eagle3" in name else "eagle" if "eagle-" in name else "draft_model"


def _honours_threshold(method: Method, version: Version) -> bool:
    """Whether the engine reads `disable_by_batch_size`: the V0 engine did, the V1 engine never has."""
    last = {Method.DRAFT_MODEL: (0, 10, 0), Method.NGRAM: (0, 9, 0)}.get(method, (0, 9, 0))
    return version < last


def _prompt_lookup(config: Mapping[str, Any], method: Method) -> tuple[int | None, int | None]:
    if method is not Method.NGRAM:
        return None, None
    given = [config[key] for key in ("prompt_lookup_min", "prompt_lookup_max") if config.get(key) is not None]
    if not all(isinstance(n, int) and n >= 1 for n in given):
        raise _invalid("Input should be greater than or equal to 1", f"prompt_lookup_min, prompt_lookup_max={given}")
    low, high = (given or [5])[0], (given or [5])[-1]
    if low > high:
        raise _invalid(f"prompt_lookup_min={low} must be <= prompt_lookup_max={high}")
    return low, high


def _schedule(ranges: Any, max_num_seqs: int) -> tuple[tuple[BatchRange, ...], str | None]:
    """The schedule, or the reason for which the scheduler dies (build_dynamic_sd_schedule_lookup)."""
    if ranges is None:
        return (), None
    if not isinstance(ranges, list) or not all(
        isinstance(r, list) and len(r) == 3 and all(isinstance(x, int) for x in r) for r in ranges
    ):
        raise _invalid("Input should be a valid tuple", "num_speculative_tokens_per_batch_size")
    schedule = tuple(BatchRange(*r) for r in ranges)
    if not schedule:
        return (), "num_speculative_tokens_per_batch_size must not be empty"
    if schedule[0].start != 1:
        return (
            (),
            f"the first range of num_speculative_tokens_per_batch_size must start at 1, not at {schedule[0].start}",
        )
    for r in schedule:
        if r.start <= 0 or r.end < r.start or r.k < 0:
            return (), f"invalid range [{r.start}, {r.end}, {r.k}] in num_speculative_tokens_per_batch_size"
    if any(b.start <= a.end for a, b in itertools.pairwise(schedule)):
        return (), "the ranges of num_speculative_tokens_per_batch_size must be sorted and must not overlap"
    return tuple(r for r in schedule if r.start <= max_num_seqs), None


def _synthetic_rates(config: Mapping[str, Any], k: int) -> tuple[float, ...]:
    if config.get("rejection_sample_method") != "synthetic":
        return ()
    rates, length = config.get("synthetic_acceptance_rates"), config.get("synthetic_acceptance_length")
    if rates is None and length is not None:
        return tuple(min(1.0, max(0.0, float(length) - 1 - i)) for i in range(k))
    if rates is None or length is not None:
        raise _invalid("exactly one of synthetic_acceptance_rates and synthetic_acceptance_length must be set")
    if len(rates) != k or any(not 0 <= r <= 1 for r in rates) or any(b > a for a, b in itertools.pairwise(rates)):
        raise _invalid(f"synthetic_acceptance_rates must be {k} non-increasing values between 0 and 1")
    return tuple(float(r) for r in rates)


def _unexpected_key(key: str, value: Any, version: Version) -> ConfigError:
    if version < (0, 10, 0):
        return ConfigError(f"TypeError: SpeculativeConfig.__init__() got an unexpected keyword argument '{key}'")
    return ConfigError(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig\n"
        f"{key}\n  Unexpected keyword argument"
        f" [type=unexpected_keyword_argument, input_value={value!r}, input_type={type(value).__name__}]"
    )


def _invalid(message: str, where: str = "") -> ConfigError:
    return ConfigError(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig\n"
        f"  Value error, {message} [type=value_error{', ' + where if where else ''}]"
    )
