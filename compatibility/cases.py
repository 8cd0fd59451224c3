"""What is asked of every release: one configuration of each kind that a profile can be.

A case is put into words by the operator's own rewriter; what that refuses to write for a version is written all the
same, to see that the release really refuses or ignores it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from specdecode.vllm.command import Rewritten, rewrite
from specdecode.vllm.dialect import to_json, to_legacy_flags
from specdecode.vllm.speculation import BatchRange, Method, Speculation
from specdecode.vllm.speculative_arguments import CONFIG
from specdecode.vllm.version import Version

TARGET = "org/Target-8B"
_LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "num_lookahead_tokens": 3,
}
CHECKPOINTS: Mapping[str, Mapping[str, Any]] = {
    TARGET: _LLAMA,
    "org/MTP-Target": {**_LLAMA, "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]},
    "org/Draft-1B": _LLAMA,
    "org/EAGLE-Head": {**_LLAMA, "model_type": "eagle", "architectures": ["EAGLEModel"], "model": _LLAMA},
    "org/EAGLE3-Head": _LLAMA,
    "org/Medusa-Heads": {**_LLAMA, "model_type": "medusa", "architectures": ["MedusaModel"]},
    "org/Accelerator": {**_LLAMA, "model_type": "mlp_speculator", "architectures": ["MLPSpeculatorPreTrainedModel"]},
    "org/DFlash-Head": {**_LLAMA, "architectures": ["DFlashDraftModel"]},
    "org/DSpark-Head": {**_LLAMA, "model_type": "qwen3", "architectures": ["Qwen3DSparkModel"], "block_size": 7},
}
"""The `config.json` of each model that the cases name."""

MAX_NUM_SEQS = 256


@dataclass(frozen=True)
class Case:
    """One configuration. None: no speculation."""

    name: str
    speculation: Speculation | None
    target: str = TARGET
    env: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    """Other arguments of the server."""


@dataclass(frozen=True)
class Line:
    """The case as a command line for one version."""

    words: tuple[str, ...]
    refusal: str | None
    """Why the operator does not write it; None: it does."""


_SCHEDULE = (BatchRange(1, 16, 4), BatchRange(17, 64, 2), BatchRange(96, 256, 0))


def _other(name: str, model: str | None) -> Speculation:
    return Speculation(Method.OTHER, 4, model=model, extra={"method": name})


_KINDS: Mapping[str, Speculation] = {
    "n-gram": Speculation(Method.NGRAM, 4, prompt_lookup_min=2, prompt_lookup_max=4),
    "draft model": Speculation(Method.DRAFT_MODEL, 4, model="org/Draft-1B"),
    "EAGLE": Speculation(Method.EAGLE, 4, model="org/EAGLE-Head"),
    "EAGLE-3": Speculation(Method.EAGLE3, 4, model="org/EAGLE3-Head"),
    "MTP": Speculation(Method.MTP, 1),
    "suffix": Speculation(Method.SUFFIX, 4),
    "Medusa": _other("medusa", "org/Medusa-Heads"),
    "MLP speculator": _other("mlp_speculator", "org/Accelerator"),
    "n-gram on the GPU": replace(_other("ngram_gpu", None), prompt_lookup_min=2, prompt_lookup_max=4),
    "DFlash": _other("dflash", "org/DFlash-Head"),
    "DSpark": _other("dspark", "org/DSpark-Head"),
    "custom class": _other("custom_class", "package.Proposer"),
}


def cases() -> Iterator[Case]:
    """All cases, in the order of the table."""
    yield Case("off", None)
    for name, speculation in _KINDS.items():
        yield Case(name, speculation, _target(speculation))
    yield Case("n-gram, window left to vLLM", Speculation(Method.NGRAM, 4))
    draft = _KINDS["draft model"]
    yield Case("draft model, TP 1", replace(draft, draft_tensor_parallel_size=1))
    yield Case("draft model, quantized, shorter", replace(draft, quantization="fp8", max_model_len=4096))
    for name in ("n-gram", "draft model", "EAGLE", "Medusa"):
        yield Case(f"{name}, off from batch size 32", replace(_KINDS[name], disable_by_batch_size=32))
    forced = {"VLLM_USE_V1": "1"}
    yield Case(
        "n-gram, off from batch size 32, V1 forced", replace(_KINDS["n-gram"], disable_by_batch_size=32), env=forced
    )
    yield Case("draft model, V1 forced", draft, env=forced)
    for name, speculation in _KINDS.items():
        k = speculation.num_speculative_tokens or 0
        ranges = tuple(replace(r, k=min(r.k, k)) for r in _SCHEDULE)
        yield Case(f"{name}, K by batch size", replace(speculation, schedule=ranges), _target(speculation))
    several = ("--data-parallel-size", "2")
    yield Case(
        "n-gram, K by batch size, data-parallel", replace(_KINDS["n-gram"], schedule=_SCHEDULE), arguments=several
    )


def _target(speculation: Speculation) -> str:
    return "org/MTP-Target" if speculation.method is Method.MTP else TARGET


def line(case: Case, version: Version) -> Line:
    """The words that the operator writes for a case, or those that it refuses to write."""
    arguments = ["--model", case.target, "--max-num-seqs", str(MAX_NUM_SEQS), *case.arguments]
    container = {
        "name": "vllm",
        "image": f"vllm/vllm-openai:v{version}",
        "args": arguments,
        "env": [{"name": name, "value": value} for name, value in case.env.items()],
    }
    written = rewrite(container, version, case.speculation)
    if isinstance(written, Rewritten):
        return Line(tuple(written.container["args"]), None)
    assert case.speculation is not None, written
    legacy = version < Version(0, 8, 3)
    words = to_legacy_flags(case.speculation) if legacy else [CONFIG, to_json(case.speculation)]
    return Line((*arguments, *words), written.message)
