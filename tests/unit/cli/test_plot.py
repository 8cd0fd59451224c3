"""`specdecode explain --plot`: the operator's own model over the load, from what it remembers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from specdecode.api.v1alpha1 import Interval, SpecDecodePolicySpec, TurningPointStatus
from specdecode.cli import cluster, sketch
from specdecode.cli.main import app
from specdecode.cli.sketch import Sketch
from specdecode.cluster.kube import Json
from specdecode.cluster.memory import CONFIG_MAPS, name_of
from specdecode.model.memory import Memory
from support.fake_api import FakeKube
from support.small_cluster import Cluster
from support.world import NOW

SLO = {"slo": {"timePerOutputToken": {"p99": "60ms"}}}


@pytest.fixture
async def seen() -> Cluster:
    """A policy that recommends only, after a while."""
    made = Cluster(mode="Recommend", objective=SLO, metrics={"interval": "30s", "window": "5m"})
    await made.tick(12, 30.0)
    return made


@pytest.fixture
def connected(seen: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """What the commands read."""

    async def found(*_: Any) -> list[Json]:
        return [seen.policy]

    async def connect(*_: Any) -> FakeKube:
        return seen.kube

    async def close(_: Any) -> None:
        """Nothing is open."""

    monkeypatch.setattr(cluster, "policies", found)
    monkeypatch.setattr(sketch.Kube, "connect", connect)
    monkeypatch.setattr(FakeKube, "close", close)
    return seen


def asked(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["explain", "chat", "--plot", *arguments])


def drawn_from(seen: Cluster) -> Sketch:
    async def read() -> Sketch | None:
        spec = SpecDecodePolicySpec.model_validate(seen.policy["spec"])
        o, keeper = await sketch._read(seen.policy, spec, seen.status, None, None)
        return sketch.sketch("serving/chat", o, seen.status, keeper.memory)

    found = cluster.run(read())
    assert found is not None
    return found


# --- the figures --------------------------------------------------------------------------------------------------


def test_the_curves_are_those_of_the_operators_own_model(connected: Cluster) -> None:
    s = drawn_from(connected)
    status = connected.status
    assert [c.profile for c in s.curves] == [p.name for p in status.profiles] == ["ngram", "disabled"]
    assert [c.runs for c in s.curves] == [False, True]
    assert status.observation is not None and s.today == status.observation.tokens_per_second
    for curve, told in zip(s.curves, status.profiles, strict=True):
        assert told.predicted is not None and told.headroom is not None
        low, value, high = (float(np.interp(s.today, s.loads, row)) for row in curve.tpot)
        # The status rounds to three digits, and the memory to five.
        assert value == pytest.approx(told.predicted.value, rel=0.02)
        assert (low, high) == pytest.approx((told.predicted.low, told.predicted.high), rel=0.05)
        assert curve.capacity.value == pytest.approx(told.headroom.value * s.today, rel=0.02)
    assert s.limit == 0.06 and s.past and s.past[0] == pytest.approx(s.today, rel=0.1)


def test_no_pod_is_asked(connected: Cluster) -> None:
    before = connected.scraper
    connected.silent = {"10.0.0.1", "10.0.0.2"}
    assert drawn_from(connected).curves and connected.scraper is before
    patches, created = len(connected.kube.patches), len(connected.kube.created)
    drawn_from(connected)
    assert (len(connected.kube.patches), len(connected.kube.created)) == (patches, created), "nor is anything written"


def test_a_workload_that_cannot_be_managed_has_no_picture(connected: Cluster) -> None:
    spec = SpecDecodePolicySpec.model_validate(connected.policy["spec"])
    del connected.kube.objects["deployments", "chat"]
    o, _ = cluster.run(sketch._read(connected.policy, spec, connected.status, None, None))
    assert sketch.sketch("serving/chat", o, connected.status, Memory()) is None


# --- the file -----------------------------------------------------------------------------------------------------


def test_an_svg_is_labelled_with_what_matters(connected: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "chat.svg"
    recommendation = connected.policy["status"]["recommendation"]
    turning = TurningPointStatus(
        profile="ngram",
        quantity="Load",
        direction="Above",
        at=Interval(value=600.0, low=500.0, high=800.0),
        now=Interval(value=400.0, low=400.0, high=400.0),
    )
    recommendation["turningPoints"] = [turning.model_dump(by_alias=True)]
    result = asked(str(file))
    assert result.exit_code == 0, result.output
    assert f"The picture is {file}." in result.output.replace("\n", "")
    text = file.read_text()
    for words in (
        "serving/chat on vLLM 0.24.0, 2027-01-15",
        "time per output token, ms",
        "disabled, runs",
        "ngram above 600",
        "limit of the 99th percentile, 60.0 ms",
        "now: 4",
        "full at ",
    ):
        assert words in text, words
    again = tmp_path / "again.svg"
    assert asked(str(again)).exit_code == 0
    assert again.read_bytes() == file.read_bytes(), "the same state is the same picture"


def test_a_png_is_a_png(connected: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "chat.png"
    assert asked(str(file)).exit_code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


# --- what hinders -------------------------------------------------------------------------------------------------


def test_another_format_is_refused(connected: Cluster, tmp_path: Path) -> None:
    result = asked(str(tmp_path / "chat.gif"))
    assert result.exit_code == 1 and "name a file that ends in .svg or .png" in result.stderr


def test_a_folder_that_is_not_there_is_said(connected: Cluster, tmp_path: Path) -> None:
    result = asked(str(tmp_path / "nowhere" / "chat.svg"))
    assert result.exit_code == 1 and "No such file or directory" in result.stderr


def test_without_matplotlib_the_way_out_is_said(
    connected: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "specdecode.cli.plot", None)
    result = asked(str(tmp_path / "chat.svg"))
    assert result.exit_code == 1 and "pip install 'specdecode[lab]'" in result.stderr
    assert "Profiles at" in result.output, "the words are there all the same"


def test_where_nobody_asks_for_anything_there_is_nothing_to_draw(connected: Cluster, tmp_path: Path) -> None:
    del connected.policy["status"]["observation"]["tokensPerSecond"]
    result = asked(str(tmp_path / "chat.svg"))
    assert result.exit_code == 1 and "users ask for nothing" in result.stderr


def test_a_deployment_that_is_gone_is_said(connected: Cluster, tmp_path: Path) -> None:
    del connected.kube.objects["deployments", "chat"]
    result = asked(str(tmp_path / "chat.svg"))
    assert result.exit_code == 1 and "there is no Deployment chat" in result.stderr


def test_a_memory_that_cannot_be_used_is_said_and_the_picture_is_what_is_assumed(
    connected: Cluster, tmp_path: Path
) -> None:
    connected.kube.objects[CONFIG_MAPS.plural, name_of("chat")]["data"] = {"memory.json": "{"}
    file = tmp_path / "chat.svg"
    result = asked(str(file))
    assert result.exit_code == 0 and "shows what is assumed beforehand" in result.stderr
    assert file.exists()


def test_where_nothing_was_learnt_yet_that_is_said(connected: Cluster, tmp_path: Path) -> None:
    del connected.kube.objects[CONFIG_MAPS.plural, name_of("chat")]
    result = asked(str(tmp_path / "chat.svg"))
    assert result.exit_code == 0 and "nothing was learnt yet" in result.stderr


def test_the_picture_is_of_when_the_status_was_written(connected: Cluster) -> None:
    written = connected.status.observation
    assert written is not None
    connected.now = NOW + 1e6
    day, clock = written.time.split("T")
    assert drawn_from(connected).title == f"serving/chat on vLLM 0.24.0, {day} {clock[:5]} UTC"
