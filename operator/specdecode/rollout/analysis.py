"""The verdict on a canary: promote it, take it back, or measure on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from specdecode.api.v1alpha1 import Outcome, SpecDecodePolicySpec
from specdecode.model.cost import Option
from specdecode.model.estimate import Z90, Estimate
from specdecode.policy.observation import Pod
from specdecode.policy.options import describe
from specdecode.policy.spare import UNEQUAL_LOAD
from specdecode.rollout.comparison import EVEN, Comparison, Figure
from specdecode.rollout.ending import Ending
from specdecode.vllm.effective import shown_positions, shows_drafts

LULL = 0.5
"""Share of the load for which a change was decided below which its canary proves nothing: in a lull all drafts are
fast. (Above it, nothing follows: a canary that is faster serves more to clients who wait for their answers.)"""
PLAIN = 0.25
"""What even the lower end of the gain must exceed the required one by to count as plain."""
NO_WORSE = 0.05
"""A change that needs no gain may look this much slower before it counts as worse, the first time: the scatter of short
analyses."""


@dataclass(frozen=True)
class Verdict:
    """How an analysis ends."""

    outcome: Outcome
    reason: Ending
    message: str
    gain: Estimate | None = None


@dataclass(frozen=True)
class Terms:
    """What a canary has to show."""

    required_gain: float
    protect_tail: bool = False
    """It must also keep the 99th percentile."""
    decided_at: float | None = None
    """The load for which the change was decided, of the whole workload in tokens/s; None: not known."""
    lost: int = 0
    """How many canaries of the profile in a row did not succeed today. Chance alone promotes one in twenty that are no
    better, so what is tried again and again must show more: each time half as large an error is allowed."""
    relief: bool = False
    """The pods fall behind, and would have more room with it."""
    leaves_own: bool = False
    """What runs is what the user's own manifest says; what replaces it must be faster, whatever the change is for."""
    goes_back: bool = False
    """It is what the manifest says, which has nothing to prove, however often it was no better: where nothing is clear
    in time, it need only look no worse."""
    to_be_proven: bool = True
    """False: it has to work, and not to be much worse."""


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


def judge(c: Comparison, policy: SpecDecodePolicySpec, terms: Terms) -> Verdict | None:
    """The verdict, or None while there is none yet. Harm is called early; success after the whole time, where it is
    plain after half of it, and not in a lull."""
    rules, required_gain = policy.rollout.analysis, terms.required_gain
    lost = 0 if terms.goes_back else terms.lost
    if errors := _errors(c):
        return Verdict(Outcome.FAILED, Ending.REQUESTS_FAIL, errors, c.gain)
    if not terms.to_be_proven:
        return _unless_worse(c, policy, required_gain)
    how = "before and after, for want of a baseline: " if c.before_and_after else ""
    enough = _enough_requests(c, rules.minimum_requests)
    share = c.share_asked
    # It must also have served as much, unless it makes room: pods that work off a queue are slow for that, at the
    # largest batch that there is, where the canary would be too before long.
    easy = share if terms.relief else min(share, c.share_served)
    even = EVEN if c.queue_of_before and not terms.relief else 1 / UNEQUAL_LOAD
    # So is the first token on them: the canary's requests never waited in that queue.
    unlike = c.queue_of_before and c.figure in (Figure.TTFT, Figure.REQUEST)
    lull = terms.decided_at is not None and c.wanted < LULL * terms.decided_at
    if c.gain is not None and enough:
        if c.gain.high < min(0.0, required_gain - NO_WORSE) and share <= UNEQUAL_LOAD:
            return Verdict(Outcome.FAILED, Ending.SLOWER, f"{how}the canary is slower: {c.shown}", c.gain)
        plain = c.gain.low > required_gain + PLAIN
        if c.seconds >= rules.duration * (0.5 if plain else 1.0) and easy >= even and not (lull or c.fills or unlike):
            if broken := _slo_broken(c, policy) or (terms.protect_tail and _tail_worse(c)):
                return Verdict(Outcome.FAILED, Ending.TAIL_WORSE, f"{how}{broken}", c.gain)
            floor = 0.0 if required_gain > 0 or lost or terms.leaves_own else -NO_WORSE
            if c.gain.value >= required_gain and _at_the_least(c.gain, lost) > floor:
                return Verdict(Outcome.SUCCESSFUL, Ending.PROMOTED, f"{how}promoting: {c.shown}", c.gain)
            if c.gain.high < required_gain and share <= UNEQUAL_LOAD:
                return Verdict(Outcome.FAILED, Ending.GAIN_TOO_SMALL, f"{how}too small: {c.shown}", c.gain)
    if c.seconds < rules.longest:
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
    if easy < even or share > UNEQUAL_LOAD:
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
            f"the load fell from {terms.decided_at:.0f} to {c.wanted:.0f} tokens/s: what the canary showed tells"
            " nothing of the load that the change is for",
            c.gain,
        )
    if terms.goes_back and c.gain is not None and c.gain.value >= required_gain and not _slo_broken(c, policy):
        message = f"{how}promoting what the manifest says, as nothing speaks against it: {c.shown}"
        return Verdict(Outcome.SUCCESSFUL, Ending.PROMOTED, message, c.gain)
    again = f"; after {lost} that did not prove it today, it takes more than that" if lost else ""
    return Verdict(Outcome.INCONCLUSIVE, Ending.NOT_SURE, f"{how}no clear answer in time: {c.shown}{again}", c.gain)


def _unless_worse(c: Comparison, policy: SpecDecodePolicySpec, required_gain: float) -> Verdict | None:
    """Success after the whole time, but where the canary is surely worse than the required gain, or serves too few to
    show that it works. Held against pods that keep up, where others do not, it is no worse for being slower: nobody
    complains of the tokens of those."""
    rules = policy.rollout.analysis
    if c.gain is not None and c.gain.high < required_gain and not c.queue_elsewhere:
        return Verdict(Outcome.FAILED, Ending.SLOWER, f"the canary is slower: {c.shown}", c.gain)
    served = c.canary.finished if c.canary is not None else 0.0
    if c.seconds >= rules.duration and served >= rules.minimum_requests:
        message = f"promoting, as nothing speaks against it: {c.shown}"
        return Verdict(Outcome.SUCCESSFUL, Ending.PROMOTED, message, c.gain)
    if c.seconds < rules.longest:
        return None
    if c.canary is None:
        return Verdict(Outcome.ERROR, Ending.NOT_MEASURED, "the canary did not answer with metrics")
    few = f"fewer than {rules.minimum_requests} requests finished on the canary"
    return Verdict(Outcome.INCONCLUSIVE, Ending.TOO_FEW_REQUESTS, few, c.gain)


def _at_the_least(gain: Estimate, lost: int) -> float:
    """The lower end of a gain, with an error of 5 % that is halved so many times."""
    wider = NormalDist().inv_cdf(1 - 0.05 / 2**lost) / Z90
    return math.expm1(math.log1p(gain.value) - wider * (math.log1p(gain.value) - math.log1p(gain.low)))


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
