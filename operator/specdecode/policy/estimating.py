"""From measurements to estimates: what users ask for, what each option would do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from weakref import WeakKeyDictionary

import numpy as np

from specdecode.api.v1alpha1 import BatchSizeTuningMode, Outcome, RolloutPhase
from specdecode.model.cost import Band, CostModel, OfferedLoad, Option, Prediction
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Knowledge, nearly_same
from specdecode.model.learnt import LearntModel
from specdecode.model.loads import HOUR, LoadHistory
from specdecode.model.measure import Change, Measurement
from specdecode.model.window import Window, pods_together, queued
from specdecode.policy.ageing import freshness
from specdecode.policy.clock import seconds_of
from specdecode.policy.learning import acceptance_of, context_of, held_against, learnt_from, with_service
from specdecode.policy.observation import Estimates, Observation
from specdecode.policy.options import Menu, option_of
from specdecode.policy.outlook import Array, Cost, Outlook, outlook
from specdecode.policy.spare import one_is_given_up
from specdecode.vllm.capabilities import capabilities
from specdecode.vllm.speculation import Speculation
from specdecode.vllm.unmanageable import Unmanageable


@dataclass(frozen=True)
class Evidence:
    """What a cost model is fitted to."""

    known: Mapping[str, Knowledge]
    """By profile."""
    speculations: Mapping[str, Speculation | None]
    """Of every profile, at its fixed K."""
    max_num_seqs: int
    graph_limit: float
    """Tokens in the largest captured CUDA graph; infinite where there are none."""
    now: float
    """Unix seconds."""


ModelFactory = Callable[[Evidence], CostModel]


class Modeller:
    """Fits the learnt model, and again only when something new was learnt or what is known has aged."""

    def __init__(self) -> None:
        self._fitted: tuple[Evidence, LearntModel] | None = None
        self._as_good: Mapping[str, Knowledge] | None = None
        """What was last found to be like what the model was fitted to: most looks learn nothing."""

    def __call__(self, e: Evidence) -> CostModel:
        """The model of the evidence."""
        if self._fitted is not None:
            old, model = self._fitted
            alike = e.known is self._as_good or _alike(old.known, e.known)
            if alike and replace(old, known=e.known, now=e.now) == e and 0 <= e.now - old.now < AGEING:
                self._as_good = e.known
                return model
        model = LearntModel(e.known, e.speculations, e.max_num_seqs, e.graph_limit, e.now)
        self._fitted, self._as_good = (e, model), e.known
        return model


def _alike(old: Mapping[str, Knowledge], new: Mapping[str, Knowledge]) -> bool:
    """Whether a model would be fitted to the same."""
    return old.keys() == new.keys() and all(nearly_same(known, new[n]) for n, known in old.items())


AGEING = 600.0
"""Seconds in which nothing that is known fades noticeably."""

DEFAULT_MAX_NUM_SEQS = 256
"""vLLM's own default of `--max-num-seqs` on most GPUs (vllm/engine/arg_utils.py)."""

DEFAULT_GRAPH_LIMIT = 512
"""vLLM's own default of `max_cudagraph_capture_size` (vllm/config/vllm.py)."""

MEASUREMENT_SD = 0.03
"""Standard deviation of the logarithm of a measured mean TPOT over a window."""

SCHEDULE_WORTH = 0.02
"""What a schedule must save over a fixed K, as a share of TPOT, to be written: fewer words are easier to trust."""

GUESSED_WORTH = 0.10
"""The same for a profile whose steps were never seen: its ranges would be guesses."""

NEAR = 1.5
"""Factor within which batch sizes are alike."""

USUAL_START = 120.0
"""Seconds that a pod takes to be ready, before a change has shown it."""
COLD_CACHE = 60.0
"""Seconds of service that an empty prefix cache costs a new pod."""

LARGEST_CORRECTION = 0.1
"""By which the model's word alone may move what a canary showed, as a log: beyond that the measurement would count for
little."""
LESS = 1.5
"""Factor in load over which TPOT's growth with it is told."""
STEEPEST = 0.4
"""By how much of a change in load the gain of drafts is believed to change at most, both as logs."""


def estimate(o: Observation, model_of: ModelFactory) -> Observation:
    """The observation with its knowledge brought up to date and its estimates filled in."""
    if o.menu is None:
        return o
    windows = {p.name: p.window.since(o.now - o.policy.metrics.window) for p in o.pods}
    knowledge = learnt_from(o, windows)
    running = o.running(o.active)
    answered = [windows[p.name] for p in running if p.answered]
    measured = pods_together(answered)
    load = _offered(measured, answered)
    loads = o.loads
    if load is not None and o.rollout is None:
        # While a change is made, canaries take a part of the load.
        loads = loads.add(o.now, load.tokens_per_second * max(1, len(running)), o.policy.metrics.interval)
    server = o.menu.server
    model = model_of(
        Evidence(
            known=knowledge,
            speculations={option.profile: option.speculation for option in o.menu.options},
            max_num_seqs=server.max_num_seqs or DEFAULT_MAX_NUM_SEQS,
            graph_limit=math.inf if server.enforce_eager else server.graph_limit or DEFAULT_GRAPH_LIMIT,
            now=o.now,
        )
    )
    here = _Here(replace(o, knowledge=knowledge), o.menu, model, load, loads, len(running))
    seen = here.judged()
    modelled = seen.modelled
    estimates = replace(
        seen,
        load=load,
        measured=measured,
        acceptance=acceptance_of(measured, answered),
        running=modelled and _anchored(modelled, measured),
        restart=freshness(o, knowledge.get(o.active.profile), _cost(o, len(running)).restart) if o.active else None,
    )
    if o.rollout is None and o.active is not None:
        knowledge = with_service(knowledge, o, o.active.profile, measured, answered)
        knowledge = held_against(knowledge, o, o.active.profile, measured, load, modelled)
    else:
        knowledge = _held_against_canary(knowledge, o, model)
    return replace(o, knowledge=knowledge, loads=loads, estimates=estimates)


def _held_against_canary(
    knowledge: Mapping[str, Knowledge], o: Observation, model: CostModel
) -> Mapping[str, Knowledge]:
    """Notes how far the model is off the canary that is measured, where it is of another profile than what runs."""
    r = o.rollout
    if r is None or r.phase is not RolloutPhase.ANALYSING or r.canary_ready_at is None or o.menu is None:
        return knowledge
    option = option_of(r.target, o.menu)
    if option is None or o.active is None or option.profile == o.active.profile:
        return knowledge
    warm = seconds_of(r.canary_ready_at) + o.policy.rollout.analysis.warmup
    since = max(warm, o.now - o.policy.metrics.window)
    windows = [p.window.since(since) for p in o.running(option) if p.answered]
    measured = pods_together(windows)
    load = _offered(measured, windows)
    modelled = None if load is None else model.predict(option, load)
    return held_against(knowledge, o, option.profile, measured, load, modelled)


_JUDGED: WeakKeyDictionary[CostModel, dict[object, list[tuple[OfferedLoad | None, Estimates]]]] = WeakKeyDictionary()
"""What was said of the options already, by the model that said it: looks at a steady load ask the same again."""

SAME_LOAD = 1.03
"""Factor within which two loads get the same answers."""
SAME_REQUESTS = 1.1
"""The same of what their requests are like: the model looks at that in steps as wide."""


def _same_load(a: OfferedLoad | None, b: OfferedLoad | None) -> bool:
    """Whether the model would say of one nearly what it says of the other."""
    if a is None or b is None:
        return a is b
    return (
        _within(SAME_LOAD, a.tokens_per_second, b.tokens_per_second)
        and _within(SAME_LOAD, 1.0 + a.prompt_tokens_per_second, 1.0 + b.prompt_tokens_per_second)
        and _within(SAME_REQUESTS, 1.0 + a.context, 1.0 + b.context)
        and _within(SAME_REQUESTS, 1.0 + a.prompt_length, 1.0 + b.prompt_length)
    )


def _within(factor: float, a: float, b: float) -> bool:
    return a <= b * factor and b <= a * factor


# --- the load -----------------------------------------------------------------------------------------------------


def _offered(measured: Measurement | None, windows: list[Window]) -> OfferedLoad | None:
    """Tokens per second and pod that users ask for: those served, and those of requests that wait. While those are
    worked off, every pod runs at its largest batch, whatever comes."""
    served = measured.generation_tokens_per_second if measured else None
    # A pod that has only just come is not in `measured`.
    windows = [w for w in windows if isinstance(w.change, Change)]
    if not served or not windows or measured is None:
        return None
    more = queued(windows, measured)
    return OfferedLoad(
        (served + more * (measured.output_length or 0.0)) / len(windows),
        ((measured.prompt_tokens_per_second or 0.0) + more * (measured.prompt_length or 0.0)) / len(windows),
        context_of(measured),
        measured.prompt_length or 0.0,
        _variation(windows),
    )


def _variation(windows: list[Window]) -> float:
    """Standard deviation of the logarithm of the pods' loads over the readings, less what single arrivals add."""
    paces = [pace for w in windows for r in w.readings[1:] if (pace := r.pace) is not None]
    if len(paces) < ENOUGH_READINGS:
        return 0.0
    rates, ended = zip(*paces, strict=True)
    if not (mean := fmean(rates)):
        return 0.0
    variance = math.dist(rates, [mean] * len(rates)) ** 2 / len(rates)
    spread = variance / mean**2 - 2.0 / max(fmean(ended), 1.0)
    variation = math.sqrt(math.log1p(max(spread, 0.0)))
    return min(variation, LARGEST_VARIATION) if variation > SMALLEST_VARIATION else 0.0


ENOUGH_READINGS = 8
SMALLEST_VARIATION, LARGEST_VARIATION = 0.2, 0.8
"""What is less is steady; what is more, no window can tell."""


# --- the options --------------------------------------------------------------------------------------------------


def _anchored(prediction: Prediction, measured: Measurement | None) -> Prediction:
    """What runs now: its TPOT is measured, where the version measures it."""
    if measured is None or measured.tpot_seconds is None:
        return prediction
    return replace(prediction, tpot=Estimate.log_normal(measured.tpot_seconds, MEASUREMENT_SD))


@dataclass(frozen=True)
class _Here:
    """What options are judged by."""

    o: Observation
    menu: Menu
    model: CostModel
    load: OfferedLoad | None
    loads: LoadHistory
    pods: int
    _predicted: list[tuple[Option, Prediction]] = field(default_factory=list)

    def judged(self) -> Estimates:
        """What the model says of the options: the part of the estimates that no measurement of this look is in."""
        answers = _JUDGED.setdefault(self.model, {}).setdefault(self._question(), [])
        known = next((answer for load, answer in reversed(answers) if _same_load(load, self.load)), None)
        if known is None:
            known = self._judge()
            answers.append((self.load, known))
        return known

    def _question(self) -> object:
        """What the answers depend on, besides the load."""
        o, load = self.o, self.load
        varies = load and round(load.variation / 0.1)
        s = o.active.speculation if o.active else None
        active = o.active and (o.active.profile, s and (s.schedule, s.disable_by_batch_size, s.num_speculative_tokens))
        changes = o.history[0].id if o.history else None
        phase = o.rollout and (o.rollout.id, o.rollout.phase)
        past = (self.loads.first, len(self.loads.tokens_per_second))
        return varies, active, self.pods, changes, phase, past, o.generation

    def _judge(self) -> Estimates:
        o, model, load = self.o, self.model, self.load
        options = [self.best_form(option) for option in self.menu.options]
        refused = {c.profile: r.message for c in options if isinstance(r := self.menu.render(c), Unmanageable)}
        candidates = tuple(c for c in options if c.profile not in refused)
        predictions = {c.profile: self.predict(c, load) for c in candidates} if load else {}
        return Estimates(
            candidates=candidates,
            unavailable=refused,
            predictions=predictions,
            modelled=self.predict(o.active, load) if load and o.active else None,
            outlooks={c.profile: out for c in candidates if (out := self.outlook(c)) is not None},
            cost=self.cost if load else None,
            bands={option.profile: model.band(option, load) for option in self.menu.options if option.speculation},
            load_corrections={c.profile: self.load_correction(c) for c in _corrected(o, self.menu, candidates)},
            steepness={c.profile: self.steepness(c) for c in _corrected(o, self.menu, candidates)},
            own_is_untried=load is not None and self.menu.own is not None and not self._was_seen(self.menu.own, load),
            own_lately=self._own_lately(),
        )

    def predict(self, option: Option, load: OfferedLoad) -> Prediction:
        """What the model says, asked once."""
        known = next((p for asked, p in self._predicted if asked == option), None)
        if known is None:
            known = self.model.predict(option, load)
            self._predicted.append((option, known))
        return known

    @cached_property
    def _past(self) -> tuple[Array, Array]:
        """Today's load per pod and those of the past, and the weight of each: every token alike."""
        now = self.load.tokens_per_second if self.load else 0.0
        past = np.array(self.loads.tokens_per_second) / max(1, self.pods)
        past = past[past > 0]
        return np.append(now, past), np.append(len(past) * now or 1.0, past)

    def best_form(self, option: Option) -> Option:
        """The option at its fixed K, or with the schedule that the policy and the version allow, where that is better
        over the loads that come."""
        speculation, load = option.speculation, self.load
        if self.o.policy.batch_size_tuning.mode is not BatchSizeTuningMode.AUTO or speculation is None or load is None:
            return option
        able, method = capabilities(self.menu.version), speculation.vllm_method
        if method is None:
            return option
        schedules = able.schedule_method(method) and self.menu.server.data_parallel_size == 1
        if not schedules and not able.disable_by_batch_size(method):
            return option
        tuned = self.model.tuned(option, load, one_threshold=not schedules)
        best = option
        worth = SCHEDULE_WORTH if self._was_seen(option, load) else GUESSED_WORTH
        if tuned is not None and self._mean(tuned) < self._mean(option) - worth:
            best = tuned
        active = self.o.active
        if active is None or active.profile != option.profile or active == best:
            return best
        # Another schedule of what runs is worth a change only for a gain of its own.
        return best if self._mean(best) < self._mean(active) - self.o.policy.objective.minimum_gain / 2 else active

    def _was_seen(self, option: Option, load: OfferedLoad) -> bool:
        """Whether the option's own K ran at batch sizes like those that it would settle at."""
        known, settles = self.o.knowledge.get(option.profile), self.predict(option, load).batch_size
        k = option.speculation.k_at(settles) if option.speculation else 0
        steps = known.step_times if known is not None else ()
        return any(t.k == k and 1 / NEAR < t.batch_size / max(settles, 1.0) < NEAR for t in steps)

    def _own_lately(self) -> float | None:
        """See `Estimates.own_lately`."""
        own, load = self.menu.own, self.load
        asked = np.array(self.loads.of(self.o.now - HOUR, self.o.now)) / max(1, self.pods)
        if own is None or load is None or self.o.is_own(self.o.active) or not asked.any():
            return None
        return float(asked @ np.exp(self.model.log_tpot(own, load, asked)) / asked.sum())

    def _mean(self, option: Option) -> float:
        """Mean of log TPOT over today's load and those of the past, each token alike."""
        if self.load is None:
            return 0.0
        asked, weights = self._past
        return float(weights @ self.model.log_tpot(option, self.load, asked) / weights.sum())

    def outlook(self, option: Option) -> Outlook | None:
        """What a change to the option would bring; None while there is nothing to compare."""
        active, load = self.o.active, self.load
        if active is None or load is None or option == active:
            return None
        pods = max(1, self.pods)

        def gain_of(loads: Array) -> Array:
            return self.model.log_tpot(active, load, loads / pods) - self.model.log_tpot(option, load, loads / pods)

        return outlook(self.loads, self.o.now, load.tokens_per_second * pods, gain_of, self.cost)

    @cached_property
    def cost(self) -> Cost:
        """What a change costs."""
        cost = _cost(self.o, max(1, self.pods))
        active, load = self.o.active, self.load
        if active is None or load is None or self.pods < 2 or not one_is_given_up(self.o):
            return cost
        asked = load.tokens_per_second * np.array([1.0, self.pods / (self.pods - 1)])
        now, crowded = self.model.log_tpot(active, load, asked)
        # While a canary is measured it serves as well: one pod is missing only while pods start.
        return replace(cost, crowding=max(0.0, float(crowded - now)) * self.pods * (cost.restart - COLD_CACHE))

    def load_correction(self, option: Option) -> float:
        """Gain at the whole load, less the gain at what is left of it while there is one pod more: the canary is
        measured there. Logs."""
        active, load = self.o.active, self.load
        if active is None or load is None or option == active:
            return 0.0
        pods = max(1, self.pods)
        # Once a canary is there, the load of now is what is left.
        whole_load = 1.0 if self.o.rollout is None else (pods + 1) / pods
        asked = load.tokens_per_second * whole_load * np.array([1.0, pods / (pods + 1)])
        whole, shared = self.model.log_tpot(active, load, asked) - self.model.log_tpot(option, load, asked)
        if option.drafts_no_more(active):
            # How much of it is believed is told by the baseline, once it shares its load (`rollout.comparison`).
            return float(max(whole - shared, -LARGEST_CORRECTION))
        # The less the more pods share the load.
        most = min(LARGEST_CORRECTION, STEEPEST * math.log((pods + 1) / pods))
        if self.o.is_own(option):
            # What the user chose has nothing to prove: the model's word only speaks for it.
            return float(np.clip(whole - shared, 0.0, most))
        # It alone never promotes other drafts (`rollout.comparison`).
        return float(np.clip(whole - shared, -most, most))

    def steepness(self, option: Option) -> float:
        """By which power of the load TPOT grows with an option, from two thirds of the load of now on."""
        if self.load is None:
            return 0.0
        asked = self.load.tokens_per_second * np.array([1 / LESS, 1.0])
        less, now = self.model.log_tpot(option, self.load, asked)
        return max(0.0, float(now - less) / math.log(LESS))


def _corrected(o: Observation, menu: Menu, candidates: tuple[Option, ...]) -> tuple[Option, ...]:
    """What a load correction is wanted for: what may be tried; while a canary is measured, what it runs, in the light
    of what it showed."""
    if o.rollout is None:
        return candidates
    target = option_of(o.rollout.target, menu) if o.rollout.phase is RolloutPhase.ANALYSING else None
    return () if target is None else (target,)


def _cost(o: Observation, pods: int) -> Cost:
    """What a change costs this workload: as the last one that was promoted showed, else the usual."""
    rules = o.policy.rollout
    analysis = rules.analysis.warmup + rules.analysis.duration
    last = next((h for h in o.history if h.outcome is Outcome.SUCCESSFUL and not h.live), None)
    start = USUAL_START
    if last is not None:
        took = seconds_of(last.finished_at) - seconds_of(last.started_at)
        start = max(0.0, took - analysis) / max(1, pods)
    delay = analysis + start * pods
    return Cost(delay, start + COLD_CACHE, delay + rules.cooldown)


def bounds(band: Band | None, limit: int | None) -> tuple[int, int | None]:
    """Batch sizes from which and up to which it pays; the end is None where there is none."""
    if band is None:
        return 1, 0
    return band.start, None if band.end >= (limit or DEFAULT_MAX_NUM_SEQS) else band.end
