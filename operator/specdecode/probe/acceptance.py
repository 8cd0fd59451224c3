"""Acceptance by temperature, from the change of the servers' counters over blocks of requests. Pure.

The blocks of one temperature vary by their prompts and by chance; how much they do says how sure the whole is (a ratio
of sums, Student's t over the blocks: Cochran, Sampling Techniques, 3rd edition, section 6.4).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specdecode.model.estimate import Z90, Estimate
from specdecode.model.measure import Change, measurement

FOREIGN = 0.01
"""Share of tokens that were not asked for from which others disturbed the probe."""


@dataclass(frozen=True)
class Plan:
    """What a probe asks for."""

    temperatures: tuple[float, ...]
    requests: int
    """At each temperature."""
    concurrency: int = 1
    """Requests in flight: of one temperature at a time, or the counters could not tell."""
    max_tokens: int = 200

    @property
    def total(self) -> int:
        """Requests altogether."""
        return self.requests * len(self.temperatures)

    def blocks(self, rng: random.Random) -> Iterator[tuple[float, range]]:
        """Temperature and numbers of the requests of each block.

        Every round has each temperature once, in an order of its own, with the same requests: what drifts (a cache that
        fills, a machine that warms up) and what prompts differ in is the same for all.
        """
        for first in range(0, self.requests, self.concurrency):
            numbers = range(first, min(first + self.concurrency, self.requests))
            for temperature in rng.sample(self.temperatures, len(self.temperatures)):
                yield temperature, numbers


@dataclass(frozen=True)
class Block:
    """Some requests of one temperature, and what the servers counted meanwhile."""

    temperature: float
    requests: int
    tokens: int
    """That the answers have."""
    changes: tuple[Change, ...]
    """One for each server."""


@dataclass(frozen=True)
class AtTemperature:
    """What one temperature showed. None: nothing was drafted."""

    temperature: float
    requests: int
    tokens: int
    acceptance: Estimate | None
    """Accepted over drafted tokens."""
    accepted_length: Estimate | None
    """Tokens of a step that drafted: 1 + accepted / drafts."""
    tokens_per_step: Estimate | None
    """E: tokens per request and step, steps without a draft included."""
    per_position: tuple[float, ...]
    """Share of the drafts in which each position was accepted."""
    drafts: float
    foreign_requests: float
    """Requests that finished meanwhile and were not ours."""
    foreign_tokens: float

    @property
    def disturbed(self) -> bool:
        """Whether others' traffic is in the figures."""
        return self.foreign_requests > 0 or self.foreign_tokens > FOREIGN * self.tokens


def at_temperature(blocks: Sequence[Block]) -> AtTemperature:
    """The figures of the blocks of one temperature. Raises ValueError without blocks."""
    together = measurement([c for b in blocks for c in b.changes])
    parts = [measurement(b.changes) for b in blocks]
    requests, tokens = sum(b.requests for b in blocks), sum(b.tokens for b in blocks)
    extra = [
        ((p.tokens_per_step or 0.0) * p.request_steps, p.request_steps) for p in parts if p.request_steps is not None
    ]
    drafts, drafted = together.drafts or 0.0, together.draft_tokens or 0.0
    accepted = [(p.accepted_tokens or 0.0, p.draft_tokens or 0.0) for p in parts]
    acceptance = share(accepted, trials=drafts)
    return AtTemperature(
        temperature=blocks[0].temperature,
        requests=requests,
        tokens=tokens,
        acceptance=acceptance,
        accepted_length=_length(acceptance, drafted / drafts) if acceptance is not None and drafts else None,
        tokens_per_step=ratio(extra, least=1.0),
        per_position=together.per_position or (),
        drafts=drafts,
        foreign_requests=together.finished + together.aborted + together.errored - requests,
        foreign_tokens=(together.generation_tokens or 0.0) - tokens,
    )


def ratio(pairs: Sequence[tuple[float, float]], least: float = 0.0, most: float = math.inf) -> Estimate | None:
    """Sum of the first over sum of the second, with the 90 % interval that their scatter tells.

    None when the second sum to nothing. A single pair tells no scatter: its interval is all that is possible.
    """
    below = math.fsum(b for _, b in pairs)
    if not below > 0:
        return None
    value = math.fsum(a for a, _ in pairs) / below
    n = len(pairs)
    if n < 2:
        return Estimate(value, min(least, value), max(most, value))
    scatter = math.fsum((a - value * b) ** 2 for a, b in pairs)
    half = student90(n - 1) * math.sqrt(n * scatter / (n - 1)) / below
    return Estimate(value, min(value, max(least, value - half)), max(value, min(most, value + half)))


def share(pairs: Sequence[tuple[float, float]], trials: float) -> Estimate | None:
    """A ratio between 0 and 1, of so many independent trials: no surer than those allow, however alike the blocks are.

    Where all or nothing was accepted the blocks do not scatter at all (Wilson's interval).
    """
    found = ratio(pairs, most=1.0)
    if found is None or not trials > 0:
        return found
    p, z = found.value, Z90**2 / trials
    centre, half = (p + z / 2) / (1 + z), math.sqrt(z * (p * (1 - p) + z / 4)) / (1 + z)
    return Estimate(p, min(found.low, max(0.0, centre - half)), max(found.high, min(1.0, centre + half)))


def student90(freedom: int) -> float:
    """Half width of a 90 % interval in standard errors: Student's t (Abramowitz and Stegun, 26.7.5)."""
    if freedom in _FEW:
        return _FEW[freedom]
    z, n = Z90, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


_FEW = {1: 6.314, 2: 2.920}
"""Where the expansion is too short."""


def _length(acceptance: Estimate, drafted: float) -> Estimate:
    """Tokens of a step that drafts so many."""
    return Estimate(*(1 + drafted * a for a in (acceptance.value, acceptance.low, acceptance.high)))
