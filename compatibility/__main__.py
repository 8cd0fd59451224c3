"""`python -m compatibility [VERSION…]`: checks vLLM releases, keeps what was found, writes docs/compatibility.md."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from compatibility import check, document, observe, releases
from compatibility.cases import cases, line
from specdecode.vllm.version import Version

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = ROOT / "tests" / "data" / "vllm-built"


def examine(of: releases.Distribution, folder: Path, today: str) -> dict[str, Any]:
    """What the release says about itself and about every case."""
    version = Version.parse(of.version)
    assert version is not None
    lines = {case.name: line(case, version) for case in cases()}
    found = _ask(of, folder, {c.name: {"words": lines[c.name].words, "env": dict(c.env)} for c in cases()})
    answers, pages, read_by = found.pop("answers"), found.pop("pages"), found["threshold_read_by"]
    results = [check.result(case, lines[case.name], version, answers[case.name], read_by) for case in cases()]
    padded = answers["n-gram"].get("model_runner") == "V2"
    _keep_pages(of.version, pages)
    return {
        "version": of.version,
        "source": of.name,
        "sha256": of.sha256,
        "checked": today,
        "method": "executed",
        **found,
        "pads_ngram": padded,
        "families": {server: observe.families(after) for server, (_, after) in pages.items()},
        "observed": {
            server: observe.observed(before, after, server.endswith("ngram"), padded)
            for server, (before, after) in pages.items()
        },
        "cases": [_case(result) for result in results],
    }


def _case(result: check.Result) -> dict[str, Any]:
    known = {key: value for key, value in dataclasses.asdict(result).items() if value is not None}
    return known | {"agrees": result.agrees}


def _ask(of: releases.Distribution, folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "compatibility.release", str(folder)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if run.returncode:
        raise SystemExit(f"vLLM {of.version}: its modules do not run here:\n{run.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def _keep_pages(version: str, pages: Mapping[str, tuple[str, str]]) -> None:
    folder = PAGES / version
    folder.mkdir(parents=True, exist_ok=True)
    for server, both in pages.items():
        for when, page in zip(("before", "after"), both, strict=True):
            name = f"{server.lower().replace(' ', '-')}.{when}.prom.gz"
            (folder / name).write_bytes(gzip.compress(page.encode(), mtime=0))


def _json(found: Mapping[str, Any]) -> str:
    """Readable in a diff: a line per key, and per case."""
    parts = {key: json.dumps(value) for key, value in found.items()}
    parts["cases"] = "[\n" + ",\n".join(f"  {json.dumps(case)}" for case in found["cases"]) + "\n ]"
    return "{\n" + ",\n".join(f' "{key}": {value}' for key, value in parts.items()) + "\n}\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="compatibility", description=__doc__)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="releases; none: all that were checked before")
    args = parser.parse_args()
    versions = args.versions or sorted(path.stem for path in RESULTS.glob("*.json"))
    disagree = 0
    with httpx.Client() as client:
        known = releases.distributions(client)
        for version in versions:
            if version not in known:
                raise SystemExit(f"the package index has no vLLM {version}")
            found = examine(known[version], releases.modules(known[version], client), str(date.today()))
            (RESULTS / f"{version}.json").write_text(_json(found))
            wrong = [case for case in found["cases"] if not case["agrees"]]
            disagree += len(wrong)
            said = f"{len(found['cases'])} command lines, {len(wrong)} against what the operator takes it for"
            print(f"vLLM {version}: {said}")
            for case in wrong:
                ours, theirs = case.get("refusal", "written"), f"{case['outcome']} {case['detail']}"
                print(f"  {case['case']}: {ours}; the release: {theirs}")
    document.write()
    sys.exit(disagree > 0)


if __name__ == "__main__":
    main()
