"""What holds of the reader for any page: it never crashes, a cut page never lies, the order of labels says nothing."""

import dataclasses
import gzip
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdecode.vllm.exposition import parse_labels
from specdecode.vllm.metrics import EngineSample, Page, PageError, read_page

any_time = settings()
RECORDINGS = Path(__file__).parents[2] / "data" / "vllm-metrics"


def recorded(path: str) -> bytes:
    return gzip.decompress((RECORDINGS / path).read_bytes())


def with_two_engines(text: bytes) -> bytes:
    """A data-parallel server's page: each family has the lines of engine 0, then those of engine 1."""
    families = re.split(rb"(?m)^(?=# HELP)", text)
    return b"".join(
        family
        + b"".join(
            line.replace(b'engine="0"', b'engine="1"') + b"\n" for line in family.split(b"\n") if b'engine="0"' in line
        )
        for family in families
    )


PAGES = {
    "draft model, 0.24": recorded("0.24.0-h200/draft05b-k3/0020.prom.gz"),
    "n-gram, 0.32": recorded("0.32.0/ngram/0022.prom.gz"),
    "off, 0.32": recorded("0.32.0/off/0014.prom.gz"),
    "two engines": with_two_engines(recorded("0.32.0/ngram/0022.prom.gz")),
}
WHOLE = {name: read_page(text) for name, text in PAGES.items()}


def assert_tells_no_lie(part: Page, whole: Page) -> None:
    """Every figure of `part` is that of `whole` or missing."""

    def same_or_missing(mine: Any, other: Any) -> bool:
        if isinstance(mine, dict):
            return mine.items() <= other.items()
        return mine in (other, None, ())

    engines = {(e.model_name, e.engine): e for e in whole.engines}
    for sample in part.engines:
        for field in dataclasses.fields(EngineSample):
            mine, other = getattr(sample, field.name), getattr(engines[sample.model_name, sample.engine], field.name)
            assert same_or_missing(mine, other), field.name
    assert same_or_missing(part.process_start, whole.process_start)
    assert same_or_missing(part.http_requests, whole.http_requests)


def test_the_two_engine_page_has_two_engines() -> None:
    first, second = WHOLE["two engines"].engines
    assert (first.engine, second.engine) == ("0", "1")
    assert dataclasses.replace(second, engine="0") == first


@pytest.mark.parametrize("name", PAGES)
def test_a_page_cut_after_any_line_is_refused_or_tells_no_lie(name: str) -> None:
    text, end, refused, read = PAGES[name], 0, 0, 0
    while (end := text.find(b"\n", end) + 1) and end < len(text):
        try:
            part = read_page(text[:end])
        except PageError:
            refused += 1
        else:
            read += 1
            assert_tells_no_lie(part, WHOLE[name])
    assert refused > 200
    assert read > 100, "cuts between two families cannot be seen"


@any_time
@given(st.sampled_from(sorted(PAGES)), st.data())
def test_a_page_cut_inside_a_line_is_refused(name: str, data: st.DataObject) -> None:
    text = PAGES[name]
    end = data.draw(st.integers(0, len(text) - 1))
    if text[:end].endswith(b"\n"):
        end -= 1
    with pytest.raises(PageError):
        read_page(text[:end])


@any_time
@given(st.binary())
def test_any_bytes_are_a_page_or_refused(text: bytes) -> None:
    with pytest.raises(PageError):
        read_page(text)


_LINES = PAGES["n-gram, 0.32"].splitlines()
_OURS = [line for line in _LINES if re.match(rb"vllm:|http_requests|process_start", line)]


@any_time
@given(
    st.lists(st.sampled_from(_OURS), max_size=40),
    st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=4) | st.just(b"\n")), max_size=5),
)
def test_lines_of_a_page_with_bytes_spilled_over_them_are_a_page_or_refused(
    lines: list[bytes], spills: list[tuple[int, bytes]]
) -> None:
    text = bytearray(b"\n".join(lines) + b"\n")
    for at, spilled in spills:
        text[at : at + len(spilled)] = spilled
    try:
        result = read_page(bytes(text))
    except PageError:
        return
    assert result.engines
    for sample in result.engines:
        for gauge in (sample.running, sample.waiting, sample.kv_usage):
            assert gauge is None or abs(gauge) < float("inf")


@any_time
@given(st.integers(), st.sampled_from(sorted(PAGES)))
def test_the_order_of_labels_says_nothing(seed: int, name: str) -> None:
    shuffle = Random(seed).shuffle

    def shuffled(match: re.Match[bytes]) -> bytes:
        labels = re.findall(rb'\w+="(?:[^"\\]|\\.)*"', match[0])
        shuffle(labels)
        return b"{" + b",".join(labels) + b"}"

    assert read_page(re.sub(rb"(?m)(?<=\w)\{.*\}", shuffled, PAGES[name])) == WHOLE[name]


@any_time
@given(st.integers(), st.sampled_from(sorted(PAGES)))
def test_the_order_of_lines_and_blank_ones_among_them_say_nothing(seed: int, name: str) -> None:
    """Samples of a name need not follow each other."""
    lines = [line for line in PAGES[name].splitlines() if not line.startswith(b"#")] + [b"", b"   "] * 20
    Random(seed).shuffle(lines)
    assert read_page(b"\n".join(lines) + b"\n") == WHOLE[name]


@any_time
@given(st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True), st.text(max_size=12), max_size=5))
def test_any_labels_survive_being_written_and_read(labels: dict[str, str]) -> None:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    written = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
    assert parse_labels(written.encode()) == labels


@any_time
@given(st.text(alphabet='{}",=\\ n#1', max_size=12))
def test_a_model_may_have_any_name(name: str) -> None:
    escaped = name.replace("\\", r"\\").replace('"', r"\"")
    (sample,) = read_page(f'vllm:num_requests_running{{model_name="{escaped}"}} 1\n'.encode()).engines
    assert sample.model_name == name
