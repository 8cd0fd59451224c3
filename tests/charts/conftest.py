"""Renders the chart with the real Helm (`$HELM`, or the one that is built into `.cache/bin`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts/specdecode-operator"

Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs Helm with these arguments; values are passed as JSON on standard input."""
    binary = Path(os.environ.get("HELM", REPOSITORY / ".cache/bin/helm"))
    if not binary.is_file():
        pytest.skip(f"no Helm at {binary}: build it with `make controlplane`, or set HELM")

    def run(*arguments: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(binary), *arguments, "--values", "-"]
        return subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, timeout=60)

    return run
