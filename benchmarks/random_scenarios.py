"""Scenarios drawn at random: services that nobody tuned anything for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from specdecode.model.surface import Surface
from specdecode.sim.surfaces import builtin_surfaces, load_surface
from specdecode.vllm.capabilities import capabilities
from specdecode.vllm.speculation import Method
from specdecode.vllm.version import Version

HOUR = 3600
VERSIONS = {"0.24.0": 5, "0.32.0": 2, "0.20.0": 2, "0.10.2": 1}
"""With a batch-size schedule (two model runners), without, and without draft models as well; and how often."""
TABLES: dict[str | None, Sequence[str]] = {
    None: ("chat", "summarise", "code"),
    "specdecode-bench.json": ("chat", "summarise", "code", "maths"),
}
"""Acceptance tables (None: the package's) and the kinds of request that they know."""
TRACE_RATE = 2.45
"""Requests per second of the Azure trace, on average."""

Json = dict[str, Any]


def random_scenario(seed: int, hours: float = 24) -> Json:
    """One scenario, as its YAML file would say it; the same for the same seed."""
    draw = random.Random(seed)
    surface = load_surface(draw.choice(builtin_surfaces()))
    version = draw.choices([*VERSIONS], [*VERSIONS.values()])[0]
    pods, max_num_seqs = draw.randint(2, 4), draw.choice([64, 128, 256, 256])
    table = draw.choice([*TABLES])
    profiles = _profiles(draw, surface)
    spare = draw.choice([0, 1, 1, 1])
    acceptance = _acceptance(draw, table, profiles, hours)
    return {
        "name": f"random-{seed}",
        "seed": seed,
        "duration": f"{hours * HOUR:.0f}s",
        "surface": surface.name,
        "vllmVersion": version,
        "maxNumSeqs": max_num_seqs,
        "start": _start(draw, profiles, version),
        "replicas": pods,
        **({"podWeights": [draw.choice([1.5, 2, 3]), *[1] * (pods - 1)]} if draw.random() < 0.2 else {}),
        "rollTime": f"{draw.randint(60, 420)}s",
        "spareGpus": spare,
        **({"acceptance": acceptance} if acceptance else {}),
        "arrivals": _arrivals(draw, surface, pods, max_num_seqs, TABLES[table], hours),
        "policy": {
            "profiles": profiles,
            "batchSizeTuning": {"mode": draw.choice(["Auto", "Auto", "Auto", "Off"])},
            "rollout": {"allowUnavailable": spare == 0, "maxChangesPerDay": draw.choice([6, 6, 12])},
            "metrics": {"interval": "60s"},
        },
    }


def _profiles(draw: random.Random, surface: Surface) -> list[Json]:
    """Those of the surface's methods, all or one of them, in any order."""
    known: list[Json] = []
    if Method.DRAFT_MODEL in surface.methods:
        k = draw.randint(1, 6)
        known.append(
            {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": k, "draftModel": {"model": "draft"}}
        )
    if Method.NGRAM in surface.methods:
        known.append({"name": "ngram", "method": "NGram", "numSpeculativeTokens": draw.randint(1, 8)})
    return draw.sample(known, draw.randint(1, len(known)))


def _start(draw: random.Random, profiles: list[Json], version: str) -> str:
    """What somebody chose before the operator came: often nothing."""
    parsed = Version.parse(version)
    assert parsed is not None
    names = {"DraftModel": "draft_model", "NGram": "ngram"}
    able = [p["name"] for p in profiles if capabilities(parsed).method(names[p["method"]])]
    return draw.choice(able) if able and draw.random() < 0.4 else "disabled"


def _acceptance(draw: random.Random, table: str | None, profiles: list[Json], hours: float) -> Json:
    """Sometimes a drafter that does not fit, from the beginning, from some time on, or with its pod's uptime."""
    found: Json = {"table": table} if table else {}
    changes: list[Json] = []
    for profile in profiles:
        about, luck = {"profile": profile["name"]}, draw.random()
        factor = round(draw.uniform(0.05, 0.8), 2)
        if luck < 0.15:
            changes.append({**about, "factor": factor})
        elif luck < 0.30:
            changes.append({**about, "at": _moment(draw, hours), "factor": factor})
        elif luck < 0.35:
            changes.append({**about, "halfLife": f"{draw.randint(1, 12)}h"})
    return found | ({"changes": changes} if changes else {})


def _arrivals(
    draw: random.Random, surface: Surface, pods: int, max_num_seqs: int, kinds: Sequence[str], hours: float
) -> list[Json]:
    """One to three pieces; the traffic of each is its own."""
    pieces: list[Json] = []
    turns = sorted(draw.uniform(0, hours) for _ in range(draw.choice([0, 0, 0, 1, 1, 2])))
    for start in [0.0, *turns]:
        long = surface.context > 1000
        prompt = draw.uniform(0.5, 1.5) * surface.context if long else draw.uniform(40, 1200)
        output = draw.uniform(60, 500)
        t0 = draw.choice([0, 0, 0.3, 0.7, 1])

        def rate(prompt: float = prompt, output: float = output) -> float:
            """Requests per second that keep so many requests running per pod, without speculation."""
            batch = 1.5 * (0.6 * max_num_seqs / 1.5) ** draw.random()
            step = surface.step_seconds(Method.DISABLED, 0, batch)
            per_request = output * step / batch + prompt * surface.prompt_token_seconds
            return round(pods / per_request, 3)

        pieces.append(
            {
                "from": f"{start * HOUR:.0f}s",
                **_pattern(draw, rate, hours),
                "mix": {kind: draw.randint(1, 5) for kind in draw.sample(kinds, draw.choice([1, 1, 2]))},
                "temperature": draw.choice([t0, {"from": t0, "to": draw.choice([0, 0.5, 1])}]),
                "promptTokens": [round(0.6 * prompt), round(1.4 * prompt)],
                "outputTokens": [round(0.5 * output), round(1.5 * output)],
            }
        )
    return pieces


def _pattern(draw: random.Random, rate: Any, hours: float) -> Json:
    which = draw.choice(["constant", "steps", "diurnal", "diurnal", "trace"])
    pattern: Json
    if which == "constant":
        pattern = {"requestsPerSecond": rate()}
    elif which == "steps":
        times = sorted({0, *(draw.randint(0, round(hours * HOUR)) for _ in range(draw.randint(1, 5)))})
        pattern = {"steps": [{"at": f"{t}s", "rate": rate()} for t in times]}
    elif which == "diurnal":
        mean = rate()
        amplitude = round(mean * draw.uniform(0.2, 1), 3)
        pattern = {"diurnal": {"mean": mean, "amplitude": amplitude, "peakAt": _moment(draw, hours)}}
    else:
        pattern = {"trace": {"scale": round(rate() / TRACE_RATE / 1.5, 3), "timeScale": draw.choice([1, 1, 0.25])}}
    if draw.random() < 0.25:
        every = draw.randint(10, 90)
        length = round(every * draw.uniform(0.1, 0.5))
        pattern["bursts"] = {"every": f"{every}m", "length": f"{length}m", "factor": round(draw.uniform(1.3, 4), 2)}
    return pattern


def _moment(draw: random.Random, hours: float) -> str:
    return f"{draw.uniform(0, hours) * HOUR:.0f}s"
