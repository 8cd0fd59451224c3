"""Canary against baseline, measured over the same minutes.

The time since the canary is warm is cut into blocks; in each, the mean TPOT of the requests that finished on the
canary is compared with that of the baseline pods. What both share (a burst, a slow hour) cancels in the ratio; how much
the ratio still varies from block to block says how sure it is (Student's t over the blocks' log ratios).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist

from specdecode.api.v1alpha1 import Outcome, SpecDecodePolicySpec
from specdecode.model.cost import Option
from specdecode.model.estimate import Z90, Estimate, percent
from specdecode.model.measure import Change, Measurement, measurement
from specdecode.model.window import Window, pods_together, queue_growth, queued
from specdecode.policy.observation import Pod
from specdecode.policy.options import describe
from specdecode.rollout.ending import Ending
from specdecode.vllm.effective import shown_positions, shows_drafts

BLOCKS = 10
"""Blocks that the time is cut into, fewer while there are fewer readings."""
ENOUGH_BLOCKS = 4

_T90 = {3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}
"""Half width of a 90 % interval in standard errors, by degrees of freedom (Student's t)."""

UNEQUAL_LOAD = 1.5
"""Factor in load per pod between canary and baseline from which the one with less has it too easy to win."""
EVEN = 0.9
"""Share of the others' load from which a canary that has less of it does so by chance."""
LULL = 0.5
"""Share of the load for which a change was decided below which its canary proves nothing: in a lull all drafts are
fast. (Above it, nothing follows: a canary that is faster serves more to clients who wait for their answers.)"""
FILLS = 1.3
"""Factor by which the running requests on a canary grow from the middle third of the time to the last, beyond those on
its baseline, from which it is still filling up: a fresh pod is fast until its batch is as large as it will be."""
QUEUED = 2.0
"""Factor in requests that wait, between baseline and canary, from which those of the baseline waited before."""
TOLD = 0.005
"""Correction for the load that is worth a word."""
PLAIN = 0.25
"""What even the lower end of the gain must exceed the required one by to count as plain."""
NO_WORSE = 0.05
"""A change that needs no gain may look this much slower before it counts as worse: the scatter of short analyses."""


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
    gain: Estimate | None
    """How much faster the canary is, at the load after a promotion; None while the blocks do not tell."""
    blocks: int
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
class Verdict:
    """How an analysis ends."""

    outcome: Outcome
    reason: Ending
    message: str
    gain: Estimate | None = None


def in_force(pod: Pod, option: Option | None) -> str | None:
    """None when the pod's own metrics agree that it runs the option (or say nothing yet); else what contradicts it."""
    if not pod.window.readings or option is None:
        return None
    page = pod.window.readings[-1].page
    speculates = shows_drafts(page)
    if option.speculation is None:
        return f"pod {pod.name} drafts tokens, though {option.profile} has speculation off" if speculates else None
    if not speculates:
        return f"pod {pod.name} shows no speculation in its metrics"
    positions = shown_positions(page)
    k = option.speculation.num_speculative_tokens
    if k is not None and positions and positions != {k}:
        return f"pod {pod.name} drafts {max(positions)} tokens, not {k}"
    report, schedule = pod.schedule, option.speculation.schedule
    if report is not None and report.live and schedule and report.schedule != schedule:
        return f"pod {pod.name} goes by another schedule than that of {describe(option)}"
    return None


def compare(
    canaries: tuple[Pod, ...],
    baseline: tuple[Pod, ...],
    since: float,
    now: float,
    before: float | None,
    *,
    figure: Figure = Figure.TPOT,
    correction: float = 0.0,
    steepness: float = 0.0,
) -> Comparison:
    """Compares the pods from `since` (Unix seconds) on; with `before`, the figure in seconds, without a baseline.

    `correction` is added to the log of the ratio: what the model says of the load after a promotion, where a pod more
    takes a part of it now. `steepness`: the power of the load by which TPOT grows, where a canary with less of it than
    the others is not to win by that (traffic is not dealt out evenly everywhere).
    """
    seconds = max(0.0, now - since)
    pods = len(canaries), len(baseline)
    ours_grew, theirs_grew = (_growth_in_tokens(_measured(p, since)) for p in (canaries, baseline))
    found = Comparison(
        seconds, _whole(canaries, since), _whole(baseline, since), pods, None, 0, queued=(ours_grew, theirs_grew)
    )
    share = max(_share(found.asked, pods), 1 / UNEQUAL_LOAD)
    correction += steepness * math.log(share) if share < EVEN else 0.0
    ours, theirs = _changes(canaries, since), _changes(baseline, since)
    ratios = []
    length = seconds / BLOCKS
    for i in range(BLOCKS if length > 0 else 0):
        start, end = since + i * length, since + (i + 1) * length
        canary = _of(figure, (c for t, c in ours if start < t <= end))
        other = _of(figure, (c for t, c in theirs if start < t <= end)) if baseline else before
        if canary and other:
            ratios.append(math.log(other / canary) + correction)
    return replace(
        found,
        gain=_gain(ratios),
        blocks=len(ratios),
        before_and_after=not baseline,
        figure=figure,
        correction=correction,
        fills=_growth(canaries, since, now) > FILLS * max(1.0, _growth(baseline, since, now)),
        wanted=_wanted(_measured((*canaries, *baseline), since)),
        queue_of_before=_waiting(baseline, since) > max(FEW, QUEUED * _waiting(canaries, since)),
    )


def judge(
    c: Comparison,
    policy: SpecDecodePolicySpec,
    required_gain: float,
    *,
    protect_tail: bool,
    decided_at: float | None = None,
    lost: int = 0,
    relief: bool = False,
) -> Verdict | None:
    """The verdict, or None while there is none yet. Harm is called early; success after the whole time, where it is
    plain after half of it, and not in a lull.

    `decided_at`: that load, of the whole workload in tokens/s; None where it is not known. `lost`: how many canaries of
    the profile in a row did not succeed today. Chance alone promotes one in twenty that are no better, so what is tried
    again and again must show more: each time half as large an error is allowed.
    """
    rules = policy.rollout.analysis
    how = "before and after, for want of a baseline: " if c.before_and_after else ""
    if errors := _errors(c):
        return Verdict(Outcome.FAILED, Ending.REQUESTS_FAIL, errors, c.gain)
    enough = _enough_requests(c, rules.minimum_requests)
    share = _share(c.asked, c.pods)
    # What needs a gain must also have served as much: pods that work off a queue are slow for that.
    easy = share if relief or required_gain <= 0 else min(share, _share(c.served, c.pods))
    # So is the first token on them: the canary's requests never waited in that queue.
    unlike = c.queue_of_before and c.figure in (Figure.TTFT, Figure.REQUEST)
    lull = decided_at is not None and c.wanted < LULL * decided_at
    if c.gain is not None and enough:
        if c.gain.high < min(0.0, required_gain - NO_WORSE) and share <= UNEQUAL_LOAD:
            return Verdict(Outcome.FAILED, Ending.SLOWER, f"{how}the canary is slower: {c.shown}", c.gain)
        plain = c.gain.low > required_gain + PLAIN
        if (
            c.seconds >= rules.duration * (0.5 if plain else 1.0)
            and easy >= 1 / UNEQUAL_LOAD
            and not (lull or c.fills or unlike)
        ):
            if broken := _slo_broken(c, policy) or (protect_tail and _tail_worse(c)):
                return Verdict(Outcome.FAILED, Ending.TAIL_WORSE, f"{how}{broken}", c.gain)
            floor = 0.0 if required_gain > 0 else -NO_WORSE
            if c.gain.value >= required_gain and _at_the_least(c.gain, lost) > floor:
                return Verdict(Outcome.SUCCESSFUL, Ending.PROMOTED, f"{how}promoting: {c.shown}", c.gain)
            if c.gain.high < required_gain and share <= UNEQUAL_LOAD:
                return Verdict(Outcome.FAILED, Ending.GAIN_TOO_SMALL, f"{how}too small: {c.shown}", c.gain)
    if c.seconds < 2 * rules.duration:
        return None
    if c.canary is None or (c.baseline is None and not c.before_and_after):
        return Verdict(Outcome.ERROR, Ending.NOT_MEASURED, "the canary or its baseline did not answer with metrics")
    if not enough:
        return Verdict(
            Outcome.INCONCLUSIVE,
            Ending.TOO_FEW_REQUESTS,
            f"fewer than {rules.minimum_requests} requests finished on the canary or on its baseline",
            c.gain,
        )
    if easy < 1 / UNEQUAL_LOAD or share > UNEQUAL_LOAD:
        return Verdict(Outcome.INCONCLUSIVE, Ending.UNEQUAL_LOAD, "canary and baseline got unequal load", c.gain)
    if unlike:
        return Verdict(
            Outcome.INCONCLUSIVE,
            Ending.UNEQUAL_LOAD,
            f"requests wait on the baseline that came before the canary: its {c.figure} proves nothing",
            c.gain,
        )
    if c.fills and c.gain is not None and c.gain.value > 0:
        return Verdict(Outcome.INCONCLUSIVE, Ending.NOT_SURE, f"{how}the canary's batch still grows: {c.shown}", c.gain)
    if lull:
        return Verdict(
            Outcome.INCONCLUSIVE,
            Ending.UNEQUAL_LOAD,
            f"the load fell from {decided_at:.0f} to {c.wanted:.0f} tokens/s: what the canary showed tells"
            " nothing of the load that the change is for",
            c.gain,
        )
    again = f"; after {lost} that did not prove it today, it takes more than that" if lost else ""
    return Verdict(Outcome.INCONCLUSIVE, Ending.NOT_SURE, f"{how}no clear answer in time: {c.shown}{again}", c.gain)


def _at_the_least(gain: Estimate, lost: int) -> float:
    """The lower end of a gain, with an error of 5 % that is halved so many times."""
    wider = NormalDist().inv_cdf(1 - 0.05 / 2**lost) / Z90
    return math.expm1(math.log1p(gain.value) - wider * (math.log1p(gain.value) - math.log1p(gain.low)))


def _changes(pods: Iterable[Pod], since: float) -> list[tuple[float, Change]]:
    return [(r.t, r.change) for p in pods for r in p.window.since(since).readings[1:] if isinstance(r.change, Change)]


def _growth(pods: Iterable[Pod], since: float, now: float) -> float:
    """Requests running on the pods in the last third of the time over those in the middle third; 1 where there are too
    few to tell. What waits is slow to start, not slow to run."""
    third = (now - since) / 3
    thirds: tuple[list[float], list[float]] = ([], [])
    for reading in (r for p in pods for r in p.window.since(since + third).readings):
        present = math.fsum(e.running or 0.0 for e in reading.page.engines)
        thirds[reading.t > since + 2 * third].append(present)
    middle, last = (math.fsum(t) / len(t) if t else 0.0 for t in thirds)
    return last / middle if min(middle, last) >= FEW else 1.0


FEW = 4.0
"""Requests on a pod whose number is chance."""


def _whole(pods: Iterable[Pod], since: float) -> Measurement | None:
    changes = [c for p in pods if isinstance(c := p.window.since(since).change, Change)]
    return measurement(changes) if changes else None


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
    has_metric = all(p.figures.tpot is not None for p in parts)
    if has_metric or m.step_seconds is None or not m.tokens_per_step:
        return None
    return m.step_seconds / m.tokens_per_step


def _gain(ratios: list[float]) -> Estimate | None:
    n = len(ratios)
    if n < ENOUGH_BLOCKS:
        return None
    mean = math.fsum(ratios) / n
    error = math.sqrt(math.fsum((r - mean) ** 2 for r in ratios) / (n - 1) / n)
    half = _T90[n - 1] * error
    return Estimate(math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half))


def _enough_requests(c: Comparison, minimum: int) -> bool:
    if c.canary is None or c.canary.finished < minimum:
        return False
    return c.before_and_after or (c.baseline is not None and c.baseline.finished >= minimum)


def _errors(c: Comparison) -> str | None:
    """Requests that fail on the canary and not on the baseline: vLLM >= 0.14 refuses min_p and logit_bias."""
    if c.canary is None:
        return None
    failed = c.canary.errored + c.canary.server_errors + c.canary.client_errors
    share = failed / max(c.canary.finished + failed, 1.0)
    usual = 0.0
    if c.baseline is not None:
        others = c.baseline.errored + c.baseline.server_errors + c.baseline.client_errors
        usual = others / max(c.baseline.finished + others, 1.0)
    if failed >= 3 and share > 2 * usual + 0.005:
        return f"{failed:.0f} requests failed on the canary ({share:.1%}; {usual:.1%} on the baseline)"
    return None


def _measured(pods: Iterable[Pod], since: float) -> list[Window]:
    return [w for p in pods if isinstance((w := p.window.since(since)).change, Change)]


def _growth_in_tokens(windows: list[Window]) -> float:
    """See `Comparison.queued`."""
    together = pods_together(windows)
    length = together.output_length if together else None
    return math.fsum(queue_growth(w) for w in windows) * (length or 0.0)


def _wanted(windows: list[Window]) -> float:
    """See `Comparison.wanted`; as the load is reckoned for which a change is decided."""
    together = pods_together(windows)
    if together is None:
        return 0.0
    served, length = together.generation_tokens_per_second or 0.0, together.output_length
    return served + queued(windows, served / length) * length if length else served


def _waiting(pods: tuple[Pod, ...], since: float) -> float:
    """Mean number of requests that wait on a pod."""
    readings = [r for p in pods for r in p.window.since(since).readings]
    waiting = math.fsum(e.waiting or 0.0 for r in readings for e in r.page.engines)
    return waiting / len(readings) if readings else 0.0


def _share(load: tuple[float, float], pods: tuple[int, int]) -> float:
    """Load of a canary pod over that of a baseline pod; 1 where that cannot be told."""
    ours, theirs = load
    return (ours / pods[0]) / (theirs / pods[1]) if ours and theirs else 1.0


def _slo_broken(c: Comparison, policy: SpecDecodePolicySpec) -> str | None:
    """A limit that the canary breaks and the baseline keeps."""
    slo = policy.objective.slo
    for name, limit in (("tpot", slo.time_per_output_token), ("ttft", slo.time_to_first_token)):
        ours = getattr(c.canary, name, None)
        theirs = getattr(c.baseline, name, None)
        if limit is None or ours is None or ours.p99.exceeds(limit.p99) is not True:
            continue
        if theirs is None or theirs.p99.exceeds(limit.p99) is not True:
            beside = "" if c.before_and_after else ", the baseline's does not"
            return f"the canary's P99 {name.upper()} breaks the limit of {limit.p99 * 1e3:.0f} ms{beside}"
    return None


def _tail_worse(c: Comparison) -> str | None:
    ours, theirs = c.canary and c.canary.tpot, c.baseline and c.baseline.tpot
    if not ours or not theirs or ours.p99.value is None or theirs.p99.value is None:
        return None
    if ours.p99.low >= theirs.p99.high:
        return (
            f"P99 TPOT is {ours.p99.value * 1e3:.0f} ms on the canary, {theirs.p99.value * 1e3:.0f} ms on the baseline"
        )
    return None
