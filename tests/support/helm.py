"""The real Helm, and the chart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts/specdecode-operator"


def helm() -> Path:
    """`$HELM`, or the one that is built into `.cache/bin`; skips the test where there is none."""
    binary = Path(os.environ.get("HELM", REPOSITORY / ".cache/bin/helm"))
    if not binary.is_file():
        pytest.skip(f"no Helm at {binary}: build it with `make controlplane`, or set HELM")
    return binary
