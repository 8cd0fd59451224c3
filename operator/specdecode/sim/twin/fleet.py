"""The engines of many pods at once, as a stochastic fluid in virtual time.

A pod is a row; what is exact and what is not:

- The batch of a row is a whole number of requests, split over classes in expectation. Completions vary like those of an
  M/M/∞ queue over the time step, so a batch has its stationary mean and spread whatever the step. (Batch sizes under
  processor sharing depend on mean lengths only.)
- All requests of a row advance by their class's tokens per step, `E`, every `T` seconds: T by the surface at the row's
  mean batch size over the time step, K as its schedule says there. T is averaged over how many requests draft in a
  step, and over how the batch varies within the time step where requests are shorter than it, so that a cliff of the
  surface is met as often as it would be.
- Prompts are computed in the steps of the decoding requests: the time that they take is taken from those, up to what
  the token budget of a step leaves.

Arrays are [class, row] throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdecode.sim.twin.demand import Mix
from specdecode.sim.twin.tables import LEVELS_PER_HALVING, Gains, StepTimes

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_BATCHED_TOKENS = 8192
"""`--max-num-batched-tokens`: what a step computes at most; a longer prompt is computed in chunks."""
SPREAD = math.sqrt(3.0) * np.array([[-1.0], [0.0], [1.0]])
"""Nodes of the number of tokens in a step, in standard deviations."""
WEIGHTS = np.array([1.0, 4.0, 1.0]) / 6
SQRT3 = math.sqrt(3.0)
CHANCES = 32
"""Steps that random numbers are drawn for at once: that is what drawing them costs."""


class Passed(NamedTuple):
    """What happened on every row in one time step. `[class, row]` where it says so, else by row."""

    admitted: Array
    """Requests that began."""
    waiting: Array
    """Requests still waiting."""
    to_prefill: Array
    """Seconds of prompts that are still to be computed."""
    busy: Array
    """Share of the time in which any request decoded."""
    step_seconds: Array
    """T, prompts included."""
    decode_seconds: Array
    """T of a step without prompts."""
    prefill: Array
    """Share of the time that prompts took."""
    k: Ints
    level: Ints
    """How far the acceptance of the drafts has decayed: index of `Gains`."""
    drafter: Ints
    per_step: Array
    """E [class, row]."""
    drafting: Array
    """Chance that a request's step drafts [class, row]."""
    tpot: Array
    """Seconds per token [class, row]."""
    request_seconds: Array
    """Time that requests spent decoding [class, row]."""
    left: Array
    """Requests that ended [class, row]."""

    @classmethod
    def stacked(cls, steps: Sequence[Passed], rows: int | None = None) -> Passed:
        """Several time steps one upon the other, along a new first axis; the first `rows` only, or all. (`np.stack`
        takes many times as long.)"""
        columns = zip(*steps, strict=True)
        return cls(*(np.concatenate(c).reshape(len(steps), *c[0].shape)[..., :rows] for c in columns))


class Fleet:
    """The state of all rows."""

    def __init__(
        self,
        times: StepTimes,
        gains: Gains,
        rows: int,
        classes: int,
        dt: float,
        rng: np.random.Generator,
        copies: int = 1,
    ) -> None:
        """`copies`: how many services the rows belong to, one after the other; chance deals with all alike."""
        self.times, self.gains, self.dt, self._rng, self._copies = times, gains, dt, rng, copies
        self.variant = np.zeros(rows, dtype=np.int64)
        """What each row runs: change it by `turn`."""
        self.running = np.zeros((classes, rows))
        """Requests in decode [class, row]; whole numbers by row."""
        self.waiting = np.zeros(rows)
        """Requests that wait."""
        self.started = np.zeros(rows)
        """When the row's process started, seconds of the scenario."""
        self._life = np.full((classes, rows), dt)
        """How long a request decodes at the pace of the last step, prompts aside."""
        self._decode_seconds = np.full(rows, times.fastest)
        self._to_prefill = np.zeros(rows)
        """Seconds that the prompts of those who began still take."""
        self._ones = np.ones(classes)
        self._none = np.zeros(rows, dtype=np.int64)
        self._chances: list[Array] = []
        self._stale = True

    def enter(self, mix: Mix, t: float) -> None:
        """A new epoch: what requests are like from `t` on."""
        self.mix = mix
        per_step, drafting, self.reach = self.gains.at(mix, t)
        classes = per_step.shape[-1]
        self._per_step = np.ascontiguousarray(per_step.reshape(-1, classes).T)
        self._drafting = np.ascontiguousarray(drafting.reshape(-1, classes).T)
        self._strides = per_step.shape[1] * per_step.shape[2], per_step.shape[2]
        self.context = mix.prompt + mix.output / 2
        """Mean tokens of context of a running request, by class."""
        self._shares, self._decoded = mix.shares[:, None], mix.output[:, None] - 1.0
        weight = mix.shares * mix.output
        self._kv_per_request = float(weight @ self.context / weight.sum())
        price = self.times.surface.prompt_token_seconds
        self._full_step = MAX_BATCHED_TOKENS * price
        self._prompt_seconds = max(float(mix.shares @ mix.prompt) * price, 1e-12)
        self._chunks = max(1.0, math.ceil(float(mix.shares @ mix.prompt) / MAX_BATCHED_TOKENS))
        self._most_tokens = float(self.times.max_tokens)
        self._stale = True

    def turn(self, rows: Ints | int, variants: Ints | int) -> None:
        """Let rows run something else from now on."""
        if np.any(self.variant[rows] != variants):
            self.variant[rows] = variants
            self._stale = True

    def _look_up(self) -> None:
        """What depends on the mix and on what each row runs alone."""
        times, variant, self._stale = self.times, self.variant, False
        cap = np.maximum(1.0, np.minimum(times.max_num_seqs, times.kv_tokens // self._kv_per_request))
        self._cap, self._drafter = cap.take(variant), times.drafter_of.take(variant)
        self._first_at, self._first_entry = variant * times.k_at.shape[1], self._drafter * self._strides[1]

    def step(self, arrivals: Array, t: float) -> Passed:
        """Let `dt` seconds pass, from `t` on, in which so many requests arrive at each row."""
        dt, times, ones = self.dt, self.times, self._ones
        if self._stale:
            self._look_up()
        total, cap = np.rint(np.dot(ones, self.running)), self._cap
        # Who begins, and how long the prompts take.
        waiting = self.waiting + arrivals
        prompts = np.ceil((dt - self._to_prefill) / self._prompt_seconds)
        room = np.minimum(cap - total, prompts)
        if (waiting > room).any():
            # Once the batch is full, one begins as another one ends, and its prompt takes time from those who decode.
            full_for = np.maximum(dt - self._to_prefill - np.maximum(cap - total, 0.0) * self._prompt_seconds, 0.0)
            turnover = full_for * cap / (np.dot(self._shares[:, 0], self._life) + cap * self._prompt_seconds)
            room = np.minimum(cap - total + np.floor(turnover), prompts)
        admitted = np.minimum(waiting, np.maximum(room, 0.0))
        to_prefill = self._to_prefill + admitted * self._prompt_seconds
        prefill = np.minimum(to_prefill / dt, self._full_step / (self._full_step + self._decode_seconds))
        self._to_prefill = to_prefill - prefill * dt
        # The mean batch of the step, if tokens came as fast as in the step before.
        arrived = self._shares * admitted
        life = self._life / (1.0 - prefill)
        gone = self._gone(arrived, life)
        mean = life / dt * gone
        batch = np.maximum(np.dot(ones, mean), 1e-9)
        # How much of its variance lies within the step: none where requests outlast it, all where they are short.
        x = np.maximum(np.dot(ones, gone) / batch, 1e-2)
        within = 1.0 - 2.0 * (x + np.expm1(-x)) / (x * x)
        busy = (1.0 - within) * np.minimum(batch, 1.0) - within * np.expm1(-batch)
        at_once = np.minimum(np.maximum(batch / busy, 1.0), times.max_num_seqs)
        at = self._first_at + np.rint(at_once).astype(np.int64)
        # What a step brings.
        k, drafter = times.k_at.take(at), self._drafter
        level, entry = self._none, self._first_entry + k
        if self.gains.levels > 1:
            level = self._levels(drafter, t)
            entry = entry + level * self._strides[0]
        per_step, drafting = self._per_step.take(entry, axis=1), self._drafting.take(entry, axis=1)
        # What it costs.
        d = np.minimum(np.dot(ones, mean * drafting) / batch, 1.0)
        drafts = 1.0 + k * d
        sd = np.sqrt(at_once * (k * k * (d * (1.0 - d)) + within * (drafts * drafts)))
        tokens = np.minimum(np.maximum(at_once * drafts + SPREAD * sd, 1.0), self._most_tokens)
        table = times.table_at.take(at) * times.seconds.shape[1]
        decode = np.dot(WEIGHTS, times.seconds.take(table + np.rint(tokens).astype(np.int64)))
        context = np.dot(self.context, mean) / batch - times.surface.context
        decode = np.maximum(decode + at_once * context * times.surface.kv_token_seconds, times.fastest)
        seconds = decode / (1.0 - prefill)
        # Who leaves.
        tpot = seconds / per_step
        life = tpot * self._decoded
        gone = self._gone(arrived, life)
        expected, whole = np.dot(ones, gone), total + admitted
        leave = self._leave(expected, whole)
        left = gone * (leave / np.maximum(expected, 1e-300))
        remaining = np.maximum(self.running + arrived - left, 0.0)
        stay = whole - leave
        # Room was made for as many as usually leave; if fewer did, the last ones wait after all.
        early = np.maximum(stay - np.maximum(cap, total), 0.0)
        self.running = remaining * ((stay - early) / np.maximum(np.dot(ones, remaining), 1e-300))
        self.waiting = waiting = waiting - admitted + early
        self._life, self._decode_seconds = life * (1.0 - prefill), decode
        return Passed(
            admitted - early,
            waiting,
            self._to_prefill,
            busy,
            seconds,
            decode,
            prefill,
            k,
            level,
            drafter,
            per_step,
            drafting,
            tpot,
            gone * life,
            left,
        )

    def _gone(self, arrived: Array, life: Array) -> Array:
        """Requests expected to end in a step, by class: of those who were there and of those who come meanwhile, when
        each lasts an exponential time of mean `life`."""
        gone: Array = arrived - np.expm1(-self.dt / life) * (self.running - arrived * life / self.dt)
        return gone

    def _leave(self, expected: Array, present: Array) -> Array:
        """Whole numbers with mean `expected`, and the spread of a binomial as far as 0 and `present` leave room.

        Not a binomial, which costs ten times as much to draw: a uniform number of the same variance, rounded up or down
        by chance.
        """
        if not self._chances:
            drawn = self._rng.random((CHANCES, 2, len(expected) // self._copies))
            self._chances = list(np.tile(drawn, self._copies))
        wide, narrow = self._chances.pop()
        rest = np.maximum(present - expected, 0.0)
        sd = np.sqrt(expected * rest / np.maximum(present, 1.0))
        half = np.minimum(np.minimum(SQRT3 * sd, expected), rest)
        leave: Array = np.minimum(np.floor(expected + half * (2.0 * wide - 1.0) + narrow), present)
        return leave

    def _levels(self, drafter: Ints, t: float) -> Ints:
        """How far the acceptance of each row's drafts has decayed with the uptime of its process."""
        halvings = np.maximum(0.0, t - self.started) / self.gains.half_lives[drafter]
        level: Ints = np.minimum(np.rint(halvings * LEVELS_PER_HALVING), self.gains.levels - 1).astype(np.int64)
        return level

    def ttft(self, passed: Passed) -> Array:
        """Seconds to the first token of the requests that began; of one time step, or of several one upon the other."""
        wait = self.wait(passed) + passed.to_prefill
        # An arrival first waits for the step under way, if there is one.
        under_way = 0.5 * passed.busy * passed.step_seconds
        own = self._chunks * passed.decode_seconds + self._prompt_seconds
        ttft: Array = wait + under_way + own + passed.prefill * passed.step_seconds
        return ttft

    def wait(self, passed: Passed) -> Array:
        """Seconds that they waited in the queue, by Little's law."""
        wait: Array = passed.waiting * self.dt / np.maximum(passed.admitted, 1.0)
        return wait

    def start(self, row: int, variant: int, t: float) -> None:
        """A fresh process on a row."""
        self.turn(row, variant)
        self.running[:, row] = 0.0
        self.waiting[row] = 0.0
        self.started[row] = t
        self._to_prefill[row] = 0.0

    def hand_over(self, row: int, others: Sequence[int]) -> None:
        """A row's requests go to others: its pod ends. Where there are none they are turned away."""
        count, queue = round(self.running[:, row].sum()), round(self.waiting[row])
        for i, other in enumerate(others):
            if count:
                part = count // len(others) + (i < count % len(others))
                self.running[:, other] += self.running[:, row] * (part / count)
            self.waiting[other] += queue // len(others) + (i < queue % len(others))
        self.running[:, row] = 0.0
        self.waiting[row] = 0.0
