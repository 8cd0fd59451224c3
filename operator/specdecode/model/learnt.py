"""The cost model: T from `steptime`, E from `tokens`, the batch size where a load settles from `equilibrium`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from specdecode.model.cost import Band, OfferedLoad, Option, Prediction
from specdecode.model.equilibrium import Array, settle
from specdecode.model.estimate import Z90, Estimate
from specdecode.model.knowledge import Knowledge
from specdecode.model.misfit import Misfit
from specdecode.model.steptime import Points, StepModel
from specdecode.model.tokens import Tokens, moved, tokens
from specdecode.vllm.speculation import BatchRange, Speculation

_GRID = 20
"""Batch sizes that T is computed at; between them log T is a straight line in log B, but never across the cliff."""
_CONTEXT_STEP = 1.25
"""Contexts within this factor share a curve."""
_PROMPTS_STEP = 1.1
"""The same for prompt tokens per output token."""
_CAUTION = 1.0
"""Standard deviations by which a K must be better to be preferred to one that is better known."""
_LOADS = 40
_CALIBRATED = 0.9
"""Share of the stated spreads, which were meant wide, with which some 95 % of the predictions of `make bench-decision`
hold."""
_SHIFTS = np.array([-Z90, 0.0, Z90])
_LEVELS, _LEVEL_WEIGHTS = np.array([-(3**0.5), 0.0, 3**0.5]), np.array([1 / 6, 2 / 3, 1 / 6])
"""Gauss-Hermite quadrature of a load that varies."""
_SWITCH = 0.05
"""What one more range of a schedule must save, as a share of TPOT over an octave of batch sizes."""
_MANY_K = 8
"""Every K up to here is considered for a schedule, above it every second or fourth."""


class LearntModel:
    """Fitted to what is known of a workload at one time. Immutable but for what it remembers of its own answers."""

    def __init__(
        self,
        known: Mapping[str, Knowledge],
        speculations: Mapping[str, Speculation | None],
        max_num_seqs: int,
        graph_limit: float,
        now: float,
    ) -> None:
        """`speculations`: of every profile at its fixed K. `graph_limit`: tokens in the largest captured CUDA graph."""
        self._known, self._max, self._limit, self._now = known, max_num_seqs, graph_limit, now
        self._methods = {name: s.method if s else None for name, s in speculations.items()}
        self._steps = StepModel(known, self._methods, graph_limit, now)
        self._misfit = Misfit(known, now)
        self._batch = np.arange(1, max_num_seqs + 1, dtype=np.float64)
        self._log_batch = np.log(self._batch)
        self._few = np.unique(np.round(np.geomspace(1, max_num_seqs, _GRID)))
        self._curves: dict[tuple[str, int, int], tuple[Array, Array]] = {}
        self._option_curves: dict[object, tuple[Array, Array]] = {}
        self._prompt_costs: dict[tuple[str, int, int], tuple[Array, Array]] = {}
        self._prompt_seconds: dict[object, Array] = {}
        self._over_loads: dict[object, tuple[Array, Array]] = {}
        self._tuned: dict[object, Option | None] = {}

    # --- the curves ---

    def _tokens(self, profile: str, k: int) -> Tokens:
        known = self._known.get(profile)
        return tokens(
            self._methods.get(profile), known.drafts if known else None, k, self._now, moved(self._known, profile)
        )

    def _curve(self, profile: str, k: int, context: float) -> tuple[Array, Array]:
        """Mean and standard deviation of log(T / E) at each batch size, without prompts."""
        return self._curves_of(profile, [k], context)[0]

    def _curves_of(self, profile: str, ks: Sequence[int], context: float) -> list[tuple[Array, Array]]:
        """The same at several K."""
        if self._methods.get(profile) is None:
            profile = ""
        bucket = _bucket(context)
        new = [k for k in ks if (profile, k, bucket) not in self._curves]
        if new:
            es = [self._tokens(profile, k) for k in new]
            grids = [self._grid(e) for e in es]
            contexts = [np.full(len(g), _CONTEXT_STEP**bucket) for g in grids]
            points = [
                self._steps.points(profile, k, g * (1 + e.drafted), g, c)
                for k, e, g, c in zip(new, es, grids, contexts, strict=True)
            ]
            means, sds = self._steps.log_seconds(Points.joined(points))
            edges = np.cumsum([len(g) for g in grids])[:-1]
            for k, e, g, mean, sd in zip(new, es, grids, np.split(means, edges), np.split(sds, edges), strict=True):
                self._curves[profile, k, bucket] = (
                    self._between(g, mean, self._cliff(e)) - math.log(e.per_step),
                    self._between(g, np.sqrt(sd**2 + e.sd**2), self._cliff(e)),
                )
        return [self._curves[profile, k, bucket] for k in ks]

    def _cliff(self, e: Tokens) -> float:
        """The largest batch size whose step fits into a CUDA graph."""
        return min(self._limit / (1 + e.drafted), self._max * 2.0)

    def _grid(self, e: Tokens) -> Array:
        """Batch sizes to compute T at: both sides of the cliff among them."""
        cliff = math.floor(self._cliff(e))
        ends = [b for b in (cliff, cliff + 1) if 1 <= b <= self._max]
        return np.unique(np.concatenate([self._few, ends]))

    def _between(self, grid: Array, values: Array, cliff: float) -> Array:
        """At every batch size, each side of the cliff for itself."""
        log_batch, log_grid = self._log_batch, np.log(grid)
        below = grid <= cliff
        if below.all() or not below.any():
            return np.interp(log_batch, log_grid, values)
        left = np.interp(log_batch, log_grid[below], values[below])
        right = np.interp(log_batch, log_grid[~below], values[~below])
        return np.where(self._batch <= cliff, left, right)

    def _option_curve(self, option: Option, context: float, acceptance: float | None = None) -> tuple[Array, Array]:
        """Mean and standard deviation of log TPOT at each batch size, without prompts; see `predict`."""
        speculation = option.speculation
        if speculation is None:
            return self._curve("", 0, context)
        key = (option.profile, _plan(speculation), _bucket(context))
        if acceptance is None and key in self._option_curves:
            return self._option_curves[key]
        mean, sd = np.empty(self._max), np.empty(self._max)
        for first, last, k in _held(speculation, self._max):
            m, s = self._curve(option.profile, k, context)
            if acceptance is not None and k > 0:
                believed = self._tokens(option.profile, k)
                m = m + math.log(believed.per_step / self._supposed(option.profile, speculation, k, acceptance))
                s = np.sqrt(np.maximum(s**2 - believed.sd**2, 0.0))
            mean[first - 1 : last], sd[first - 1 : last] = m[first - 1 : last], s[first - 1 : last]
        if acceptance is None:
            self._option_curves[key] = mean, sd
        return mean, sd

    def _supposed(self, profile: str, speculation: Speculation, k: int, acceptance: float) -> float:
        """E at K = `k` if, at the option's own K, this share of the drafted tokens were accepted: whatever is accepted
        is accepted so many times as often as it is believed to be."""
        here, whole = self._tokens(profile, k), self._tokens(profile, _k(speculation))
        factor = acceptance * whole.drafted / (whole.per_step - 1)
        return 1 + min(factor * (here.per_step - 1), here.drafted)

    def _per_prompt_token(self, option: Option, length: float) -> tuple[Array, Array]:
        """Seconds that each token of a prompt adds to its step at each batch size, and the standard deviation of its
        logarithm."""
        speculation = option.speculation
        mean, sd = np.empty(self._max), np.empty(self._max)
        for first, last, k in _held(speculation, self._max) if speculation else [(1, self._max, 0)]:
            key = (option.profile if k else "", k, _bucket(length))
            if key not in self._prompt_costs:
                tokens = self._few * (1 + self._tokens(option.profile, k).drafted)
                found = self._steps.prompt_seconds(tokens, _CONTEXT_STEP ** _bucket(length) if length > 0 else 0.0)
                at, grid = self._log_batch, np.log(self._few)
                self._prompt_costs[key] = np.interp(at, grid, found[0]), np.interp(at, grid, found[1])
            m, s = self._prompt_costs[key]
            mean[first - 1 : last], sd[first - 1 : last] = m[first - 1 : last], s[first - 1 : last]
        return mean, sd

    def _busy(self, option: Option, prompt_tokens_per_second: Array, length: float) -> Array:
        """Share of the time that the prompts of a load take [shift, load, batch size]."""
        key = (option.profile, _plan(option.speculation), _bucket(length))
        if key not in self._prompt_seconds:
            mean, sd = self._per_prompt_token(option, length)
            self._prompt_seconds[key] = mean * np.exp(_SHIFTS[:, None] * sd)
        return prompt_tokens_per_second[:, None] * self._prompt_seconds[key][:, None]

    # --- the questions ---

    def predict(self, option: Option, load: OfferedLoad, acceptance: float | None = None) -> Prediction:
        """See `CostModel`."""
        mean, sd = self._option_curve(option, load.context, acceptance)
        # At a load that varies, each level for itself, weighted by its tokens.
        levels = np.exp(_LEVELS * load.variation - load.variation**2 / 2) if load.variation > 0 else np.ones(1)
        weights = (_LEVEL_WEIGHTS if load.variation > 0 else np.ones(1)) * levels
        asked, middle = load.tokens_per_second * levels, len(levels) // 2
        busy = self._busy(option, load.prompt_tokens_per_second * levels, load.prompt_length)
        shifted = np.repeat(mean + _SHIFTS[:, None] * sd, len(levels), axis=0)
        settled = settle(shifted, np.concatenate([asked] * 3), busy.reshape(len(shifted), -1))
        low, value, high = (settled.tpot.reshape(3, -1) @ weights / weights.sum()).tolist()
        unexplained, variance = (float(v[0]) for v in self._misfit.at(option.profile, asked[middle : middle + 1]))
        tpot = _widened(Estimate(value, min(low, value), max(high, value)), unexplained, variance)
        headroom = settled.headroom.reshape(3, -1)[:, middle] * levels[middle]
        if headroom[1] < 1:
            # At the largest batch capacity is batch size over TPOT: what is unexplained of one is of the other.
            headroom = headroom / math.exp(unexplained)
        most, capacity, least = (headroom * max(load.tokens_per_second, 1e-6)).tolist()
        return Prediction(
            tpot,
            float(settled.batch_size.reshape(3, -1)[1] @ weights / weights.sum()),
            float(headroom[1]),
            Estimate(capacity, min(least, capacity), max(most, capacity)),
            unexplained,
        )

    def acceptance(self, option: Option) -> Estimate | None:
        """See `CostModel`."""
        if option.speculation is None:
            return None
        e = self._tokens(option.profile, _k(option.speculation))
        drafts = [(e.per_step * math.exp(z * e.sd) - 1) / e.drafted for z in (0.0, -Z90, Z90)]
        return Estimate(*(min(max(a, 0.0), 1.0) for a in drafts))

    def tpots(self, option: Option, load: OfferedLoad, tokens_per_second: Sequence[float]) -> Sequence[Estimate]:
        """See `CostModel`."""
        asked = np.asarray(tokens_per_second, dtype=np.float64)
        mean, sd = self._option_curve(option, load.context)
        prompts = asked * load.prompts_per_token
        busy = self._busy(option, prompts, load.prompt_length)
        curves = [settle(mean + z * sd, asked, b).tpot for z, b in zip(_SHIFTS, busy, strict=True)]
        off = zip(*self._misfit.at(option.profile, asked), strict=True)
        return [
            _widened(Estimate(float(v), float(min(a, v)), float(max(b, v))), *misfit)
            for a, v, b, misfit in zip(*curves, off, strict=True)
        ]

    def log_tpot(self, option: Option, load: OfferedLoad, tokens_per_second: Array) -> Array:
        """See `CostModel`. Read off a curve of `_LOADS` points."""
        prompts = round(math.log(max(load.prompts_per_token, 0.01)) / math.log(_PROMPTS_STEP))
        key = (option.profile, _plan(option.speculation), _bucket(load.context), prompts, _bucket(load.prompt_length))
        if key not in self._over_loads:
            mean, _ = self._option_curve(option, load.context)
            top = float(np.exp(self._log_batch - mean).max())
            loads = np.geomspace(top / 500, top, _LOADS)
            _, busy, _ = self._busy(option, loads * _PROMPTS_STEP**prompts, load.prompt_length)
            settled = settle(mean, loads, busy)
            self._over_loads[key] = np.log(loads), np.log(settled.tpot) + self._misfit.at(option.profile, loads)[0]
        return np.interp(np.log(np.maximum(tokens_per_second, 1e-6)), *self._over_loads[key])

    def band(self, option: Option, load: OfferedLoad | None) -> Band | None:
        """See `CostModel`."""
        if option.speculation is None:
            return None
        context = load.context if load else 0.0
        gain = self._curve("", 0, context)[0] - self._curve(option.profile, _k(option.speculation), context)[0]
        best = int(gain.argmax())
        if gain[best] <= 0:
            return None
        loses = np.nonzero(gain <= 0)[0]
        start = int(loses[loses < best].max(initial=-1)) + 1
        end = int(loses[loses > best].min(initial=self._max))
        return Band(start + 1, end)

    def tuned(self, option: Option, load: OfferedLoad, *, one_threshold: bool) -> Option | None:
        """See `CostModel`."""
        speculation = option.speculation
        if speculation is None:
            return None
        key = (option.profile, _bucket(load.context), one_threshold)
        if key not in self._tuned:
            self._tuned[key] = self._tune(option, speculation, load.context, one_threshold)
        return self._tuned[key]

    def _tune(self, option: Option, speculation: Speculation, context: float, one_threshold: bool) -> Option | None:
        k_max = _k(speculation)
        choices = [0, k_max] if one_threshold else _choices(k_max)
        curves = self._curves_of(option.profile, choices, context)
        # The profile's own K is what its user chose: another one must be surely better.
        costs = np.stack([m + (k != k_max) * _CAUTION * sd for k, (m, sd) in zip(choices, curves, strict=True)])
        # Every batch size up to 16, then steps of a twelfth; the cliffs of all K lie between two of them exactly.
        grid = np.unique(
            np.concatenate(
                [
                    np.arange(1, min(16, self._max) + 1),
                    np.round(np.geomspace(16, max(16, self._max), 40)),
                    *(np.floor(self._cliff(self._tokens(option.profile, k))) + np.arange(2.0) for k in choices),
                ]
            )
        )
        grid = grid[(grid >= 1) & (grid <= self._max)].astype(int)
        weight = np.log2(np.append(grid[1:], self._max + 1) / grid)
        path = np.array(_cheapest_path(costs[:, grid - 1] * weight, _SWITCH))
        if one_threshold:
            drafting = np.nonzero(path == 1)[0]
            if not len(drafting) or drafting[-1] == len(grid) - 1:
                return None
            threshold = int(grid[drafting[-1] + 1])
            return replace(option, speculation=replace(speculation, schedule=(), disable_by_batch_size=threshold))
        starts = np.concatenate([[0], np.nonzero(np.diff(path))[0] + 1])
        ends = [*(int(grid[i]) - 1 for i in starts[1:]), self._max]
        ranges = tuple(
            BatchRange(int(grid[i]), end, choices[int(path[i])]) for i, end in zip(starts, ends, strict=True)
        )
        if len(ranges) == 1 and ranges[0].k in (0, k_max):
            return None
        return replace(option, speculation=replace(speculation, schedule=ranges, disable_by_batch_size=None))


def _widened(tpot: Estimate, unexplained: float, variance: float) -> Estimate:
    """With what is known of the model's misfit, and as wide as nine of ten predictions need."""
    value = tpot.value * math.exp(unexplained)
    low, high = (
        _CALIBRATED * math.hypot(math.log(end / tpot.value), Z90 * math.sqrt(variance)) for end in (tpot.low, tpot.high)
    )
    return Estimate(value, value * math.exp(-low), value * math.exp(high))


def _bucket(context: float) -> int:
    return round(math.log(max(context, 1.0)) / math.log(_CONTEXT_STEP))


def _k(speculation: Speculation) -> int:
    return speculation.num_speculative_tokens or 1


def _plan(speculation: Speculation | None) -> object:
    """What tells the options of a profile from each other."""
    if speculation is None:
        return None
    return speculation.num_speculative_tokens, speculation.schedule, speculation.disable_by_batch_size


def _choices(k_max: int) -> list[int]:
    return [k for k in range(k_max + 1) if k <= _MANY_K or k % 4 == 0 or k == k_max]


def _held(speculation: Speculation, limit: int) -> list[tuple[int, int, int]]:
    """(first, last, K) of the batch sizes over which K is held."""
    starts = {1, *(r.start for r in speculation.schedule)}
    if speculation.disable_by_batch_size is not None:
        starts.add(speculation.disable_by_batch_size)
    ordered = sorted(s for s in starts if 1 <= s <= limit)
    k = _k(speculation)
    return [
        (a, b, speculation.k_at(a) if speculation.num_speculative_tokens else k)
        for a, b in zip(ordered, [*(s - 1 for s in ordered[1:]), limit], strict=True)
    ]


def _cheapest_path(costs: Array, switch: float) -> list[int]:
    """Row to take in each column so that costs, and `switch` for every change of row, are least (Viterbi)."""
    back: list[list[int]] = []
    total = [0.0] * len(costs)
    for column in costs.T.tolist():
        best = min(range(len(total)), key=total.__getitem__)
        most = total[best] + switch
        back.append([row if so_far <= most else best for row, so_far in enumerate(total)])
        total = [min(so_far, most) + cost for so_far, cost in zip(total, column, strict=True)]
    path = [min(range(len(total)), key=total.__getitem__)]
    for came_from in reversed(back[1:]):
        path.append(came_from[path[-1]])
    return path[::-1]
