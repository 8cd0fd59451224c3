"""The plugin's metric on a page."""

from __future__ import annotations

import pytest

from specdecode.vllm.live_schedule import ScheduleReport
from specdecode.vllm.metrics import PageError, read_page
from specdecode.vllm.speculation import BatchRange
from support.vllm_page import page


def with_report(schedule: str = "[[1,16,5],[17,256,0]]", state: str = "Live", problem: str = "") -> bytes:
    labels = f'plugin="0.1.0",problem="{problem}",schedule="{schedule}",source="file",state="{state}",vllm="0.32.0"'
    metric = f"# TYPE specdecode_schedule_info gauge\nspecdecode_schedule_info{{{labels}}} 1.0\n".encode()
    return metric + page(60, acceptance=0.5)


def test_the_schedule_in_force_is_read() -> None:
    schedule = (BatchRange(1, 16, 5), BatchRange(17, 256, 0))
    assert read_page(with_report()).schedule == ScheduleReport("Live", schedule)
    assert read_page(with_report(problem="NotJson")).schedule == ScheduleReport("Live", schedule, "NotJson")


def test_a_plugin_that_is_not_at_work_says_so() -> None:
    report = read_page(with_report("", "VersionNotTested")).schedule
    assert report == ScheduleReport("VersionNotTested")
    assert not report.live


def test_a_server_without_the_plugin_has_no_report() -> None:
    assert read_page(page(60)).schedule is None


@pytest.mark.parametrize("schedule", ["[[1,16]]", "{}", "[[1,16,5.5]]", "[[1,16,5]", "[1]"])
def test_a_schedule_that_is_none_is_a_malformed_page(schedule: str) -> None:
    with pytest.raises(PageError, match="specdecode_schedule_info"):
        read_page(with_report(schedule))
