"""Evidence as a workload on a measured surface would give it: the steps of its options, and how their drafts fare."""

from __future__ import annotations

from collections.abc import Iterable

from specdecode.model.cost import Option
from specdecode.model.knowledge import Drafts, Knowledge, StepTime
from specdecode.model.surface import Surface
from specdecode.vllm.speculation import Method, Speculation

NOW = 1_800_000_000.0
HOUR = 3600.0
CHANCE = 0.7
"""Each drafted token is accepted with this chance once all before it were."""
LIMIT = 512
"""Tokens in the largest captured CUDA graph on every measured surface."""

OFF = Option("disabled", None)
NGRAM = Option("ngram", Speculation(Method.NGRAM, num_speculative_tokens=5))
DRAFT = Option("draft", Speculation(Method.DRAFT_MODEL, num_speculative_tokens=3, model="small"))
OPTIONS = (OFF, NGRAM, DRAFT)

DENSE, MIXTURE = "h200-llama32b-draft1b", "h200-qwen3moe30b"
LONG, SMALL = "h200-llama8b-ctx3000", "h100-llama8b-draft1b"


def k_of(option: Option) -> int:
    """K of an option, 0 without speculation."""
    return (option.speculation.num_speculative_tokens or 0) if option.speculation else 0


def method_of(option: Option) -> Method:
    """Its method, in the words of a surface."""
    return option.speculation.method if option.speculation else Method.DISABLED


def tokens_per_step(k: int, chance: float = CHANCE) -> float:
    """E of drafts that always come."""
    return sum(chance**i for i in range(k + 1))


def step(surface: Surface, option: Option, batch: float, *, k: int | None = None, ago: float = 0.0) -> StepTime:
    """A step of an option, at its own K or as a schedule would hold it at another."""
    scheduled = k is not None
    k = k_of(option) if k is None else k
    seconds = surface.step_seconds(method_of(option), k, batch, scheduled=scheduled)
    return StepTime(batch, batch * (k + 1), seconds, context=surface.context, k=k, measured_at=NOW - ago)


def drafts(k: int = 5, chance: float = CHANCE, ago: float = 0.0) -> Drafts:
    """Well measured drafts: every step makes one, each position has the same chance."""
    return Drafts(1.0, (chance,) * k, NOW - ago, 1e6)


def known(
    surface: Surface, option: Option, batches: Iterable[float], *, ago: float = 0.0, chance: float = CHANCE
) -> Knowledge:
    """What a workload on the surface shows of an option at some batch sizes, at its fixed K."""
    k = k_of(option)
    return Knowledge(
        measured_at=NOW - ago,
        acceptance=(chance,) * 4 if k else None,
        drafts=drafts(k, chance, ago) if k else None,
        tokens_per_step=tokens_per_step(k, chance),
        step_times=tuple(step(surface, option, b, ago=ago) for b in batches),
    )
