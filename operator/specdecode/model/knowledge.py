"""What is known about each option on this workload: the evidence that the cost model is fitted to.

Small and bounded, because it lives in the policy's status: one acceptance figure per option, and step times binned by
the number of tokens in a step, so that an old busy hour is not forgotten when the night is quiet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from specdecode.model.measure import Measurement

MAX_STEP_TIMES = 12
"""Bins of step times kept per option."""

ENOUGH_REQUEST_STEPS = 50
"""Inter-token latencies that a mean step time is taken from."""

NEWER = 0.3
"""Weight of a new step time in its bin."""


@dataclass(frozen=True)
class StepTime:
    """A measured engine step."""

    batch_size: float
    """Requests in the step."""
    tokens: float
    """Tokens that the target model worked on in the step: requests and their drafts, B(1 + drafted per request)."""
    seconds: float
    prompt_tokens: float = 0.0
    """Prompt tokens computed per step, on average."""

    @property
    def drafted(self) -> bool:
        """Whether the step had drafts."""
        return self.tokens > self.batch_size * 1.01


@dataclass(frozen=True)
class Knowledge:
    """What is known about one option."""

    measured_at: float | None = None
    """Unix seconds of the last measurement; None: never."""
    acceptance: tuple[float, float, float, float] | None = None
    """Acceptance rate when last measured: mean, P10, P50, P90."""
    accepted_length: float | None = None
    per_position: tuple[float, ...] = ()
    tokens_per_step: float = 1.0
    """E: tokens that a request gets per step, every step counted."""
    drafted_per_step: float = 0.0
    """Tokens drafted per request and step, every step counted."""
    tpot_seconds: float | None = None
    step_times: tuple[StepTime, ...] = field(default=())

    @property
    def acceptance_rate(self) -> float | None:
        """Mean acceptance rate when last measured."""
        return self.acceptance[0] if self.acceptance else None


def learn(
    known: Knowledge | None,
    measured: Measurement | None,
    acceptance: tuple[float, float, float, float] | None,
    latest: Iterable[Measurement],
    now: float,
) -> Knowledge:
    """Adds what pods that run the option showed.

    `measured` is the window as far as it drafted at the option's K, `latest` the newest stretch of each pod's
    that holds `ENOUGH_REQUEST_STEPS`.
    What the window lacks keeps its last value.
    """
    known = known or Knowledge()
    steps = measured.request_steps if measured else None
    # Where nothing was drafted, a step tells its cost, and nothing about acceptance.
    if measured is not None and steps and measured.draft_tokens != 0:
        known = replace(
            known,
            measured_at=now,
            acceptance=acceptance or known.acceptance,
            accepted_length=measured.accepted_length or known.accepted_length,
            per_position=measured.per_position or known.per_position,
            # A step gives every request a token; at the edges of a window a few are counted on the wrong side.
            tokens_per_step=max(1.0, measured.tokens_per_step or known.tokens_per_step),
            drafted_per_step=(measured.draft_tokens or 0.0) / steps,
            tpot_seconds=measured.tpot_seconds or known.tpot_seconds,
        )
    for part in latest:
        b, seconds = part.requests_per_step, part.step_seconds
        if b and seconds and part.request_steps:
            drafted = (part.draft_tokens or 0.0) / part.request_steps
            prompt = (part.prompt_tokens_per_second or 0.0) * part.seconds / part.steps if part.steps else 0.0
            step = StepTime(b, b * (1 + drafted), seconds, prompt)
            known = replace(known, step_times=_binned(known.step_times, step))
    return known


def _binned(times: tuple[StepTime, ...], new: StepTime) -> tuple[StepTime, ...]:
    """Merges a step into its bin (a factor of sqrt 2 in tokens); those that drafted apart from those that did not."""

    def bin_of(t: StepTime) -> tuple[int, bool]:
        return round(2 * math.log2(max(t.tokens, 0.5))), t.drafted

    old = next((t for t in times if bin_of(t) == bin_of(new)), None)
    if old is not None:
        new = StepTime(*(_mixed(getattr(old, f.name), getattr(new, f.name)) for f in fields(StepTime)))
    kept = [t for t in times if t is not old]
    return tuple(sorted([*kept[-(MAX_STEP_TIMES - 1) :], new], key=lambda t: t.tokens))


def _mixed(old: float, new: float) -> float:
    return old + NEWER * (new - old)
