"""What an engine runs against what its arguments say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.vllm.capabilities import capabilities
from specdecode.vllm.effective import Mismatch, Told, disagreements, read_server_info, read_text
from specdecode.vllm.metrics import Page, read_page
from specdecode.vllm.speculation import BatchRange, Method, Speculation
from specdecode.vllm.version import Version
from support.vllm_page import page

SCHEDULE = (BatchRange(1, 16, 5), BatchRange(17, 256, 0))
NGRAM = Speculation(Method.NGRAM, 5)
SCHEDULED = Speculation(Method.NGRAM, 5, schedule=SCHEDULE)
IGNORED = Speculation(Method.NGRAM, 5, extra={"disable_by_batch_size": 32})
SPECULATES, PLAIN = read_page(page(60, acceptance=0.5)), read_page(page(60))
FRESH = read_page(page(0))


@pytest.mark.parametrize(
    ("speculation", "version", "data_parallel", "shown", "told", "expected"),
    [
        (None, "0.32.0", 1, PLAIN, None, []),
        (NGRAM, "0.32.0", 1, SPECULATES, None, []),
        (SCHEDULED, "0.32.0", 1, SPECULATES, Told("ngram", 5, SCHEDULE), []),
        (NGRAM, "0.32.0", 1, None, None, []),
        # the page
        (None, "0.32.0", 1, SPECULATES, None, [Mismatch.SPECULATES_UNASKED]),
        (NGRAM, "0.32.0", 1, PLAIN, None, [Mismatch.DOES_NOT_SPECULATE]),
        (NGRAM, "0.9.2", 1, FRESH, None, []),
        (NGRAM, "0.8.2", 1, PLAIN, None, []),
        (Speculation(Method.NGRAM, 3), "0.32.0", 1, SPECULATES, None, [Mismatch.OTHER_NUMBER_OF_TOKENS]),
        (Speculation(Method.MTP), "0.32.0", 1, SPECULATES, None, []),
        # what the engine tells counts for more
        (None, "0.32.0", 1, None, Told("eagle3", 3), [Mismatch.SPECULATES_UNASKED]),
        (NGRAM, "0.32.0", 1, None, Told(None), [Mismatch.DOES_NOT_SPECULATE]),
        (NGRAM, "0.32.0", 1, SPECULATES, Told("draft_model", 5), [Mismatch.OTHER_METHOD]),
        (NGRAM, "0.32.0", 1, None, Told("ngram", 4), [Mismatch.OTHER_NUMBER_OF_TOKENS]),
        (SCHEDULED, "0.32.0", 1, SPECULATES, Told("ngram", 5, ()), [Mismatch.SCHEDULE_DROPPED]),
        (SCHEDULED, "0.32.0", 1, SPECULATES, Told("ngram", 5), []),
        # what the version is known to do
        (IGNORED, "0.11.0", 1, SPECULATES, None, [Mismatch.THRESHOLD_IGNORED]),
        (SCHEDULED, "0.32.0", 2, SPECULATES, None, [Mismatch.SCHEDULE_DROPPED]),
        (SCHEDULED, "0.25.0", 2, SPECULATES, None, []),
        (
            Speculation(Method.SUFFIX, 5, schedule=SCHEDULE),
            "0.33.0",
            1,
            SPECULATES,
            None,
            [Mismatch.SCHEDULE_DROPPED],
        ),
        (IGNORED, "0.11.0", 1, PLAIN, None, [Mismatch.DOES_NOT_SPECULATE, Mismatch.THRESHOLD_IGNORED]),
    ],
)
def test_what_differs_is_told_the_gravest_first(
    speculation: Speculation | None,
    version: str,
    data_parallel: int,
    shown: Page | None,
    told: Told | None,
    expected: list[Mismatch],
) -> None:
    parsed = Version.parse(version)
    assert parsed is not None
    found = disagreements(speculation, capabilities(parsed), data_parallel, shown, told)
    assert [d.reason for d in found] == expected


RECORDED = sorted((Path(__file__).parents[2] / "data" / "vllm-metrics").rglob("*.prom.gz"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_recorded_pages_of_real_servers_show_whether_they_speculate(path: Path) -> None:
    text = gzip.decompress(path.read_bytes())
    recorded = read_page(text)
    drafts = b"vllm:spec_decode_num_draft_tokens_total" in text
    found = list(disagreements(None, capabilities(Version(0, 32, 0)), 1, recorded, None))
    assert [d.reason for d in found] == ([Mismatch.SPECULATES_UNASKED] if drafts else [])


LINE = (
    "(EngineCore pid=5452) INFO 11-22 23:28:41 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config:"
    " model='tiny', speculative_config={}, tokenizer='tiny', skip_tokenizer_init=False"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LINE.format("SpeculativeConfig(method='ngram', model=None, num_spec_tokens=3)"), Told("ngram", 3)),
        (LINE.format("SpeculativeConfig(method='mtp', model='a/b', num_spec_tokens=1)"), Told("mtp", 1)),
        (LINE.format("None"), Told(None)),
        (LINE.format("SpeculativeConfig(something else)"), None),
        ("INFO: Started server process", None),
        ("", None),
    ],
)
def test_an_engines_log_line_tells_its_configuration(text: str, told: Told | None) -> None:
    assert read_text(text) == told


def info(speculative: Any) -> bytes:
    return json.dumps({"vllm_config": {"speculative_config": speculative}, "vllm_env": {}}).encode()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (info(None), Told(None)),
        (info({"method": "ngram", "num_speculative_tokens": 5}), Told("ngram", 5, ())),
        (
            info(
                {
                    "method": "ngram",
                    "num_speculative_tokens": 5,
                    "num_speculative_tokens_per_batch_size": [[1, 16, 5], [17, 256, 0]],
                }
            ),
            Told("ngram", 5, SCHEDULE),
        ),
        (json.dumps({"vllm_config": LINE.format("None")}).encode(), Told(None)),
        (info("ngram"), None),
        (info({"method": "ngram"}), None),
        (b'{"detail": "Not Found"}', None),
        (b"[]", None),
        (b"", None),
    ],
)
def test_server_info_tells_the_configuration_where_it_can_be_read(body: bytes, told: Told | None) -> None:
    assert read_server_info(body) == told


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_no_server_info_is_an_error(value: Any) -> None:
    for body in (json.dumps(value).encode(), info(value), json.dumps({"vllm_config": value}).encode()):
        told = read_server_info(body)
        assert told is None or isinstance(told, Told)
