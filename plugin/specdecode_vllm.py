"""Changes vLLM's schedule of K by batch size while the server runs: a general plugin for vLLM.

vLLM reads `num_speculative_tokens_per_batch_size` once, when its scheduler is made, and looks K up in a table at each
step. This plugin watches a file (a mounted ConfigMap, as a rule) and exchanges that table. A step costs nothing more:
the file is looked at by a thread of its own. No public interface of vLLM does this, so the plugin works with the
versions it was tested with and keeps out of the way of all others.

The file says which servers it is about, and what they shall use:

    {"version": 1,
     "started_with": {"method": "ngram", "num_speculative_tokens": 5,
                      "num_speculative_tokens_per_batch_size": [[1, 16, 5], [17, 256, 0]]},
     "schedule": [[1, 32, 5], [33, 256, 0]],
     "pods": {"vllm-chat-5d9c-x7k2p": [[1, 64, 5], [65, 256, 0]]}}

A server that was started with another configuration goes by its arguments, and so does one without a file. A file that
cannot be used changes nothing: the last good schedule stays, and the problem is told in the log and on `/metrics`:

    specdecode_schedule_info{state, source, schedule, problem, plugin, vllm} 1
    specdecode_schedule_changes_total, specdecode_schedule_errors_total

The module needs nothing but vLLM and what that brings along, so it may also be mounted as a file.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

TESTED = ("0.32.0",)
"""Releases of vLLM with which this was run under load; see tests/vllm/test_live_schedule.py."""

FILE = "SPECDECODE_SCHEDULE_FILE"
"""Variable that names the file. Without it the plugin does nothing."""
INTERVAL = "SPECDECODE_SCHEDULE_INTERVAL"
"""Variable with the seconds between two looks at the file; 1 where it is not set."""
STATUS = "_SPECDECODE_SCHEDULE_STATUS"
"""Variable by which the server's processes find the file that the engine reports in. Set by the plugin itself."""

SIZE_LIMIT = 65_536
"""Bytes of a schedule file; a long one has some hundred."""

log = logging.getLogger("vllm.plugins.specdecode")

Schedule = tuple[tuple[int, int, int], ...]
"""First and last batch size, both included, and K."""

SCHEDULE_KEY = "num_speculative_tokens_per_batch_size"


# --- the file: pure -----------------------------------------------------------------------------------------------


class Rejected(Exception):  # noqa: N818 - the file is rejected; the engine has no error
    """Why a file cannot be used. `reason` is one word of Unreadable, TooLarge, NotJson, WrongType, OutOfRange,
    Unexpected."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Server:
    """What this server was started with."""

    method: str
    model: str | None
    k: int
    """The most tokens that a step drafts."""
    schedule: Schedule
    pod: str
    """Name of the pod that it runs in; empty where it does not know."""


@dataclass(frozen=True)
class InForce:
    """The schedule that a server goes by."""

    schedule: Schedule
    source: str
    """`arguments`, `file`, or `pod`: the file's entry for this pod."""


def read(text: bytes, server: Server) -> InForce:
    """What a file means for a server. Raises `Rejected`."""
    if len(text) > SIZE_LIMIT:
        raise Rejected("TooLarge", f"it has more than {SIZE_LIMIT} bytes")
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as e:
        raise Rejected("NotJson", f"it is not JSON: {e}") from None
    if not isinstance(content, dict) or content.get("version") != 1:
        raise Rejected("WrongType", 'it is no JSON object with "version": 1')
    started_with, pods = content.get("started_with"), content.get("pods", {})
    if not isinstance(started_with, dict) or not isinstance(pods, dict):
        raise Rejected("WrongType", '"started_with" and "pods" must be objects')
    # All of it is checked, also what is for others: half a good file is none.
    schedule = schedule_of(content.get("schedule"), '"schedule"')
    by_pod = {pod: schedule_of(value, f'"pods"."{pod}"') for pod, value in pods.items()}
    if not _is_about(started_with, server):
        return InForce(server.schedule, "arguments")
    found = InForce(by_pod[server.pod], "pod") if server.pod in by_pod else InForce(schedule, "file")
    if (highest := max(k for _, _, k in found.schedule)) > server.k:
        raise Rejected("OutOfRange", f"K = {highest} is more than the server's num_speculative_tokens ({server.k})")
    return found


def schedule_of(value: object, where: str) -> Schedule:
    """A schedule from JSON, by vLLM's rules (v1/spec_decode/dynamic/utils.py) and without its conversions. Raises
    `Rejected`."""
    if not isinstance(value, list) or not value:
        raise Rejected("WrongType", f"{where} must be a list of [first batch size, last batch size, K]")
    before = 0
    for row in value:
        if not isinstance(row, list) or len(row) != 3 or not all(type(n) is int for n in row):
            raise Rejected("WrongType", f"{where} has {json.dumps(row)[:80]}, which is not three whole numbers")
        start, end, k = row
        if before == 0 and start != 1:
            raise Rejected("OutOfRange", f"{where} must start at batch size 1, not {start}")
        if not before < start <= end or k < 0:
            raise Rejected(
                "OutOfRange", f"{where} has {row} after batch size {before}: ranges must rise, K be 0 or more"
            )
        before = end
    return tuple((start, end, k) for start, end, k in value)


def _is_about(started_with: Mapping[str, Any], server: Server) -> bool:
    """Whether a file is for servers like this one: what it leaves open does not matter."""
    ours = {
        "method": server.method,
        "model": server.model,
        "num_speculative_tokens": server.k,
        SCHEDULE_KEY: [list(row) for row in server.schedule],
    }
    return all(key in ours and ours[key] == value for key, value in started_with.items())


# --- reading and applying it --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What `/metrics` tells."""

    state: str
    """Live; VersionNotTested; NoSchedule: started without one, so there is no table to exchange; NotStarted."""
    schedule: str = ""
    """In force, as JSON."""
    source: str = ""
    problem: str = ""
    """Why the file as it is now cannot be used; empty: it can."""
    changes: int = 0
    errors: int = 0


class Follower:
    """Follows a file for one server. `apply` puts a schedule in force, `tell` takes every new report."""

    def __init__(
        self, path: str, server: Server, apply: Callable[[Schedule], None], tell: Callable[[Report], None]
    ) -> None:
        self._path, self._server, self._apply, self._tell = path, server, apply, tell
        self._seen: object = ()
        self._in_force = InForce(server.schedule, "arguments")
        self.report = Report("Live", _text(server.schedule), "arguments")

    def look(self) -> None:
        """Looks at the file, and follows it where it is another than at the last look. Never raises."""
        before = self.report
        try:
            seen = _identity(self._path)
            if seen == self._seen:
                return
            self._seen = seen
            self._follow(
                InForce(self._server.schedule, "arguments") if seen is None else read(self._bytes(), self._server)
            )
        except Rejected as e:
            self._complain(e.reason, str(e))
        except OSError as e:
            self._complain("Unreadable", e.strerror or type(e).__name__)
        except Exception as e:  # whatever it was: the engine must go on
            log.exception("unexpected")
            self._complain("Unexpected", f"{type(e).__name__}: {e}")
        if self.report != before:
            self._tell(self.report)

    def _follow(self, found: InForce) -> None:
        changes = self.report.changes
        if found.schedule != self._in_force.schedule:
            self._apply(found.schedule)
            changes += 1
            log.info("%s: the schedule is now %s, from %s", self._path, _text(found.schedule), found.source)
        self._in_force = found
        self.report = replace(
            self.report, schedule=_text(found.schedule), source=found.source, problem="", changes=changes
        )

    def _complain(self, reason: str, message: str) -> None:
        log.warning("%s cannot be used, the last good schedule stays: %s", self._path, message)
        self.report = replace(self.report, problem=reason, errors=self.report.errors + 1)

    def _bytes(self) -> bytes:
        # A named pipe must not block, nor a large file fill the memory.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Rejected("Unreadable", "it is no regular file")
            return file.read(SIZE_LIMIT + 1)


def _identity(path: str) -> object:
    """Tells a file from another in its place; None: there is none. A ConfigMap's files are replaced by a symlink."""
    try:
        s = Path(path).stat()
    except FileNotFoundError:
        return None
    except OSError as e:
        return e.errno  # opening it will tell, once
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns


def _text(schedule: Schedule) -> str:
    return json.dumps(schedule, separators=(",", ":"))


# --- vLLM ---------------------------------------------------------------------------------------------------------


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; vLLM calls it in the API server and in the engine's process."""
    if FILE not in os.environ:
        return
    try:
        _register()
    except Exception:  # a server without live tuning is better than none
        log.exception("live schedules are not available")


def _register() -> None:
    if STATUS not in os.environ:  # the first process: the others inherit the variable
        folder, process = tempfile.mkdtemp(prefix="specdecode-"), os.getpid()
        os.environ[STATUS] = str(Path(folder, "status.json"))
        atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == process else None)
        _tell(Report("NotStarted" if _vllm() in TESTED else "VersionNotTested"))
    _serve_metrics()
    if _vllm() in TESTED:
        _hook()
    else:
        log.warning("vLLM %s was not tested with this plugin (%s were): the schedule stays as started", _vllm(), TESTED)


def _vllm() -> str:
    """The release, without a local part such as `+cpu`."""
    import vllm

    return str(vllm.__version__).partition("+")[0]


def _hook() -> None:
    """Has every scheduler followed from when it is made. `AsyncScheduler` inherits it."""
    from vllm.v1.core.sched.scheduler import Scheduler

    made: Callable[..., None] = Scheduler.__init__
    if getattr(made, "follows", False):
        return

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        try:
            _follow(self)
        except Exception:  # the engine must start all the same
            log.exception("live schedules are not available")

    init.follows = True  # type: ignore[attr-defined]
    Scheduler.__init__ = init


def _follow(scheduler: Any) -> None:
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    if scheduler.dynamic_sd_lookup is None:
        _tell(Report("NoSchedule"))
        return
    config, slots = scheduler.vllm_config.speculative_config, scheduler.scheduler_config.max_num_seqs
    server = Server(
        method=config.method,
        model=config.model,
        k=scheduler.num_spec_tokens,
        schedule=tuple((int(a), int(b), int(k)) for a, b, k in config.num_speculative_tokens_per_batch_size),
        pod=os.environ.get("POD_NAME") or os.environ.get("HOSTNAME", ""),
    )

    def apply(schedule: Schedule) -> None:
        # Made whole before it takes the other's place: a step sees the one or the other.
        scheduler.dynamic_sd_lookup = build_dynamic_sd_schedule_lookup(
            [list(row) for row in schedule], slots, scheduler.num_spec_tokens
        )

    follower = Follower(os.environ[FILE], server, apply, _tell)
    follower.look()
    _tell(follower.report)
    seconds = _interval(os.environ.get(INTERVAL))
    threading.Thread(target=_watch, args=(follower, seconds), name="specdecode-schedule", daemon=True).start()


def _interval(text: str | None) -> float:
    try:
        return max(0.01, float(text)) if text else 1.0
    except ValueError:
        log.warning("%s=%s is no number of seconds: looking once a second", INTERVAL, text)
        return 1.0


def _watch(follower: Follower, seconds: float) -> None:
    pause = threading.Event()
    while not pause.wait(seconds):
        follower.look()


# --- metrics ------------------------------------------------------------------------------------------------------
# The engine runs in a process of its own, whose metrics nobody serves: it leaves a file to the API server. With several
# API servers vLLM serves a registry that takes no collectors, and nothing is told.


def _tell(report: Report) -> None:
    path = Path(os.environ[STATUS])
    try:
        path.with_suffix(".new").write_text(json.dumps(asdict(report)))
        path.with_suffix(".new").replace(path)
    except OSError as e:
        log.warning("%s: %s", path, e.strerror)


def _serve_metrics() -> None:
    from prometheus_client import REGISTRY
    from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric
    from prometheus_client.registry import Collector

    class Schedules(Collector):
        """Reads the engine's report when somebody asks."""

        def collect(self) -> Iterator[Metric]:
            try:
                report = Report(**json.loads(Path(os.environ[STATUS]).read_bytes()))
            except (OSError, ValueError, TypeError):
                return
            info = InfoMetricFamily("specdecode_schedule", "The schedule of K by batch size that is in force")
            told = {key: getattr(report, key) for key in ("state", "source", "schedule", "problem")}
            info.add_metric([], {**told, "plugin": __version__, "vllm": _vllm()})
            yield info
            yield CounterMetricFamily(
                "specdecode_schedule_changes", "Schedules put in force since the start", report.changes
            )
            yield CounterMetricFamily("specdecode_schedule_errors", "Files that could not be used", report.errors)

        def describe(self) -> list[Metric]:
            return []

    if not any(type(c).__qualname__ == Schedules.__qualname__ for c in REGISTRY._collector_to_names):
        REGISTRY.register(Schedules())
