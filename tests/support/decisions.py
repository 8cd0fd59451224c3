"""Observations of which the model is certain, and changes that were made: what decisions are tested with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specdecode.api.v1alpha1 import Configuration, HistoryEntry, Outcome
from specdecode.model.cost import Prediction
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Drafts, Knowledge, StepTime
from specdecode.model.loads import BUCKET, LoadHistory
from specdecode.policy.clock import text_of
from specdecode.policy.observation import Observation
from specdecode.rollout.ending import Ending
from support.world import NOW, menu, observation, option, rendered, spec, traffic


def entry(outcome: Outcome = Outcome.SUCCESSFUL, ago: float = 60.0, target: str = "ngram", **kw: Any) -> HistoryEntry:
    """A change from no speculation that ended `ago` seconds before now."""
    fields: dict[str, Any] = {
        "id": "x",
        "policy_generation": 1,
        "source": Configuration(profile="disabled"),
        "target": Configuration(profile=target),
        "reason": "CheaperProfile",
        "outcome": outcome,
        "outcome_reason": "r",
        "started_at": text_of(NOW - ago - 60),
        "finished_at": text_of(NOW - ago),
    }
    return HistoryEntry(**(fields | kw))


def slower(ago: float, target: str = "ngram") -> HistoryEntry:
    """A canary that was measured to be slower."""
    return entry(Outcome.FAILED, ago=ago, target=target, outcome_reason=Ending.SLOWER)


def running_ngram(acceptance: float = 0.6, batch: float = 8.0, step: float = 0.021, **kw: Any) -> Observation:
    """N-gram runs, with this share of its drafted tokens accepted, and steps of so many seconds."""
    policy = kw.pop("policy", spec())
    m = menu(policy)
    active = option(m, "ngram")
    return observation(policy, active=active, window=traffic(acceptance=acceptance, batch=batch, step=step), **kw)


def seen(acceptance: float, ago: float = 600.0, step: float | None = 0.021) -> Knowledge:
    """N-gram at K = 5 with this share of its drafted tokens accepted; its steps too, at 8 requests, unless None."""
    times = () if step is None else (StepTime(8.0, 48.0, step, k=5, measured_at=NOW - ago),)
    chance = next(c / 1000 for c in range(1001) if sum((c / 1000) ** i for i in range(1, 6)) >= 5 * acceptance)
    return Knowledge(
        measured_at=NOW - ago,
        acceptance=(acceptance,) * 4,
        drafts=Drafts(1.0, (chance,) * 5, NOW - ago, 1e5),
        tokens_per_step=1 + 5 * acceptance,
        step_times=times,
    )


def without(ago: float = 600.0, **kw: Any) -> dict[str, Knowledge]:
    """The engine was seen without speculation."""
    times = (StepTime(8.0, 8.0, 0.02, measured_at=NOW - ago), StepTime(2.0, 2.0, 0.0195, measured_at=NOW - ago))
    return {"disabled": Knowledge(NOW - ago, step_times=times), **kw}


def unable(o: Observation, **changes: Any) -> Observation:
    return replace(o, estimates=replace(o.estimates, **changes))


def faster(p: Prediction, factor: float, spread: float = 1.05) -> Prediction:
    """The same `factor` times as fast."""
    value = p.tpot.value / factor
    return replace(p, tpot=Estimate(value, value / spread, value * spread))


def expecting(
    gain: float,
    *,
    spread: float = 1.05,
    benefit: float = 1000.0,
    duration: float = 7200.0,
    payback: float | None = 900.0,
    **changes: Any,
) -> Observation:
    """Nothing speculates; n-gram is expected to be faster by `gain`, times `spread` or less, and to bring `benefit`."""
    o = observation(**changes)
    modelled = o.estimates.modelled
    assert modelled is not None
    off, ngram = (replace(faster(modelled, f, s), headroom=9.0) for f, s in ((1.0, 1.01), (1 + gain, spread)))
    outlook = replace(o.estimates.outlooks["ngram"], benefit=benefit, duration=duration, payback=payback)
    return unable(
        o, modelled=off, running=off, predictions={"disabled": off, "ngram": ngram}, outlooks={"ngram": outlook}
    )


UNLIKELY = {"spread": 3.0, "benefit": -1.0, "payback": None}
"""A win is not likely, but possible, and nobody has looked."""


def falling_behind(
    starts: str = "ngram", minutes: int = 60, headroom: float = 0.8, untried: bool = True, most: float = 9.0, **kw: Any
) -> Observation:
    """Nothing speculates, the pods carry four fifths of the load, and what the manifest says starts n-gram, which is
    expected to be no faster and to carry so much at most."""
    o = expecting(-0.1, spread=1.02, benefit=-1.0, payback=None, knowledge=without(), **kw)
    here, load = o.estimates.running, o.estimates.load
    assert here is not None and load is not None
    asked = load.tokens_per_second
    full = replace(here, headroom=headroom, capacity=None)
    ngram = replace(
        o.estimates.predictions["ngram"],
        headroom=headroom,
        capacity=Estimate(asked * headroom, asked * headroom / 2, asked * headroom * most),
    )
    quiet, busy = max(0, 24 - minutes // 5), minutes // 5 + 1
    return unable(
        replace(
            o,
            menu=menu(o.policy, rendered(menu(o.policy), starts)),
            loads=LoadHistory(int(NOW // BUCKET) - 24, (asked,) * quiet + (3 * asked,) * busy, BUCKET),
        ),
        running=full,
        modelled=full,
        predictions={"disabled": full, "ngram": ngram},
        own_is_untried=untried,
    )


def forgetful(o: Observation) -> Observation:
    """The load is known of the last minutes only."""
    return replace(o, loads=LoadHistory(int(NOW // BUCKET) - 1, o.loads.tokens_per_second[-2:], BUCKET))


def carrying(o: Observation, headroom: float) -> Observation:
    """With n-gram."""
    predictions = o.estimates.predictions
    return unable(o, predictions={**predictions, "ngram": replace(predictions["ngram"], headroom=headroom)})
