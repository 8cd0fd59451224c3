"""E(K): tokens that a request gets per step, and how sure that is.

E = 1 + match x (a1 + a1 a2 + … up to K): every step yields a token, and a draft as many more as are accepted before the
first refusal (Leviathan et al., arXiv 2211.17192, with a chance per position: acceptance is close to geometric for
draft models, far from it for n-gram).

What was measured fades while the profile does not run, as an Ornstein-Uhlenbeck process in log(E - 1), into what is
usual on this workload, or while that is not known into the method's prior: traffic changes, and a profile that does not
run shows nothing. Where the drafts of the profile that does run fare visibly different, or prompts are of another
length, it fades as much quicker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from specdecode.model.knowledge import LEAST_EXTRA, Drafts, Knowledge
from specdecode.vllm.speculation import Method


@dataclass(frozen=True)
class _Prior:
    match: float
    chance: float
    sd: float
    """Standard deviation of log(E - 1)."""

    def accepted(self, k: int) -> float:
        return self.match * sum(self.chance**i for i in range(1, k + 1))


# E - 1 over datasets at K = 5 (arXiv 2601.11580): n-gram 0.18 to 1.29, and 3.75 on summaries; heads and draft models
# 1.5 to 1.7.
_PRIORS: Mapping[Method, _Prior] = {
    Method.NGRAM: _Prior(0.30, 0.75, 0.9),
    Method.DRAFT_MODEL: _Prior(1.0, 0.62, 0.40),
}
_OTHER = _Prior(1.0, 0.62, 0.45)

MEMORY = 6 * 3600.0
"""Seconds over which a measurement fades."""
_MOVED = 0.7
"""Change of log(E - 1) of another profile that makes it fade as much as `MEMORY` does."""
_SAME_KIND = 1.5
"""Factor in the mean length of prompts that one kind of traffic varies by."""
_OTHER_KIND = 2.0
"""Change of log(E - 1) to be reckoned with per change of log(length) beyond that: prompts three times as long leave a
tenth of what was known."""
_FIRST = 3600.0
"""Seconds of this workload's own history that the prior is worth."""
_USUAL_SD = 0.3
"""Standard deviation of log(E - 1) over the days of one workload, at least."""
_FRESH_SD = 0.06
"""Standard deviation of log(E - 1) just after it was measured: the traffic of the next minutes is not the same."""
_NODES = (-1.732, 0.0, 1.732)
_WEIGHTS = (1 / 6, 2 / 3, 1 / 6)
"""Gauss-Hermite quadrature of a normal distribution."""


@dataclass(frozen=True)
class Tokens:
    """E of one option at one K."""

    per_step: float
    drafted: float
    """Tokens drafted per request and step, every step counted."""
    sd: float
    """Standard deviation of log E."""


def moved(known: Mapping[str, Knowledge], profile: str) -> float:
    """By how much log(E - 1) of this profile may have changed since it was measured, as far as what runs shows.

    That is what the profile that ran beside it has changed by, or what prompts of another length suggest, if that is
    more: requests of another kind, of which one method may make as much as before, and another one may not.
    """
    drafts = known[profile].drafts if profile in known else None
    if drafts is None:
        return 0.0
    other_kind = _other_kind(known, known[profile])
    if drafts.beside is None:
        return other_kind
    name, then = drafts.beside
    other = known[name].drafts if name in known else None
    if other is None or other.measured_at <= drafts.measured_at:
        return other_kind
    return max(abs(other.extra - then), other_kind)


def _other_kind(known: Mapping[str, Knowledge], measured: Knowledge) -> float:
    newest = max(known.values(), key=lambda k: k.measured_at or 0.0)
    if not newest.prompt_length or not measured.prompt_length:
        return 0.0
    factor = abs(math.log(newest.prompt_length / measured.prompt_length))
    return max(0.0, factor - math.log(_SAME_KIND)) * _OTHER_KIND


_NO_MISSES = 0.95
"""Share of the steps that draft, from which n-gram is taken to draft at its misses too."""


def matched(method: Method, drafts: Drafts | None) -> float:
    """Share of the drafted tokens that a method meant: 1, but for n-gram on Model Runner V2.

    That runner fills a step without a match with tokens that nobody expects to be accepted (vLLM >= 0.32,
    v1/worker/gpu/spec_decode/ngram/speculator.py), V1 drafts nothing there. E is the same, and so are the chances of
    all positions after the first, which is reached only where there was a match: if the first were like the second,
    the misses are what it falls short.
    """
    if method is not Method.NGRAM or drafts is None or drafts.match < _NO_MISSES or len(drafts.chances) < 2:
        return 1.0
    first, second, *_ = drafts.chances
    return first / second if first < second else 1.0


def tokens(method: Method | None, drafts: Drafts | None, k: int, now: float, moved: float = 0.0) -> Tokens:
    """E at K = `k`, now. `method` None: without speculation. `moved`: how much the traffic visibly has, see there."""
    if method is None or k == 0:
        return Tokens(1.0, 0.0, 0.0)
    prior = _PRIORS.get(method, _OTHER)
    extra, match, variance = math.log(prior.accepted(k)), prior.match, prior.sd**2
    if drafts is not None:
        alike = math.exp(-moved / _MOVED)
        fresh = alike * math.exp(-max(0.0, now - drafts.measured_at) / MEMORY)
        seen = math.log(max(drafts.match * drafts.accepted(k), LEAST_EXTRA))
        if drafts.usual is not None:
            # What it fades into is what is usual on this workload, as far as that is known, and traffic as it was.
            own = alike * drafts.usual_seconds / (drafts.usual_seconds + _FIRST)
            extra += own * (drafts.usual + seen - drafts.extra - extra)
            variance += own * (max(drafts.usual_variance, _USUAL_SD**2) - variance)
        # Positions that were never drafted are a guess.
        deeper = max(0, k - len(drafts.chances)) / k
        sampling = 1.0 / max(drafts.count * math.exp(seen), 1.0)
        extra = fresh * seen + (1 - fresh) * extra
        match = fresh * drafts.match + (1 - fresh) * match
        variance = (_FRESH_SD**2 + sampling + (0.3 * deeper) ** 2) * fresh**2 + variance * (1 - fresh**2)
    sd = math.sqrt(variance)
    logs = [math.log1p(min(math.exp(extra + z * sd), float(k))) for z in _NODES]
    mean = sum(w * e for w, e in zip(_WEIGHTS, logs, strict=True))
    spread = sum(w * (e - mean) ** 2 for w, e in zip(_WEIGHTS, logs, strict=True))
    return Tokens(1 + min(math.exp(extra), float(k)), match * k, math.sqrt(spread))
