"""The engine of a simulated vLLM: continuous batching, KV blocks, drafting and acceptance, as a state machine in
virtual time.

It follows vLLM's V1 scheduler (vllm/v1/core/sched/scheduler.py): running requests first, then waiting ones while
tokens, slots and KV blocks last; prompts are prefilled in chunks that share the step; when the blocks run out the
youngest running request is preempted and computed again. Nothing here knows a clock: the caller asks what the next step
is, lets its seconds pass, and completes it at a time of its choosing.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from specdecode.model.surface import Surface
from specdecode.sim.acceptance import Acceptance
from specdecode.vllm.speculation import Method, Speculation

AcceptanceOf = Callable[[str, Method, float], Acceptance]
"""(kind, method, temperature) -> acceptance"""


@dataclass(frozen=True)
class EngineConfig:
    """How one engine is set up. Token counts, unless said otherwise."""

    speculation: Speculation | None = None
    kv_tokens: int = 231_168
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    block_size: int = 16
    pads_drafts: bool = False
    """Whether an n-gram step without a match drafts K tokens all the same (Model Runner V2) or none (V1)."""
    slowdown: float = 1.0
    """Every step takes so many times as long."""

    @property
    def method(self) -> Method:
        """The method that drafts; `Disabled` without speculation."""
        return self.speculation.method if self.speculation else Method.DISABLED

    @property
    def scheduled(self) -> bool:
        """Whether a batch-size schedule holds K."""
        return bool(self.speculation and self.speculation.schedule)

    @property
    def blocks(self) -> int:
        """Size of the KV pool in blocks."""
        return self.kv_tokens // self.block_size


@dataclass(slots=True, eq=False)
class Request:
    """One request and how far it got. Times are the caller's seconds."""

    id: str
    arrival: float
    prompt_tokens: int
    max_tokens: int
    kind: str = "chat"
    temperature: float = 1.0
    generated: int = 0
    computed: int = 0
    """Tokens whose keys and values lie in the KV pool."""
    blocks: int = 0
    preemptions: int = 0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    acceptance: Acceptance | None = None

    @property
    def to_prefill(self) -> int:
        """Tokens still to compute before the next token can be generated; after a preemption, what was generated
        too."""
        return self.prompt_tokens + max(0, self.generated - 1) - self.computed

    @property
    def finished(self) -> bool:
        """Whether all tokens were generated."""
        return self.generated >= self.max_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine does in one iteration: prompt tokens and draft tokens by request, and the seconds that it
    takes."""

    prefills: tuple[tuple[Request, int], ...]
    decodes: tuple[tuple[Request, int], ...]
    seconds: float

    @property
    def batch(self) -> int:
        """Requests scheduled in this step, prefills included: what the schedule looks K up by."""
        return len(self.prefills) + len(self.decodes)


@dataclass(frozen=True, slots=True)
class Output:
    """Tokens that one request got in a step, and the seconds since it last got any (None for the first)."""

    request: Request
    tokens: int
    since_last: float | None


@dataclass(slots=True)
class Outcome:
    """Everything that one completed step changed, as vLLM's IterationStats and SpecDecodingStats hold it."""

    at: float
    outputs: list[Output] = field(default_factory=list)
    prompt_tokens: int = 0
    """Prompt tokens of the requests that got their first token: vLLM counts a prompt when its prefill ends."""
    generated_tokens: int = 0
    finished: int = 0
    """Requests that got their last token."""
    drafts: int = 0
    draft_tokens: int = 0
    accepted_per_position: list[int] = field(default_factory=list)


class Engine:
    """Continuous batching over a measured surface.

    `acceptance` says how requests fare, `rng` draws. Raises SurfaceError at once where the surface does not cover the
    method.
    """

    def __init__(self, config: EngineConfig, surface: Surface, acceptance: AcceptanceOf, rng: random.Random) -> None:
        self.config = config
        self._surface = surface
        self._acceptance = acceptance
        self._rng = rng
        self.k_static = (config.speculation.num_speculative_tokens or 0) if config.speculation else 0
        self._lookahead = self.k_static if config.method not in (Method.DISABLED, Method.NGRAM) else 0
        self._k_next = self.k_static
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.free_blocks = config.blocks
        self.preemptions = 0
        self._step_seconds(1, 1 + self.k_static, 0, 0)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use, 0 to 1."""
        return 1 - self.free_blocks / max(1, self.config.blocks)

    @property
    def busy(self) -> bool:
        """Whether any request runs or waits."""
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError where the KV pool could never hold it, which vLLM finds at start-up."""
        if self._blocks_for(request.prompt_tokens + request.max_tokens + self._lookahead) > self.config.blocks:
            raise ValueError(f"request {request.id} needs more KV tokens than the pool's {self.config.kv_tokens}")
        if self.config.speculation:
            typical = self._acceptance(request.kind, self.config.method, request.temperature)
            request.acceptance = typical.of_request(self._rng.gauss(0.0, 1.0) if typical.spread else 0.0)
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """Drop a request: its client went away."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self, now: float) -> Step | None:
        """Plan the next step; None when there is nothing to do."""
        budget = self.config.max_num_batched_tokens
        prefills: list[tuple[Request, int]] = []
        decodes: list[tuple[Request, int]] = []
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            chunk, drafts = self._wants(request, budget)
            victim = None
            while victim is not request and not self._reserve(request, chunk or 1 + drafts):
                victim = self.running.pop()
                self._preempt(victim)
                preempted = True
            if victim is request:
                break
            budget -= chunk or 1 + drafts
            (prefills if chunk else decodes).append((request, chunk or drafts))
            index += 1
        while self.waiting and not preempted and budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[0]
            chunk = min(request.to_prefill, budget)
            if not self._reserve(request, chunk):
                break
            self.running.append(self.waiting.popleft())
            if request.scheduled_at is None:
                request.scheduled_at = max(now, request.arrival)
            budget -= chunk
            prefills.append((request, chunk))
        if not prefills and not decodes:
            return None
        return Step(tuple(prefills), tuple(decodes), self._seconds(prefills, decodes))

    def complete(self, step: Step, now: float) -> Outcome:
        """Apply a step that ended at `now`: tokens, acceptance, finished requests; K for the next step is chosen from
        this one's batch."""
        outcome = Outcome(now, accepted_per_position=[0] * self.k_static)
        alive = set(self.running)
        for request, drafts in step.decodes:
            if request in alive:
                self._emit(request, 1 + self._verify(request, drafts, outcome), outcome)
        for request, chunk in step.prefills:
            if request in alive:
                request.computed += chunk
                if request.to_prefill == 0 and request.generated == 0:
                    outcome.prompt_tokens += request.prompt_tokens
                    self._emit(request, 1, outcome)
        if outcome.finished:
            self.running = [r for r in self.running if not r.finished]
        if self.config.speculation:
            self._k_next = self.config.speculation.k_at(step.batch)
        return outcome

    def _wants(self, request: Request, budget: int) -> tuple[int, int]:
        """Prompt tokens to prefill, or else draft tokens to verify."""
        if request.to_prefill > 0:
            return min(request.to_prefill, budget), 0
        return 0, min(self._drafts_for(request), budget - 1)

    def _drafts_for(self, request: Request) -> int:
        acceptance = request.acceptance
        if acceptance is None or not self._k_next:
            return 0
        if acceptance.match < 1.0 and not self.config.pads_drafts and self._rng.random() >= acceptance.match:
            return 0
        return self._k_next

    def _verify(self, request: Request, drafts: int, outcome: Outcome) -> int:
        """Draft tokens accepted, counted in `outcome`."""
        acceptance = request.acceptance
        if not drafts or acceptance is None:
            return 0
        outcome.drafts += 1
        outcome.draft_tokens += drafts
        if self.config.pads_drafts and acceptance.match < 1.0 and self._rng.random() >= acceptance.match:
            return 0
        chance, accepted = self._rng.random, 0
        while accepted < drafts and chance() < acceptance.position(accepted):
            outcome.accepted_per_position[accepted] += 1
            accepted += 1
        return accepted

    def _emit(self, request: Request, tokens: int, outcome: Outcome) -> None:
        tokens = min(tokens, request.max_tokens - request.generated)
        since = None if request.last_token_at is None else outcome.at - request.last_token_at
        if request.first_token_at is None:
            request.first_token_at = outcome.at
        request.last_token_at = outcome.at
        request.generated += tokens
        request.computed = request.prompt_tokens + request.generated - 1
        outcome.generated_tokens += tokens
        outcome.outputs.append(Output(request, tokens, since))
        if request.finished:
            outcome.finished += 1
            self._release(request)

    def _seconds(self, prefills: list[tuple[Request, int]], decodes: list[tuple[Request, int]]) -> float:
        batch = len(decodes)
        tokens = batch + sum(drafts for _, drafts in decodes)
        context = sum(r.prompt_tokens + r.generated for r, _ in decodes) / batch if batch else 0.0
        return self._step_seconds(batch, tokens, context, sum(chunk for _, chunk in prefills))

    def _step_seconds(self, batch: int, tokens: int, context: float, prompt_tokens: int) -> float:
        return self.config.slowdown * self._surface.step_seconds(
            self.config.method,
            self._k_next,
            max(1, batch),
            scheduled=self.config.scheduled,
            tokens=max(1, tokens),
            context=context if batch else None,
            prompt_tokens=prompt_tokens,
        )

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def _reserve(self, request: Request, tokens: int) -> bool:
        """Take the KV blocks for so many more tokens; False where the pool lacks them."""
        most = request.prompt_tokens + request.max_tokens  # drafts beyond the last token need no block of their own
        missing = self._blocks_for(min(request.computed + tokens, most) + self._lookahead) - request.blocks
        if missing > self.free_blocks:
            return False
        if missing > 0:
            request.blocks += missing
            self.free_blocks -= missing
        return True

    def _release(self, request: Request) -> None:
        self.free_blocks += request.blocks
        request.blocks = 0

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.computed = 0
        request.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(request)


def bad_draft(acceptance: AcceptanceOf, rate: float) -> AcceptanceOf:
    """The same requests with a drafter that is accepted at `rate` per position, whatever they ask."""

    def worse(kind: str, method: Method, temperature: float) -> Acceptance:
        return replace(acceptance(kind, method, temperature), accept=(rate,), spread=0.0)

    return worse
