"""What really holds in a world: the TPOT of any option at any load, without anybody having to measure it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specdecode.model.cost import Option
from specdecode.sim.acceptance import Acceptance
from specdecode.sim.twin.demand import Mix
from specdecode.sim.twin.fleet import MAX_BATCHED_TOKENS, SPREAD
from specdecode.sim.twin.tables import LEVELS_PER_HALVING, Gains, StepTimes
from specdecode.vllm.speculation import BatchRange, Method, Speculation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Steady:
    """Where a pod settles at a load."""

    tpot: float
    """Mean seconds per output token."""
    batch_size: float
    saturated: bool


class Truth:
    """Asks the tables that the fleet runs by."""

    def __init__(self, times: StepTimes, gains: Gains) -> None:
        self._times, self._gains = times, gains
        self._curves: dict[tuple[object, ...], Array] = {}

    def tpot(self, profile: str, k: int, mix: Mix, t: float, *, scheduled: bool, uptime: float = 0.0) -> Array:
        """Seconds per token by batch size (index 0 is not used), prompts aside, at a fixed K."""
        times, drafter = self._times, self._times.drafters[profile]
        level = self._level(drafter, uptime)
        tokens, drafting, _ = self._gains.at(mix, t)
        per_step, drafts = tokens[level, drafter, k], drafting[level, drafter, k]
        key = (drafter, k, scheduled, per_step.tobytes(), mix.shares.tobytes(), mix.output.tobytes())
        if key not in self._curves:
            held = np.full(times.max_num_seqs + 1, k, dtype=np.int64)
            variant = times.variant_of(profile, held, scheduled=scheduled)
            flow = mix.shares * (mix.output - 1.0)
            running = flow / per_step
            running /= running.sum()
            batch = np.arange(times.max_num_seqs + 1)
            d = min(1.0, float(running @ drafts))
            nodes = batch * (1 + k * d) + SPREAD * (k * np.sqrt(batch * d * (1 - d)))
            nodes = np.clip(np.rint(nodes), batch, batch * (1 + k)).astype(np.int64)
            read = times.seconds[times.table_at[variant], nodes]
            seconds = (read[0] + 4 * read[1] + read[2]) / 6
            context = float(running @ (mix.prompt + mix.output / 2))
            seconds = seconds + batch * (context - times.surface.context) * times.surface.kv_token_seconds
            mean = flow.sum() / (flow / per_step).sum()
            self._curves[key] = np.maximum(seconds, times.fastest) / mean
        return self._curves[key]

    def of(self, option: Option, mix: Mix, t: float, uptime: float = 0.0) -> Array:
        """The same of an option, whose K may depend on the batch size."""
        number = self._times.variant(option)
        scheduled = bool(option.speculation and option.speculation.schedule)
        ks = self._times.k_at[number]
        curves = {
            int(k): self.tpot(option.profile, int(k), mix, t, scheduled=scheduled, uptime=uptime)
            for k in set(ks.tolist())
        }
        curve = np.zeros(len(ks))
        for k, here in curves.items():
            curve[ks == k] = here[ks == k]
        return curve

    def steady(self, option: Option, mix: Mix, t: float, requests_per_second: float, uptime: float = 0.0) -> Steady:
        """Where one pod settles that so many requests a second come to.

        The batch size is a birth-death process: tokens come at the load's rate and leave at b / TPOT(b) (processor
        sharing, whose batch sizes depend on mean lengths only).
        """
        decode = self.of(option, mix, t, uptime)
        prompt = float(mix.shares @ mix.prompt) * self._times.surface.prompt_token_seconds
        busy = requests_per_second * prompt
        full = MAX_BATCHED_TOKENS * self._times.surface.prompt_token_seconds
        curve = decode / (1 - min(busy, full / (full + float(decode[1]))))
        kv = float((mix.shares * mix.output) @ (mix.prompt + mix.output / 2) / (mix.shares @ mix.output))
        pool = self._times.surface.kv_pool_tokens(
            option.speculation.method if option.speculation else Method.DISABLED,
            scheduled=bool(option.speculation and option.speculation.schedule),
        )
        cap = int(max(1, min(self._times.max_num_seqs, pool // kv)))
        load = requests_per_second * float(mix.shares @ (mix.output - 1.0))
        batch = np.arange(1, cap + 1)
        served = batch / curve[1 : cap + 1]
        if load <= 0:
            return Steady(float(curve[1]), 0.0, saturated=False)
        # In a full batch a prompt is computed for each request that ends.
        slowest = float(decode[cap]) + cap * prompt / float(mix.shares @ (mix.output - 1.0))
        if load >= cap / slowest:
            return Steady(slowest, float(cap), saturated=True)
        weights = np.concatenate([[0.0], np.cumsum(np.log(load / served))])
        weights = np.exp(weights - weights.max())
        # Beyond the cap requests wait: a geometric tail, all of it with a full batch.
        ratio = load / served[-1]
        weights[-1] /= 1 - ratio
        weights /= weights.sum()
        mean = float(weights[1:] @ batch)
        return Steady(mean / load, mean, saturated=False)

    def over(self, option: Option, traffic: Sequence[tuple[float, Mix]], t: float, uptime: float = 0.0) -> float | None:
        """Mean seconds per output token of one pod under traffic that changes: (requests per second, what they are
        like) for equal times, each long enough to settle. None where one of them saturates the pod: it does not settle.
        """
        seconds = tokens = 0.0
        settled: dict[tuple[float, int], Steady] = {}
        for rate, mix in traffic:
            if (rate, id(mix)) not in settled:
                settled[rate, id(mix)] = self.steady(option, mix, t, rate, uptime)
            here = settled[rate, id(mix)]
            if here.saturated:
                return None
            offered = rate * float(mix.shares @ mix.output)
            seconds, tokens = seconds + offered * here.tpot, tokens + offered
        return seconds / tokens

    def best_schedule(self, profile: str, speculation: Speculation, mix: Mix, t: float) -> Speculation:
        """The K by batch size that serves this mix fastest, from K = 0 to the profile's own."""
        k_max = speculation.num_speculative_tokens or 0
        curves = np.stack([self.tpot(profile, k, mix, t, scheduled=True) for k in range(k_max + 1)])
        return with_schedule(speculation, curves.argmin(axis=0)[1:])

    def _level(self, drafter: int, uptime: float) -> int:
        halvings = uptime / float(self._gains.half_lives[drafter])
        return min(round(halvings * LEVELS_PER_HALVING), self._gains.levels - 1)


BENCHMARKED = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
"""Batch sizes that a person would measure."""


def benchmarked_schedule(times: StepTimes, speculation: Speculation, rate: float) -> Speculation:
    """The K by batch size that a synthetic benchmark at an acceptance of `rate` per token recommends.

    Each range has the K that was best at its largest batch size.
    """
    k_max, typical = speculation.num_speculative_tokens or 0, Acceptance((rate,))
    step, best = times.surface.step_seconds, []
    for b in range(1, times.max_num_seqs + 1):
        measured = min(next(n for n in (*BENCHMARKED, times.max_num_seqs) if n >= b), times.max_num_seqs)
        costs = [
            step(speculation.method, k, measured, scheduled=True) / typical.accepted_length(k) for k in range(k_max + 1)
        ]
        best.append(int(np.argmin(costs)))
    return with_schedule(speculation, np.array(best))


def benchmarked_threshold(times: StepTimes, speculation: Speculation, rate: float) -> int | None:
    """The batch size from which the same benchmark has speculation lose; None where it never does."""
    k = speculation.num_speculative_tokens or 0
    length, step = Acceptance((rate,)).accepted_length(k), times.surface.step_seconds
    sizes = (n for n in BENCHMARKED if 2 <= n <= times.max_num_seqs)
    return next((n for n in sizes if step(speculation.method, k, n) / length > step(Method.DISABLED, 0, n)), None)


def with_schedule(speculation: Speculation, ks: NDArray[np.int64]) -> Speculation:
    """The speculation with K = `ks[b - 1]` at batch size b."""
    edges = [0, *(np.flatnonzero(np.diff(ks)) + 1).tolist(), len(ks)]
    ranges = tuple(BatchRange(a + 1, b, int(ks[a])) for a, b in itertools.pairwise(edges))
    return replace(speculation, schedule=ranges, disable_by_batch_size=None)
