"""The operator's memory of one workload as text: what it has learnt, small, bounded, versioned. Pure.

Fields may come and go within a format as long as a field that is missing has a default and one that is unknown may be
ignored; anything else is a new format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from specdecode.model.knowledge import Knowledge
from specdecode.model.loads import LoadHistory

FORMAT: Final = 1
MAX_BYTES = 256 * 1024
"""Of the text: sixteen profiles of which all is known take 180 KiB. The API server takes 1 MiB (k8s.io/api/core/v1,
MaxSecretSize), for a whole ConfigMap."""

DIGITS = 5
"""Significant digits that are kept. The whole part is kept in any case: times are Unix seconds."""


_EXACT = 2.0**53
"""Whole numbers up to here are written as such, without a fraction."""


class Trouble(StrEnum):
    """Why the memory cannot be used, or not be kept."""

    CORRUPT = "MemoryCorrupt"
    """The text is not what the operator writes."""
    NEWER = "MemoryNewer"
    """A newer version of the operator wrote it."""
    FOREIGN = "MemoryForeign"
    """The place where it is kept belongs to somebody else."""
    NOT_READ = "MemoryNotRead"
    """It could not be read."""
    NOT_WRITTEN = "MemoryNotWritten"
    """It could not be written."""


@dataclass(frozen=True)
class Unusable:
    """What is wrong with the memory, with the way out."""

    reason: Trouble
    message: str


@dataclass(frozen=True)
class Memory:
    """What was learnt about one workload."""

    profiles: Mapping[str, Knowledge] = field(default_factory=dict)
    """By profile."""
    loads: LoadHistory = field(default_factory=LoadHistory)


class _Document(BaseModel):
    """The text, parsed. Its strictness holds for the dataclasses inside too."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)

    format: Literal[1] = FORMAT
    memory: Memory


def dump(memory: Memory) -> str:
    """Compact JSON; the same memory is the same text.

    Raises `ValueError` when a number is not finite or the text would be longer than `MAX_BYTES`.
    """
    document = _Document(memory=memory).model_dump()
    text = json.dumps(_rounded(document), allow_nan=False, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if (size := len(text.encode())) > MAX_BYTES:
        raise ValueError(f"what was learnt takes {size} bytes, more than {MAX_BYTES}")
    return text


def load(text: str) -> Memory | Unusable:
    """The way back from `dump`. Never raises, whatever the text is."""
    try:
        if len(text.encode()) > MAX_BYTES:
            return Unusable(Trouble.CORRUPT, f"it is longer than {MAX_BYTES} bytes")
        raw = from_json(text)
    except ValueError as e:
        return Unusable(Trouble.CORRUPT, f"it is not JSON: {e}")
    version = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        return Unusable(Trouble.CORRUPT, "it is not what the operator writes: there is no format in it")
    if version > FORMAT:
        return Unusable(Trouble.NEWER, f"a newer version of the operator wrote it; this one knows format {FORMAT}")
    try:
        return _Document.model_validate_json(text).memory
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        return Unusable(Trouble.CORRUPT, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return _digits(value)
        case dict():
            return {key: _rounded(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
        case _:
            return value


def _digits(value: float) -> float | int:
    if not math.isfinite(value):
        return value
    if value:
        value = round(value, max(0, DIGITS - 1 - math.floor(math.log10(abs(value)))))
    return int(value) if value.is_integer() and abs(value) < _EXACT else value
