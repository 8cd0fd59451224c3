"""What one engine step costs on a measured GPU: seconds by method, K and batch size, read between measured points.

A surface is a table of step times of a real engine. It is read along the *tokens verified in a step*, B(K+1), because
that is what the target's forward pass costs by. Rules, in the order in which they apply:

- Between two points of one K: a straight line in tokens. Below the first point: flat (a small step costs what loading
  the weights costs).
- The CUDA-graph capture limit (`graph_limit_tokens`) is a cliff. Points on its two sides are never joined: each side
  goes on with its own slope. A K with fewer than two points above the limit takes the shape there from the nearest K
  that has them (another method's if need be), scaled to pass through its own point. Where nothing was measured above
  the limit, the stretch below goes on, which is optimistic.
- Beyond the largest batch size: linear in tokens, with the slope of the last stretch.
- A K between two measured ones: a blend of the two at equal tokens, so that both meet the cliff at the same place.
- A K above the largest measured one: the line through the two largest at equal tokens, never below the largest. Below
  the smallest: the smallest.
- The static engine and the one with a batch-size schedule are measured apart; a K that one of them lacks is taken from
  the other.
- A draft model without a row at K = 0: the K = 0 step of the scheduled engine (else of the engine without speculation)
  and one drafter pass.

The engine without speculation ("off", `Method.DISABLED`) is its own row and not K = 0: holding K = 0 in the engine
costs more.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from specdecode.vllm.speculation import Method

Point = tuple[float, float]
"""(tokens verified in a step, seconds)"""


class SurfaceError(ValueError):
    """A surface file that cannot be read, or a question that the surface does not cover."""


@dataclass(frozen=True)
class Column:
    """The step times of one engine at one K."""

    k: int
    points: tuple[Point, ...]
    """Ascending in tokens, at least one."""
    graph_limit: int

    @cached_property
    def _sides(self) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
        graphed = tuple(p for p in self.points if p[0] <= self.graph_limit)
        return graphed, self.points[len(graphed) :]

    @property
    def knows_eager(self) -> bool:
        """Whether at least two points lie above the graph limit."""
        return len(self._sides[1]) > 1

    def seconds(self, tokens: float) -> float:
        """Seconds of a step that verifies so many tokens."""
        graphed, eager = self._sides
        if not graphed or not eager:
            return _read(self.points, tokens)
        if tokens <= self.graph_limit:
            return min(_read(graphed, tokens), max(eager[0][1], graphed[-1][1]))
        if tokens >= eager[0][0]:
            return _read(eager, tokens) if len(eager) > 1 else eager[0][1] + _slope(graphed) * (tokens - eager[0][0])
        back = eager[0][1] - _slope(eager[:2]) * (eager[0][0] - tokens)
        return max(back, min(_read(graphed, tokens), eager[0][1]))

    def completed_by(self, others: Iterable[Column]) -> Column:
        """This column with at least two points above the graph limit, in the shape of the nearest K of `others` that
        has them."""
        own = self._sides[1]
        donors = [c for c in others if c.knows_eager]
        if self.knows_eager or not donors:
            return self
        donor = min(donors, key=lambda c: abs(c.k - self.k))
        scale = own[0][1] / donor.seconds(own[0][0]) if own else 1.0
        points = {t: s * scale for t, s in donor._sides[1]} | dict(self.points)
        return Column(self.k, tuple(sorted(points.items())), self.graph_limit)


def _slope(points: tuple[Point, ...]) -> float:
    """Seconds per token of the last stretch; 0 where there is none or it falls."""
    if len(points) < 2:
        return 0.0
    (t0, s0), (t1, s1) = points[-2:]
    return max(0.0, (s1 - s0) / (t1 - t0))


def _read(points: tuple[Point, ...], tokens: float) -> float:
    """Piecewise linear; flat before the first point, the last slope after the last one."""
    if tokens <= points[0][0]:
        return points[0][1]
    for (t0, s0), (t1, s1) in itertools.pairwise(points):
        if tokens <= t1:
            return s0 + (s1 - s0) * (tokens - t0) / (t1 - t0)
    return points[-1][1] + _slope(points) * (tokens - points[-1][0])


@dataclass(frozen=True)
class Surface:
    """The measured step times of one target model on one GPU.

    `columns` and `kv_tokens` are keyed by (method, scheduled): the engine's method, and whether K is held by a
    batch-size schedule.
    """

    name: str
    gpu: str
    target: str
    vllm: str
    context: float
    """Tokens of context per request while measuring."""
    graph_limit_tokens: int
    prompt_token_seconds: float
    """Cost of one prompt token that shares the step: the price of a token in a step that is bound by compute."""
    kv_token_seconds: float
    """Cost of one more token of context: its keys and values read once a step."""
    columns: Mapping[tuple[Method, bool], tuple[Column, ...]]
    kv_tokens: Mapping[tuple[Method, bool], int]
    """Size of the KV pool beside these weights, in tokens."""

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that this surface can answer for."""
        return tuple(dict.fromkeys(method for method, _ in self.columns))

    def step_seconds(
        self,
        method: Method,
        k: float,
        batch: float,
        *,
        scheduled: bool = False,
        tokens: float | None = None,
        context: float | None = None,
        prompt_tokens: float = 0.0,
    ) -> float:
        """Seconds of one engine step.

        `batch`: requests in their decode phase. `tokens`: tokens verified for them, B(K+1) unless given (an n-gram step
        where not every request found a match verifies fewer). `context`: mean tokens of context per request, as
        measured unless given. `prompt_tokens`: prefilled in the same step. Raises SurfaceError for a method that was
        not measured, or K > 0 without one.
        """
        if k < 0 or batch <= 0:
            raise SurfaceError(
                f"surface {self.name}: K must be at least 0 and the batch size above 0, not K={k} and B={batch}"
            )
        seconds = self._decode_seconds(method, k, batch * (k + 1) if tokens is None else tokens, scheduled)
        if context is not None:
            seconds = max(seconds + batch * (context - self.context) * self.kv_token_seconds, self._fastest)
        return seconds + prompt_tokens * self.prompt_token_seconds

    def kv_pool_tokens(self, method: Method, *, scheduled: bool = False) -> int:
        """Tokens that the KV pool holds beside the weights of this engine. Raises SurfaceError for a method that was
        not measured."""
        self._require(method)
        return self.kv_tokens.get((method, scheduled)) or self.kv_tokens[method, not scheduled]

    def _decode_seconds(self, method: Method, k: float, tokens: float, scheduled: bool) -> float:
        columns = self._ladder(method, scheduled)
        if method is Method.DISABLED and k:
            raise SurfaceError(f"surface {self.name}: K={k} was asked of the engine without speculation")
        for low, high in itertools.pairwise(columns):
            if low.k <= k <= high.k:
                return _blend(low, high, k, tokens)
        if k > columns[-1].k and len(columns) > 1:
            return max(columns[-1].seconds(tokens), _blend(columns[-2], columns[-1], k, tokens))
        return columns[0 if k < columns[0].k else -1].seconds(tokens)

    def _require(self, method: Method) -> None:
        if method not in self.methods:
            raise SurfaceError(
                f"surface {self.name} has no step times of {method}; it covers {', '.join(self.methods)}"
            )

    @cached_property
    def _fastest(self) -> float:
        return min(seconds for columns in self.columns.values() for c in columns for _, seconds in c.points)

    @cached_property
    def _ladders(self) -> dict[tuple[Method, bool], tuple[Column, ...]]:
        return {}

    def _ladder(self, method: Method, scheduled: bool) -> tuple[Column, ...]:
        """All columns that can serve an engine, ascending in K."""
        ladder = self._ladders.get((method, scheduled))
        if ladder is None:
            self._require(method)
            by_k = {c.k: c for own in (not scheduled, scheduled) for c in self.columns.get((method, own), ())}
            if method is Method.DRAFT_MODEL and 0 not in by_k:
                by_k[0] = self._draft_at_k0(by_k[min(by_k)])
            donors = [c for c in by_k.values() if c.knows_eager] or [c for own in self.columns.values() for c in own]
            ladder = self._ladders[method, scheduled] = tuple(by_k[k].completed_by(donors) for k in sorted(by_k))
        return ladder

    def _draft_at_k0(self, smallest: Column) -> Column:
        held = [c for (_, scheduled), columns in self.columns.items() if scheduled for c in columns if c.k == 0]
        base = held[0] if held else self.columns[Method.DISABLED, False][0]
        points = tuple((t, s + max(0.0, smallest.seconds(t) - s) / smallest.k) for t, s in base.points)
        return Column(0, points, self.graph_limit_tokens)


def _blend(low: Column, high: Column, k: float, tokens: float) -> float:
    if k == low.k:
        return low.seconds(tokens)
    if k == high.k:
        return high.seconds(tokens)
    weight = (k - low.k) / (high.k - low.k)
    return (1 - weight) * low.seconds(tokens) + weight * high.seconds(tokens)


def parse_surface(lines: Iterable[str], source: str = "surface") -> Surface:
    """Read a surface from JSON lines: a header (`surface`, `gpu`, `context`, …, times in microseconds), then one row
    per (method, scheduled, K, B).

    `step_ms` is the mean step in milliseconds, `kv_tokens` the KV pool of that engine. Raises SurfaceError that names
    `source` and the line.
    """
    header: dict[str, Any] | None = None
    rows: dict[tuple[Method, bool], dict[int, list[Point]]] = {}
    kv_tokens: dict[tuple[Method, bool], int] = {}
    number = 0
    try:
        for line in lines:
            number += 1
            if not line.strip():
                continue
            row = json.loads(line)
            if header is None:
                header = row
                continue
            engine = Method(row["method"]), bool(row["scheduled"])
            k, batch = int(row["K"]), float(row["B"])
            rows.setdefault(engine, {}).setdefault(k, []).append((batch * (k + 1), float(row["step_ms"]) / 1e3))
            kv_tokens.setdefault(engine, int(row["kv_tokens"]))
        if header is None or (Method.DISABLED, False) not in rows:
            raise SurfaceError(f"{source}: a surface needs a header line and rows of method {Method.DISABLED}")
        number = 1
        limit = int(header["graph_limit_tokens"])
        return Surface(
            name=header["surface"],
            gpu=header["gpu"],
            target=header["target"],
            vllm=header["vllm"],
            context=float(header["context"]),
            graph_limit_tokens=limit,
            prompt_token_seconds=float(header["prompt_token_us"]) / 1e6,
            kv_token_seconds=float(header["kv_token_us"]) / 1e6,
            columns={e: tuple(Column(k, tuple(sorted(ks[k])), limit) for k in sorted(ks)) for e, ks in rows.items()},
            kv_tokens=kv_tokens,
        )
    except SurfaceError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise SurfaceError(
            f"{source}, line {number}: {type(error).__name__}: {error}; see the surfaces that come with the package"
        ) from error
