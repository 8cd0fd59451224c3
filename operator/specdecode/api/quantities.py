"""Durations and percentages as Kubernetes users write them: `90s`, `1h30m`, `5%`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from specdecode.api.cel import rule, rules

# Six digits and 20 characters keep every duration below 240 years: the API server's rules compute with 292 at most.
DURATION_PATTERN = r"^([0-9]{1,6}(\.[0-9]{1,6})?(ms|s|m|h))+$"
PERCENT_PATTERN = r"^[0-9]{1,4}(\.[0-9]{1,6})?%$"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")


def parse_duration(value: object) -> float:
    """Seconds of a duration such as `90s`, `1h30m` or `250ms`; a number is seconds already."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str) or not re.fullmatch(DURATION_PATTERN[1:-1], value):
        raise ValueError(f"{value!r} is not a duration; write for example 90s, 5m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))


def format_duration(seconds: float) -> str:
    """The shortest usual spelling of a duration, exact to the microsecond: 90.0 -> `1m30s`."""
    rest = round(seconds * 1_000_000)
    if rest == 0:
        return "0s"
    parts = []
    for unit, size in (("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    if rest:
        parts.append(f"{rest / 1000:g}ms")
    return "".join(parts)


def format_minutes(seconds: float) -> str:
    """A duration to the minute: 89.0 -> `1m`."""
    return format_duration(round(seconds / 60) * 60)


def parse_percent(value: object) -> float:
    """The fraction that a percentage such as `5%` stands for (0.05); a number is a fraction already."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str) or not re.fullmatch(PERCENT_PATTERN[1:-1], value):
        raise ValueError(f"{value!r} is not a percentage; write for example 5%")
    return float(value[:-1]) / 100


def format_percent(fraction: float) -> str:
    """`0.05` -> `5%`, exact to a millionth of a percent."""
    return f"{fraction * 100:.6f}".rstrip("0").rstrip(".") + "%"


_IS_DURATION = rule(f"self.matches(r'{DURATION_PATTERN}')", "this is no duration: write for example 90s, 5m or 1h30m")
_IS_PERCENT = rule(f"self.matches(r'{PERCENT_PATTERN}')", "this is no percentage: write for example 5% or 2.5%")
_NOT_ZERO = rule("self.matches('[1-9]')", "this must be longer than zero: write for example 90s, 5m or 1h30m")


def duration_rule(fields: Sequence[str], expression: str, message: str) -> dict[str, str]:
    """A rule that compares durations; silent while one of them is none, which has a message of its own."""
    values = ", ".join(f"self.{field}" for field in fields)
    return rule(f"[{values}].exists(text, !text.matches(r'{DURATION_PATTERN}')) || {expression}", message)


def _text(pattern: str, max_length: int, *constraints: dict[str, str]) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, "maxLength": max_length, **rules(*constraints)}


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_text(DURATION_PATTERN, 20, _IS_DURATION)),
]
"""Seconds in Python, `1m30s` in YAML."""

PositiveDuration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_text(DURATION_PATTERN, 20, _IS_DURATION, _NOT_ZERO)),
]
"""A duration of which zero makes no sense."""

Percent = Annotated[
    float,
    BeforeValidator(parse_percent),
    PlainSerializer(format_percent, return_type=str),
    WithJsonSchema(_text(PERCENT_PATTERN, 16, _IS_PERCENT)),
]
"""A fraction in Python (0.05), `5%` in YAML."""
