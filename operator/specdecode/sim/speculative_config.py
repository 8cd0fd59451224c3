"""A speculative configuration as a given vLLM takes it: what it refuses, in its own words, and when.

Which keys and methods a version knows is `specdecode.vllm.capabilities`; here is what starting a server with one does
(vllm/config/speculative.py, vllm/engine/arg_utils.py, vllm/v1/spec_decode/dynamic/utils.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from specdecode.vllm.capabilities import METHODS, Capabilities
from specdecode.vllm.dialect import SCHEDULE, decode
from specdecode.vllm.speculation import BatchRange, Method, Speculation
from specdecode.vllm.unmanageable import UnmanageableError
from specdecode.vllm.version import Version


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
    config: Mapping[str, Any], can: Capabilities, *, max_num_seqs: int, target_tp: int = 1, data_parallel: int = 1
) -> Accepted:
    """Check a speculative configuration as that version would. Raises ConfigError with vLLM's words."""
    config = {key.replace("-", "_"): value for key, value in config.items()}
    _check_keys(config, can)
    schedule_given = config.pop(SCHEDULE, None)
    try:
        speculation = decode(config, can)
    except UnmanageableError as error:
        raise _invalid(f"Input should be valid: {error}") from error
    _check_method(speculation, config, can)
    k = speculation.num_speculative_tokens
    if k is None:
        raise _invalid(
            "num_speculative_tokens must be provided with speculative model"
            " unless the draft model config contains an n_predict parameter."
        )
    if k <= 0:
        raise _invalid("Input should be greater than 0", f"num_speculative_tokens={k}")
    if speculation.draft_tensor_parallel_size not in (None, 1, target_tp):
        raise _invalid("draft_tensor_parallel_size cannot be other value than 1 or target model tensor_parallel_size")
    threshold = config.get("disable_by_batch_size")
    if threshold is not None and threshold < 2:
        raise _invalid(
            "Expect the batch size threshold of disabling speculative decoding is > 1,"
            f" but got speculative_disable_by_batch_size={threshold}"
        )
    _check_prompt_lookup(speculation)
    schedule, fails_late = _schedule(schedule_given, max_num_seqs)
    if data_parallel > 1 and can.schedule_dropped_with_data_parallel:
        schedule, fails_late = (), None
    return Accepted(replace(speculation, schedule=schedule), fails_late, _synthetic_rates(config, k))


def _check_keys(config: Mapping[str, Any], can: Capabilities) -> None:
    for key, value in config.items():
        if key in can.keys or (key == "method" and can.legacy_flags):
            continue
        if key == "tensor_parallel_size":
            raise _invalid(
                "'tensor_parallel_size' is not a valid argument in the speculative_config."
                " Please pass 'draft_tensor_parallel_size' instead."
            )
        if can.version < Version(0, 10):
            raise ConfigError(f"TypeError: SpeculativeConfig.__init__() got an unexpected keyword argument '{key}'")
        raise ConfigError(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig\n"
            f"{key}\n  Unexpected keyword argument"
            f" [type=unexpected_keyword_argument, input_value={value!r}, input_type={type(value).__name__}]"
        )


def _check_method(speculation: Speculation, config: Mapping[str, Any], can: Capabilities) -> None:
    name = speculation.vllm_method
    if name is None or (speculation.method is Method.DRAFT_MODEL and speculation.model is None):
        raise _invalid("num_speculative_tokens was provided but without speculative model.")
    if speculation.method is Method.DRAFT_MODEL and not can.method(name):
        raise ConfigError(
            "NotImplementedError: Draft model speculative decoding is not supported yet."
            " Please consider using other speculative decoding methods such as ngram, medusa, eagle, or mtp."
        )
    if not can.method(name):
        known = ", ".join(f"'{method}'" for method in METHODS if can.method(method))
        raise _invalid(f"Input should be {known}", f"method={config.get('method')!r}")
    if speculation.method is Method.SUFFIX:
        raise ConfigError(
            "ImportError: Arctic Inference is required for suffix decoding."
            " Install via `pip install arctic-inference==0.1.1`."
        )


def _check_prompt_lookup(speculation: Speculation) -> None:
    if speculation.method is not Method.NGRAM:
        return
    given = [n for n in (speculation.prompt_lookup_min, speculation.prompt_lookup_max) if n is not None]
    if any(n < 1 for n in given):
        raise _invalid("Input should be greater than or equal to 1", f"prompt_lookup_min, prompt_lookup_max={given}")
    if given and given[0] > given[-1]:
        raise _invalid(f"prompt_lookup_min={given[0]} must be <= prompt_lookup_max={given[-1]}")


def _schedule(ranges: Any, max_num_seqs: int) -> tuple[tuple[BatchRange, ...], str | None]:
    """The schedule, or the reason for which the scheduler dies (build_dynamic_sd_schedule_lookup)."""
    if ranges is None:
        return (), None
    if not isinstance(ranges, list) or not all(isinstance(r, list) and _three_integers(r) for r in ranges):
        raise _invalid("Input should be a valid tuple", SCHEDULE)
    schedule = tuple(BatchRange(*r) for r in ranges)
    if not schedule:
        return (), f"{SCHEDULE} must not be empty"
    if schedule[0].start != 1:
        return (), f"the first range of {SCHEDULE} must start at 1, not at {schedule[0].start}"
    for r in schedule:
        if r.start <= 0 or r.end < r.start or r.k < 0:
            return (), f"invalid range [{r.start}, {r.end}, {r.k}] in {SCHEDULE}"
    if any(b.start <= a.end for a, b in itertools.pairwise(schedule)):
        return (), f"the ranges of {SCHEDULE} must be sorted and must not overlap"
    return tuple(r for r in schedule if r.start <= max_num_seqs), None


def _three_integers(values: list[Any]) -> bool:
    return len(values) == 3 and all(isinstance(v, int) and not isinstance(v, bool) for v in values)


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


def _invalid(message: str, where: str = "") -> ConfigError:
    return ConfigError(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig\n"
        f"  Value error, {message} [type=value_error{', ' + where if where else ''}]"
    )
