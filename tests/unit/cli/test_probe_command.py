"""`specdecode probe temperature`: what it prints, draws and refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from specdecode.cli.main import app
from specdecode.cli.probe import floor, show
from specdecode.cli.probe_plot import draw
from specdecode.cluster.kube import DEPLOYMENTS, Json
from specdecode.model.estimate import Estimate
from specdecode.probe.acceptance import AtTemperature
from specdecode.probe.sweep import SweepResult
from support.fake_api import FakeKube


def at(temperature: float, acceptance: float | None, **changes: float) -> AtTemperature:
    known = None if acceptance is None else Estimate(acceptance, acceptance - 0.05, acceptance + 0.05)
    length = None if acceptance is None else Estimate(1 + 3 * acceptance, 1.2, 3.9)
    positions = () if acceptance is None else (acceptance + 0.1, acceptance, acceptance - 0.1)
    return replace(AtTemperature(temperature, 20, 4000, known, length, length, positions, 1000, 0, 0), **changes)


RESULT = SweepResult(
    "http://vllm:8000", "m", 1, "0.32.0", 6, 200, 1, [at(0, 0.81), at(0.8, 0.52), at(1, 0.38)], ["others used them"]
)


def printed(result: SweepResult) -> str:
    console = Console(width=100)
    with console.capture() as text:
        show(result, console)
    return text.get()


def test_the_table_has_a_line_for_each_temperature() -> None:
    text = printed(RESULT)
    assert "m at http://vllm:8000, vLLM 0.32.0" in text
    assert "0.8 0.52 (0.47-0.57)" in " ".join(text.split())
    assert "0.91 0.81 0.71" in text
    assert "surely below 0.5 from temperature 1 on" in text
    assert "Warning: others used them." in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_temperature_that_others_disturbed_is_marked() -> None:
    disturbed = replace(RESULT, temperatures=[at(0, 0.81, foreign_requests=3)], warnings=[])
    assert "0 ! 0.81" in " ".join(printed(disturbed).split())


@pytest.mark.parametrize(
    ("acceptances", "expected"),
    [((0.8, 0.7, 0.6), None), ((0.8, 0.4, 0.3), 1), ((0.8, 0.4, 0.6), None), ((0.8, 0.4, None), None), ((0.1,), 0)],
)
def test_the_floor_is_where_acceptance_stays_below(acceptances: tuple[float | None, ...], expected: int | None) -> None:
    assert floor([at(t, a) for t, a in enumerate(acceptances)]) == expected


@pytest.mark.parametrize("name", ["sweep.svg", "sweep.png"])
def test_the_picture_is_drawn_also_where_nothing_was_drafted(name: str, tmp_path: Path) -> None:
    draw(replace(RESULT, temperatures=[*RESULT.temperatures, at(1.5, None)]), tmp_path / name)
    first = (tmp_path / name).read_bytes()
    draw(replace(RESULT, temperatures=[*RESULT.temperatures, at(1.5, None)]), tmp_path / name)
    assert first == (tmp_path / name).read_bytes()
    assert b"temperature" in first or name.endswith("png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperatures", "0,hot"], "numbers between commas"),
        (["--temperatures", "0,3"], "3 is not between 0 and 2"),
        (["--temperatures", "0,1,0"], "one is named twice"),
        (["--requests", "4", "--concurrency", "4"], "--requests 8 or more"),
        (["--plot", "x.txt"], "a file that ends in .svg or .png"),
        (["-o", "yaml"], "prints the Job of --job POLICY"),
        (["--prompts", "/nowhere/p.txt"], "No such file"),
        (["--job", "chat", "--api-key", "k"], "an API key would stand in the Job"),
        (["--endpoint", "no url"], "cannot be reached"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_words(arguments: list[str], words: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello\n")
    given = ["probe", "temperature", "--endpoint", "http://127.0.0.1:9", "--prompts", str(prompts), *arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())


class Reachable(FakeKube):
    """A cluster with an operator."""

    async def close(self) -> None:
        pass


def in_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> str:
    containers = [{"image": "registry.example.com/specdecode-operator:0.1.0"}]
    operator = {"metadata": {"name": "op"}, "spec": {"template": {"spec": {"containers": containers}}}}
    kube = Reachable((DEPLOYMENTS, operator))

    async def connect(kubeconfig: str | None, context: str | None) -> Reachable:
        return kube

    async def one(*_: object) -> Json:
        return {"metadata": {"namespace": "serving", "name": "chat"}}

    async def run(*_: object) -> SweepResult:
        return RESULT

    monkeypatch.setattr("specdecode.cli.probe.Kube.connect", connect)
    monkeypatch.setattr("specdecode.cli.probe.one", one)
    monkeypatch.setattr("specdecode.probe.job.run", run)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello\n")
    given = ["probe", "temperature", "--endpoint", "http://chat:8000", "--prompts", str(prompts), "--job", "chat"]
    result = CliRunner().invoke(app, [*given, *arguments])
    assert result.exit_code == 0, result.output
    assert not kube.created
    return result.stdout


def test_a_job_can_be_printed_and_is_then_not_created(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job, prompts = yaml.safe_load_all(in_cluster(monkeypatch, tmp_path, "-o", "yaml"))
    assert (job["kind"], job["metadata"]["namespace"]) == ("Job", "serving")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/specdecode-operator:0.1.0"
    assert prompts["data"] == {"prompts.txt": "Hello\n"}


def test_the_result_of_a_job_is_printed_like_one_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = in_cluster(monkeypatch, tmp_path, "-o", "json")
    assert SweepResult.from_json(text[text.index("{") :]) == RESULT
