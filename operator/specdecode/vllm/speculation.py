"""What a vLLM server's speculative decoding is set to, in one form for all versions and spellings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Method(StrEnum):
    """How tokens are drafted. `Disabled` is a profile's method; a server without speculation has no `Speculation`."""

    DISABLED = "Disabled"
    DRAFT_MODEL = "DraftModel"
    NGRAM = "NGram"
    EAGLE = "Eagle"
    EAGLE3 = "Eagle3"
    MTP = "MTP"
    SUFFIX = "Suffix"
    OTHER = "Other"
    """A method that vLLM knows and we do not manage; its name is in `Speculation.extra["method"]`."""


VLLM_METHODS: Mapping[Method, str] = {
    Method.DRAFT_MODEL: "draft_model",
    Method.NGRAM: "ngram",
    Method.EAGLE: "eagle",
    Method.EAGLE3: "eagle3",
    Method.MTP: "mtp",
    Method.SUFFIX: "suffix",
}
"""vLLM's own names of the methods (`SpeculativeMethod`)."""


@dataclass(frozen=True, order=True)
class BatchRange:
    """K tokens for batch sizes `start` to `end`, both included (`num_speculative_tokens_per_batch_size`)."""

    start: int
    end: int
    k: int


@dataclass(frozen=True)
class Speculation:
    """A speculative configuration, named as in vLLM's `SpeculativeConfig` (vllm/config/speculative.py)."""

    method: Method
    num_speculative_tokens: int | None = None
    """K. None where vLLM takes it from the draft's own configuration."""
    model: str | None = None
    draft_tensor_parallel_size: int | None = None
    quantization: str | None = None
    max_model_len: int | None = None
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None
    disable_by_batch_size: int | None = None
    """The batch size from which nothing is drafted; only where the version's engine honours it."""
    schedule: tuple[BatchRange, ...] = ()
    """K by batch size (`num_speculative_tokens_per_batch_size`, vLLM >= 0.24)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the configuration that we do not model, kept as they are."""

    @property
    def vllm_method(self) -> str | None:
        """vLLM's name of the method; None where the configuration leaves it to vLLM to find out."""
        return self.extra.get("method") if self.method is Method.OTHER else VLLM_METHODS.get(self.method)

    def drafts_no_more(self, other: Speculation) -> bool:
        """Whether it drafts no more tokens than another configuration of the same drafts, whatever the batch size."""
        starts = {1, *(r.start for s in (self, other) for r in s.schedule)}
        starts |= {s.disable_by_batch_size for s in (self, other) if s.disable_by_batch_size is not None}
        return all(self.k_at(b) <= other.k_at(b) for b in starts)

    def k_at(self, batch_size: float) -> int:
        """K that the engine uses at a batch size: the schedule's, gaps and tail inheriting the range before."""
        k = self.num_speculative_tokens or 0
        if self.disable_by_batch_size is not None and batch_size >= self.disable_by_batch_size:
            return 0
        for r in self.schedule:
            if batch_size >= r.start:
                k = min(r.k, self.num_speculative_tokens or r.k)
        return k
