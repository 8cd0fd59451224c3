"""What a step costs before anything was measured: families of step times, in units of reading the weights once.

A decoding step reads the weights once, whatever it works on; it computes each of its tokens; it reads the keys and
values of every request. With n tokens verified, B requests of c tokens of context and p prompt tokens in the step,

    T = m G(n, B, c, p),    G = sqrt(W(n)^2 + (n/n*)^2) + kappa B c + p P

m (seconds): the weights over the memory bandwidth. n* (tokens): where computing takes as long as reading, peak
FLOP/s x bytes per weight / (2 x bandwidth), about 170 for 16-bit weights on an H200; the square root is a smooth
roofline. kappa: bytes of keys and values per token of context over bytes of weights, some 10^-5.

Prompts come in lumps: a long one is far beyond n* and adds its whole computation, p/n*. A short one of L tokens hides a
part of it behind the memory as other tokens do, and adds L P, P = (sqrt(1 + ((n + L)/n*)^2) - sqrt(W^2 + (n/n*)^2)) / L
per token. (On a recorded H200 prompts of 256 tokens cost 26 us a token beside 30 requests, 39 us beside 126.)

W(n) = 1 for a dense model. A mixture of experts reads the experts that its tokens are routed to: with a share a of the
experts active per token, n tokens touch 1 - (1 - a)^n of them, so W(n) = s + (1 - s)(1 - (1 - a)^n), s being the part
of the weights that every token needs. (Measured on a Qwen3-30B-A3B-shaped model, 8 of 128 experts: a = 1/16, s = 0.18
give every step from B = 1 to 64 within 3 %.)

Which family a workload belongs to is not known beforehand: all of them are kept, and weighted by what is measured.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_KNEES = np.geomspace(40.0, 1400.0, 14)
_KNEE = (math.log(180.0), 0.6)
"""log n* of dense models: mean and standard deviation."""
_MOE_KNEE = (math.log(500.0), 0.6)
"""A token computes only the active experts' weights, while all that are touched are read."""
_KAPPAS = np.array([1e-6, 3e-6, 6e-6, 1.2e-5, 3e-5])
_KAPPA = (math.log(6e-6), 0.8)
"""131 KB per token and 16 GB of weights (8B, grouped-query attention) are 8e-6, 262 KB and 64 GB (32B) 4e-6."""
_EXPERTS = ((1 / 16, 0.18), (1 / 32, 0.12), (1 / 8, 0.25))
"""(active share, part that every token needs): Qwen3-30B-A3B, DeepSeek-V3-like, Mixtral-like."""
_DENSE = 0.75
"""Prior probability of a dense model."""


@dataclass(frozen=True)
class Families:
    """One entry per family on the first axis of every array."""

    knee: Array
    kappa: Array
    active: Array
    """Share of the experts active per token; 1 for a dense model."""
    shared: Array
    hiding: Array
    """1 where short prompts hide behind the memory, 0 where each of their tokens costs 1/n*."""
    log_prior: Array

    def take(self, which: NDArray[np.intp]) -> Families:
        """Some of the families."""
        return Families(*(getattr(self, f)[which] for f in Families.__dataclass_fields__))

    def relative(self, tokens: Array, batch: Array, context: Array) -> Array:
        """G without prompts. Arrays of points -> (families, points)."""
        return self._forward(tokens) + self.kappa[:, None] * (batch * context)

    def per_prompt_token(self, tokens: Array, length: Array) -> Array:
        """P beside so many tokens, in prompts of `length` tokens (0: long ones). -> (families, points)."""
        long = np.broadcast_to(1 / self.knee[:, None], (len(self.knee), len(tokens)))
        if not (length > 0).any():
            return long
        whole = np.sqrt(1 + ((tokens + length) / self.knee[:, None]) ** 2)
        short = (whole - self._forward(tokens)) / np.maximum(length, 1.0)
        return np.where((self.hiding[:, None] > 0) & (length > 0), np.maximum(short, 0.0), long)

    def _forward(self, tokens: Array) -> Array:
        # Few shares of active experts among many families.
        shares, which = np.unique(self.active, return_inverse=True)
        untouched = np.exp(tokens * np.log1p(-np.minimum(shares, 1 - 1e-9))[:, None])[which]
        weights = 1 - (1 - self.shared[:, None]) * untouched
        return np.asarray(np.sqrt(weights**2 + (tokens / self.knee[:, None]) ** 2), dtype=np.float64)


@cache
def families() -> Families:
    """All that are considered."""
    rows = []
    for knee, kappa, hiding in itertools.product(_KNEES, _KAPPAS, (0.0, 1.0)):
        shape = -0.5 * ((math.log(kappa) - _KAPPA[0]) / _KAPPA[1]) ** 2
        rows.append((knee, kappa, 1.0, 1.0, hiding, shape + math.log(_DENSE) - _squared(knee, _KNEE)))
        for active, shared in _EXPERTS:
            log_prior = shape + math.log((1 - _DENSE) / len(_EXPERTS)) - _squared(knee, _MOE_KNEE)
            rows.append((knee, kappa, active, shared, hiding, log_prior))
    return Families(*np.array(rows).T)


def _squared(value: float, prior: tuple[float, float]) -> float:
    return 0.5 * ((math.log(value) - prior[0]) / prior[1]) ** 2
