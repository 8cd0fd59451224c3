"""Where and when figures were measured, and how to measure them again; work for all processes."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

A, B = TypeVar("A"), TypeVar("B")


def provenance() -> dict[str, Any]:
    """Date, command, Python and machine: the head of every file of results."""
    script, *arguments = sys.argv
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments]),
        "python": platform.python_version(),
        "machine": {"cpus": os.cpu_count(), "model": _cpu()},
    }


def side_by_side(work: Callable[[A], B], items: Iterable[A], processes: int) -> Iterator[B]:
    """The results of `work`, in the order of the items, each as soon as it and those before it are there."""
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(work, items)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
