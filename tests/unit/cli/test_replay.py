"""`specdecode replay` on recordings of real servers and on damaged ones."""

import gzip
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from specdecode.cli.replay import replay

RECORDINGS = Path(__file__).parents[2] / "data" / "vllm-metrics"
RUNS = sorted(p.parent for p in RECORDINGS.glob("*/*/index.jsonl"))
KEYS = [
    "i", "t", "acceptance_rate", "accepted_length", "per_position", "batch_size", "tpot_seconds", "step_seconds",
    "ttft_seconds", "kv_usage", "generation_tokens_per_second",
]  # fmt: skip
app = typer.Typer()
app.command()(replay)


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [str(folder), *arguments])


def rows(folder: Path) -> list[dict[str, Any]]:
    result = run(folder, "-o", "json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A copy of the n-gram run on vLLM 0.32, to be damaged."""
    return shutil.copytree(RECORDINGS / "0.32.0" / "ngram", tmp_path / "ngram")


def sums(path: Path) -> dict[str, float]:
    """Values by name, added over labels; positions apart. Nothing of the reader under test."""
    found: dict[str, float] = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        if m := re.match(r"([a-z_:]+)(?:\{(.*)\})? (\S+)$", line):
            position = re.search(r'position="(\d+)"', m[2] or "")
            key = m[1] + (f" {position[1]}" if position else "")
            found[key] = found.get(key, 0.0) + float(m[3])
    return found


@pytest.mark.parametrize("folder", RUNS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_the_figures_are_those_of_page_differences(folder: Path) -> None:
    index = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    found = rows(folder)
    assert [row["i"] for row in found] == [row["i"] for row in index[1:]]
    for before, after, row in zip(index, index[1:], found, strict=False):
        old, new = (sums(folder / f"{r['i']:04d}.prom.gz") for r in (before, after))

        def d(name: str, old: dict[str, float] = old, new: dict[str, float] = new) -> float | None:
            return new[name] - old[name] if name in new else None

        def ratio(part: str, whole: str, d: Any = d) -> float | None:
            return d(part) / d(whole) if d(whole) else None

        def mean(name: str, ratio: Any = ratio) -> float | None:
            return ratio(f"vllm:{name}_sum", f"vllm:{name}_count")

        spec = "vllm:spec_decode_num_"
        extra = ratio(f"{spec}accepted_tokens_total", f"{spec}drafts_total")
        per_position = [
            ratio(name, f"{spec}drafts_total")
            for name in sorted(new)
            if name.startswith(f"{spec}accepted_tokens_per_pos_total")
        ]
        expected = {
            "i": after["i"],
            "t": after["t"],
            "acceptance_rate": ratio(f"{spec}accepted_tokens_total", f"{spec}draft_tokens_total"),
            "accepted_length": None if extra is None else 1 + extra,
            "per_position": per_position if extra is not None else None,
            "batch_size": new["vllm:num_requests_running"],
            "tpot_seconds": mean("request_time_per_output_token_seconds"),
            "step_seconds": mean("inter_token_latency_seconds"),
            "ttft_seconds": mean("time_to_first_token_seconds"),
            "kv_usage": new["vllm:kv_cache_usage_perc"],
            "generation_tokens_per_second": (d("vllm:generation_tokens_total") or 0.0) / (after["t"] - before["t"]),
        }
        assert list(row) == KEYS
        for key, value in expected.items():
            assert row[key] == (value and pytest.approx(value, rel=1e-9, abs=1e-12)), (row["i"], key)


def test_off_shows_no_acceptance_but_everything_else() -> None:
    for row in rows(RECORDINGS / "0.24.0-h200" / "off"):
        assert {key for key, value in row.items() if value is None} == {
            "acceptance_rate",
            "accepted_length",
            "per_position",
        }


def test_a_page_that_cannot_be_read_gives_an_empty_row_and_the_next_is_compared_with_the_last_good_one(
    recording: Path,
) -> None:
    whole = rows(recording)
    files = sorted(recording.glob("*.prom.gz"))
    files[2].write_bytes(gzip.compress(gzip.decompress(files[2].read_bytes())[:-7]))
    files[3].write_bytes(files[3].read_bytes()[:500])
    result = run(recording, "-o", "json")
    assert result.exit_code == 0
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["i"] for row in found] == [row["i"] for row in whole]
    assert found[0] == whole[0]
    for n in (1, 2):
        assert {key for key, value in found[n].items() if value is not None} == {"i", "t"}
    assert found[3]["batch_size"] == whole[3]["batch_size"]
    assert found[3]["acceptance_rate"] not in (None, whole[3]["acceptance_rate"]), "spans the pages that were lost"
    assert "page 15 not measured" in result.stderr and "half-written" in result.stderr
    assert "page 22 not measured" in result.stderr and "end-of-stream" in result.stderr


def test_a_first_page_that_cannot_be_read_leaves_the_gauges_of_the_second(recording: Path) -> None:
    (recording / "0006.prom.gz").write_bytes(gzip.compress(b"<html>"))
    first = rows(recording)[0]
    assert {key for key, value in first.items() if value is not None} == {"i", "t", "batch_size", "kv_usage"}


def test_a_restart_leaves_the_gauges(recording: Path) -> None:
    path = recording / "0014.prom.gz"
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(
        gzip.compress(re.sub(rb"(?m)^process_start_time_seconds .*$", b"process_start_time_seconds 1", text))
    )
    result = run(recording, "-o", "json")
    first = json.loads(result.stdout.splitlines()[0])
    assert {key for key, value in first.items() if value is not None} == {"i", "t", "batch_size", "kv_usage"}
    assert "page 14 not measured: Restarted" in result.stderr


def test_index_rows_need_only_i_and_t(recording: Path) -> None:
    expected = rows(recording)
    index = [json.loads(line) for line in (recording / "index.jsonl").read_text().splitlines()]
    bare = [{"i": row["i"], "t": row["t"]} for row in index]
    lines = [json.dumps(row | {"phase": None, "client": None} if n % 2 else row) for n, row in enumerate(bare)]
    (recording / "index.jsonl").write_text("\n\n".join(lines))
    assert rows(recording) == expected


def test_several_engines_are_one_pod(recording: Path) -> None:
    single = rows(recording)
    for path in recording.glob("*.prom.gz"):
        families = re.split(rb"(?m)^(?=# HELP)", gzip.decompress(path.read_bytes()))
        doubled = [f + f.replace(b'engine="0"', b'engine="1"') if b'engine="0"' in f else f for f in families]
        path.write_bytes(gzip.compress(b"".join(doubled)))
    for one, two in zip(single, rows(recording), strict=True):
        twice = {"batch_size", "generation_tokens_per_second"}
        for key, value in one.items():
            assert two[key] == pytest.approx(2 * value if key in twice else value), key


def test_a_folder_without_an_index_is_timed_by_its_files(recording: Path, tmp_path: Path) -> None:
    index = [json.loads(line) for line in (recording / "index.jsonl").read_text().splitlines()]
    plain = tmp_path / "plain"
    plain.mkdir()
    for row in index:
        path = plain / f"at-{row['i']:04d}.prom"
        path.write_bytes(gzip.decompress((recording / f"{row['i']:04d}.prom.gz").read_bytes()))
        os.utime(path, (row["t"], row["t"]))
    for with_index, without in zip(rows(recording), rows(plain), strict=True):
        assert [without[key] for key in KEYS[2:]] == [
            pytest.approx(with_index[key], rel=1e-4) if key == KEYS[-1] else with_index[key] for key in KEYS[2:]
        ]


def test_the_table_is_the_default_and_fits_a_terminal(recording: Path) -> None:
    result = run(recording)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (row for row in rows(recording) if row["i"] == 31)
    (line,) = (line for line in lines if line.lstrip().startswith("31 "))
    assert line.split()[2:6] == [
        f"{100 * row['acceptance_rate']:.0f}",
        f"{row['accepted_length']:.2f}",
        f"{row['batch_size']:.0f}",
        f"{1000 * row['tpot_seconds']:.1f}",
    ]
    assert "…" not in result.stdout


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"i": 99, "t": 1.0}', "line 1: page 99 is not in the folder"),
        ('{"i": 6}', "line 1: expected an object with numbers i and t: KeyError('t')"),
        ('{"i": 6, "t": null}', "line 1: expected an object with numbers i and t"),
        ('{"i": 6, "t": NaN}', "line 1: expected an object with numbers i and t"),
        ('{"i": 6, "t": 1.0}\n{"i": 14, "t"', "line 2: expected an object with numbers i and t"),
        ("[6, 1.0]", "line 1: expected an object with numbers i and t"),
    ],
)
def test_a_malformed_index_is_an_error_that_says_where(recording: Path, index: str, message: str) -> None:
    (recording / "index.jsonl").write_text(index)
    result = run(recording)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""


def test_a_missing_folder_and_a_folder_without_pages_are_errors(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "no pages (*.prom or *.prom.gz)")):
        result = run(folder, "-o", "json")
        assert result.exit_code == 1
        assert result.stderr == f"specdecode replay: {folder}: {message}\n"
