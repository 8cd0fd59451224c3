"""What it costs to decide: `estimate` and `decide` for a large policy, and for 1,000 policies in one interval.

python benchmarks/bench_decide.py

The observations are those of a simulated service (`specdecode.sim.twin`), replayed with a stopwatch: an hour in which
the load changes, things are learnt and the model is fitted again. Bars: a decision for 20 pods and 5 profiles takes
less than 5 ms on average, and 1,000 policies of 10 pods each are read, kept and decided within one interval of 15 s on
one core.
"""

from __future__ import annotations

import gzip
import statistics
import time
import timeit
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml
from bench_observe import INTERVAL, PODS, POLICIES, RECORDING, stages

from specdecode.model.window import Window
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.gates import decide
from specdecode.policy.observation import Estimates, Observation
from specdecode.sim.twin.agents import CARRIED
from specdecode.sim.twin.result import OPERATOR
from specdecode.sim.twin.run import simulate
from specdecode.sim.twin.scenario import parse_scenario

WARM_UP = 120
"""Ticks before the hour that is timed."""
TICKS = 240
BAR = 0.005
ROUNDS = 3


def draft(name: str, k: int) -> dict[str, Any]:
    """A profile."""
    return {"name": name, "method": "DraftModel", "numSpeculativeTokens": k, "draftModel": {"model": name}}


def ngram(name: str, k: int) -> dict[str, Any]:
    """A profile."""
    return {"name": name, "method": "NGram", "numSpeculativeTokens": k}


FIVE = [draft("draft", 3), ngram("ngram", 5), draft("draft-2", 2), draft("draft-5", 5), ngram("ngram-3", 3)]


def observed(pods: int, profiles: Sequence[dict[str, Any]]) -> list[Observation]:
    """What the operator sees of a service, tick by tick."""
    scenario = {
        "name": "bench",
        "duration": f"{(WARM_UP + TICKS + 1) * INTERVAL:.0f}s",
        "replicas": pods,
        "rollTime": "60s",
        "arrivals": [{"diurnal": {"mean": 6 * pods, "amplitude": 5 * pods, "peakAt": "1h", "period": "2h"}}],
        "policy": {"profiles": list(profiles), "rollout": {"cooldown": "5m", "maxChangesPerDay": 20}},
    }
    seen: list[Observation] = []
    simulate(parse_scenario(yaml.safe_dump(scenario)), [OPERATOR], watch=lambda look: seen.append(look.observation))
    return seen


def decided(seen: Sequence[Observation]) -> tuple[list[float], float]:
    """CPU seconds of each decision of the hour, and of one with nothing fitted before.

    The windows are put together again page by page, so that none of them comes with what was computed of it before.
    """
    modeller, seconds, carried, cold = Modeller(), [], {}, 0.0
    windows: dict[tuple[str, str], Window] = {}
    for i, o in enumerate(seen):
        pods = []
        for pod in o.pods:
            window = windows.get((pod.name, pod.revision)) or Window(pod.window.seconds, pod.window.limit)
            if pod.answered and pod.window.readings:
                window = window.add(pod.window.readings[-1].page, o.now)
            windows[pod.name, pod.revision] = window
            pods.append(replace(pod, window=window))
        o = replace(o, pods=tuple(pods), estimates=Estimates(), **carried)
        if i == WARM_UP:
            alone = replace(o, pods=tuple(replace(p, window=replace(p.window)) for p in pods))
            cold = _timed(alone, Modeller())[1]
        o, passed = _timed(o, modeller)
        seconds.append(passed)
        carried = {name: getattr(o, name) for name in CARRIED}
    return seconds[WARM_UP : WARM_UP + TICKS], cold


def _timed(o: Observation, modeller: Modeller) -> tuple[Observation, float]:
    began = time.process_time()
    estimated = estimate(o, modeller)
    decide(estimated)
    return estimated, time.process_time() - began


def best_of(seen: Sequence[Observation]) -> tuple[list[float], float]:
    """Decision by decision the least of some rounds: what else the machine does counts for little."""
    rounds = [decided(seen) for _ in range(ROUNDS)]
    return [min(ticks) for ticks in zip(*(r[0] for r in rounds), strict=True)], min(r[1] for r in rounds)


def observing() -> float:
    """CPU seconds to read a policy's pages and put them into windows."""
    texts = [gzip.decompress(path.read_bytes()) for path in sorted(RECORDING.glob("*.prom.gz"))]
    calls = stages(texts)
    once = (
        min(timeit.repeat(calls[name], time.process_time, repeat=20, number=1)) for name in ("read_page", "Window.add")
    )
    return sum(once)


def show(title: str, ticks: Sequence[float], cold: float) -> None:
    """One line of figures."""
    ms = sorted(1e3 * s for s in ticks)
    print(
        f"{title:<24}{1e3 * cold:>10.1f}{statistics.fmean(ms):>10.2f}{statistics.median(ms):>10.2f}"
        f"{ms[int(0.99 * len(ms))]:>10.2f}"
    )


def main() -> None:
    """Prints the figures."""
    large, cold_large = best_of(observed(20, FIVE))
    usual, cold_usual = best_of(observed(PODS, FIVE[:2]))
    print(f"{'ms of one decision':<24}{'cold':>10}{'mean':>10}{'median':>10}{'P99':>10}")
    show("20 pods, 5 profiles", large, cold_large)
    show(f"{PODS} pods, 2 profiles", usual, cold_usual)
    mean = statistics.fmean(large)
    print(f"{'holds' if mean < BAR else 'FAILS'}: 20 pods and 5 profiles in less than {1e3 * BAR:g} ms on average")
    seen, decision = observing(), statistics.fmean(usual)
    share = POLICIES * (seen + decision) / INTERVAL
    print(
        f"{'holds' if share < 1 else 'FAILS'}: {POLICIES} policies of {PODS} pods take {share:.0%} of an interval of"
        f" {INTERVAL:g} s on one core ({1e3 * seen:.1f} ms each to read and keep the pages, {1e3 * decision:.1f} ms to"
        " decide)"
    )


if __name__ == "__main__":
    main()
