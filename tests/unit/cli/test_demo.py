"""What the demo's pods run, and what is said of that."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from specdecode.cli.demo import Vllm, _cast
from specdecode.lab.errors import LabError
from specdecode.lab.realvllm import installation
from specdecode.lab.realvllm.installation import Step
from specdecode.lab.simulated_cast import SimulatedCast


def fails() -> Iterator[Step]:
    """An installation that fails at its first step."""
    raise LabError("`uv pip install` failed:\n[no space left on device]")
    yield


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A console on a machine that could run real vLLM, if its installation did not fail."""
    monkeypatch.setattr(installation, "obstacle", lambda: None)
    monkeypatch.setattr(installation, "install", fails)
    return Console(file=io.StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_where_the_installation_fails_vllm_is_simulated_and_the_reason_is_told(told: Console) -> None:
    assert isinstance(_cast(Vllm.AUTO, told), SimulatedCast)
    first, *rest, last = text(told).splitlines()
    assert first == "`uv pip install` failed:" and rest == ["[no space left on device]"]
    assert last == "vLLM is simulated (real vLLM could not be installed, see above)"


def test_who_asks_for_real_vllm_gets_the_error(told: Console) -> None:
    with pytest.raises(LabError, match="no space left"):
        _cast(Vllm.REAL, told)


@pytest.mark.parametrize(
    ("vllm", "why"), [(Vllm.SIM, "as asked for"), (Vllm.AUTO, "real vLLM cannot run here: no compiler")]
)
def test_where_it_cannot_run_or_nobody_wants_it_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, told: Console, vllm: Vllm, why: str
) -> None:
    monkeypatch.setattr(installation, "obstacle", lambda: "no compiler")
    assert isinstance(_cast(vllm, told), SimulatedCast)
    assert text(told).strip() == f"vLLM is simulated ({why})"
