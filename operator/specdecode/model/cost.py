"""What an output token costs under each option, at the load that users offer: the questions, and their answers.

Options are compared at equal *offered load*, not at equal batch size: slower steps pile up requests. The gates ask a
`CostModel`; `model.learnt` is the one that answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specdecode.model.estimate import Estimate
from specdecode.vllm.speculation import Speculation


@dataclass(frozen=True)
class Option:
    """Something the workload can run: a profile, with the batch-size schedule in its speculative configuration."""

    profile: str
    speculation: Speculation | None
    """None: speculation is off."""

    def drafts_no_more(self, other: Option) -> bool:
        """Whether it asks for nothing that does not run already with another option: off, or a schedule with less of
        the same drafts."""
        ours, theirs = self.speculation, other.speculation
        if ours is None or theirs is None:
            return ours is None
        return self.profile == other.profile and ours.drafts_no_more(theirs)


@dataclass(frozen=True)
class OfferedLoad:
    """What users ask of one pod."""

    tokens_per_second: float
    """Output tokens per second, those that wait included."""
    prompt_tokens_per_second: float = 0.0
    """Prompt tokens per second that have to be computed."""
    context: float = 0.0
    """Mean tokens of context of a running request."""
    prompt_length: float = 0.0
    """Mean prompt tokens of a request; 0: not known."""
    variation: float = 0.0
    """Standard deviation of the load's logarithm within the time that it was measured over, beyond the chance of single
    arrivals: a burst costs more than a quiet minute saves."""

    @property
    def prompts_per_token(self) -> float:
        """Prompt tokens to compute for each output token."""
        return self.prompt_tokens_per_second / max(self.tokens_per_second, 1e-9)

    def at(self, tokens_per_second: float) -> OfferedLoad:
        """More or less of the same requests."""
        prompts = self.prompts_per_token * tokens_per_second
        return replace(self, tokens_per_second=tokens_per_second, prompt_tokens_per_second=prompts)


@dataclass(frozen=True)
class Prediction:
    """What an option would do at a load."""

    tpot: Estimate
    """Seconds per output token. At saturation: at the largest batch."""
    batch_size: float
    """Where the load settles."""
    headroom: float
    """Capacity over the load; below 1 the pods fall behind."""
    capacity: Estimate | None = None
    """Tokens per second that it can carry; None where the model does not say."""
    unexplained: float = 0.0
    """What of the logarithm of the TPOT is not modelled, but taken from how far the model was off (`model.misfit`)."""

    @property
    def saturated(self) -> bool:
        """Whether the option cannot carry the load."""
        return self.headroom < 1

    def headroom_without_one(self, pods: int) -> float:
        """What it would be if one of so many pods were gone."""
        return self.headroom * (pods - 1) / pods


@dataclass(frozen=True)
class Band:
    """The batch sizes at which drafting costs less per token than not to speculate, both included.

    Dense models gain most at batch size 1; a mixture of experts at middle ones, so there is a lower end as well.
    """

    start: int
    end: int


class CostModel(Protocol):
    """What the gates ask. Any model that answers this can take the place of another."""

    def predict(self, option: Option, load: OfferedLoad, acceptance: float | None = None) -> Prediction:
        """What the option would do at the load, or if this share of its drafted tokens were accepted."""

    def acceptance(self, option: Option) -> Estimate | None:
        """Share of its drafted tokens that is expected to be accepted now; None where it drafts nothing."""

    def tpots(self, option: Option, load: OfferedLoad, tokens_per_second: Sequence[float]) -> Sequence[Estimate]:
        """Mean TPOT at several loads of requests like those of `load`: its context, its prompts per output token."""

    def log_tpot(
        self, option: Option, load: OfferedLoad, tokens_per_second: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The same without intervals, as logarithms, and quickly."""

    def band(self, option: Option, load: OfferedLoad | None) -> Band | None:
        """Where the option pays at its fixed K; None: nowhere."""

    def tuned(self, option: Option, load: OfferedLoad, *, one_threshold: bool) -> Option | None:
        """The option with the cheapest K for each batch size, as a schedule of few ranges, or with `one_threshold` as
        the batch size from which K is 0. None: its fixed K is right everywhere."""
