"""The Prometheus text format (0.0.4), read for a few chosen names: every other line costs one look-up.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Container

_LABEL = re.compile(rb'\s*([a-zA-Z_]\w*)\s*=\s*"([^"\\]*(?:\\.[^"\\]*)*)"\s*(?:,|$)', re.DOTALL)
_COMMENT = ord("#")
_NO_LINE = b"\n"
"""No line begins like this."""
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class PageError(ValueError):
    """The page is not one of vLLM, is half-written, or contradicts itself. Nothing of it may be used."""


Sample = tuple[bytes, float, int]
"""The series as written (for `parse_series`), value, number of the line from 1."""


def pick(text: bytes, names: Container[bytes]) -> tuple[list[Sample], bool]:
    """The samples of these names in their order, and whether the last sample of the text is one of them.

    Timestamps are read over. Raises PageError for a line of these names that is malformed; other lines are not read.
    """
    samples: list[Sample] = []
    start, wanted = _NO_LINE, False
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line or line[0] == _COMMENT:
            continue
        if not line.startswith(start):  # the samples of a name follow each other: most lines need no more than this
            if line.isspace():
                continue
            before, brace, _ = line.partition(b"{")
            name = before.strip() if brace else before.split(None, 1)[0]
            start, wanted = before + brace if brace else _NO_LINE, name in names
        if wanted:
            end = line.rfind(b"}") + 1 if brace else line.find(name) + len(name)
            try:
                value = float(line[end:])
            except ValueError:
                value = _before_timestamp(line[end:], number)
            samples.append((line[:end], value, number))
    return samples, wanted


def _before_timestamp(text: bytes, line: int) -> float:
    try:
        value, _timestamp = (float(part) for part in text.split())
        return value
    except ValueError:
        raise PageError(f"line {line}: no value, but {text[:60].decode(errors='replace')!r}") from None


def parse_series(text: bytes) -> tuple[bytes, dict[str, str]]:
    """Name and labels. Raises ValueError like `parse_labels`."""
    name, brace, labels = text.partition(b"{")
    return name.strip(), parse_labels(labels[:-1]) if brace else {}


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
