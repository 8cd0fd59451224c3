"""Canary against baseline, measured over the same minutes.

The time since the canary is warm is cut into blocks; in each, the mean TPOT of the requests that finished on the
canary is compared with that of the baseline pods. What both share (a burst, a slow hour) cancels in the ratio; how much
the ratio still varies from block to block says how sure it is (Student's t over the blocks' log ratios).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from specdecode.model.estimate import Estimate, percent
from specdecode.model.measure import Change, Measurement, measurement
from specdecode.model.window import Window, pods_together, queue_growth, queued
from specdecode.policy.estimating import LARGEST_CORRECTION
from specdecode.policy.observation import Pod
from specdecode.policy.spare import UNEQUAL_LOAD

BLOCKS = 10
"""Blocks that the time is cut into, fewer while there are fewer readings."""
ENOUGH_BLOCKS = 4
_T90 = {3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}
"""Half width of a 90 % interval in standard errors, by degrees of freedom (Student's t)."""
FILLS = 1.3
"""Factor by which the running requests on a canary grow from the middle third of the time to the last, beyond those on
its baseline, from which it is still filling up: a fresh pod is fast until its batch is as large as it will be."""
EVEN = 0.9
"""Share of the others' load from which a canary that has less of it does so by chance."""
QUEUED = 2.0
"""Factor in requests that wait, between baseline and canary, from which those of the baseline waited before."""
FEW = 4.0
"""Requests on a pod whose number is chance."""
TOLD = 0.005
"""Correction for the load that is worth a word."""


class Figure(StrEnum):
    """What canary and baseline are compared by."""

    TPOT = "TPOT"
    TTFT = "TTFT"
    REQUEST = "time per request"
    """Whole requests: first token and all others, per token."""
    STEPS = "tokens per step"
    """Where steps cannot differ in what they take, the tokens that they give differ by less chance than TPOT."""


@dataclass(frozen=True)
class Comparison:
    """What was measured so far."""

    seconds: float
    """Since the canary was warm."""
    canary: Measurement | None
    baseline: Measurement | None
    pods: tuple[int, int]
    """Canary and baseline pods."""
    gain: Estimate | None = None
    """How much faster the canary is, at the load after a promotion; None while the blocks do not tell."""
    blocks: int = 0
    before_and_after: bool = False
    """There was no baseline: the canary is compared with the time before the change."""
    figure: Figure = Figure.TPOT
    correction: float = 0.0
    """What of the gain, as a log, is due to the load after a promotion and was not measured."""
    fills: bool = False
    """The canary's batch still grows."""
    queued: tuple[float, float] = (0.0, 0.0)
    """Output tokens per second of the requests by which the queues of canary and baseline grow; negative: those that
    are worked off."""
    wanted: float = 0.0
    """Output tokens per second that users ask of all pods together, those that wait included; 0: not known."""
    queue_of_before: bool = False
    """Requests wait on the baseline that came before there was a canary."""
    queue_elsewhere: bool = False
    """Requests wait on pods that get another load than the canary, and none on those that it is held against."""

    @property
    def served(self) -> tuple[float, float]:
        """Output tokens per second of canary and baseline; 0 where that was not measured."""
        ours, theirs = (m.generation_tokens_per_second if m else None for m in (self.canary, self.baseline))
        return ours or 0.0, theirs or 0.0

    @property
    def asked(self) -> tuple[float, float]:
        """The same that users ask of them: the queue that grows included, without that which is worked off."""
        (ours, theirs), (our_queue, their_queue) = self.served, self.queued
        return max(0.0, ours + our_queue), max(0.0, theirs + their_queue)

    @property
    def share_served(self) -> float:
        """Load of a canary pod over that of a baseline pod, by what they serve; 1 where that cannot be told."""
        return self._share(*self.served)

    @property
    def share_asked(self) -> float:
        """The same by what is asked of them."""
        return self._share(*self.asked)

    def _share(self, ours: float, theirs: float) -> float:
        return (ours / self.pods[0]) / (theirs / self.pods[1]) if ours and theirs else 1.0

    @property
    def shown(self) -> str:
        """The gain in words."""
        if self.gain is None:
            return "too few blocks with finished requests"
        of = "gain" if self.figure is Figure.TPOT else f"gain in {self.figure}"
        text = f"{of} {percent(self.gain)}"
        if abs(self.correction) < TOLD:
            return text
        return f"{text}, {math.expm1(self.correction) * 100:+.0f} % of it for the load that it would have"


@dataclass(frozen=True)
class Circumstances:
    """What the measured ratio has to be seen in the light of."""

    figure: Figure = Figure.TPOT
    before: float | None = None
    """That figure of the whole workload before the change; None: not known."""
    asked_before: float | None = None
    """What users asked of all pods together then, in output tokens per second; None: not known."""
    in_place: bool = False
    """The canary took the place of a baseline pod, and while it started the others had to do its work."""
    correction: float = 0.0
    """What the model says of the load after a promotion, where a pod more takes a part of it now: added to the log of
    the ratio as far as it is borne out."""
    speaks_for_what_won: bool = False
    """It speaks only for a canary that is surely faster without it, and as far as the baseline became faster: more than
    that cannot be lost again, whatever the target costs."""
    steepness: float = 0.0
    """The power of the load by which TPOT grows, where a canary with less of it than the others is not to win by that
    (traffic is not dealt out evenly everywhere)."""


MERELY_MEASURED = Circumstances()


def compare(
    canaries: tuple[Pod, ...],
    baseline: tuple[Pod, ...],
    since: float,
    now: float,
    its: Circumstances = MERELY_MEASURED,
) -> Comparison:
    """Compares the pods from `since` (Unix seconds) on; where there is no baseline, with the time before."""
    ours, everyone = ([p.window.since(since) for p in pods] for pods in (canaries, baseline))
    measured, theirs = pods_together(ours), _alike(everyone, ours)
    others = pods_together(theirs)
    elsewhere = [w for w in everyone if all(w is not t for t in theirs)]
    found = Comparison(
        seconds=max(0.0, now - since),
        canary=measured,
        baseline=others,
        pods=(len(ours), len(theirs)),
        before_and_after=not baseline,
        figure=its.figure,
        fills=_growth(ours, since, now) > FILLS * max(1.0, _growth(theirs, since, now)),
        queued=(_queued(ours, measured), _queued(theirs, others)),
        wanted=wanted([*ours, *everyone]),
        queue_of_before=_waiting(theirs) > max(FEW, QUEUED * _waiting(ours)),
        queue_elsewhere=_waiting(elsewhere) > max(FEW, QUEUED * _waiting(theirs)),
    )
    relief = max(0.0, _relief(found, its))
    correction = min(its.correction, relief if its.speaks_for_what_won else max(LARGEST_CORRECTION, relief))
    share = max(found.share_asked, 1 / UNEQUAL_LOAD)
    handicap = its.steepness * math.log(share) if share < EVEN else 0.0
    # As many pods as before at the same load: what makes the baseline slower than it was is a backlog.
    usual = its.before if its.in_place and its.before and _as_before(found, its.asked_before) else math.inf
    ratios = []
    length = found.seconds / BLOCKS
    for i in range(BLOCKS if length > 0 else 0):
        start, end = since + i * length, since + (i + 1) * length
        canary = _over(start, end, its.figure, ours)
        other = _over(start, end, its.figure, theirs) if baseline else its.before
        if canary and other:
            ratios.append(math.log(min(other, usual) / canary) + handicap)
    if correction > 0 and its.speaks_for_what_won:
        shown = _gain(ratios)
        if shown is None or shown.low <= 0:
            correction = 0.0
    gain = _gain([ratio + correction for ratio in ratios])
    return replace(found, gain=gain, blocks=len(ratios), correction=handicap + correction)


def _relief(c: Comparison, its: Circumstances) -> float:
    """By how much the baseline itself has become faster since the canary takes a part of the same load, as a log."""
    during = value_of(c.figure, c.baseline) if c.baseline else None
    return math.log(its.before / during) if its.before and during and _as_before(c, its.asked_before) else 0.0


def _as_before(c: Comparison, asked_before: float | None) -> bool:
    """Whether users ask for as much as they did before the change."""
    return asked_before is not None and EVEN * asked_before <= c.wanted <= asked_before / EVEN


def _alike(baseline: list[Window], canaries: list[Window]) -> list[Window]:
    """The baseline pods that serve as much as the canaries do, all where none does: beside a hot spot the others are
    what a canary can be held against."""
    ours = [_pace(w) for w in canaries]
    load = math.fsum(ours) / len(ours) if ours else 0.0
    return [w for w in baseline if EVEN * load <= _pace(w) <= load / EVEN] or baseline


def _pace(window: Window) -> float:
    """Output tokens per second that a pod served."""
    return window.change.pace if isinstance(window.change, Change) else 0.0


def _growth(windows: Iterable[Window], since: float, now: float) -> float:
    """Requests running on pods in the last third of the time over those in the middle third; 1 where there are too few
    to tell. What waits is slow to start, not slow to run."""
    third = (now - since) / 3
    thirds: tuple[list[float], list[float]] = ([], [])
    for reading in (r for w in windows for r in w.since(since + third).readings):
        present = math.fsum(e.running or 0.0 for e in reading.page.engines)
        thirds[reading.t > since + 2 * third].append(present)
    middle, last = (math.fsum(t) / len(t) if t else 0.0 for t in thirds)
    return last / middle if min(middle, last) >= FEW else 1.0


def _queued(windows: Iterable[Window], together: Measurement | None) -> float:
    """See `Comparison.queued`."""
    length = together.output_length if together else None
    return math.fsum(queue_growth(w) for w in windows) * (length or 0.0)


def wanted(windows: Sequence[Window]) -> float:
    """See `Comparison.wanted`; as the load is reckoned for which a change is decided."""
    together = pods_together(windows)
    if together is None:
        return 0.0
    more = queued(windows, together) * (together.output_length or 0.0)
    return (together.generation_tokens_per_second or 0.0) + more


def _waiting(windows: Iterable[Window]) -> float:
    """Mean number of requests that wait on a pod."""
    readings = [r for w in windows for r in w.readings]
    waiting = math.fsum(e.waiting or 0.0 for r in readings for e in r.page.engines)
    return waiting / len(readings) if readings else 0.0


def _over(start: float, end: float, figure: Figure, windows: Iterable[Window]) -> float | None:
    """A figure over a part of the time."""
    changes = [r.change for w in windows for r in w.readings[1:] if start < r.t <= end]
    return _of(figure, (c for c in changes if isinstance(c, Change)))


def value_of(figure: Figure, m: Measurement) -> float | None:
    """Seconds, or steps per token; None where it was not measured. Less is better."""
    if figure is Figure.TPOT:
        return m.tpot_seconds
    if figure is Figure.STEPS:
        return 1 / m.tokens_per_step if m.tokens_per_step else None
    if figure is Figure.TTFT or m.ttft_seconds is None:
        return m.ttft_seconds
    return m.tpot_seconds + m.ttft_seconds / m.output_length if m.tpot_seconds and m.output_length else None


def _of(figure: Figure, changes: Iterable[Change]) -> float | None:
    """The figure over some changes. Before vLLM 0.11 TPOT has no metric: it is step time over tokens per step."""
    parts = list(changes)
    if not parts:
        return None
    m = measurement(parts)
    value = value_of(figure, m)
    if value is not None or figure is not Figure.TPOT:
        return value
    has_metric = all(p.totals.count("tpot") is not None for p in parts)
    return None if has_metric else m.tpot_of_steps


def _gain(ratios: list[float]) -> Estimate | None:
    n = len(ratios)
    if n < ENOUGH_BLOCKS:
        return None
    mean = math.fsum(ratios) / n
    error = math.sqrt(math.fsum((r - mean) ** 2 for r in ratios) / (n - 1) / n)
    half = _T90[n - 1] * error
    return Estimate(math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half))
