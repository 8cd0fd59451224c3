"""Durations and percentages: every spelling is read, every value is written so that it reads the same again."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.api.quantities import (
    DURATION_PATTERN,
    PERCENT_PATTERN,
    format_duration,
    format_minutes,
    format_percent,
    parse_duration,
    parse_percent,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1m30s", 90), ("1h", 3600), ("250ms", 0.25), ("1.5h", 5400), ("0s", 0), ("0.5ms", 0.0005)],
)
def test_a_duration_is_read_as_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


def test_a_number_is_seconds_or_a_fraction_already():
    assert parse_duration(15) == 15.0
    assert parse_percent(0.05) == 0.05


@pytest.mark.parametrize("text", ["", "90", "5 m", "-1s", "1d", "m5", "s", "1h30", "1234567s", None, True, ["1s"]])
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is not a duration; write for example 90s, 5m or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "5", "%", "-5%", "5 %", "5%%", ".5%", None, False])
def test_what_is_no_percentage_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is not a percentage; write for example 5%"):
        parse_percent(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "1m30s"), (600, "10m"), (0.25, "250ms"), (0, "0s"), (5400, "1h30m"), (0.0605, "60.5ms")]
)
def test_a_duration_is_written_as_people_do(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(89, "1m"), (91, "2m"), (5399, "1h30m"), (20, "0s")])
def test_a_duration_can_be_told_to_the_minute(seconds, text):
    assert format_minutes(seconds) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.05, "5%"), (0.07, "7%"), (0.125, "12.5%"), (1.55, "155%"), (0, "0%")]
)
def test_a_percentage_is_written_as_people_do(fraction, text):
    assert format_percent(fraction) == text


@given(st.integers(min_value=0, max_value=10**13).map(lambda microseconds: microseconds / 1e6))
def test_every_duration_survives_writing_and_reading(seconds):
    text = format_duration(seconds)
    assert re.match(DURATION_PATTERN, text)
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12, abs=1e-12)


@given(st.from_regex(DURATION_PATTERN[1:-1], fullmatch=True).filter(lambda text: len(text) <= 20 and text.isascii()))
def test_every_text_that_the_schema_takes_is_read(text):
    assert parse_duration(text) >= 0


@given(st.integers(min_value=0, max_value=9999 * 10**6).map(lambda millionths: millionths / 1e8))
def test_every_percentage_survives_writing_and_reading(fraction):
    text = format_percent(fraction)
    assert re.match(PERCENT_PATTERN, text)
    assert parse_percent(text) == pytest.approx(fraction, rel=1e-12, abs=1e-12)
