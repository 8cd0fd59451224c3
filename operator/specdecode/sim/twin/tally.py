"""What every agent's users got."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdecode.api.v1alpha1 import SpecDecodePolicySpec
from specdecode.sim.twin.fleet import Fleet, Passed

Array = NDArray[np.float64]

RESOLUTION = 100.0
"""Bins per factor e of latencies: 1 % wide."""
SMALLEST = 1e-4
BINS = 1700
"""From 0.1 ms to 40 minutes."""
BUFFER = 40
"""Steps that are added up together, at most: that is what adding up costs."""


class Tally:
    """Sums and distributions by agent. Every agent has `slots` rows of the fleet, one after the other."""

    def __init__(self, fleet: Fleet, agents: int, slots: int, buckets: int, *, latencies: bool) -> None:
        self._fleet, self._agents, self._slots, self._latencies = fleet, agents, slots, latencies
        self.request_seconds, self.tokens = np.zeros((buckets, agents)), np.zeros((buckets, agents))
        """[bucket, agent] decoding time of requests; decoded tokens."""
        self._bucket = 0
        self.requests, self.ttft_sum = np.zeros(agents), np.zeros(agents)
        self._tpot, self._ttft = np.zeros(agents * BINS), np.zeros(agents * BINS)
        self._offsets = np.repeat(np.arange(agents) * BINS, slots)
        self._kept: list[Passed] = []

    def record(self, passed: Passed) -> None:
        """Take note of a time step."""
        self._kept.append(passed)
        if len(self._kept) == BUFFER:
            self.add_up()

    def close(self) -> None:
        """End a bucket."""
        self.add_up()
        self._bucket += 1

    def add_up(self) -> None:
        """Add up the time steps that were noted: before what requests are like changes, at the latest."""
        if not self._kept:
            return
        # [step, row], [step, class, row]
        p = Passed.stacked(self._kept)
        self._kept = []
        tokens = p.request_seconds / p.tpot
        self.request_seconds[self._bucket] += self._by_agent(p.request_seconds)
        self.tokens[self._bucket] += self._by_agent(tokens)
        if not self._latencies:
            return
        ttft = self._fleet.ttft(p)
        self._tpot += _binned(p.tpot, tokens, self._offsets, len(self._tpot))
        self._ttft += _binned(ttft, p.admitted, self._offsets, len(self._ttft))
        self.requests += self._by_agent(p.admitted)
        self.ttft_sum += self._by_agent(ttft * p.admitted)

    def _by_agent(self, values: Array) -> Array:
        sums: Array = values.reshape(-1, self._agents, self._slots).sum(axis=(0, 2))
        return sums

    def figures(self, agent: int, policy: SpecDecodePolicySpec) -> dict[str, Any]:
        """TPOT, TTFT and their likes of one agent; seconds."""
        tokens, slo = float(self.tokens[:, agent].sum()), policy.objective.slo
        tpot, ttft = (d.reshape(self._agents, BINS)[agent] for d in (self._tpot, self._ttft))
        requests = float(self.requests[agent])
        return {
            "tpot_mean": float(self.request_seconds[:, agent].sum()) / tokens if tokens else None,
            "tpot_p50": _quantile(tpot, 0.5),
            "tpot_p99": _quantile(tpot, 0.99),
            "ttft_mean": float(self.ttft_sum[agent]) / requests if requests else None,
            "ttft_p99": _quantile(ttft, 0.99),
            "slo_attainment": {
                "time_per_output_token": _within(tpot, slo.time_per_output_token.p99)
                if slo.time_per_output_token
                else None,
                "time_to_first_token": _within(ttft, slo.time_to_first_token.p99) if slo.time_to_first_token else None,
            },
            "tokens": round(tokens),
            "requests": round(requests),
        }


def _binned(values: Array, weights: Array, offsets: NDArray[np.int64], size: int) -> Array:
    index = np.clip(np.log(values / SMALLEST) * RESOLUTION, 0, BINS - 1).astype(np.int64) + offsets
    return np.bincount(index.ravel(), weights=weights.ravel(), minlength=size).astype(np.float64, copy=False)


def _quantile(counts: Array, q: float) -> float | None:
    total = counts.sum()
    if total <= 0:
        return None
    i = int(np.searchsorted(np.cumsum(counts), q * total))
    return float(SMALLEST * np.exp((min(i, BINS - 1) + 0.5) / RESOLUTION))


def _within(counts: Array, limit: float) -> float | None:
    total = counts.sum()
    i = int(np.log(limit / SMALLEST) * RESOLUTION)
    return float(counts[: max(0, i)].sum() / total) if total > 0 else None
