"""The table of recorded servers in docs/metrics.md, against the recordings that the tests have."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_documented_figures_are_what_the_recordings_yield() -> None:
    spec = importlib.util.spec_from_file_location("phases", ROOT / "benchmarks" / "phases.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    runs = sorted(path.parent for path in (ROOT / "tests" / "data" / "vllm-metrics").glob("*/*/index.jsonl"))
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()

    rows = list(script.table(runs))

    assert len(rows) == 2 + 18
    assert [row for row in rows if row not in documented] == []
