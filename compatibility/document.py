"""docs/compatibility.md, written from the kept results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from specdecode.vllm.version import Version

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "compatibility.md"

Found = Mapping[str, Any]
"""One file of `RESULTS`."""

_METHODS = ("n-gram", "draft model", "EAGLE", "EAGLE-3", "MTP", "suffix", "Medusa", "DFlash", "DSpark")

_HEAD = """\
# vLLM releases

What the operator writes for each release of vLLM, checked against that release's own code. Written by
`make compatibility`; do not edit.

    make compatibility VERSION=0.34.0     # a release that came out since
    make compatibility                    # all below, again

For each release the program fetches its source distribution (of 0.15.0, which has none, the modules of its wheel). In
a process of its own it runs the release's argument parser, `EngineArgs`, choice of engine, `SpeculativeConfig`, table
of K by batch size, choice of the model runner and of the class that drafts, and the loggers that write its metrics
page. Only what these import and do not need (torch, transformers, kernels) is replaced by stand-ins, and the
checkpoints are made up. So a row says what the release does with the arguments on a GPU, not that a model runs well.

**executed**: the release's code ran. **read**: its source was searched. No row is assumed. `compatibility/results` has
each command line with the release's answer; a unit test holds `operator/specdecode/vllm/capabilities.py` to them.
"""
_WRITTEN = """\
## What is written

A method has a mark where the release accepts the arguments, takes them as they are meant, and has a class that drafts
with it. Elsewhere it refuses them or does something else, and the operator does not write them.

- *off from N*: `disable_by_batch_size` is honoured for n-gram (which engine reads it: read; all else: executed).
- *K by batch size*: `num_speculative_tokens_per_batch_size`, for n-gram.
- *n-gram misses*: what a step without a match drafts on a GPU, by the model runner that the release chooses (executed;
  that V2 pads: read).
"""
_READ = """\
## What is read

The release's own loggers counted a little traffic whose figures are known (`compatibility/story.py`), and the operator
read the two pages. ✓: it read the true figure. Empty: the release does not export it, and the figure is None. Always
right: requests running and waiting, size of the cache, preemptions, prompt and output tokens and their lengths,
finished requests. The pages are kept in `tests/data/vllm-built`. All rows: executed.
"""
_DECIDES = """\
## What the operator decides by it

- A threshold of batch size works up to 0.9 (on V0), K by batch size from 0.24. Between them is neither: only a roll
  turns speculation off.
- Draft models: not from 0.10 to 0.14. Medusa: not from 0.33. MLP speculators: not from 0.10, though every release up to
  0.32 accepts the name.
- K=0 in the schedule is not off: the drafter of a draft model, EAGLE and MTP still runs (read: the proposers in
  `v1/spec_decode`, the speculators in `v1/worker/gpu/spec_decode`). Its step time is learnt apart from that of a server
  without speculation, and never taken for it.
- n-gram pads its misses on Model Runner V2 (read: `v1/worker/gpu/spec_decode/ngram/speculator.py`), which runs it on
  GPUs from 0.32: see [metrics](metrics.md#n-gram-on-model-runner-v2).
"""


def results() -> list[Found]:
    """What was found about each release, oldest first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    return sorted(found, key=lambda of: (_version(of), of["version"]))


def write() -> None:
    """Writes the document."""
    DOCUMENT.write_text(text(results()), encoding="utf-8")


def text(found: Iterable[Found]) -> str:
    """The document."""
    rows = list(found)
    parts = (_HEAD, _WRITTEN, *_configuration(rows), _READ, *_metrics(rows), *_differences(rows), _DECIDES)
    return "\n".join(parts)


def _version(of: Found) -> Version:
    version = Version.parse(of["version"])
    assert version is not None
    return version


def _case(of: Found, name: str) -> Mapping[str, Any]:
    return next(case for case in of["cases"] if case["case"] == name)


def _written(of: Found, name: str) -> bool:
    return "refusal" not in _case(of, name)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    columns = list(columns)
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _configuration(found: list[Found]) -> Iterator[str]:
    columns = [
        "vLLM",
        "file",
        "checked",
        "how",
        "written as",
        *_METHODS,
        "off from N",
        "K by batch size",
        "n-gram misses",
    ]
    yield from _table(columns, (_row(of) for of in found))


def _row(of: Found) -> Iterator[str]:
    yield of["version"]
    yield "source" if of["source"].endswith(".tar.gz") else "wheel"
    yield of["checked"]
    yield of["method"]
    yield "`--speculative-config`" if _case(of, "n-gram")["words"][0] == "--speculative-config" else "flags"
    for method in (*_METHODS, "n-gram, off from batch size 32", "n-gram, K by batch size"):
        yield "✓" if _written(of, method) else ""
    yield "K tokens" if of["pads_ngram"] else "none"


_FIGURES = {
    "tokens_per_step": "tokens per step",
    "step_seconds": "step time",
    "tpot_seconds": "TPOT",
    "ttft_seconds": "TTFT",
    "queue_seconds": "queue",
    "acceptance_rate": "acceptance",
    "accepted_length": "accepted length",
    "kv_usage": "KV use",
}


def _metrics(found: list[Found]) -> Iterator[str]:
    rows = (
        [
            of["version"],
            server.split()[0],
            *("✓" if seen[name] == "right" else "" for name in _FIGURES),
            *_names(of, server),
        ]
        for of in found
        for server, seen in of["observed"].items()
        if server.endswith("ngram")
    )
    columns = ["vLLM", "engine", *_FIGURES.values(), "family of step time", "family of KV use"]
    yield from _table(columns, rows)


def _names(of: Found, server: str) -> Iterator[str]:
    there = {family.split()[0] for family in of["families"][server]}
    for names in (
        ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ):
        yield next((f"`{name}`" for name in names if name in there), "")


def _differences(found: list[Found]) -> Iterator[str]:
    yield "## What is not written, and why\n"
    yield "What the newest release that was checked answers to what the operator does not write for it:\n"
    newest = found[-1]
    rows = (
        (
            case["case"],
            case["outcome"],
            (case["detail"] or case.get("caution", "")).replace("|", "\\|").replace("`", "'"),
        )
        for case in newest["cases"]
        if "refusal" in case
    )
    yield from _table((f"on {newest['version']}", "the release", "in its words"), rows)
    yield "What would be done as meant and is not written all the same:\n"
    cautions: dict[tuple[str, str], list[str]] = {}
    for of in found:
        for case in of["cases"]:
            if "refusal" in case and case["outcome"] == "as meant" and "caution" in case:
                cautions.setdefault((case["case"], case["caution"]), []).append(of["version"])
    spans = ((name, f"{v[0]} to {v[-1]}" if len(v) > 1 else v[0], why) for (name, why), v in cautions.items())
    yield from _table(("case", "vLLM", "why"), spans)
