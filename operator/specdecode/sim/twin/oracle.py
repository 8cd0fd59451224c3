"""The clairvoyant: the best that rolling between options could have done.

Every option is run for the whole time, each in a fleet of its own with the same traffic; that gives its TPOT in every
bucket. Dynamic programming over the buckets then finds the path of least request-seconds, where a roll takes the time
that it takes, pod by pod.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specdecode.model.cost import Option
from specdecode.sim.twin.baselines import Move

Array = NDArray[np.float64]

NOISE = 0.05
"""What a roll must save beyond its price, in costs of a bucket: less may be the chance of the rehearsal."""


def plan(costs: Array, options: Sequence[Option], bucket: float, roll: Sequence[float]) -> list[Move]:
    """The rolls, beginning with the first of the options.

    `costs[bucket, option]`: request-seconds (or TPOT weighted by tokens). `roll[bucket]`: seconds that a roll takes
    that begins there; while it lasts, the pods change over one by one.
    """
    buckets, n = costs.shape
    best = np.full((buckets + 1, n), math.inf)
    best[0, 0] = 0.0
    came: list[list[tuple[int, int] | None]] = [[None] * n for _ in range(buckets + 1)]
    for b in range(buckets):
        stay = best[b] + costs[b]
        better = stay < best[b + 1]
        for o in np.flatnonzero(better).tolist():
            best[b + 1, o], came[b + 1][o] = stay[o], (b, o)
        length = max(1, math.ceil(roll[b] / bucket))
        end = min(buckets, b + length)
        # Share of the pods that run the new option, on average, in each bucket of the roll.
        edges = np.minimum(np.arange(end - b + 1) * bucket / max(roll[b], 1e-9), 1.0)
        new = np.array([_mean_share(x, y, roll[b], bucket) for x, y in itertools.pairwise(edges.tolist())])
        old_part, new_part = (1 - new) @ costs[b:end], new @ costs[b:end]
        rolled = best[b][:, None] + old_part[:, None] + new_part[None, :] + NOISE * costs[b:end].mean()
        np.fill_diagonal(rolled, math.inf)
        source = rolled.argmin(axis=0)
        for o in range(n):
            if rolled[source[o], o] < best[end, o]:
                best[end, o], came[end][o] = rolled[source[o], o], (b, int(source[o]))
    option, at = int(best[buckets].argmin()), buckets
    moves: list[Move] = []
    while at:
        step = came[at][option]
        assert step is not None
        before, source_option = step
        if source_option != option:
            moves.append(Move(before * bucket, options[option]))
        at, option = before, source_option
    return moves[::-1]


def _mean_share(start: float, end: float, roll: float, bucket: float) -> float:
    """Mean over a bucket of a share that rises in a straight line from `start` to `end`, and stays at 1 once there."""
    if end < 1.0 or end == start:
        return (start + end) / 2 if end < 1.0 else 1.0
    rising = (1.0 - start) * roll / bucket
    return rising * (start + 1.0) / 2 + (1.0 - rising)
