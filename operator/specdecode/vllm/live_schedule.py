"""The schedule that the plugin `specdecode-vllm` reads from a file, and what it reports on the metrics page.

Format of the file and names of the metrics: `plugin/specdecode_vllm.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from specdecode.vllm.dialect import SCHEDULE
from specdecode.vllm.speculation import BatchRange

Schedule = tuple[BatchRange, ...]

METRIC = "specdecode_schedule_info"
FILE = "schedule.json"
"""Name of the file, and of its key in the ConfigMap."""


class PluginState(StrEnum):
    """What the plugin is able to do in a server."""

    LIVE = "Live"
    VERSION_NOT_TESTED = "VersionNotTested"
    NO_SCHEDULE = "NoSchedule"
    NOT_STARTED = "NotStarted"


@dataclass(frozen=True)
class ScheduleReport:
    """What the plugin tells of one server."""

    state: str
    """One of `PluginState`; another one is of a later plugin."""
    schedule: Schedule = ()
    """In force."""
    problem: str = ""
    """Why the file as it is cannot be used; empty: it can."""

    @property
    def live(self) -> bool:
        """Whether the server follows its file."""
        return self.state == PluginState.LIVE


def read_report(labels: Mapping[str, str]) -> ScheduleReport:
    """The report from the labels of `METRIC`. Raises `ValueError`."""
    rows = json.loads(labels.get("schedule") or "[]")
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise ValueError(f"the label schedule is {labels['schedule']!r}, no list of [start, end, K]")
    schedule = tuple(BatchRange(*row) for row in rows)
    return ScheduleReport(labels.get("state", ""), schedule, labels.get("problem", ""))


def _is_row(row: object) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(type(n) is int for n in row)


def write_file(
    method: str,
    model: str | None,
    num_speculative_tokens: int,
    started_with: Schedule,
    schedule: Schedule,
    pods: Mapping[str, Schedule],
) -> str:
    """The file for servers that were started with a configuration; `pods` have schedules of their own."""
    about = {
        "method": method,
        "model": model,
        "num_speculative_tokens": num_speculative_tokens,
        SCHEDULE: _rows(started_with),
    }
    content = {
        "version": 1,
        "started_with": {key: value for key, value in about.items() if value is not None},
        "schedule": _rows(schedule),
        "pods": {pod: _rows(of) for pod, of in sorted(pods.items())},
    }
    return json.dumps(content, separators=(",", ":"))


def _rows(schedule: Schedule) -> list[list[int]]:
    return [[r.start, r.end, r.k] for r in schedule]
