"""The cumulative counters and histograms of pods, and the metrics pages made of them.

A page here is what `read_page` makes of the HTTP simulator's text: the same families, units and buckets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specdecode.sim.families import FAMILIES, SPECULATION, Spec, one_two_five
from specdecode.sim.twin.fleet import Array, Fleet, Passed
from specdecode.vllm.metrics import EngineSample, Histogram, Page
from specdecode.vllm.version import Version

MODEL = "target"
MAX_MODEL_LEN = 32_768
"""Where the buckets of lengths end."""

_HISTOGRAMS = {
    "ttft": ("time_to_first_token_seconds",),
    "inter_token": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    "tpot": ("request_time_per_output_token_seconds",),
    "iteration_tokens": ("iteration_tokens_total",),
    "queue_time": ("request_queue_time_seconds",),
    "prompt_length": ("request_prompt_tokens",),
    "output_length": ("request_generation_tokens",),
}
"""Figures of a page, and the families that they are read from, the newest name first."""

_DRAFTING = {
    "drafts": "spec_decode_num_drafts_total",
    "draft_tokens": "spec_decode_num_draft_tokens_total",
    "accepted_tokens": "spec_decode_num_accepted_tokens_total",
    "accepted_per_position": "spec_decode_num_accepted_tokens_per_pos_total",
}


def _family(version: Version, *names: str) -> Spec | None:
    """The first of these families that a version exposes."""
    here = [spec for spec in (*SPECULATION, *FAMILIES) if spec.exists_in(version)]
    return next((spec for name in names for spec in here if spec.name == name), None)


def _bounds(version: Version) -> dict[str, tuple[float, ...]]:
    """The buckets of each histogram that a version exposes."""
    found = {figure: _family(version, *names) for figure, names in _HISTOGRAMS.items()}
    return {
        figure: one_two_five(MAX_MODEL_LEN) if isinstance(spec.bounds, str) else spec.bounds
        for figure, spec in found.items()
        if spec is not None
    }


class _Observations:
    """One histogram family of several rows."""

    def __init__(self, rows: int, bounds: tuple[float, ...]) -> None:
        self.bounds = (*bounds, float("inf"))
        self._upper = np.array(bounds)
        self.counts = np.zeros((rows, len(self.bounds)))
        self.sums = np.zeros(rows)
        self._rows = np.arange(rows) * len(self.bounds)

    def add(self, values: Array, times: Array) -> None:
        """`times[..., row]` observations of `values[..., row]`."""
        index = np.searchsorted(self._upper, values) + self._rows
        flat = np.bincount(index.ravel(), times.ravel(), minlength=self.counts.size)
        self.counts += flat.reshape(self.counts.shape)
        self.sums += (values * times).reshape(-1, len(self.sums)).sum(axis=0)


class Counters:
    """What the first `rows` rows of a fleet have counted since their processes started.

    Time steps are kept until a page is asked for, and then counted together: that is what counting costs.
    """

    def __init__(self, fleet: Fleet, rows: int, version: Version) -> None:
        self._fleet, self._rows = fleet, rows
        self._families = {name: _Observations(rows, bounds) for name, bounds in _bounds(version).items()}
        finished = _family(version, "request_success_total")
        self._reasons = dict.fromkeys(finished.values if finished else (), 0.0)
        self._drafting = {figure for figure, name in _DRAFTING.items() if _family(version, name)}
        self._prompt_tokens, self._generated, self._finished = (np.zeros(rows) for _ in range(3))
        self._drafts, self._draft_tokens = np.zeros(rows), np.zeros(rows)
        self._accepted = np.zeros((rows, max(1, fleet.times.k_max)))
        self._positions = np.arange(self._accepted.shape[1])
        self._life_tpot = np.zeros(fleet.running[:, :rows].shape)
        self._kept: list[Passed] = []
        self._read: list[dict[str, Any]] = []

    def clear(self, row: int) -> None:
        """A new process counts from zero."""
        self.count()
        for family in self._families.values():
            family.counts[row] = 0.0
            family.sums[row] = 0.0
        for counter in (self._prompt_tokens, self._generated, self._finished, self._drafts, self._draft_tokens):
            counter[row] = 0.0
        self._accepted[row] = 0.0
        self._life_tpot[:, row] = 0.0
        self._read = []

    def record(self, passed: Passed) -> None:
        """Take note of a time step."""
        self._kept.append(passed)

    def count(self) -> None:
        """Count the time steps that were noted: before what requests are like changes, at the latest."""
        if not self._kept:
            return
        fleet, mix = self._fleet, self._fleet.mix
        # [step, row], [step, class, row]
        p = Passed.stacked(self._kept, self._rows)
        self._kept, self._read = [], []
        first = p.admitted
        prompt = p.admitted * float(mix.shares @ mix.prompt)
        running = p.request_seconds.sum(axis=1)
        request_steps = running / p.step_seconds
        generated = np.einsum("scr,scr->sr", p.request_seconds, 1.0 / p.tpot) + first
        # Steps without any request do not take place.
        steps = p.busy * fleet.dt / p.step_seconds
        by_class = p.request_seconds / p.step_seconds[:, None]
        drafts = np.einsum("scr,scr->sr", by_class, p.drafting)
        self._prompt_tokens += prompt.sum(axis=0)
        self._generated += generated.sum(axis=0)
        self._drafts += drafts.sum(axis=0)
        self._draft_tokens += (drafts * p.k).sum(axis=0)
        reach = fleet.reach[p.level, p.drafter] * (self._positions < p.k[..., None])[:, :, None]
        self._accepted += np.einsum("scr,srci->ri", by_class, reach)
        finished = p.left
        done = finished.sum(axis=1)
        self._finished += done.sum(axis=0)
        observed: dict[str, tuple[Array, Array]] = {
            "inter_token": (p.step_seconds, request_steps),
            "iteration_tokens": ((prompt + generated) / np.maximum(steps, 1e-12), steps),
            "ttft": (fleet.ttft(p), first),
            "queue_time": (fleet.wait(p), done),
            "tpot": (self._lives(p), finished),
            "prompt_length": (np.broadcast_to(mix.prompt[:, None], finished.shape), finished),
            "output_length": (np.broadcast_to(mix.output[:, None], finished.shape), finished),
        }
        for name, family in self._families.items():
            family.add(*observed[name])

    def _lives(self, p: Passed) -> Array:
        """Mean seconds per token of the requests that finish, over their lives: [step, class, row]."""
        lives = np.empty_like(p.tpot)
        renewed = np.minimum(1.0, 2.0 * self._fleet.dt / (p.tpot * (self._fleet.mix.output - 1.0)[:, None]))
        life = np.where(self._life_tpot == 0.0, p.tpot[0], self._life_tpot)
        for i, (tpot, share) in enumerate(zip(p.tpot, renewed, strict=True)):
            life = life + share * (tpot - life)
            lives[i] = life
        self._life_tpot = life
        return lives

    def page(self, row: int, process_start: float, k: int) -> Page:
        """The metrics page of a row's process now; `k` is the K that its engine was started with, 0 without
        speculation."""
        self.count()
        if not self._read:
            self._read = self._readings()
        figures = dict(self._read[row])
        accepted = tuple(self._accepted[row, :k].tolist())
        figures |= {"accepted_tokens": sum(accepted), "accepted_per_position": accepted}
        for name in _DRAFTING:
            if not k or name not in self._drafting:
                del figures[name]
        sample = EngineSample(model_name=MODEL, engine="0", preemptions=0.0, **figures)
        finished = figures["requests"]["length"]
        return Page((sample,), process_start, {("/v1/completions", "2xx"): finished} if finished else {})

    def _readings(self) -> list[dict[str, Any]]:
        """The figures of every row now."""
        fleet, n = self._fleet, self._rows
        running = fleet.running[:, :n]
        pool = fleet.times.kv_tokens[fleet.variant[:n]]
        columns: dict[str, list[Any]] = {
            "running": np.rint(running.sum(axis=0)).tolist(),
            "waiting": np.rint(fleet.waiting[:n]).tolist(),
            "kv_usage": np.minimum(1.0, fleet.context @ running / pool).tolist(),
            "kv_cache_tokens": pool.tolist(),
            "prompt_tokens": self._prompt_tokens.tolist(),
            "generation_tokens": self._generated.tolist(),
            "drafts": self._drafts.tolist(),
            "draft_tokens": self._draft_tokens.tolist(),
            "requests": [self._reasons | {"length": count} for count in self._finished.tolist()],
        }
        for name, family in self._families.items():
            cumulative = np.cumsum(family.counts, axis=1).tolist()
            columns[name] = [
                Histogram(family.bounds, tuple(counts), total, counts[-1])
                for counts, total in zip(cumulative, family.sums.tolist(), strict=True)
            ]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
