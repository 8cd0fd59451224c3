"""What `specdecode explain --plot` draws: TPOT over offered load, as the operator's own model predicts it.

The model is not a copy: what the operator remembers is read from its ConfigMap, what can run from the Deployment, and
both go through the operator's own code. The pods are not asked; load and time are those of the status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from specdecode.api.v1alpha1 import (
    Configuration,
    SpecDecodePolicySpec,
    SpecDecodePolicyStatus,
    TurningPointStatus,
)
from specdecode.cli.cluster import fail, parsed, run
from specdecode.cluster.gather import Gatherer
from specdecode.cluster.kube import Json, Kube
from specdecode.cluster.memory import MemoryKeeper
from specdecode.cluster.scrape import Scrape, Scraper
from specdecode.model.cost import OfferedLoad
from specdecode.model.estimate import Estimate
from specdecode.model.memory import Memory
from specdecode.policy.clock import seconds_of
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.observation import Observation
from specdecode.policy.options import option_of
from specdecode.policy.turning import Latest
from specdecode.vllm.version import Version

Array = NDArray[np.float64]

FORMATS = (".svg", ".png")
POINTS = 90
QUIETEST = 1 / 50
"""The lowest load that is drawn at least, as a share of the largest capacity."""


@dataclass(frozen=True)
class Curve:
    """One option."""

    profile: str
    runs: bool
    tpot: Array
    """Seconds per token: low, value and high in rows, one column per load."""
    capacity: Estimate
    """Tokens per second."""


@dataclass(frozen=True)
class Sketch:
    """All that is drawn."""

    title: str
    loads: Array
    """Output tokens per second and pod, ascending."""
    curves: tuple[Curve, ...]
    today: float
    measured: float | None
    """TPOT of what runs, seconds."""
    limit: float | None
    """Of the 99th percentile of TPOT, seconds."""
    turning: tuple[TurningPointStatus, ...]
    """Those in the load."""
    past: tuple[float, ...]
    """Loads of the last two days, at today's number of pods."""


def picture(policy: Json, file: Path, kubeconfig: str | None, context: str | None) -> None:
    """Draws a policy's picture into a file; what hinders is told, with exit code 1."""
    if file.suffix not in FORMATS:
        raise fail(f"--plot {file}: name a file that ends in {' or '.join(FORMATS)}")
    try:
        from specdecode.cli.plot import draw  # matplotlib takes a second to import: not before it is needed
    except ImportError:
        raise fail("a picture takes matplotlib: pip install 'specdecode[lab]'") from None
    spec, status = parsed(policy)
    if status.observation is None or not status.observation.tokens_per_second or not status.profiles:
        raise fail("there is nothing to draw: users ask for nothing, or the operator has not seen it yet")
    o, keeper = run(_read(policy, spec, status, kubeconfig, context))
    if keeper.trouble is not None:
        typer.echo(f"specdecode: {keeper.trouble.message}: the picture shows what is assumed beforehand", err=True)
    elif not keeper.memory.profiles:
        typer.echo("specdecode: nothing was learnt yet: the picture shows what is assumed beforehand", err=True)
    drawn = sketch(f"{policy['metadata']['namespace']}/{policy['metadata']['name']}", o, status, keeper.memory)
    if drawn is None:
        problem = o.problem.message if o.problem else f"there is no Deployment {spec.target_ref.name}"
        raise fail(f"there is nothing to draw: {problem}")
    try:
        draw(drawn, file)
    except OSError as e:
        raise fail(f"--plot {file}: {e.strerror}") from e


class _Nobody(Scraper):
    """Asks no pod: seldom are they within reach from here, and the status says what they showed."""

    def __init__(self, version: Version | None) -> None:
        self._told = version

    async def scrape(self, urls: Mapping[str, str]) -> dict[str, Scrape]:
        return {}

    async def version(self, base_url: str) -> Version | None:
        return self._told


async def _read(
    policy: Json,
    spec: SpecDecodePolicySpec,
    status: SpecDecodePolicyStatus,
    kubeconfig: str | None,
    context: str | None,
) -> tuple[Observation, MemoryKeeper]:
    """What can run, and what is remembered, as of when the status was written."""
    assert status.observation is not None
    then = seconds_of(status.observation.time)
    async with await Kube.connect(kubeconfig, context) as kube:
        keeper = MemoryKeeper(kube, policy)
        await keeper.open()
        nobody = _Nobody(Version.parse(status.vllm_version) if status.vllm_version else None)
        return await Gatherer(kube, nobody, lambda: then).observe(policy, spec, status), keeper


# --- the figures --------------------------------------------------------------------------------------------------


def sketch(title: str, o: Observation, status: SpecDecodePolicyStatus, memory: Memory) -> Sketch | None:
    """What is to be drawn; None where nothing can run. `status` has seen a load."""
    seen = status.observation
    if o.menu is None or seen is None or not seen.tokens_per_second:
        return None
    latest = Latest(Modeller())
    o = estimate(replace(o, knowledge=memory.profiles, loads=memory.loads, pods=()), latest)
    model = latest.model
    assert model is not None and o.menu is not None
    load = OfferedLoad(seen.tokens_per_second, seen.prompt_tokens_per_second or 0.0, seen.context or 0.0)
    options = []
    for p in status.profiles:
        form = Configuration(profile=p.name, schedule=p.schedule, disable_by_batch_size=p.disable_by_batch_size)
        option = o.active if o.active and o.active.profile == p.name else option_of(form, o.menu)
        if option is not None and p.name not in o.estimates.unavailable:
            options.append(option)
    capacities = [model.predict(option, load).capacity or Estimate(*3 * [load.tokens_per_second]) for option in options]
    highest = max([load.tokens_per_second, *(c.value for c in capacities)])
    loads = np.geomspace(min(load.tokens_per_second / 3, highest * QUIETEST), highest, POINTS)
    curves = []
    for option, capacity in zip(options, capacities, strict=True):
        tpots = model.tpots(option, load, loads.tolist())
        rows = np.array([[e.low, e.value, e.high] for e in tpots]).T
        curves.append(Curve(option.profile, option == o.active, rows, capacity))
    limit = o.policy.objective.slo.time_per_output_token
    points = status.recommendation.turning_points if status.recommendation else []
    at = datetime.fromtimestamp(o.now, UTC)
    return Sketch(
        title=f"{title} on vLLM {status.vllm_version}, {at:%Y-%m-%d %H:%M} UTC",
        loads=loads,
        curves=tuple(curves),
        today=load.tokens_per_second,
        measured=seen.time_per_output_token,
        limit=limit.p99 if limit else None,
        turning=tuple(p for p in points if p.quantity == "Load"),
        past=tuple(v / max(1, seen.pods) for v in memory.loads.tokens_per_second if v > 0),
    )
