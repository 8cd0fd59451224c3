"""Ends a lab's processes once their owner is gone, even by SIGKILL.

A program of its own (standard library only, started by `lifeline.py`). Its standard input is a pipe that the owner
holds open. Lines on it name process groups: `123` has started, `-123` has ended. The end of the file means that the
owner is gone, and also that no child is between its fork and its line: until then a child holds the pipe as well.

Usage: watchdog.py [FOLDER…]: folders to remove at the end, and cgroups.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main(folders: list[str]) -> None:
    """Waits for the end of standard input, then kills what still runs and removes the folders."""
    groups: set[int] = set()
    for line in sys.stdin:
        number = int(line)
        if number > 0:
            groups.add(number)
        else:
            groups.discard(-number)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for folder in folders:
        for _ in range(100):  # what is dying may still write for a moment
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).exists():
                break
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
