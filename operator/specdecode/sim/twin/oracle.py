"""The clairvoyant: the best that rolling between options could have done.

Every option is run for the whole time, each in a fleet of its own with the same traffic; that gives its TPOT in every
bucket. Dynamic programming over the buckets then finds the path of least request-seconds, where a roll takes the time
that it takes, pod by pod, and no more of them are made than the policy allows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specdecode.api.v1alpha1 import BatchSizeTuningMode
from specdecode.model.cost import Option
from specdecode.sim.twin.baselines import Move
from specdecode.sim.twin.truth import Truth
from specdecode.sim.twin.world import World
from specdecode.vllm.capabilities import capabilities

Array = NDArray[np.float64]

NOISE = 0.05
"""What a roll must save beyond its price, in costs of a bucket: less may be the chance of the rehearsal."""
REPRESENTATIVE = 6
"""Times of the scenario whose traffic a schedule of the oracle's is made for, at most."""


def choices(world: World) -> list[Option]:
    """Every profile at its fixed K, and where the policy tunes it, with the best schedule for a few times' traffic."""
    truth, able = Truth(world.times, world.gains), capabilities(world.scenario.version)
    found: dict[int, Option] = {world.times.variant(o): o for o in world.options.values()}
    if world.scenario.policy.batch_size_tuning.mode is not BatchSizeTuningMode.AUTO:
        return list(found.values())
    epochs = np.unique(np.linspace(0, len(world.demand.mixes) - 1, REPRESENTATIVE + 2)[1:-1].astype(int))
    for option in world.options.values():
        speculation = option.speculation
        if speculation is None or speculation.vllm_method is None or not able.schedule_method(speculation.vllm_method):
            continue
        for epoch in epochs:
            mix, t = world.demand.mixes[epoch], epoch * world.demand.epoch_steps * world.dt
            best = replace(option, speculation=truth.best_schedule(option.profile, speculation, mix, t))
            found.setdefault(world.times.variant(best), best)
    return list(found.values())


def plan(costs: Array, options: Sequence[Option], bucket: float, roll: Sequence[float], changes: int) -> list[Move]:
    """The rolls, beginning with the first of the options, and at most so many of them.

    `costs[bucket, option]`: request-seconds (or TPOT weighted by tokens). `roll[bucket]`: seconds that a roll takes
    that begins there; while it lasts, the pods change over one by one.
    """
    buckets, n = costs.shape
    # By bucket, rolls so far, and option: the least cost of all before, and the bucket and option that it came from.
    best = np.full((buckets + 1, changes + 1, n), math.inf)
    best[0, 0, 0] = 0.0
    since, source = np.zeros(best.shape, dtype=int), np.zeros(best.shape, dtype=int)
    for b in range(buckets):
        stay = best[b] + costs[b]
        better = stay < best[b + 1]
        best[b + 1][better] = stay[better]
        since[b + 1][better] = b
        source[b + 1] = np.where(better, np.arange(n), source[b + 1])
        length = max(1, math.ceil(roll[b] / bucket))
        end = min(buckets, b + length)
        # Share of the pods that run the new option, on average, in each bucket of the roll.
        edges = np.minimum(np.arange(end - b + 1) * bucket / max(roll[b], 1e-9), 1.0)
        new = np.array([_mean_share(x, y, roll[b], bucket) for x, y in itertools.pairwise(edges.tolist())])
        old_part, new_part = (1 - new) @ costs[b:end], new @ costs[b:end]
        price = old_part[:, None] + new_part[None, :] + NOISE * costs[b:end].mean()
        np.fill_diagonal(price, math.inf)
        rolled = best[b, :-1, :, None] + price
        least = rolled.min(axis=1)
        better = least < best[end, 1:]
        best[end, 1:][better] = least[better]
        since[end, 1:][better] = b
        source[end, 1:][better] = rolled.argmin(axis=1)[better]
    rolls, option = (int(i) for i in np.unravel_index(best[buckets].argmin(), best[buckets].shape))
    at = buckets
    moves: list[Move] = []
    while at:
        before, left = int(since[at, rolls, option]), int(source[at, rolls, option])
        if left != option:
            moves.append(Move(before * bucket, options[option]))
            rolls -= 1
        at, option = before, left
    return moves[::-1]


def _mean_share(start: float, end: float, roll: float, bucket: float) -> float:
    """Mean over a bucket of a share that rises in a straight line from `start` to `end`, and stays at 1 once there."""
    if end < 1.0 or end == start:
        return (start + end) / 2 if end < 1.0 else 1.0
    rising = (1.0 - start) * roll / bucket
    return rising * (start + 1.0) / 2 + (1.0 - rising)
