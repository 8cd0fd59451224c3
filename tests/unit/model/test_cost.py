"""The questions that options answer themselves."""

from __future__ import annotations

import pytest

from specdecode.model.cost import Option
from specdecode.vllm.speculation import BatchRange, Method, Speculation


def ngram(k: int, *schedule: BatchRange, threshold: int | None = None, profile: str = "ngram") -> Option:
    return Option(profile, Speculation(Method.NGRAM, k, schedule=schedule, disable_by_batch_size=threshold))


OFF = Option("disabled", None)
UP_TO_16 = ngram(5, BatchRange(1, 16, 5), BatchRange(17, 256, 0))
UP_TO_32 = ngram(5, BatchRange(1, 32, 5), BatchRange(33, 256, 0))
LESS_OF_FEW = ngram(5, BatchRange(1, 16, 2), BatchRange(17, 256, 1))


@pytest.mark.parametrize(
    ("option", "other", "no_more"),
    [
        (OFF, OFF, True),
        (OFF, ngram(5), True),
        (ngram(5), OFF, False),
        (ngram(5), ngram(5), True),
        (UP_TO_16, ngram(5), True),
        (ngram(5), UP_TO_16, False),
        (UP_TO_16, UP_TO_32, True),
        (UP_TO_32, UP_TO_16, False),
        (LESS_OF_FEW, UP_TO_16, False),
        (ngram(5, threshold=16), ngram(5, threshold=32), True),
        (ngram(5, threshold=32), ngram(5, threshold=16), False),
        (UP_TO_16, ngram(5, profile="another"), False),
    ],
    ids=[
        "off and off",
        "off instead of drafts",
        "drafts instead of none",
        "the same",
        "a schedule instead of a fixed K",
        "a fixed K instead of a schedule",
        "a schedule that ends earlier",
        "a schedule that ends later",
        "fewer in small batches, but more in large ones",
        "a lower threshold",
        "a higher one",
        "other drafts",
    ],
)
def test_an_option_drafts_no_more_where_all_that_it_drafts_is_drafted_already(
    option: Option, other: Option, no_more: bool
) -> None:
    assert option.drafts_no_more(other) is no_more
