"""The vLLM plugin without vLLM: what a schedule file means, and how one is followed."""

from __future__ import annotations

import configparser
import json
import os
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import specdecode_vllm as plugin
from specdecode_vllm import FILE, SIZE_LIMIT, STATUS, Follower, InForce, Rejected, Report, Schedule, Server, read

STARTED: Schedule = ((1, 16, 5), (17, 256, 0))
SERVER = Server("ngram", "the-model", 5, STARTED, "chat-1")
ABOUT = {
    "method": "ngram",
    "num_speculative_tokens": 5,
    "num_speculative_tokens_per_batch_size": [[1, 16, 5], [17, 256, 0]],
}


def file(**changed: Any) -> bytes:
    content = {"version": 1, "started_with": ABOUT, "schedule": [[1, 32, 5], [33, 256, 0]], **changed}
    return json.dumps({key: value for key, value in content.items() if value is not None}).encode()


def test_a_file_about_this_server_is_in_force() -> None:
    assert read(file(), SERVER) == InForce(((1, 32, 5), (33, 256, 0)), "file")


def test_the_entry_of_a_pod_goes_before_that_of_all() -> None:
    pods = {"chat-1": [[1, 8, 5]], "chat-2": [[1, 4, 1]]}
    assert read(file(pods=pods), SERVER) == InForce(((1, 8, 5),), "pod")
    assert read(file(pods={"chat-2": [[1, 4, 1]]}), SERVER).source == "file"


@pytest.mark.parametrize(
    "other",
    [
        {"method": "draft_model"},
        {"model": "another"},
        {"num_speculative_tokens": 4},
        {"num_speculative_tokens_per_batch_size": [[1, 256, 5]]},
        {"something": "of a later version"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_server_that_was_started_with_something_else_goes_by_its_arguments(other: dict[str, Any]) -> None:
    assert read(file(started_with=ABOUT | other), SERVER) == InForce(STARTED, "arguments")


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "NotJson"),
    "truncated": (file()[:-20], "NotJson"),
    "huge": (b" " * (SIZE_LIMIT + 1), "TooLarge"),
    "not UTF-8": (b"\xff\xfe{}", "NotJson"),
    "deep": (b"[" * 60_000, "NotJson"),
    "a list": (b"[]", "WrongType"),
    "null": (b"null", "WrongType"),
    "of a later version": (file(version=2), "WrongType"),
    "about nobody": (file(started_with=None), "WrongType"),
    "without schedule": (file(schedule=None), "WrongType"),
    "an empty schedule": (file(schedule=[]), "WrongType"),
    "a schedule of text": (file(schedule="[[1,256,5]]"), "WrongType"),
    "a row too short": (file(schedule=[[1, 256]]), "WrongType"),
    "K as text": (file(schedule=[[1, 256, "5"]]), "WrongType"),
    "K as a fraction": (file(schedule=[[1, 256, 2.5]]), "WrongType"),
    "K as true": (file(schedule=[[1, 256, True]]), "WrongType"),
    "K not a number": (b'{"version": 1, "started_with": {}, "schedule": [[1, 256, NaN]]}', "WrongType"),
    "K above the server's": (file(schedule=[[1, 256, 6]]), "OutOfRange"),
    "a negative K": (file(schedule=[[1, 256, -1]]), "OutOfRange"),
    "not from 1": (file(schedule=[[2, 256, 5]]), "OutOfRange"),
    "from 0": (file(schedule=[[0, 256, 5]]), "OutOfRange"),
    "a range backwards": (file(schedule=[[1, 16, 5], [40, 20, 1]]), "OutOfRange"),
    "ranges that overlap": (file(schedule=[[1, 16, 5], [16, 20, 1]]), "OutOfRange"),
    "a bad entry of another pod": (file(pods={"chat-2": "all"}), "WrongType"),
}


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_rejected(text: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as e:
        read(text, SERVER)
    assert e.value.reason == reason


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_whatever_a_file_holds_is_a_schedule_or_rejected(text: bytes) -> None:
    try:
        found = read(text, SERVER)
    except Rejected:
        return
    assert found.schedule


@given(st.lists(st.tuples(st.integers(-1, 40), st.integers(-1, 40), st.integers(-1, 6)), max_size=4))
def test_an_accepted_schedule_starts_at_1_rises_and_keeps_to_the_servers_k(rows: list[tuple[int, int, int]]) -> None:
    try:
        found = read(file(schedule=rows), SERVER)
    except Rejected:
        return
    assert found.schedule[0][0] == 1
    edges = [edge for start, end, _ in found.schedule for edge in (start, end)]
    assert edges == sorted(edges)
    assert all(0 <= k <= SERVER.k for _, _, k in found.schedule)


class Engine:
    """Takes what a follower puts in force and tells."""

    def __init__(self, path: Path) -> None:
        self.path, self.applied, self.told = path, list[Schedule](), list[Report]()
        self.follower = Follower(str(path), SERVER, self.applied.append, self.told.append)

    def sees(self, content: bytes) -> Report:
        """What is told after a file was exchanged as a ConfigMap is: never written in place."""
        new = self.path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(self.path)
        self.follower.look()
        return self.follower.report


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path / "schedule.json")


def test_without_a_file_the_arguments_rule_and_nothing_is_told(engine: Engine) -> None:
    engine.follower.look()
    assert engine.follower.report == Report("Live", "[[1,16,5],[17,256,0]]", "arguments")
    assert (engine.applied, engine.told) == ([], [])


def test_a_new_file_is_put_in_force_once(engine: Engine) -> None:
    engine.sees(file())
    engine.follower.look()
    assert engine.applied == [((1, 32, 5), (33, 256, 0))]
    assert engine.told == [Report("Live", "[[1,32,5],[33,256,0]]", "file", changes=1)]


def test_a_file_that_says_the_same_in_other_words_is_no_change(engine: Engine) -> None:
    engine.sees(file())
    assert engine.sees(file() + b"\n").changes == 1


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD.keys())
def test_after_a_bad_file_the_last_good_schedule_stays_and_the_problem_is_told_once(
    engine: Engine, text: bytes, reason: str
) -> None:
    engine.sees(file())
    report = engine.sees(text)
    assert report == Report("Live", "[[1,32,5],[33,256,0]]", "file", problem=reason, changes=1, errors=1)
    engine.follower.look()
    assert (len(engine.applied), len(engine.told)) == (1, 2)


def test_a_good_file_ends_the_problem(engine: Engine) -> None:
    engine.sees(b"")
    assert engine.sees(file()) == Report("Live", "[[1,32,5],[33,256,0]]", "file", changes=1, errors=1)


def test_when_the_file_goes_the_arguments_rule_again(engine: Engine) -> None:
    engine.sees(file())
    engine.path.unlink()
    engine.follower.look()
    assert engine.applied[-1] == STARTED
    assert engine.follower.report == Report("Live", "[[1,16,5],[17,256,0]]", "arguments", changes=2)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "named pipe"])
def test_what_is_no_regular_file_is_a_problem_and_does_not_block(engine: Engine, make: Any) -> None:
    make(engine.path)
    engine.follower.look()
    engine.follower.look()
    assert engine.follower.report == Report("Live", "[[1,16,5],[17,256,0]]", "arguments", "Unreadable", errors=1)


def test_an_engine_that_refuses_a_schedule_keeps_the_last_one(tmp_path: Path) -> None:
    def refuse(schedule: Schedule) -> None:
        raise ValueError("no")

    path = tmp_path / "schedule.json"
    path.write_bytes(file())
    follower = Follower(str(path), SERVER, refuse, lambda report: None)
    follower.look()
    assert follower.report == Report("Live", "[[1,16,5],[17,256,0]]", "arguments", "Unexpected", errors=1)


def test_an_untested_vllm_is_left_alone_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    newer = ModuleType("vllm")
    newer.__version__ = "0.99.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", newer)
    monkeypatch.setenv(FILE, str(tmp_path / "schedule.json"))
    # Monkeypatch takes back what register() sets.
    monkeypatch.setenv(STATUS, "")
    monkeypatch.delenv(STATUS)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("prometheus_client.REGISTRY.register", lambda collector: None)
    plugin.register()
    assert json.loads(Path(os.environ[STATUS]).read_text())["state"] == "VersionNotTested"


def test_without_its_variable_the_plugin_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE, raising=False)
    plugin.register()
    assert STATUS not in os.environ


def test_the_entry_point_that_is_mounted_is_that_of_the_package() -> None:
    folder = Path(__file__).parents[3] / "plugin"
    mounted = configparser.ConfigParser()
    mounted.read(folder / "entry_points.txt")
    package = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    assert {group: dict(mounted[group]) for group in mounted.sections()} == package
