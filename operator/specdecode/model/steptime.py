"""T(B, K, context, prompts) of every option, learnt from this workload's own steps.

    log T = log(m G + D) + residual

m G is the target's forward pass (`model.roofline`, one G per family), D what drafting adds: the drafter's launches and
the work of the scheduler, which hardly depend on the target, so their prior is in seconds. The residual is a Gaussian
process over log B and log drafted tokens, half of it common to all options, half each option's own: where steps follow
a family it is small, where they do not (long contexts, unknown kernels) it follows the data, and away from the data its
interval opens. Families and amplitudes of the residual are weighted by their evidence (Bayesian model averaging), m, D
and the residual are solved for within each (Gaussian process regression with the linear terms in the kernel:
Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2.7).

The CUDA-graph capture limit is a cliff, and is not smoothed: a step of more verified tokens is launched kernel by
kernel, never quicker than the CPU can launch it, and the residuals of the two sides are hardly related.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specdecode.model.knowledge import Knowledge, StepTime
from specdecode.model.roofline import Array, Families, families
from specdecode.vllm.speculation import Method

_LOG_M = (math.log(0.015), 1.5)
_AMPLITUDES = np.array([0.03, 0.08, 0.16, 0.35])
"""Standard deviation of the residual: 0.03 on measured surfaces of dense models."""
_AMPLITUDE_PRIOR = np.log([0.25, 0.35, 0.25, 0.15])
_LENGTH_BATCH = 1.3
"""Length scale of the residual in log B."""
_LENGTH_DRAFTED = 1.0
_COMMON = 0.5
"""Part of the residual's variance that all options share."""
_LAUNCH = 0.045
"""Seconds below which no step beyond the graph limit comes: 53 to 60 ms for 30B of experts, 40 to 60 ms for an 8B."""
_LAUNCH_SD = 0.35
_ACROSS = 0.3
"""Correlation of the residual across the graph limit."""
_NOISE = 0.012
"""Standard deviation of log T of one bin, just measured."""
_JUMP, _JUMP_DRAFTING = 0.025, 0.05
"""By how much steps jump from one K and B to the next on measured surfaces, without and with drafts: another residual,
of a short length scale."""
_JUMP_LENGTH = 0.2
"""Its length scale in log B and in log drafted tokens."""
_AGEING = 0.04
"""What it grows by a day: drivers, prompts and neighbours change."""
_KEPT = 64
"""(family, amplitude) pairs that predictions are made with."""
_MOST_OVERHEAD = 0.8

_ITERATION = {Method.NGRAM: 0.0, Method.DRAFT_MODEL: 0.0035, Method.SUFFIX: 0.0}
_ITERATION_OTHER = 0.0008
"""Seconds per drafted token: 2 to 7 ms for a draft model without CUDA graphs of its own, under 1 ms for a head."""
_SCHEDULING = (0.0025, 0.00002)
"""Seconds per step and per request: speculation turns asynchronous scheduling off, and the CPU's work shows (2 to 4 ms
at batch 1, 5 to 10 ms at 256, vLLM 0.24)."""
_OVERHEAD_SD = {Method.NGRAM: 0.45, Method.DRAFT_MODEL: 0.55}
_OVERHEAD_SD_OTHER = 0.6
_HELD = (0.003, 0.00003)
"""The same of a step that a schedule holds at K = 0: 3 to 4 ms, 6 to 11 at 256; a draft model still runs once."""


@dataclass(frozen=True)
class Points:
    """Steps that are seen or asked for; one entry per step in every array."""

    tokens: Array
    batch: Array
    context: Array
    overhead: Array
    """D: median of its prior, seconds; 0 without speculation."""
    overhead_sd: Array
    """Standard deviation of its logarithm."""
    latent: Array
    """Which drafter's D this is; -1 for none."""
    group: Array
    """Whose own residual it has."""
    eager: Array
    """1 beyond the CUDA-graph limit, else 0."""

    @classmethod
    def of(
        cls,
        method: Method | None,
        k: int,
        tokens: Array,
        batch: Array,
        context: Array,
        names: tuple[float, float],
        graph_limit: float,
    ) -> Points:
        """Steps of one option at one K; `method` None: without speculation. `names`: its latent and group."""
        n = len(batch)
        overhead, sd = np.zeros(n), 0.0
        if method is not None:
            fixed, per_request = _SCHEDULING if k else _HELD
            iteration = _ITERATION.get(method, _ITERATION_OTHER)
            overhead = fixed + per_request * batch + iteration * max(k, 1)
            sd = _OVERHEAD_SD.get(method, _OVERHEAD_SD_OTHER)
        return cls(
            tokens,
            batch,
            context,
            overhead,
            np.full(n, sd),
            np.full(n, names[0]),
            np.full(n, names[1]),
            (tokens > graph_limit).astype(np.float64),
        )

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """All of them, in order."""
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in cls.__dataclass_fields__))


class StepModel:
    """Fitted once, then asked. Raises nothing: without evidence it answers with its prior."""

    def __init__(
        self, known: Mapping[str, Knowledge], methods: Mapping[str, Method | None], graph_limit: float, now: float
    ) -> None:
        """`methods`: of every profile that may be asked for."""
        self._limit = graph_limit
        self._methods = dict(methods)
        self._groups = {name: float(i) for i, name in enumerate(sorted(n for n, m in methods.items() if m is not None))}
        times = [(name, t) for name, k in sorted(known.items()) if name in methods for t in k.step_times]
        self._prior_sd = np.array([_LOG_M[1], *np.ones(2 * len(self._groups))])
        points = [self._points(name, t) for name, t in times]
        self._seen = Points.joined(points) if points else self.points("", 0, np.empty(0), np.empty(0), np.empty(0))
        seconds = np.array([t.seconds for _, t in times])
        prompt = np.array([t.prompt_tokens for _, t in times])
        age = np.array([max(0.0, now - t.measured_at) for _, t in times]) / 86_400.0
        noise = _NOISE**2 + (_AGEING * age) ** 2
        self._fit(seconds, prompt, np.array([t.prompt_length for _, t in times]), noise)

    def points(self, profile: str, k: int, tokens: Array, batch: Array, context: Array) -> Points:
        """The points of a profile at one K; the empty name is the engine without speculation."""
        method = self._methods.get(profile)
        group = self._groups.get(profile, -1.0)
        names = (2 * group + (0.0 if k else 1.0), group) if method is not None else (-1.0, -1.0)
        return Points.of(method, k, tokens, batch, context, names, self._limit)

    def _points(self, name: str, t: StepTime) -> Points:
        tokens, batch, context = (np.array([v]) for v in (t.tokens, t.batch_size, t.context))
        return self.points(name, t.k, tokens, batch, context)

    def _fit(self, seconds: Array, prompt: Array, length: Array, noise: Array) -> None:
        seen, every = self._seen, families()
        if not (length * prompt > 0).any():
            every = every.take(np.nonzero(every.hiding == 0)[0])
        count = len(seconds)
        overhead = np.minimum(seen.overhead, _MOST_OVERHEAD * seconds)
        share = overhead / seconds if count else np.empty(0)
        grown = every.relative(seen.tokens, seen.batch, seen.context)
        grown = grown + prompt * every.per_prompt_token(seen.tokens, length)
        # m of each family: what is left of the steps without what drafting adds; drafting ones count little.
        weight = np.where(seen.overhead > 0, 0.1, 1.0) * np.where(seen.eager > 0, 0.1, 1.0)
        if count:
            log_m = (np.log((seconds - overhead) / grown) @ weight) / weight.sum()
        else:
            log_m = np.full(len(every.knee), _LOG_M[0])
        centred = self._centre(grown, overhead, seen.eager, log_m) + (1 - share) * (_LOG_M[0] - log_m[:, None])
        residual = (np.log(seconds) if count else np.empty(0)) - centred
        self._design = self._linear(seen, share, seen.overhead_sd * share)
        linear = (self._design * self._prior_sd**2) @ self._design.T
        log_weights = np.empty((len(_AMPLITUDES), len(every.knee)))
        solved, factors = [], []
        for i, amplitude in enumerate(_AMPLITUDES):
            covariance = linear + self._kernel(seen, seen, amplitude) + np.diag(noise)
            factor = np.linalg.cholesky(covariance + 1e-9 * np.eye(count)) if count else covariance
            alpha = np.linalg.solve(factor, residual.T) if count else residual.T
            log_weights[i] = every.log_prior + _AMPLITUDE_PRIOR[i] - 0.5 * (alpha**2).sum(axis=0)
            log_weights[i] -= np.log(np.diag(factor)).sum() if count else 0.0
            factors.append(np.linalg.inv(factor) if count else factor)
            solved.append(alpha)
        best = np.argsort(log_weights, axis=None)[::-1][:_KEPT]
        flat = log_weights.ravel()[best]
        weights = np.exp(flat - flat[0])
        self._weights = weights / weights.sum()
        self._amplitude, which = np.unravel_index(best, log_weights.shape)
        self._families: Families = every.take(which)
        self._log_m: Array = log_m[which]
        self._factors = factors
        self._solved = np.stack([solved[a][:, h] for a, h in zip(self._amplitude, which, strict=True)], axis=1)

    def _linear(self, points: Points, share: Array, slope: Array) -> Array:
        """Design matrix of log m and of each drafter's log D, in prior standard deviations."""
        design = np.zeros((len(points.batch), len(self._prior_sd)))
        design[:, 0] = 1 - share
        rows = np.nonzero(points.latent >= 0)[0]
        design[rows, 1 + points.latent[rows].astype(int)] = slope[rows]
        return design

    @staticmethod
    def _centre(grown: Array, overhead: Array, eager: Array, log_m: Array) -> Array:
        """log(m G + D) of each family, never below the launch time beyond the graph limit."""
        seconds = np.exp(log_m)[:, None] * grown + overhead
        launched = (seconds**4 + _LAUNCH**4) ** 0.25
        return np.asarray(np.log(np.where(eager > 0, launched, seconds)), dtype=np.float64)

    @staticmethod
    def _kernel(a: Points, b: Points, amplitude: float) -> Array:
        """Covariance of the residuals of two sets of points."""
        apart = ((np.log(a.batch)[:, None] - np.log(b.batch)) / _LENGTH_BATCH) ** 2
        drafted = np.log(a.tokens / a.batch)[:, None] - np.log(b.tokens / b.batch)
        near = np.exp(-0.5 * (apart + (drafted / _LENGTH_DRAFTED) ** 2))
        whose = _COMMON + (1 - _COMMON) * (a.group[:, None] == b.group)
        side = np.where(a.eager[:, None] == b.eager, 1.0, _ACROSS)
        launch = _LAUNCH_SD**2 * np.exp(-apart / 8) * a.eager[:, None] * b.eager
        jumps = np.exp(-0.5 * ((apart * _LENGTH_BATCH**2) + drafted**2) / _JUMP_LENGTH**2) * (whose == 1.0)
        jumps *= _jump(a)[:, None] * _jump(b)
        return np.asarray(amplitude**2 * near * whose * side + launch + jumps, dtype=np.float64)

    def prompt_seconds(self, tokens: Array, length: float) -> tuple[Array, Array]:
        """Seconds that a prompt token adds to a step that verifies so many tokens, in prompts of `length` tokens, and
        the standard deviation of its logarithm."""
        relative = self._families.per_prompt_token(tokens, np.full(len(tokens), length))
        per_token = np.exp(self._log_m)[:, None] * np.maximum(relative, 1e-6)
        mean = self._weights @ per_token
        return mean, np.sqrt(self._weights @ np.log(per_token / mean) ** 2)

    def log_seconds(self, points: Points) -> tuple[Array, Array]:
        """Mean and standard deviation of log T at each point, as far as it decodes."""
        grown = self._families.relative(points.tokens, points.batch, points.context)
        overhead = points.overhead
        m = np.exp(self._weights @ self._log_m)
        share = overhead / (m * (self._weights @ grown) + overhead)
        centre = self._centre(grown, overhead, points.eager, self._log_m)
        mean = centre + (1 - share) * (_LOG_M[0] - self._log_m[:, None])
        design = self._linear(points, share, points.overhead_sd * share)
        linear = (design * self._prior_sd**2) @ self._design.T
        variance = np.empty_like(mean)
        own = (design**2 * self._prior_sd**2).sum(axis=1)
        launch = _LAUNCH_SD**2 * points.eager
        jump = _jump(points)
        for a in np.unique(self._amplitude):
            which = np.nonzero(self._amplitude == a)[0]
            amplitude = float(_AMPLITUDES[a])
            cross = (linear + self._kernel(points, self._seen, amplitude)) @ self._factors[a].T
            mean[which] += (cross @ self._solved[:, which]).T
            variance[which] = np.maximum(own + amplitude**2 + launch + jump**2 - (cross**2).sum(axis=1), _NOISE**2)
        whole = self._weights @ mean
        spread = self._weights @ (variance + (mean - whole) ** 2)
        return whole, np.sqrt(spread)


def _jump(points: Points) -> Array:
    return np.where(points.overhead > 0, _JUMP_DRAFTING, _JUMP)
