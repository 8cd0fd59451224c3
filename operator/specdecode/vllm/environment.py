"""A container's environment and the `$(VAR)` references in its command, as a kubelet expands them.

The rules are those of Kubernetes' `third_party/forked/golang/expansion`: `$(NAME)` is replaced where NAME is defined
and left alone where it is not, `$$` is an escaped `$`, and a variable's own value may refer to the variables before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Piece:
    """A stretch of an expanded text: `text` stands for `source[start:end]`; None where the value is not known."""

    start: int
    end: int
    text: str | None
    substituted: bool = False


@dataclass(frozen=True)
class Environment:
    """The variables that a manifest defines; None for those whose value it takes from elsewhere (`valueFrom`)."""

    values: Mapping[str, str | None] = field(default_factory=dict)
    others_unknown: bool = False
    """Whether `envFrom` may define more."""

    @classmethod
    def of(cls, container: Mapping[str, Any]) -> Environment:
        """The environment that a container's `env` and `envFrom` give it."""
        others_unknown = bool(container.get("envFrom"))
        values: dict[str, str | None] = {}
        for entry in container.get("env") or ():
            if not isinstance(entry, Mapping) or not isinstance(name := entry.get("name"), str):
                continue
            value = entry.get("value", "")
            if entry.get("valueFrom") is not None or not isinstance(value, str):
                values[name] = None
            else:
                values[name] = cls(dict(values), others_unknown).expand(value)
        return cls(values, others_unknown)

    def known(self, name: str) -> bool:
        """Whether the manifest says what the variable is, or at least that nothing in it defines the variable."""
        return self.values[name] is not None if name in self.values else not self.others_unknown

    def pieces(self, source: str) -> Iterator[Piece]:
        """The text that a kubelet makes of `source`, piece by piece and in order."""
        at = 0
        while (dollar := source.find("$", at)) >= 0 and dollar + 1 < len(source):
            if dollar > at:
                yield Piece(at, dollar, source[at:dollar])
            close = source.find(")", dollar + 2)
            if source[dollar + 1] == "$":
                at = dollar + 2
                yield Piece(dollar, at, "$", substituted=True)
            elif source[dollar + 1] == "(" and close >= 0:
                at, name = close + 1, source[dollar + 2 : close]
                if name in self.values:
                    yield Piece(dollar, at, self.values[name], substituted=True)
                else:
                    yield Piece(dollar, at, source[dollar:at] if self.known(name) else None)
            else:
                at = dollar + 2
                yield Piece(dollar, at, source[dollar:at])
        if at < len(source):
            yield Piece(at, len(source), source[at:])

    def expand(self, source: str) -> str | None:
        """The expanded text; None where a part of it is not known."""
        parts = [piece.text for piece in self.pieces(source)]
        return None if None in parts else "".join(part for part in parts if part is not None)


def literal(text: str) -> str:
    """The text to write for a kubelet to leave `text` behind."""
    return text.replace("$", "$$") if "$(" in text or "$$" in text else text
