"""The Prometheus text format (0.0.4), read for a few chosen names: every other line costs one look-up.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Container

_LABEL = re.compile(rb'\s*([a-zA-Z_]\w*)\s*=\s*"([^"\\]*(?:\\.[^"\\]*)*)"\s*(?:,|$)', re.DOTALL)
_COMMENT = ord("#")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class PageError(ValueError):
    """The page is not one of vLLM, is half-written, or contradicts itself. Nothing of it may be used."""


Sample = tuple[bytes, bytes, float, int]
"""Name, what stands between the braces (for `parse_labels`), value, number of the line from 1."""


def pick(text: bytes, names: Container[bytes]) -> tuple[list[Sample], bool]:
    """The samples of these names in their order, and whether the last sample of the text is one of them.

    Timestamps are read over. Raises PageError for a line of these names that is malformed; other lines are not read.
    """
    samples: list[Sample] = []
    last_is_ours = False
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line or line[0] == _COMMENT:
            continue
        brace = line.find(b"{")
        name = line[:brace].strip() if brace >= 0 else (line.split(None, 1) or [b""])[0]
        if name in names:
            end = line.rfind(b"}") if brace >= 0 else line.find(name) + len(name) - 1
            samples.append(
                (name, line[brace + 1 : end] if brace >= 0 else b"", _value(line[end + 1 :], number), number)
            )
            last_is_ours = True
        elif name:
            last_is_ours = False
    return samples, last_is_ours


def _value(text: bytes, line: int) -> float:
    try:
        return float(text)
    except ValueError:  # a timestamp follows, or it is malformed
        parts = text.split()
        try:
            value, _timestamp = (float(part) for part in parts)
            return value
        except ValueError:
            raise PageError(f"line {line}: no value, but {text[:60].decode(errors='replace')!r}") from None


def parse_labels(text: bytes) -> dict[str, str]:
    """Labels by name, their values unescaped. Raises ValueError when the text is malformed or not UTF-8."""
    labels: dict[str, str] = {}
    text = text.strip()
    at = 0
    while at < len(text):
        if not (match := _LABEL.match(text, at)):
            raise ValueError(f"labels cannot be read: {text[at : at + 60].decode(errors='replace')}")
        value = match[2].decode()
        labels[match[1].decode()] = _ESCAPE.sub(_unescape, value) if "\\" in value else value
        at = match.end()
    return labels


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def check_end(text: bytes) -> None:
    """Raises PageError when the text stops in the middle of a line, or of a family's two comment lines."""
    if not text.endswith(b"\n"):
        raise PageError(f"half-written: the last line stops in the middle: {text[-60:].decode(errors='replace')!r}")
    last = text[text.rfind(b"\n", 0, -1) + 1 :]
    if last.startswith(b"# HELP "):
        raise PageError(f"half-written: it stops after {last[:80].decode(errors='replace')!r}")
