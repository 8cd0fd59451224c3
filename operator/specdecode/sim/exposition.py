"""Metric families and their text form, byte for byte as `prometheus_client` writes it.

Our own few lines, because the families of one server depend on the vLLM version it emulates, and because a page must
cost next to nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "summary"]
Labels = tuple[tuple[str, str], ...]


def go_float(value: float) -> str:
    """A float as Go prints it, which is what Prometheus pages hold: 1.0, 0.3, 1.79533704797e+09."""
    text = repr(float(value))
    if text in ("inf", "-inf"):
        return text.replace("inf", "Inf") if text[0] == "-" else "+Inf"
    dot = text.find(".")
    if value > 0 and dot > 6 and "e" not in text:
        digits = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{digits}e+0{dot - 1}"
    return "NaN" if text == "nan" else text


@dataclass(slots=True)
class Sample:
    """One child of a family: a value, or a histogram's counts per bucket (not cumulative) with their sum."""

    value: float = 0.0
    bounds: Sequence[float] = ()
    counts: list[int] = field(default_factory=list)
    count: int = 0

    def inc(self, by: float = 1.0) -> None:
        """Add to a counter."""
        self.value += by

    def observe(self, value: float) -> None:
        """Add one observation to a histogram or a summary."""
        self.value += value
        self.count += 1
        if self.counts:
            self.counts[bisect_left(self.bounds, value)] += 1


@dataclass(slots=True)
class Family:
    """A metric family: `name` as exposed, `_total` included."""

    name: str
    kind: Kind
    help: str
    bounds: tuple[float, ...] = ()
    created: float | None = None
    """Unix time for the `_created` gauge that goes with counters, histograms and summaries; None for a family without
    one."""
    samples: dict[Labels, Sample] = field(default_factory=dict)

    def child(self, labels: Mapping[str, str]) -> Sample:
        """The sample with these labels, made at its first use."""
        key = tuple(sorted(labels.items()))
        sample = self.samples.get(key)
        if sample is None:
            counts = [0] * (len(self.bounds) + 1) if self.kind == "histogram" else []
            sample = self.samples[key] = Sample(bounds=self.bounds, counts=counts)
        return sample

    def lines(self) -> Iterable[str]:
        """The family's lines, without line ends."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, sample in self.samples.items():
            if self.kind in ("counter", "gauge"):
                yield f"{self.name}{_braces(labels)} {go_float(sample.value)}"
                continue
            if self.kind == "histogram":
                total = 0
                for bound, count in zip((*self.bounds, float("inf")), sample.counts, strict=True):
                    total += count
                    yield f"{self.name}_bucket{_braces((*labels, ('le', go_float(bound))))} {go_float(total)}"
            yield f"{self.name}_count{_braces(labels)} {go_float(sample.count)}"
            yield f"{self.name}_sum{_braces(labels)} {go_float(sample.value)}"
        if self.kind != "gauge" and self.created is not None and self.samples:
            name = f"{self.name.removesuffix('_total') if self.kind == 'counter' else self.name}_created"
            yield f"# HELP {name} {self.help}"
            yield f"# TYPE {name} gauge"
            for labels in self.samples:
                yield f"{name}{_braces(labels)} {go_float(self.created)}"


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(labels)) + "}" if labels else ""


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def render(families: Iterable[Family]) -> str:
    """The page."""
    return "\n".join(line for family in families for line in family.lines()) + "\n"
