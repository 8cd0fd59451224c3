"""What an output token costs under each option, at the load that users offer.

A decoding step reads every weight once, whatever it works on, and computes each of its tokens: it costs
`T(n) = m (1 + (n/n*)^2)^(1/2)` seconds for n tokens, flat while memory is the limit and linear once compute is
(a smooth roofline; on a measured H200 surface with a 32B model, m = 18 ms and n* = 159 fit every batch size and K
within a few percent). Speculation works on B(1 + drafted) tokens per step and adds its drafter's time, a factor per
option. Prompts share the steps: each of their tokens adds its computation, m/n* seconds, and that is what slows
decoding when many come. m, n* and the factors are learnt from this workload's own steps: for each n* and scatter on a
grid a Bayesian linear regression of log T, the grid points weighted by how well they explain what was seen. Where steps
are no roofline (a mixture of experts, long contexts), the scatter grows, and the intervals with it.

Options are compared at equal *offered load*, not at equal batch size: slower steps pile up requests. A pod asked for
λ tokens/s settles where `B = λ T(B) / E`; where no B up to `max_num_seqs` does, it is saturated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specdecode.model.estimate import Z90, Estimate
from specdecode.model.knowledge import Knowledge
from specdecode.vllm.speculation import Method, Speculation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """Something the workload can run: a profile, with the batch-size schedule in its speculative configuration."""

    profile: str
    speculation: Speculation | None
    """None: speculation is off."""


@dataclass(frozen=True)
class OfferedLoad:
    """What users ask of one pod."""

    tokens_per_second: float
    """Output tokens per second, those that wait included."""
    prompt_tokens_per_second: float = 0.0
    """Prompt tokens per second that have to be computed."""


@dataclass(frozen=True)
class Prediction:
    """What an option would do at a load."""

    tpot: Estimate
    """Seconds per output token. At saturation: at the largest batch."""
    batch_size: float
    """Where the load settles."""
    headroom: float
    """Capacity over the load; below 1 the pods fall behind."""

    @property
    def saturated(self) -> bool:
        """Whether the option cannot carry the load."""
        return self.headroom < 1


class CostModel(Protocol):
    """What the gates ask. Any model that answers this can replace the one below."""

    def predict(self, option: Option, load: OfferedLoad) -> Prediction:
        """What the option would do at the load."""

    def break_even(self, option: Option) -> float | None:
        """The smallest batch size from which a step of the option costs more per token than without speculation."""


@dataclass(frozen=True)
class _Prior:
    """What is believed of a method before it was measured; figures of published measurements, with wide intervals."""

    tokens_per_step: float
    tokens_sd: float
    """Standard deviation of its logarithm."""
    factor: float
    """Time of a step over that of a step without drafter on as many tokens."""
    factor_sd: float


# E over datasets and drafters at K = 3 to 5: 1.2 to 2.7 (arXiv 2601.11580), 4.75 on summaries. Step factors: 1.1 for
# n-gram, 1.3 to 1.6 for a 1B draft of a 32B target (measured on vLLM 0.24.0, H200).
_PRIORS: Mapping[Method, _Prior] = {
    Method.NGRAM: _Prior(1.7, 0.40, 1.12, 0.08),
    Method.DRAFT_MODEL: _Prior(2.2, 0.25, 1.40, 0.25),
}
_OTHER = _Prior(2.2, 0.30, 1.25, 0.20)

_GRID = np.geomspace(16.0, 2048.0, 43)
_LOG_KNEE = (math.log(170.0), 0.8)
"""n* of dense models on recent GPUs: peak FLOP/s x bytes per weight / (2 x memory bandwidth), about 170 on an H200."""
_SCATTERS = np.array([0.03, 0.06, 0.12, 0.24, 0.48])
"""Standard deviations of log T around the roofline: 0.03 on measured surfaces of dense models."""
_DENSE = 2
"""Steps without scatter that are taken as seen: most models are dense."""
_FACTOR = (math.log(1.25), 0.5)
"""log of a drafter's factor before it was measured, and its standard deviation."""
_MODEL_ERROR = 0.06
"""What the roofline misses away from what was measured, per factor e of distance in n."""
_SHADOW_FACTOR = 1.14
"""Time of a step whose schedule holds K = 0, over one without speculation (1.11 to 1.51 measured)."""
_MEMORY = 4 * 3600.0
"""Seconds over which what was measured of a profile's drafts fades back into the prior (an Ornstein-Uhlenbeck process):
traffic changes, and a profile that does not run shows nothing."""
_TOKENS_SD = 0.05
"""Standard deviation of log E just after it was measured."""


_BUSIEST = 0.95
"""Largest share of the time that prompts may take before the model stops believing it."""


def _roofline(tokens: Array, knee: Array | float, prompt: Array | float = 0.0) -> Array:
    """log T/m of steps that decode `tokens` and compute `prompt` tokens on average. Prompts come in lumps far beyond
    n*, so theirs is added time, never hidden behind the memory."""
    return np.asarray(np.log(np.sqrt(1 + (tokens / knee) ** 2) + prompt / knee), dtype=np.float64)


class RooflineModel:
    """The first cost model: one roofline per workload, one drafter factor per option. Immutable once fitted."""

    def __init__(self, known: Mapping[str, Knowledge], max_num_seqs: int, now: float) -> None:
        self._known, self._max, self._now = known, float(max_num_seqs), now
        drafters = sorted(name for name, k in known.items() if any(t.drafted for t in k.step_times))
        self._columns = {name: 1 + i for i, name in enumerate(drafters)}
        self._fit()

    def _fit(self) -> None:
        rows = [
            (self._columns.get(name), t, known.drafted_per_step > 0 and not t.drafted)
            for name, known in self._known.items()
            for t in known.step_times
        ]
        design = np.zeros((len(rows), 1 + len(self._columns)))
        design[:, 0] = 1.0
        for i, (column, t, _) in enumerate(rows):
            # Without drafts there is no drafter: such steps are the roofline itself, or its shadow at K = 0.
            if column is not None and t.drafted:
                design[i, column] = 1.0
        log_seconds = np.array([math.log(t.seconds) - shadow * math.log(_SHADOW_FACTOR) for _, t, shadow in rows])
        tokens, prompt = np.array([t.tokens for _, t, _ in rows]), np.array([t.prompt_tokens for _, t, _ in rows])
        self._seen = np.log(np.maximum(tokens, 1.0))
        prior_mean = np.array([math.log(0.02), *(_FACTOR[0] for _ in self._columns)])
        prior_sd = np.array([2.0, *(_FACTOR[1] for _ in self._columns)])
        # Axes: n* (g), scatter (s), coefficient (p, q).
        precision = 1 / _SCATTERS**2
        y = log_seconds - _roofline(tokens, _GRID[:, None], prompt)
        information = np.diag(prior_sd**-2.0) + precision[:, None, None] * (design.T @ design)
        covariance = np.asarray(np.linalg.inv(information), dtype=np.float64)
        right = prior_mean / prior_sd**2 + precision[:, None] * (y @ design)[:, None, :]
        mean = np.einsum("spq,gsq->gsp", covariance, right)
        misfit = precision * ((y[:, None, :] - mean @ design.T) ** 2).sum(axis=2)
        misfit += (((mean - prior_mean) / prior_sd) ** 2).sum(axis=2)
        misfit += ((np.log(_GRID)[:, None] - _LOG_KNEE[0]) / _LOG_KNEE[1]) ** 2
        evidence = 0.5 * (np.linalg.slogdet(covariance)[1] - misfit) - (len(rows) + _DENSE) * np.log(_SCATTERS)
        weights = np.exp(evidence - evidence.max())
        weights /= weights.sum()
        self._weights: Array = weights.ravel()
        self._knees: Array = np.repeat(_GRID, len(_SCATTERS))
        self._means: Array = mean.reshape(len(self._knees), -1)
        self._covariances = covariance
        """By scatter: it does not depend on n*."""
        self._scatter = float((weights * _SCATTERS**2).sum())
        """Mean square of it."""

    def _log_step(
        self, option: Option, tokens: Array, drafting: Array, prompt_rate: float = 0.0
    ) -> tuple[Array, Array]:
        """Mean and standard deviation of log T at each number of tokens, with prompts at tokens/s."""
        column = self._columns.get(option.profile)
        x = np.zeros((len(tokens), 1 + len(self._columns)))
        x[:, 0] = 1.0
        extra_mean, extra_variance = np.zeros(len(tokens)), np.zeros(len(tokens))
        if option.speculation is not None:
            if column is not None:
                x[:, column] = drafting
            else:
                prior = _PRIORS.get(option.speculation.method, _OTHER)
                extra_mean += drafting * math.log(prior.factor)
                extra_variance += drafting * prior.factor_sd**2
            extra_mean += (1 - drafting) * math.log(_SHADOW_FACTOR)
            extra_variance += (1 - drafting) * 0.08**2
        mu = self._means @ x.T + _roofline(tokens[None, :], self._knees[:, None])
        # A step that takes T computes rate x T prompt tokens: T = T_decode + (m / n*) rate T.
        prefilling = prompt_rate * np.exp(self._means[:, 0]) / self._knees
        mu -= np.log1p(-np.minimum(prefilling, _BUSIEST))[:, None]
        variance = np.tile(np.einsum("ip,spq,iq->si", x, self._covariances, x), (len(_GRID), 1))
        mean = self._weights @ mu
        total = self._weights @ (variance + (mu - mean) ** 2) + self._scatter
        distance = np.abs(np.log(np.maximum(tokens, 1.0))[:, None] - self._seen[None, :]).min(axis=1, initial=3.0)
        return mean + extra_mean, np.sqrt(total + extra_variance + (_MODEL_ERROR * distance) ** 2)

    def _drafting(self, option: Option, batch: Array) -> tuple[Array, Array, Array, float]:
        """Per batch size: E, tokens drafted per request and step, whether it drafts; and the sd of log E."""
        if option.speculation is None:
            return np.ones_like(batch), np.zeros_like(batch), np.zeros_like(batch), 0.0
        k_max = option.speculation.num_speculative_tokens or 1
        prior = _PRIORS.get(option.speculation.method, _OTHER)
        expected = min(prior.tokens_per_step, 1.0 + k_max)
        known = self._known.get(option.profile)
        positions = known.per_position if known is not None else ()
        if known is not None and known.measured_at is not None and known.drafted_per_step > 0:
            fresh = math.exp(-max(0.0, self._now - known.measured_at) / _MEMORY)
            # It may have been measured at another K, before the profile was edited.
            k_then = len(positions) or k_max
            seen = 1 + (max(known.tokens_per_step, 1.0) - 1) * _share(k_max, k_then, positions)
            full = min(seen, 1.0 + k_max) ** fresh * expected ** (1 - fresh)
            drafted = fresh * known.drafted_per_step * k_max / k_then + (1 - fresh) * k_max
            sd = math.sqrt((_TOKENS_SD * fresh) ** 2 + prior.tokens_sd**2 * (1 - fresh**2))
        else:
            full, drafted, sd = expected, float(k_max), prior.tokens_sd
        k = np.array([float(option.speculation.k_at(b)) for b in batch])
        share = np.array([_share(int(value), k_max, positions) for value in k])
        return 1 + (full - 1) * share, drafted * k / k_max, (k > 0).astype(np.float64), sd

    def predict(self, option: Option, load: OfferedLoad) -> Prediction:
        """See `CostModel`."""
        batch = np.unique(np.concatenate([np.geomspace(0.25, self._max, 120), [self._max]]))
        tokens_per_step, drafted, drafting, sd_tokens = self._drafting(option, batch)
        # Below one request the pod is idle part of the time; its steps still hold one.
        tokens = np.maximum(batch, 1.0) * (1 + drafted)
        log_step, sd_step = self._log_step(option, tokens, drafting, load.prompt_tokens_per_second)
        tpot = np.exp(log_step) / tokens_per_step
        sd = np.sqrt(sd_step**2 + (sd_tokens * (tokens_per_step > 1)) ** 2)

        def settle(shift: float) -> tuple[float, float, float]:
            """Batch size, TPOT and capacity when every TPOT is `shift` standard deviations off."""
            shifted = tpot * np.exp(shift * sd)
            capacity = float((batch / shifted).max())
            enough = np.nonzero(load.tokens_per_second * shifted <= batch)[0]
            if not len(enough):
                return float(batch[-1]), float(shifted[-1]), capacity
            i = int(enough[0])
            if i == 0:
                return float(load.tokens_per_second * shifted[0]), float(shifted[0]), capacity
            # Between two grid points the excess B - λ TPOT changes sign: interpolate.
            excess = batch[i - 1 : i + 1] - load.tokens_per_second * shifted[i - 1 : i + 1]
            t = float(-excess[0] / (excess[1] - excess[0]))
            return (
                float(batch[i - 1] + t * (batch[i] - batch[i - 1])),
                float(shifted[i - 1] + t * (shifted[i] - shifted[i - 1])),
                capacity,
            )

        settled, middle, capacity = settle(0.0)
        low, high = settle(-Z90)[1], settle(Z90)[1]
        headroom = capacity / load.tokens_per_second if load.tokens_per_second > 0 else math.inf
        return Prediction(Estimate(middle, min(low, middle), max(high, middle)), settled, headroom)

    def break_even(self, option: Option) -> float | None:
        """See `CostModel`. None: it pays up to `max_num_seqs`."""
        if option.speculation is None:
            return None
        fixed = Option(option.profile, _without_schedule(option.speculation))
        batch = np.unique(np.round(np.geomspace(1.0, self._max, 200)))
        tokens_per_step, drafted, drafting, _ = self._drafting(fixed, batch)
        with_it, _ = self._log_step(fixed, batch * (1 + drafted), drafting)
        without, _ = self._log_step(Option("", None), batch, np.zeros_like(batch))
        loses = np.nonzero(with_it - np.log(tokens_per_step) >= without)[0]
        return float(batch[loses[0]]) if len(loses) else None


def _share(k: int, k_max: int, positions: tuple[float, ...]) -> float:
    """Part of the accepted tokens that remains when K is lowered from `k_max` to `k`."""
    if k >= k_max:
        return 1.0
    if len(positions) >= k_max and sum(positions) > 0:
        return sum(positions[:k]) / sum(positions[:k_max])
    return k / k_max


def _without_schedule(speculation: Speculation) -> Speculation:
    return replace(speculation, schedule=(), disable_by_batch_size=None)
