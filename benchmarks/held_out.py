"""Scenarios that nothing was tuned on: services drawn at random, and engines that nobody built.

python benchmarks/held_out.py FOLDER [--random N] [--first SEED]

Writes their surfaces and YAML files to FOLDER, for `bench_decision.py FOLDER/*.yaml`; `make bench-held-out` does both.
The engines are rooflines with noise, from a small GPU that computes as slowly as it reads to one that waits for its
launches, with drafters from cheap to hopeless: no measurement, so what they show is only how the decision fares with
engines unlike those it was tuned on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from random_scenarios import random_scenario

TABLE = Path(__file__).parent / "scenarios" / "specdecode-bench.json"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NGRAM_K, DRAFT_K = 5, 3
GRAPH_LIMIT, LAUNCH_MS = 512, 50.0
"""Beyond so many tokens a step is launched kernel by kernel, and takes so long at least."""
NOISE = 0.03
PODS = 4
LENGTHS = {"promptTokens": [100, 400], "outputTokens": [100, 400]}
"""Of every request, from and to."""
BUSY = 0.9 * 64
"""Batch size whose speed is the load that the days are scaled by."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """A target, its GPU and its drafters. Times in milliseconds where not said otherwise."""

    name: str
    read: float
    """One reading of the weights: a step of one request."""
    knee: float
    """Tokens where computing takes as long as reading."""
    overhead: tuple[float, float]
    """What speculation adds per step, and per 1,000 requests."""
    draft: float
    """What the draft model adds per token."""
    kv_token_us: float
    prompt_token_us: float
    kv_tokens: int
    experts: tuple[float, float] | None = None
    """Share of the experts that a token needs, and part of the weights that every token needs; None: dense."""

    def step(self, tokens: float, added: float = 0.0) -> float:
        """A step that verifies so many tokens."""
        weights = 1.0
        if self.experts is not None:
            share, every = self.experts
            weights = every + (1 - every) * (1 - (1 - share) ** tokens)
        seconds = self.read * math.hypot(weights, tokens / self.knee) + added
        return seconds if tokens <= GRAPH_LIMIT else (seconds**4 + LAUNCH_MS**4) ** 0.25

    def rows(self) -> Iterator[tuple[str, bool, int, int, float]]:
        """Method, whether a schedule holds K, K, batch size, and the step."""
        fixed, per_1000 = self.overhead
        for b in BATCHES:
            yield "Disabled", False, 0, b, self.step(b)
            overhead = fixed + per_1000 * b / 1000
            for k in (0, 1, 3, NGRAM_K, 7):
                yield "NGram", k != NGRAM_K, k, b, self.step(b * (k + 1), overhead)
            for k in (0, 1, DRAFT_K, 5):
                # A draft model runs once though K is 0, and its kernels suit some batch sizes better than others.
                added = overhead + self.draft * max(k, 1) * (1 + 0.15 * math.sin(b))
                yield "DraftModel", k != DRAFT_K, k, b, self.step(b * (k + 1), added)


ENGINES = (
    Engine("l40s-8b", 21.0, 70, (2.0, 6), 2.4, 0.35, 95, 120_000),
    Engine("a10g-7b", 11.0, 45, (1.6, 8), 1.9, 0.30, 120, 60_000),
    Engine("a100-70b-tp4", 36.0, 220, (3.5, 10), 3.0, 0.06, 150, 260_000),
    Engine("h100-13b-slow-draft", 9.5, 150, (2.4, 12), 9.0, 0.05, 34, 300_000),
    Engine("b200-8b", 2.9, 420, (3.0, 25), 1.1, 0.012, 7, 900_000),
    Engine("mi300-experts", 9.0, 600, (2.2, 15), 3.2, 0.02, 25, 700_000, (1 / 16, 0.2)),
)


def surface(engine: Engine) -> str:
    """The surface file of an engine."""
    draw = random.Random(engine.name)
    head = {
        "surface": engine.name, "vllm": "0.24.0", "gpu": engine.name.split("-")[0],
        "target": "invented", "draft": "invented", "context": 256,
        "prompt_token_us": engine.prompt_token_us, "kv_token_us": engine.kv_token_us,
        "graph_limit_tokens": GRAPH_LIMIT, "source": "invented: benchmarks/held_out.py",
    }  # fmt: skip
    rows = (
        {
            "method": method, "scheduled": held, "K": k, "B": b,
            "step_ms": round(ms * math.exp(draw.gauss(0, NOISE)), 3),
            "kv_tokens": round(engine.kv_tokens * (0.8 if method == "DraftModel" else 1.0)),
        }
        for method, held, k, b, ms in engine.rows()
    )  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in (head, *rows))


def days(engine: Engine) -> Iterator[Json]:
    """Two days of a service on an engine: one of busy noons, one whose traffic turns."""
    busy = PODS * BUSY / (engine.step(64) / 1e3) / statistics.fmean(LENGTHS["outputTokens"])
    arrivals: dict[str, list[Json]] = {
        "diurnal": [
            {
                "diurnal": {"mean": round(0.5 * busy, 2), "amplitude": round(0.42 * busy, 2), "peakAt": "14h"},
                "mix": {"chat": 0.6, "code": 0.4},
                **LENGTHS,
            }
        ],
        "turns": [
            {"to": "9h", "requestsPerSecond": round(0.2 * busy, 2), "mix": {"summarise": 1}, **LENGTHS},
            {
                "from": "9h",
                "requestsPerSecond": round(0.55 * busy, 2),
                "mix": {"chat": 1},
                "temperature": 0.8,
                **LENGTHS,
            },
        ],
    }
    for kind, phases in arrivals.items():
        yield {
            "name": f"{engine.name}-{kind}",
            "surface": f"{engine.name}.jsonl",
            "vllmVersion": "0.24.0",
            "replicas": PODS,
            "rollTime": "2m",
            "acceptance": {"table": TABLE.name},
            "arrivals": phases,
            "policy": {
                "profiles": [
                    {
                        "name": "draft",
                        "method": "DraftModel",
                        "numSpeculativeTokens": DRAFT_K,
                        "draftModel": {"model": "draft"},
                    },
                    {"name": "ngram", "method": "NGram", "numSpeculativeTokens": NGRAM_K},
                ],
                "batchSizeTuning": {"mode": "Auto"},
                "rollout": {"maxChangesPerDay": 12},
                "metrics": {"interval": "60s"},
            },
        }


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description="Scenarios that nothing was tuned on.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", type=int, default=20, metavar="N", help="services drawn at random")
    parser.add_argument("--first", type=int, default=2000, metavar="SEED", help="the first of them")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / TABLE.name).write_bytes(TABLE.read_bytes())
    for engine in ENGINES:
        (asked.folder / f"{engine.name}.jsonl").write_text(surface(engine), encoding="utf-8")
    invented = [day for engine in ENGINES for day in days(engine)]
    for day in [*invented, *(random_scenario(asked.first + i) for i in range(asked.random))]:
        (asked.folder / f"{day['name']}.yaml").write_text(yaml.safe_dump(day, sort_keys=False), encoding="utf-8")
    print(f"{len(invented)} days on {len(ENGINES)} invented engines and {asked.random} random ones in {asked.folder}")


if __name__ == "__main__":
    main()
