"""The scripts of benchmarks/, which are no package."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One of them as a module, with those that it imports in reach."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(name)
