"""`$(VAR)` in a container's command, arguments and environment, as a kubelet expands it.

The rules are those of `third_party/forked/golang/expansion` in kubernetes/kubernetes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$(?:(?P<escaped>\$)|\((?P<name>[^)]*)\))")


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value; one without a value stays as it is; `$$` becomes `$`."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match["escaped"] else values.get(match["name"], match[0])

    return _REFERENCE.sub(replace, text)
