"""A speculative configuration in the words of one vLLM version: `--speculative-config`, or the flags before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from specdecode.vllm.capabilities import NEWEST, OLDEST, Capabilities
from specdecode.vllm.speculation import VLLM_METHODS, BatchRange, Method, Speculation
from specdecode.vllm.unmanageable import Reason, UnmanageableError

Config = Mapping[str, Any]
"""`SpeculativeConfig` as a mapping, keys with underscores."""

SCHEDULE = "num_speculative_tokens_per_batch_size"
NGRAM_SPELLINGS = ("ngram", "[ngram]")

_METHODS = {name: method for method, name in VLLM_METHODS.items()}
_NUMBERS = (
    "num_speculative_tokens",
    "draft_tensor_parallel_size",
    "max_model_len",
    "prompt_lookup_min",
    "prompt_lookup_max",
    "disable_by_batch_size",
)
_TEXTS = ("model", "quantization")


@dataclass(frozen=True)
class LegacyFlag:
    """A flag of 0.6.3 to 0.8.2 and the key that it became (0.8.2 engine/arg_utils.py:1232-1253)."""

    flag: str
    key: str
    kind: type = str


LEGACY = (
    LegacyFlag("--speculative-model", "model"),
    LegacyFlag("--num-speculative-tokens", "num_speculative_tokens", int),
    LegacyFlag("--speculative-model-quantization", "quantization"),
    LegacyFlag("--speculative-draft-tensor-parallel-size", "draft_tensor_parallel_size", int),
    LegacyFlag("--speculative-max-model-len", "max_model_len", int),
    LegacyFlag("--speculative-disable-by-batch-size", "disable_by_batch_size", int),
    LegacyFlag("--ngram-prompt-lookup-max", "prompt_lookup_max", int),
    LegacyFlag("--ngram-prompt-lookup-min", "prompt_lookup_min", int),
    LegacyFlag("--speculative-disable-mqa-scorer", "disable_mqa_scorer", bool),
    LegacyFlag("--spec-decoding-acceptance-method", "acceptance_method"),
    LegacyFlag("--typical-acceptance-sampler-posterior-threshold", "posterior_threshold", float),
    LegacyFlag("--typical-acceptance-sampler-posterior-alpha", "posterior_alpha", float),
    LegacyFlag("--disable-logprobs-during-spec-decoding", "disable_logprobs", bool),
)


def decode(config: Config, capabilities: Capabilities | None, v1_engine_forced: bool = False) -> Speculation:
    """What a configuration means. Keys that we do not model, or that the version ignores, end up in `extra`."""
    rest = {key.replace("-", "_"): value for key, value in config.items()}
    numbers = {key: _number(key, rest.pop(key, None)) for key in _NUMBERS}
    texts = {key: _text(key, rest.pop(key, None)) for key in _TEXTS}
    schedule = _schedule(rest.pop(SCHEDULE, None))
    method = _method(rest, texts["model"], capabilities)
    if method is Method.NGRAM and texts["model"] in NGRAM_SPELLINGS:
        texts["model"] = None
    speculation = Speculation(method=method, schedule=schedule, extra=rest, **numbers, **texts)  # type: ignore[arg-type]
    threshold = speculation.disable_by_batch_size
    if threshold is not None and capabilities is not None:
        honoured = capabilities.disable_by_batch_size(speculation.vllm_method or "", v1_engine_forced)
        if not honoured:
            extra = {**rest, "disable_by_batch_size": threshold}
            speculation = replace(speculation, disable_by_batch_size=None, extra=extra)
    return speculation


def _method(rest: dict[str, Any], model: str | None, capabilities: Capabilities | None) -> Method:
    """Takes the method from `rest`, or finds it as vLLM does (config/speculative.py, __post_init__)."""
    named = _text("method", rest.pop("method", None))
    if named in NGRAM_SPELLINGS or (named is None and model in NGRAM_SPELLINGS):
        return Method.NGRAM
    if named in (None, "draft_model") and model is not None:
        name = model.lower()
        if "eagle-" in name:
            return Method.EAGLE
        if "eagle3" in name and (capabilities is None or capabilities.finds_eagle3):
            return Method.EAGLE3
        if "eagle3-" in name and capabilities is not None and capabilities.speculative_config:
            return Method.EAGLE
        drafters = [d for d in ("dflash", "dspark") if d in name and (capabilities is None or capabilities.method(d))]
        named = drafters[0] if drafters else "draft_model"
    if named is not None and named.endswith("_mtp") and (capabilities is None or capabilities.method("mtp")):
        named = "mtp"  # "method `%s` is deprecated and replaced with mtp"
    if named in _METHODS:
        return _METHODS[named]
    if named is not None:
        rest["method"] = named
    return Method.OTHER


def _number(key: str, value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise UnmanageableError(
        Reason.ARGUMENT_NOT_READABLE,
        f"the speculative configuration's {key} is {json.dumps(value)}; write a whole number",
    )


def _text(key: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise UnmanageableError(
        Reason.ARGUMENT_NOT_READABLE, f"the speculative configuration's {key} is {json.dumps(value)}; write a string"
    )


def _schedule(value: Any) -> tuple[BatchRange, ...]:
    if value is None:
        return ()
    try:
        ranges = [(start, end, k) for start, end, k in value]
        if not all(type(number) is int for row in ranges for number in row):
            raise ValueError
    except (TypeError, ValueError):
        raise UnmanageableError(
            Reason.ARGUMENT_NOT_READABLE,
            f"{SCHEDULE} is {json.dumps(value)}; write a list of [start, end, K] like [[1, 16, 4], [17, 64, 1]]",
        ) from None
    return tuple(BatchRange(*row) for row in ranges)


def encode(speculation: Speculation) -> dict[str, Any]:
    """The configuration as `SpeculativeConfig` names it; what is not set is left out."""
    config: dict[str, Any] = {}
    if (name := speculation.vllm_method) is not None:
        config["method"] = name
    for key in ("model", "num_speculative_tokens", "draft_tensor_parallel_size", "quantization", "max_model_len"):
        config[key] = getattr(speculation, key)
    for key in ("prompt_lookup_min", "prompt_lookup_max", "disable_by_batch_size"):
        config[key] = getattr(speculation, key)
    config[SCHEDULE] = [[r.start, r.end, r.k] for r in speculation.schedule] or None
    return {key: value for key, value in config.items() if value is not None} | dict(speculation.extra)


def to_json(speculation: Speculation) -> str:
    """The value of `--speculative-config`. `$` and `'` are escaped, so no kubelet and no shell changes it."""
    text = json.dumps(encode(speculation), separators=(",", ":"), ensure_ascii=True)
    return text.replace("$", "\\u0024").replace("'", "\\u0027")


def to_legacy_flags(speculation: Speculation) -> list[str]:
    """The flags of 0.8.2 and before."""
    config = encode(speculation)
    config.pop("method", None)
    if speculation.method is Method.NGRAM:
        config["model"] = "[ngram]"
    words: list[str] = []
    for legacy in LEGACY:
        value = config.pop(legacy.key, None)
        if legacy.key == "disable_mqa_scorer":
            words += [legacy.flag] if value else []
        elif value is not None:
            words += [legacy.flag, str(value)]
    return words


def from_legacy_flags(values: Mapping[str, str | None]) -> dict[str, Any]:
    """The configuration that flags and their values mean. Raises `UnmanageableError` for a value of the wrong kind."""
    config: dict[str, Any] = {}
    for legacy in LEGACY:
        if legacy.flag not in values:
            continue
        text = values[legacy.flag]
        try:
            if legacy.kind is bool:
                config[legacy.key] = text is None or {"true": True, "false": False}[text.lower()]
            elif text is not None and text not in ("None", ""):
                config[legacy.key] = legacy.kind(text)
        except (KeyError, ValueError):
            message = f"{legacy.flag} is {text!r}; write a value of the kind that vLLM takes ({legacy.kind.__name__})"
            raise UnmanageableError(Reason.ARGUMENT_NOT_READABLE, message) from None
    return config


def check(
    speculation: Speculation,
    capabilities: Capabilities,
    *,
    v1_engine_forced: bool = False,
    data_parallel_size: int | None = 1,
) -> None:
    """Raises `UnmanageableError` where the version cannot express the configuration, or would not honour it."""
    problem = _problem(speculation, capabilities, v1_engine_forced, data_parallel_size)
    if problem is not None:
        raise UnmanageableError(Reason.VERSION_CANNOT_EXPRESS, problem)


def _problem(
    speculation: Speculation, capabilities: Capabilities, v1_engine_forced: bool, data_parallel_size: int | None
) -> str | None:
    version, name = capabilities.version, speculation.vllm_method
    if speculation.method is Method.DISABLED:
        return "the method Disabled has no configuration; ask for no speculation instead"
    if version < OLDEST:
        return f"vLLM {version} is too old: use {OLDEST} or newer"
    if name is not None and not capabilities.method(name, v1_engine_forced):
        forced = " with VLLM_USE_V1=1" if v1_engine_forced and capabilities.method(name) else ""
        return f"vLLM {version} cannot run the method {name}{forced}; choose another method or vLLM version"
    if speculation.method is Method.NGRAM and speculation.prompt_lookup_max is None and capabilities.needs_ngram_window:
        return f"vLLM {version} has no default for prompt_lookup_max; set it, and prompt_lookup_min if need be"
    threshold = speculation.disable_by_batch_size
    if threshold is not None and threshold < 2:
        return f"disable_by_batch_size is {threshold}; vLLM wants 2 or more"
    if threshold is not None and not capabilities.disable_by_batch_size(name or "", v1_engine_forced):
        way_out = "set K by batch size instead" if capabilities.schedule else "leave it out"
        return f"vLLM {version} does not honour disable_by_batch_size for the method {name}; {way_out}"
    config = encode(speculation)
    unknown = sorted(set(config) - capabilities.keys - {"method"}) if version <= NEWEST else []
    if unknown:
        return f"vLLM {version} does not know {', '.join(unknown)} in a speculative configuration; leave it out"
    if not capabilities.speculative_config:
        legacy = {flag.key for flag in LEGACY}
        if beyond := sorted(set(config) - legacy - {"method"}):
            return f"vLLM {version} has no flag for {', '.join(beyond)}; leave it out or use 0.8.3 or newer"
        if not _is_read_back(speculation, capabilities, v1_engine_forced):
            return f"vLLM {version} has no flag for the method {name}: it would take another; use 0.8.3 or newer"
    elif not _is_read_back(speculation, capabilities, v1_engine_forced):
        return f"vLLM {version} would understand {json.dumps(config)} differently; rename the draft model or the method"
    return _schedule_problem(speculation, capabilities, data_parallel_size)


def _is_read_back(speculation: Speculation, capabilities: Capabilities, v1_engine_forced: bool) -> bool:
    """Whether vLLM would understand what we write as it is meant."""
    config = encode(speculation)
    try:
        if not capabilities.speculative_config:
            words = to_legacy_flags(speculation)
            values: dict[str, str | None] = {}
            while words:
                flag = words.pop(0)
                values[flag] = words.pop(0) if words and not words[0].startswith("-") else None
            config = from_legacy_flags(values)
        return decode(config, capabilities, v1_engine_forced) == speculation
    except UnmanageableError:
        return False


def _schedule_problem(
    speculation: Speculation, capabilities: Capabilities, data_parallel_size: int | None
) -> str | None:
    """vLLM checks the ranges after it has loaded the weights (v1/spec_decode/dynamic/utils.py), so we do it before."""
    if not speculation.schedule:
        return None
    version, k_max = capabilities.version, speculation.num_speculative_tokens
    if not capabilities.schedule_method(speculation.vllm_method or ""):
        return f"vLLM {version} drops K by batch size for {speculation.vllm_method}; leave {SCHEDULE} out"
    if capabilities.schedule_unsafe_with_data_parallel and data_parallel_size != 1:
        return f"vLLM {version} may hang with {SCHEDULE} and data parallelism; leave one out"
    if capabilities.schedule_dropped_with_data_parallel and data_parallel_size != 1:
        return f"vLLM {version} drops {SCHEDULE} with data parallelism; leave one out"
    if speculation.schedule[0].start != 1:
        return f"{SCHEDULE} starts at batch size {speculation.schedule[0].start}; the first range must start at 1"
    before = 0
    for r in speculation.schedule:
        if r.start <= before or r.end < r.start:
            return f"{SCHEDULE} has [{r.start}, {r.end}, {r.k}] after batch size {before}; write ascending ranges"
        if r.k < 0 or (k_max is not None and r.k > k_max):
            return f"{SCHEDULE} asks for K={r.k}; K must be 0 to num_speculative_tokens ({k_max})"
        before = r.end
    return None
