"""Renders the chart with the real Helm (`$HELM`, or the one that is built into `.cache/bin`)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from support.helm import helm as installed

Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs Helm with these arguments; values are passed as JSON on standard input."""
    binary = installed()

    def run(*arguments: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(binary), *arguments, "--values", "-"]
        return subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, timeout=60)

    return run
