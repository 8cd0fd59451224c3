"""Where a pod settles at an offered load.

An engine that runs b requests makes X(b) = b E / T tokens per second. Users ask for lambda, so the number of running
requests is a birth-death process (processor sharing): pi(b) ~ prod lambda / X(i). Its mean is where slower steps and
piled-up requests balance, B = lambda T(B) / E, with the fluctuations of real arrivals around it; it holds for any
distribution of output lengths (processor sharing is insensitive to them; Kleinrock, "Queueing Systems" II, 4.4). Where
X falls at a cliff there may be two stable batch sizes: each has its weight, so an option that a spike pushes over the
cliff is not priced as if it stayed below.

X at the largest batch, `max_num_seqs`, is the capacity: requests beyond it wait. There one request begins as another
one ends, so prompts come as fast as the engine serves, not as users ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SATURATED = 0.995
"""Load over capacity from which the queue is taken to grow without end."""
_BUSIEST = 0.95
"""Share of the time that prompts are believed to leave no more of."""
_LEAST = -35.0
"""Logarithm of a probability that adds nothing to one: exponentials are what all this costs."""


@dataclass(frozen=True)
class Settled:
    """The steady state at each of the loads asked for."""

    tpot: Array
    """Mean seconds per output token, every token alike."""
    batch_size: Array
    headroom: Array
    """Capacity over load; below 1 the pod falls behind, and its TPOT is that of the largest batch."""


def settle(log_tpot: Array, loads: Array, busy: Array | float = 0.0) -> Settled:
    """The steady states at `loads` tokens/s.

    `log_tpot[..., b - 1]`: log of the seconds per token, T / E, of steps that only decode, with b requests running, up
    to `max_num_seqs`; one row for all loads, or one for each. `busy`: share of the time that the prompts of the load
    take, by load, or by load and batch size, beyond 1 where there is not enough of it; a step that takes T computes
    their share of it, so it is 1 / (1 - busy) times as long.
    """
    limit = log_tpot.shape[-1]
    batch, log_batch = _batches(limit)
    asked = np.maximum(loads, 1e-6)
    prompts = np.asarray(busy, dtype=np.float64)
    prompts = prompts.reshape(-1, 1) if prompts.ndim < 2 else prompts
    log_time = log_tpot - np.log(1.0 - np.minimum(prompts, _BUSIEST))
    log_speed = log_batch - log_time
    capacity = 1.0 / (np.exp(log_tpot[..., -1]) / limit + prompts[..., -1] / asked)
    log_pi = np.log(asked)[:, None] * batch - np.cumsum(log_speed, axis=-1)
    top = np.maximum(log_pi.max(axis=1), 0.0)
    log_pi -= top[:, None]
    pi = np.exp(log_pi, out=np.zeros_like(log_pi), where=log_pi > _LEAST)
    ratio = np.minimum(asked / capacity, _SATURATED)
    waiting = pi[:, -1] * ratio / (1 - ratio)
    running = (pi @ batch + waiting * limit) / (np.exp(-top) + pi.sum(axis=1) + waiting)
    saturated = asked / capacity >= _SATURATED
    running = np.where(saturated, limit, running)
    fastest = np.exp(log_time.min(axis=-1))
    return Settled(
        tpot=np.where(saturated, limit / capacity, np.maximum(running / asked, fastest)),
        batch_size=running,
        headroom=capacity / asked,
    )


@cache
def _batches(limit: int) -> tuple[Array, Array]:
    """Batch sizes, and their logarithms."""
    batch = np.arange(1, limit + 1, dtype=np.float64)
    return batch, np.log(batch)
