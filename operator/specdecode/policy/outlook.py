"""Is a change worth it? What it brings over the time that it is bound to run, against what it costs.

A change takes time before it helps (canary, analysis, one pod after the other), costs the restarts of the pods, their
prefix caches, and what the others lose while one is given up for the canary, and binds the workload until the next
change is allowed. So its gain now is not enough: the gain is added up over what the load is expected to be, for as
long as the change is bound to run and then until it would best be taken back, as far ahead as there is history. How
long loads like this last is taken from the workload's own history: the mean further duration of earlier stretches at
which the change would have paid and that lasted at least as long as this one has; without such, as long as it has
lasted so far (Lindy's law), at least `USUAL`. After it comes what yesterday brought at the same time of day, else what
the history brings on average. Short bursts are thus left to the batch-size schedule inside the engine; shifts that
last are answered with a roll.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from specdecode.model.estimate import Z90, Estimate
from specdecode.model.loads import BUCKET, DAY, LoadHistory

USUAL = 3600.0
"""Seconds that a load is expected to last when nothing is known."""
LONGEST = 6 * 3600.0
SHORTEST_HISTORY = 3600.0
"""Seconds of history from which its average counts."""

Array = NDArray[np.float64]

GainOf = Callable[[Array], Array]
"""Loads of the whole workload in tokens/s -> gain at each: log of the TPOT now over the TPOT after the change."""


@dataclass(frozen=True)
class Cost:
    """What a change costs."""

    delay: float
    """Seconds until it is in force."""
    restart: float
    """Seconds of service that each pod loses: start-up and a cold prefix cache."""
    commitment: float
    """Seconds until the next change may be in force."""
    crowding: float = 0.0
    """Seconds of work that is lost while the other pods carry the load of one that is given up for the canary."""


@dataclass(frozen=True)
class Outlook:
    """What to expect of a change."""

    duration: float
    """Further seconds that loads like today's are expected to last: those at which the change pays as today, or does
    not."""
    benefit: float
    """Seconds of work at today's load that it saves over its horizon, costs subtracted: pays when positive."""
    average: float
    """Mean gain over the horizon, log of a ratio of TPOTs."""
    payback: float | None
    """Seconds after which it has paid for itself at today's gain; None: never."""


def outlook(history: LoadHistory, now: float, load: float, gain_of: GainOf, cost: Cost) -> Outlook:
    """What a change would bring from now on. `load`: of the whole workload, tokens/s."""
    loads = np.asarray(history.tokens_per_second, dtype=np.float64)
    known = loads >= 0
    gains = gain_of(np.append(np.maximum(loads, 0.0), load))
    gains, today = gains[:-1], float(gains[-1])
    duration = _duration(np.where(known, gains > 0, today <= 0), today > 0, history.seen)
    bound = max(1, round(max(cost.commitment, duration) / BUCKET))
    ahead = round(min(LONGEST, known.sum() * BUCKET) / BUCKET)
    at = np.arange(max(bound, ahead)) * BUCKET
    yesterday = ((now + at - DAY) // BUCKET).astype(int) - history.first
    remembered = (yesterday >= 0) & (yesterday < len(loads))
    remembered[remembered] = known[yesterday[remembered]]
    usual = float(gains[known] @ loads[known] / max(loads[known].sum(), 1e-9)) if known.any() else today
    gain = np.full(len(at), usual if known.sum() * BUCKET >= SHORTEST_HISTORY else today)
    weight = np.ones(len(at))
    gain[remembered] = gains[yesterday[remembered]]
    weight[remembered] = loads[yesterday[remembered]] / max(load, 1e-9)
    lasting = at < duration
    gain[lasting], weight[lasting] = today, 1.0
    weight[at < cost.delay] = 0.0
    saved = np.cumsum(weight * gain)[bound - 1 :]
    end = int(saved.argmax())
    return Outlook(
        duration=duration,
        benefit=float(saved[end]) * BUCKET - cost.restart - cost.crowding,
        average=float(saved[end]) / max(float(weight[: bound + end].sum()), 1e-9),
        payback=cost.delay + (cost.restart + cost.crowding) / today if today > 0 else None,
    )


def _duration(pays: NDArray[np.bool_], today: bool, seen: float) -> float:
    """Expected further duration of the stretch that lasts now, from the buckets in which the change pays or not."""
    alike = np.append(pays == today, False)
    edges = np.nonzero(np.diff(alike, prepend=False))[0]
    starts, ends = edges[::2], edges[1::2]
    lengths = (ends - starts) * BUCKET
    elapsed = 0.0
    if len(ends) and ends[-1] == len(pays):
        elapsed = float(lengths[-1]) - BUCKET + seen
        starts, lengths = starts[:-1], lengths[:-1]
    # One that was under way when the history began may have been longer.
    longer = lengths[(starts > 0) & (lengths > elapsed)] - elapsed
    # What is believed without history weighs as much as one stretch of it.
    return float((min(max(elapsed, USUAL), LONGEST) + longer.sum()) / (1 + len(longer)))


def worth_of_trying(gain: Estimate, least: float, lasts: float, cost: Cost, pods: int) -> float:
    """Seconds of work that a canary of something uncertain is expected to save.

    What is promoted has shown a gain of `least` or more, and gains all of it: E[gain; gain > least] of a log-normal
    gain over the seconds that what the canary shows holds good (the value of information; with `least` at 0 the
    expected improvement of Jones et al. 1998), less what one pod of `pods` is expected to lose while it is measured,
    its restart and that back, and what the others lose that have its load.
    """
    belief = NormalDist(math.log1p(gain.value), max((math.log1p(gain.high) - math.log1p(gain.low)) / (2 * Z90), 1e-6))
    won, lost = _above(belief, math.log1p(least)), _above(belief, 0.0) - belief.mean
    return won * (lasts - cost.delay) - (lost * cost.delay + 2 * cost.restart) / pods - cost.crowding


def _above(belief: NormalDist, least: float) -> float:
    """E[x; x > least] of a normal x."""
    return belief.mean * (1 - belief.cdf(least)) + belief.variance * belief.pdf(least)
