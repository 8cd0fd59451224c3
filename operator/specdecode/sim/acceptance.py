"""How many drafted tokens a request gets accepted, by its kind, its temperature and the method.

The figures and where they come from: `data/acceptance.json`. A file of the same shape replaces them
(`SPECDECODE_SIM_ACCEPTANCE`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdecode.vllm.speculation import Method


class AcceptanceError(ValueError):
    """A table that cannot be read, or a kind or method that it lacks."""


@dataclass(frozen=True)
class Acceptance:
    """The chances of one request.

    `accept[i]` is the chance that draft position i is accepted when all before it were; the last one holds for deeper
    positions.
    """

    accept: tuple[float, ...]
    match: float = 1.0
    """Chance that a step has something to draft at all: an n-gram drafter needs a match in the text so far."""
    spread: float = 0.0
    """Standard deviation between requests, on the logit scale."""

    def of_request(self, z: float) -> Acceptance:
        """The chances of one request that lies `z` standard deviations from the typical one."""
        if not self.spread or not z:
            return self
        return Acceptance(tuple(_shift(p, z * self.spread) for p in self.accept), _shift(self.match, z * self.spread))

    def position(self, i: int) -> float:
        """Chance of draft position `i`, counted from 0, when all before it were accepted."""
        return self.accept[i] if i < len(self.accept) else self.accept[-1]

    def accepted_length(self, k: int) -> float:
        """Mean tokens of a step that drafted K tokens: 1 + p1 + p1 p2 + …"""
        total, reach = 1.0, 1.0
        for i in range(k):
            reach *= self.position(i)
            total += reach
        return total


def from_unconditional(rates: tuple[float, ...]) -> Acceptance:
    """Acceptance from unconditional rates per position, as `synthetic_acceptance_rates` in vLLM's SpeculativeConfig
    gives them."""
    accept, before = [], 1.0
    for rate in rates:
        accept.append(rate / before if before else 0.0)
        before = rate
    return Acceptance(tuple(accept))


@dataclass(frozen=True)
class AcceptanceTable:
    """Acceptance by (kind, method), at ascending temperatures; between two of them a straight line."""

    rows: Mapping[tuple[str, Method], tuple[tuple[float, Acceptance], ...]]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of request that the table knows."""
        return tuple(dict.fromkeys(kind for kind, _ in self.rows))

    def at(self, kind: str, method: Method, temperature: float) -> Acceptance:
        """The acceptance of a kind of request. Raises AcceptanceError for a kind or method that the table lacks."""
        try:
            points = self.rows[kind, method]
        except KeyError:
            raise AcceptanceError(
                f"no acceptance for {kind!r} requests with {method}; kinds: {', '.join(self.kinds)}"
            ) from None
        if temperature <= points[0][0]:
            return points[0][1]
        for (t0, a0), (t1, a1) in itertools.pairwise(points):
            if temperature <= t1:
                return _between(a0, a1, (temperature - t0) / (t1 - t0))
        return points[-1][1]


def parse_acceptance(text: str, source: str = "acceptance table") -> AcceptanceTable:
    """Read a table: `{"kinds": {KIND: {METHOD: [{"temperature", "accept", "match", "spread"}, …]}}}`. Raises
    AcceptanceError."""
    try:
        kinds = json.loads(text)["kinds"]
        rows = {
            (kind, Method(method)): tuple(
                sorted(((float(r["temperature"]), _acceptance(r)) for r in points), key=lambda p: p[0])
            )
            for kind, methods in kinds.items()
            for method, points in methods.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AcceptanceError(
            f"{source}: {type(error).__name__}: {error}; see data/acceptance.json of the package"
        ) from error
    if not rows or not all(rows.values()):
        raise AcceptanceError(f"{source}: every kind and method needs at least one temperature")
    return AcceptanceTable(rows)


def _acceptance(row: Mapping[str, Any]) -> Acceptance:
    accept, match = tuple(float(p) for p in row["accept"]), float(row.get("match", 1.0))
    if not accept or not all(0 <= p <= 1 for p in (*accept, match)):
        raise ValueError(f"chances must be between 0 and 1, and `accept` not empty: {row}")
    return Acceptance(accept, match, float(row.get("spread", 0.0)))


def _between(a: Acceptance, b: Acceptance, w: float) -> Acceptance:
    depth = max(len(a.accept), len(b.accept))
    accept = tuple((1 - w) * a.position(i) + w * b.position(i) for i in range(depth))
    return Acceptance(accept, (1 - w) * a.match + w * b.match, (1 - w) * a.spread + w * b.spread)


def _shift(p: float, by: float) -> float:
    return p if p in (0.0, 1.0) else 1 / (1 + (1 / p - 1) * math.exp(-by))
