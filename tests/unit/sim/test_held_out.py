"""Scenarios that nothing was tuned on: they can be run, and are the same each time."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from specdecode.sim.twin.scenario import load_scenario
from specdecode.sim.twin.world import world_of
from support.benchmarks import script


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("held_out", monkeypatch)


def written(held_out: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(sys, "argv", ["held_out.py", str(folder), "--random", "2"])
    held_out.main()
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_every_scenario_that_is_written_can_be_run(
    held_out: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = written(held_out, tmp_path, monkeypatch)
    scenarios = sorted(tmp_path.glob("*.yaml"))
    assert len(scenarios) == 2 * len(held_out.ENGINES) + 2
    for path in scenarios:
        world_of(load_scenario(path))
    assert written(held_out, tmp_path / "again", monkeypatch) == files


def test_an_invented_engine_does_what_engines_do(held_out: ModuleType) -> None:
    for engine in held_out.ENGINES:
        assert engine.step(1) < engine.step(64) < engine.step(512) < engine.step(513)
        assert engine.step(513) >= held_out.LAUNCH_MS
        assert engine.step(8, added=5.0) == pytest.approx(engine.step(8) + 5.0)
