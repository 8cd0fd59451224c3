"""What a step costs and brings, as arrays to look up: by variant, batch size, K, and class of request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdecode.model.cost import Option
from specdecode.model.surface import Surface
from specdecode.sim.twin.demand import NODES, Drafts, Mix
from specdecode.vllm.speculation import Method

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

HALVINGS = 8
LEVELS_PER_HALVING = 8
"""Acceptance that decays with uptime is looked up at so many levels."""


@dataclass(frozen=True)
class Drafter:
    """A profile as the engine sees it."""

    name: str
    method: Method
    k: int


class StepTimes:
    """Seconds of decode steps of every variant. A variant is an option as an engine runs it."""

    def __init__(self, surface: Surface, drafters: Sequence[Drafter], max_num_seqs: int) -> None:
        self.surface = surface
        self.drafters = {d.name: i for i, d in enumerate(drafters)}
        self._methods = [d.method for d in drafters]
        self.k_max = max([d.k for d in drafters], default=0)
        self.max_num_seqs = max_num_seqs
        self.max_tokens = max_num_seqs * (self.k_max + 1)
        self._known: dict[tuple[int, bytes, bool], int] = {}
        self._named: dict[tuple[object, ...], int] = {}
        self._tables: dict[tuple[Method, int, bool], int] = {}
        self.seconds: Array = np.zeros((0, self.max_tokens + 1))
        """[table, tokens verified in the step]"""
        self.k_at: Ints = np.zeros((0, max_num_seqs + 1), dtype=np.int64)
        """[variant, batch size]"""
        self.table_at: Ints = np.zeros((0, max_num_seqs + 1), dtype=np.int64)
        """[variant, batch size] -> row of `seconds`"""
        self.drafter_of: Ints = np.zeros(0, dtype=np.int64)
        self.kv_tokens: Array = np.zeros(0)
        """[variant] KV pool in tokens."""
        self.fastest = min(s for columns in surface.columns.values() for c in columns for _, s in c.points)

    def variant(self, option: Option) -> int:
        """The number of an option."""
        s = option.speculation
        named = (option.profile, s and (s.num_speculative_tokens, s.schedule, s.disable_by_batch_size))
        if named not in self._named:
            ks = np.array([s.k_at(b) if s else 0 for b in range(self.max_num_seqs + 1)], dtype=np.int64)
            self._named[named] = self.variant_of(option.profile, ks, scheduled=bool(s and s.schedule))
        return self._named[named]

    def variant_of(self, profile: str, k_at: Ints, *, scheduled: bool) -> int:
        """The number of a profile that drafts `k_at[batch size]` tokens."""
        drafter = self.drafters[profile]
        key = (drafter, k_at.tobytes(), scheduled)
        if key not in self._known:
            method = self._methods[drafter]
            rows = {int(k): self._table(method, int(k), scheduled) for k in np.unique(k_at)}
            self.k_at = np.vstack([self.k_at, k_at])
            self.table_at = np.vstack([self.table_at, [rows[int(k)] for k in k_at]])
            self.drafter_of = np.append(self.drafter_of, drafter)
            self.kv_tokens = np.append(self.kv_tokens, self.surface.kv_pool_tokens(method, scheduled=scheduled))
            self._known[key] = len(self._known)
        return self._known[key]

    def _table(self, method: Method, k: int, scheduled: bool) -> int:
        key = method, k, scheduled
        if key not in self._tables:
            step = self.surface.step_seconds
            row = [step(method, k, 1, scheduled=scheduled, tokens=max(1, n)) for n in range(self.max_tokens + 1)]
            self.seconds = np.vstack([self.seconds, row])
            self._tables[key] = len(self._tables)
        return self._tables[key]


class Gains:
    """Tokens that a step brings, by how far acceptance has decayed, drafter, K and class. Made anew for each mix."""

    def __init__(self, drafters: Sequence[Drafter], drafts: Drafts, k_max: int, *, pads: bool) -> None:
        self._drafters, self._drafts, self._pads = drafters, drafts, pads
        self._k_max = k_max
        self.half_lives = np.array([drafts.half_life(d.name) or np.inf for d in drafters])
        levels = HALVINGS * LEVELS_PER_HALVING + 1 if np.isfinite(self.half_lives).any() else 1
        self._factors = 2.0 ** (-np.arange(levels) / LEVELS_PER_HALVING)
        self.levels = levels
        self._cache: dict[tuple[float, int, tuple[str, ...]], tuple[Array, Array, Array, Array]] = {}

    def at(self, mix: Mix, t: float) -> tuple[Array, Array, Array]:
        """Arrays for a mix at `t` seconds:

        tokens per request and step [level, drafter, K, class], chance that a step drafts [level, drafter, K, class],
        chance that draft position i is accepted in a step [level, drafter, class, i].
        """
        key = (mix.temperature, self._drafts.version(t), mix.kinds)
        if key not in self._cache:
            self._cache[key] = self._made(mix, t)
        tokens, extra, drafting, reach = self._cache[key]
        # A request's last step brings more than it needs: on average it takes (E[X^2] - E) / 2 E^2 more steps than its
        # tokens over E (the mean excess of a renewal process, X: tokens of a step).
        decoded = mix.output - 1.0
        return tokens * decoded / (decoded + extra * tokens), drafting, reach

    def _made(self, mix: Mix, t: float) -> tuple[Array, Array, Array, Array]:
        """Tokens per step without an end, the steps that an end costs, and the other two."""
        shape = (self.levels, len(self._drafters), len(mix.kinds) * len(NODES), max(1, self._k_max))
        reach, drafting = np.zeros(shape), np.zeros(shape[:3])
        for d, drafter in enumerate(self._drafters):
            if drafter.method is Method.DISABLED:
                continue
            pads = self._pads and drafter.method is Method.NGRAM
            for i, kind in enumerate(mix.kinds):
                typical = self._drafts.at(drafter.name, kind, mix.temperature, t)
                for j, (z, _) in enumerate(NODES):
                    own, c = typical.of_request(z), i * len(NODES) + j
                    chances = np.array([own.position(n) for n in range(shape[3])])
                    reach[:, d, c] = own.match * np.cumprod(self._factors[:, None] * chances, axis=1)
                    drafting[:, d, c] = 1.0 if pads else own.match
        ks = np.arange(self._k_max + 1)
        tokens = 1.0 + np.stack([reach[..., :k].sum(axis=-1) for k in ks], axis=2)
        rising = (2 * np.arange(1, shape[3] + 1) + 1) * reach
        squares = 1.0 + np.stack([rising[..., :k].sum(axis=-1) for k in ks], axis=2)
        extra = (squares - tokens) / (2 * tokens**2)
        return tokens, extra, drafting[:, :, None, :] * (ks > 0)[None, None, :, None], reach


def drafters_of(profiles: Mapping[str, tuple[Method, int]]) -> tuple[Drafter, ...]:
    """The profiles as the engine sees them; Disabled first."""
    return tuple(Drafter(name, method, k) for name, (method, k) in sorted(profiles.items(), key=lambda p: p[1][1]))
