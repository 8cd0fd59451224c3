"""T(B, K, context, prompts) of every option, learnt from this workload's own steps.

    log T = log(m G + D) + residual

m G is the target's forward pass (`model.roofline`, one G per family), D what drafting adds: the drafter's launches and
the work of the scheduler, which hardly depend on the target, so their prior is in seconds. The residual is a Gaussian
process over log B and log drafted tokens, half of it common to all options, half each option's own: where steps follow
a family it is small, where they do not (long contexts, unknown kernels) it follows the data, and away from the data its
interval opens. Families and amplitudes of the residual are weighted by their evidence (Bayesian model averaging), m, D
and the residual are solved for within each (Gaussian process regression with the linear terms in the kernel:
Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2.7). log T is linear in log D only near one D: where
the steps show one far from the prior's, all is solved for once more around that (Gauss-Newton).

The CUDA-graph capture limit is a cliff, and is not smoothed: a step of more verified tokens is launched kernel by
kernel, never quicker than the CPU can launch it, and the residuals of the two sides are hardly related.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

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
_DRIFT = 0.15
"""By how much D changes over the batch sizes beyond what its prior says, as a log: a drafter of its own kernels."""
_AGEING = 0.04
"""What it grows by a day: drivers, prompts and neighbours change."""
_KEPT = 64
"""(family, amplitude) pairs that predictions are made with."""
_MOST_OVERHEAD = 0.8
_MISFIT, _PROMPTS_MISFIT = 0.1, 0.5
"""Standard deviations of a step, and of what prompts take of it, as shares, where D is told from what is left."""
_ELSEWHERE = 0.2
"""Change of log D from which what was linear around the old one is not."""

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
        self._prior_sd = np.array([_LOG_M[1], *np.ones(2 * len(self._groups))])
        self._log_overhead = np.zeros(2 * len(self._groups))
        times = [(name, t) for name, k in sorted(known.items()) if name in methods for t in k.step_times]
        figures = np.array([(t.seconds, t.prompt_tokens, t.prompt_length, t.measured_at, t.variance) for _, t in times])
        seconds, prompt, length, measured_at, variance = figures.reshape(-1, 5).T
        age = np.maximum(0.0, now - measured_at) / 86_400.0
        seen = seconds, prompt, length, _NOISE**2 + variance + (_AGEING * age) ** 2
        self._fit(times, *seen)
        # log(m G + D) is a straight line in log D only near where it was drawn: once more, around the D that was seen.
        shown = self._overhead_shown(seconds, prompt, length)
        if (np.abs(shown) > _ELSEWHERE).any():
            self._log_overhead = shown
            self._fit(times, *seen)

    def points(self, profile: str, k: int, tokens: Array, batch: Array, context: Array) -> Points:
        """The points of a profile at one K; the empty name is the engine without speculation."""
        method = self._methods.get(profile)
        if method is None:
            return Points.of(None, k, tokens, batch, context, (-1.0, -1.0), self._limit)
        group = self._groups[profile]
        latent = 2 * group + (0.0 if k else 1.0)
        points = Points.of(method, k, tokens, batch, context, (latent, group), self._limit)
        return replace(points, overhead=points.overhead * math.exp(self._log_overhead[int(latent)]))

    def _points(self, times: Iterable[tuple[str, StepTime]]) -> Iterator[Points]:
        """Of steps in the order of their profiles and K."""
        for (name, k), steps in groupby(times, key=lambda step: (step[0], step[1].k)):
            yield self.points(name, k, *np.array([(t.tokens, t.batch_size, t.context) for _, t in steps]).T)

    def _overhead_shown(self, seconds: Array, prompt: Array, length: Array) -> Array:
        """log of each D over its prior's median: what the steps take beyond the target's forward pass, shrunk towards
        the prior as far as that is a small part of them."""
        seen, shown = self._seen, np.zeros_like(self._log_overhead)
        m, of_prompts = np.exp(self._log_m)[:, None], prompt * self._families.per_prompt_token(seen.tokens, length)
        prompts = self._weights @ (m * of_prompts)
        decode = self._weights @ (m * self._families.relative(seen.tokens, seen.batch, seen.context))
        beyond = np.maximum(seconds - decode - prompts, 0.1 * seen.overhead)
        launched_whole = (seen.latent >= 0) & (seen.eager == 0)
        for latent in np.unique(seen.latent[launched_whole]).astype(int):
            rows = np.nonzero(launched_whole & (seen.latent == latent))[0]
            precision = (beyond[rows] / np.hypot(_MISFIT * seconds[rows], _PROMPTS_MISFIT * prompts[rows])) ** 2
            ratio = precision @ np.log(beyond[rows] / seen.overhead[rows]) / precision.sum()
            trust = precision.mean()
            shown[latent] = ratio * trust / (trust + 1 / seen.overhead_sd[rows[0]] ** 2)
        return shown

    def _fit(
        self, times: Sequence[tuple[str, StepTime]], seconds: Array, prompt: Array, length: Array, noise: Array
    ) -> None:
        self._seen = Points.joined([self.points("", 0, *np.empty((3, 0))), *self._points(times)])
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
        self._share = share
        smooth, rough = self._kernels(seen, seen, share, share)
        # What white noise is made of, for every amplitude at once: the simultaneous diagonal form of both matrices.
        factor = np.linalg.cholesky(linear + rough + np.diag(noise + 1e-9))
        whitened = np.linalg.inv(factor)
        eigenvalues, vectors = np.linalg.eigh(whitened @ smooth @ whitened.T)
        self._whiten = vectors.T @ whitened
        variances = 1 + _AMPLITUDES[:, None] ** 2 * np.maximum(eigenvalues, 0.0)
        white = self._whiten @ residual.T
        log_weights = (
            (_AMPLITUDE_PRIOR - 0.5 * np.log(variances).sum(axis=1))[:, None]
            + every.log_prior
            - 0.5 * (1 / variances) @ white**2
        )
        best = np.argsort(log_weights, axis=None)[::-1][:_KEPT]
        flat = log_weights.ravel()[best]
        weights = np.exp(flat - flat[0])
        self._weights = weights / weights.sum()
        amplitude, which = np.unravel_index(best, log_weights.shape)
        self._families: Families = every.take(which)
        self._log_m: Array = log_m[which]
        self._amplitude, self._precision = amplitude, 1 / variances
        self._solved = white[:, which] * self._precision[amplitude].T

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
        seconds: Array = np.exp(log_m)[:, None] * grown + overhead
        launched = np.nonzero(eager)[0]
        seconds[:, launched] = (seconds[:, launched] ** 4 + _LAUNCH**4) ** 0.25
        return np.log(seconds)

    @staticmethod
    def _kernels(a: Points, b: Points, share_a: Array, share_b: Array) -> tuple[Array, Array]:
        """Covariance of the residuals of two sets of points: the smooth part, of amplitude 1, and the rest."""
        apart = (np.log(a.batch)[:, None] - np.log(b.batch)) ** 2
        drafted = (np.log(a.tokens / a.batch)[:, None] - np.log(b.tokens / b.batch)) ** 2
        same = a.group[:, None] == b.group
        near = np.exp(-0.5 * (apart / _LENGTH_BATCH**2 + drafted / _LENGTH_DRAFTED**2))
        smooth = near * np.where(same, 1.0, _COMMON) * np.where(a.eager[:, None] == b.eager, 1.0, _ACROSS)
        launch = _LAUNCH_SD**2 * np.exp(-apart / (8 * _LENGTH_BATCH**2)) * a.eager[:, None] * b.eager
        jumps = np.exp(-0.5 * (apart + drafted) / _JUMP_LENGTH**2) * same * _jump(a)[:, None] * _jump(b)
        drift = _DRIFT**2 * np.exp(-0.5 * apart / _LENGTH_BATCH**2) * same * share_a[:, None] * share_b
        return smooth, launch + jumps + drift

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
        smooth, rough = self._kernels(points, self._seen, share, self._share)
        smooth, rough = smooth @ self._whiten.T, (linear + rough) @ self._whiten.T
        squared = _AMPLITUDES**2
        mean += (rough @ self._solved + smooth @ self._solved * squared[self._amplitude]).T
        explained = self._precision @ (rough**2).T + squared[:, None] * (
            self._precision @ (2 * rough * smooth).T + squared[:, None] * (self._precision @ (smooth**2).T)
        )
        own = (design**2 * self._prior_sd**2).sum(axis=1) + _LAUNCH_SD**2 * points.eager + _jump(points) ** 2
        own += (_DRIFT * share) ** 2
        variance = np.maximum(own + squared[:, None] - explained, _NOISE**2)[self._amplitude]
        whole = self._weights @ mean
        spread = self._weights @ (variance + (mean - whole) ** 2)
        return whole, np.sqrt(spread)


def _jump(points: Points) -> Array:
    return np.where(points.overhead > 0, _JUMP_DRAFTING, _JUMP)
