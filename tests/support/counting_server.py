"""A server that counts as vLLM does: an httpx transport with completions, models, version and metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class CountingServer:
    """Drafts K tokens a step and accepts those that `accepted(temperature)` says, of `length` tokens an answer."""

    accepted: Callable[[float], int] = lambda temperature: 2 if temperature < 0.5 else 1
    k: int = 3
    length: int = 31
    speculates: bool = True
    lag: int = 0
    """Looks at the metrics that still show what was before the last answer."""
    counters: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0.0))
    positions: list[float] = field(default_factory=lambda: [0.0] * 3)
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    started: float = 1.7e9
    _shown: list[bytes] = field(default_factory=list)

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/metrics":
                return httpx.Response(200, content=self._shown.pop(0) if self._shown else self.page())
            case "/version":
                return httpx.Response(200, json={"version": "0.32.0"})
            case "/v1/models":
                return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        self.asked.append(body)
        self.paths.append(request.url.path)
        self._shown = [self.page()] * self.lag
        self.generate(body["temperature"])
        return httpx.Response(200, json={"usage": {"completion_tokens": self.length}})

    def generate(self, temperature: float) -> None:
        """One request: its first token, then steps of which each yields one token more than it accepts."""
        accepted = self.accepted(temperature)
        steps = (self.length - 1) // (accepted + 1)
        done = {
            "requests": 1,
            "generation": self.length,
            "steps": steps,
            "drafts": steps,
            "drafted": steps * self.k,
            "accepted": steps * accepted,
        }
        for name, count in done.items():
            self.counters[name] += count
        for i in range(accepted):
            self.positions[i] += steps

    def page(self) -> bytes:
        c, labels = self.counters, 'model_name="m",engine="0"'
        lines = [
            f"vllm:num_requests_running{{{labels}}} 0",
            f"vllm:generation_tokens_total{{{labels}}} {c['generation']}",
            f'vllm:request_success_total{{{labels},finished_reason="length"}} {c["requests"]}',
        ]
        if self.speculates:
            lines += [
                f"vllm:spec_decode_num_drafts_total{{{labels}}} {c['drafts']}",
                f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} {c['drafted']}",
                f"vllm:spec_decode_num_accepted_tokens_total{{{labels}}} {c['accepted']}",
            ]
            name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
            lines += [f'{name}{{{labels},position="{i}"}} {n}' for i, n in enumerate(self.positions)]
        for name, count in (
            ("vllm:time_to_first_token_seconds", c["requests"]),
            ("vllm:inter_token_latency_seconds", c["steps"]),
        ):
            lines += [f'{name}_bucket{{{labels},le="+Inf"}} {count}']
            lines += [f"{name}_sum{{{labels}}} {count * 0.01}", f"{name}_count{{{labels}}} {count}"]
        lines.append(f"process_start_time_seconds {self.started}")
        return ("\n".join(lines) + "\n").encode()


_COUNTERS = ("requests", "generation", "steps", "drafts", "drafted", "accepted")
