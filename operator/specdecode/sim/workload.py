"""What clients ask for and when: phases of open or closed load, and recorded traces. Pure; randomness is a
parameter."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

LENGTHS: Mapping[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "summarise": ((800, 1600), (150, 250)),
    "chat": ((50, 300), (150, 350)),
    "code": ((300, 900), (150, 350)),
}
"""Kind -> tokens of (prompt, output), from and to, where a phase does not say."""
DEFAULT_LENGTHS = ((200, 200), (200, 200))


class WorkloadError(ValueError):
    """A phase or a trace that cannot be understood."""


@dataclass(frozen=True)
class Ask:
    """One request to send."""

    kind: str
    prompt_tokens: int
    output_tokens: int
    temperature: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A stretch of steady load: open (`rate` requests a second, Poisson) or closed (`clients` that ask again as soon as
    they are answered)."""

    name: str
    seconds: float
    rate: float | None = None
    clients: int | None = None
    mix: Mapping[str, float] = field(default_factory=lambda: {"chat": 1.0})
    """Kind of request -> weight."""
    temperature: float = 0.0
    prompt_tokens: tuple[int, int] | None = None
    """From and to, uniform; the kind's own (`LENGTHS`) when None."""
    output_tokens: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.clients is None):
            raise WorkloadError(f"phase {self.name}: give a rate (open load) or a number of clients (closed load)")
        if self.seconds <= 0 or (self.rate or 0) < 0 or (self.clients or 0) < 0 or not self.mix:
            raise WorkloadError(
                f"phase {self.name}: seconds must be positive, rate and clients not negative, and the mix not empty"
            )

    def ask(self, rng: random.Random) -> Ask:
        """Draw one request."""
        kind = rng.choices(list(self.mix), list(self.mix.values()))[0] if len(self.mix) > 1 else next(iter(self.mix))
        prompt, output = LENGTHS.get(kind, DEFAULT_LENGTHS)
        return Ask(
            kind,
            rng.randint(*(self.prompt_tokens or prompt)),
            rng.randint(*(self.output_tokens or output)),
            self.temperature,
        )


@dataclass(frozen=True)
class Arrival:
    """A request due `at` seconds after the start."""

    at: float
    phase: str
    ask: Ask


def poisson(phase: Phase, rng: random.Random, start: float = 0.0) -> Iterator[Arrival]:
    """The arrivals of an open phase that begins at `start`."""
    at = start
    while phase.rate:
        at += rng.expovariate(phase.rate)
        if at >= start + phase.seconds:
            return
        yield Arrival(at, phase.name, phase.ask(rng))


def read_trace(
    lines: Iterable[str], *, kind: str = "code", temperature: float = 0.0, time_scale: float = 1.0, name: str = "trace"
) -> Iterator[Arrival]:
    """Arrivals of a trace: CSV with a header and the columns TIMESTAMP, ContextTokens, GeneratedTokens (Azure LLM
    inference trace 2023).

    `time_scale` 10 plays an hour in six minutes. Raises WorkloadError that names the line.
    """
    rows = iter(lines)
    next(rows, "")
    first: datetime | None = None
    for number, line in enumerate(rows, 2):
        try:
            stamp, context, generated = line.strip().split(",")
            when = datetime.fromisoformat(stamp[:26])
            ask = Ask(kind, max(1, int(context)), max(1, int(generated)), temperature)
        except ValueError as error:
            raise WorkloadError(
                f"trace line {number}: {line.strip()!r} is not TIMESTAMP,ContextTokens,GeneratedTokens: {error}"
            ) from error
        first = first or when
        yield Arrival((when - first).total_seconds() / time_scale, name, ask)


def parse_phase(text: str) -> Phase:
    """`NAME:DURATION:LOAD:MIX[:T=0.7][:prompt=100-300][:output=200]`.

    DURATION `30s` or `2m`; LOAD `2rps` (open) or `8clients` (closed); MIX `summarise` or `summarise=0.7+chat=0.3`.
    Raises WorkloadError.
    """
    name, duration, load, mix, *options = (*text.split(":"), "", "", "")[: max(4, text.count(":") + 1)]
    seconds = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", duration)
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)(rps|clients)", load)
    if not (name and seconds and amount and mix):
        raise WorkloadError(
            f"phase {text!r}: write NAME:DURATION:LOAD:MIX,"
            " such as quiet:30s:2rps:summarise:T=0 or busy:1m:8clients:chat=0.5+code=0.5"
        )
    found: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in ("T", "prompt", "output") or not equals:
            raise WorkloadError(f"phase {text!r}: {option!r} is none of T=…, prompt=FROM-TO, output=FROM-TO")
        found[key] = value
    try:
        return Phase(
            name,
            float(seconds[1]) * {"s": 1, "m": 60, "h": 3600}[seconds[2]],
            rate=float(amount[1]) if amount[2] == "rps" else None,
            clients=int(float(amount[1])) if amount[2] == "clients" else None,
            mix={kind: float(weight or 1) for kind, _, weight in (part.partition("=") for part in mix.split("+"))},
            temperature=float(found.get("T", 0)),
            prompt_tokens=_range(found.get("prompt")),
            output_tokens=_range(found.get("output")),
        )
    except ValueError as error:
        raise WorkloadError(f"phase {text!r}: {error}") from error


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition("-")
    if int(low) < 1 or int(high or low) < int(low):
        raise ValueError(f"{text!r} is not a range of token counts from 1")
    return int(low), int(high or low)
