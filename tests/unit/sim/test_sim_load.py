"""Workloads and the load generator's arithmetic; its network side is in tests/component."""

from __future__ import annotations

import gzip
import random
from itertools import pairwise

import pytest

from specdecode.sim.load import Record, summarise
from specdecode.sim.load_cli import BUILTIN_TRACE, main, table
from specdecode.sim.workload import Phase, WorkloadError, parse_phase, poisson, read_trace


def test_a_phase_is_read() -> None:
    phase = parse_phase("quiet:1.5m:2rps:summarise=0.7+chat=0.3:T=0.4:prompt=100-300:output=50")
    assert phase == Phase(
        "quiet", 90.0, 2.0, None, {"summarise": 0.7, "chat": 0.3}, 0.4, prompt_tokens=(100, 300), output_tokens=(50, 50)
    )
    assert parse_phase("busy:30s:8clients:code").clients == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quiet", "write NAME:DURATION:LOAD:MIX"),
        ("quiet:30:2rps:chat", "write NAME:DURATION:LOAD:MIX"),
        ("quiet:30s:2:chat", "write NAME:DURATION:LOAD:MIX"),
        ("quiet:30s:2rps", "write NAME:DURATION:LOAD:MIX"),
        ("quiet:30s:2rps:chat:hot", "'hot' is none of"),
        ("quiet:30s:2rps:chat:T=hot", "could not convert"),
        ("quiet:30s:2rps:chat:prompt=9-3", "not a range"),
        ("quiet:0s:2rps:chat", "seconds must be positive"),
    ],
)
def test_a_bad_phase_is_named(text: str, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        parse_phase(text)


def test_a_phase_is_open_or_closed() -> None:
    with pytest.raises(WorkloadError, match="give a rate"):
        Phase("x", 1.0, rate=1.0, clients=1)


def test_poisson_arrivals_come_at_the_rate_inside_the_phase() -> None:
    arrivals = list(poisson(parse_phase("p:1000s:5rps:chat=0.75+code=0.25:T=1"), random.Random(3), start=100.0))
    assert len(arrivals) == pytest.approx(5000, rel=0.05)
    assert all(100 <= a.at < 1100 for a in arrivals)
    assert all(a.at < b.at for a, b in pairwise(arrivals))
    assert sum(a.ask.kind == "code" for a in arrivals) / len(arrivals) == pytest.approx(0.25, abs=0.03)
    assert all(50 <= a.ask.prompt_tokens <= 900 for a in arrivals)


def test_the_packages_trace_is_an_hour_of_8819_requests() -> None:
    with gzip.open(BUILTIN_TRACE, "rt") as file:
        arrivals = list(read_trace(file, time_scale=60))
    assert len(arrivals) == 8819
    assert 50 < arrivals[-1].at < 60
    assert (arrivals[0].ask.prompt_tokens, arrivals[0].ask.output_tokens) == (4808, 10)


def test_a_broken_trace_is_named_with_its_line() -> None:
    with pytest.raises(WorkloadError, match="trace line 3: 'x,y' is not TIMESTAMP"):
        list(read_trace(["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03,10,10", "x,y"]))


def record(start: float, phase: str, tpot: float | None, tokens: int = 11, error: str | None = None) -> Record:
    return Record(start, phase, "chat", 0.0, "http://a", tokens, 0.1, tpot, start + 1, error)


def test_the_summary_counts_failures_and_weighs_by_tokens() -> None:
    records = [
        record(0.0, "one", 0.010, tokens=101),
        record(1.0, "one", 0.020, tokens=301),
        record(2.0, "two", None, tokens=0, error="connection"),
        record(3.0, "two", None, tokens=1),
    ]
    summary = summarise(records)
    assert list(summary) == ["one", "two", "total"]
    assert summary["one"]["tpot_token_weighted_mean"] == pytest.approx(0.0175)
    assert summary["one"]["tpot"] == {"mean": pytest.approx(0.015), "p50": 0.010, "p95": 0.020, "p99": 0.020}
    assert summary["two"] | {"ttft": None} == {
        "requests": 2,
        "failures": 1,
        "errors": {"connection": 1},
        "tokens": 1,
        "tokens_per_second": 0.5,
        "tpot_token_weighted_mean": None,
        "tpot": None,
        "ttft": None,
    }
    assert summary["total"]["tokens_per_second"] == pytest.approx(403 / 4)


def test_percentiles_are_nearest_rank() -> None:
    tpot = summarise([record(0, "p", i / 1000) for i in range(1, 201)])["p"]["tpot"]
    assert tpot == {"mean": pytest.approx(0.1005), "p50": 0.1, "p95": 0.19, "p99": 0.198}


def test_the_table_shows_milliseconds_and_gaps() -> None:
    lines = table(summarise([record(0, "one", 0.0125), record(2, "two", None, 0, "cut")])).splitlines()
    assert lines[1].split()[:6] == ["one", "1", "0", "11.0", "12.5", "12.5"]
    assert lines[2].split()[4:] == ["-"] * 8


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--url", "http://x"], "nothing to play"),
        (["--url", "http://x", "--phase", "nonsense"], "write NAME:DURATION:LOAD:MIX"),
        (["--url", "http://x", "--trace", "/nowhere.csv"], "No such file"),
        (["--phase", "a:1s:1rps:chat"], "--url"),
    ],
)
def test_the_command_line_says_what_is_wrong(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
