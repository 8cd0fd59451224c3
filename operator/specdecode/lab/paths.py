"""Where the lab keeps what it builds and what it runs."""

from __future__ import annotations

import os
from pathlib import Path

import specdecode

CHECKOUT = Path(specdecode.__file__).parents[2]


def module_source() -> Path:
    """The Go module of the control plane in the checkout. It is not part of the wheel."""
    return CHECKOUT / "lab" / "controlplane"


def node_source() -> Path:
    """The Go module of what real nodes run. It is not part of the wheel."""
    return CHECKOUT / "lab" / "node"


def cache() -> Path:
    """`$SPECDECODE_CACHE`, else `.cache` of the checkout that we run from, else `~/.cache/specdecode`."""
    if chosen := os.environ.get("SPECDECODE_CACHE"):
        return Path(chosen).resolve()
    if module_source().is_dir():
        return CHECKOUT / ".cache"
    return Path.home() / ".cache" / "specdecode"


def binaries() -> Path:
    """The folder of the built programs."""
    return cache() / "bin"


def node_binaries() -> Path:
    """The folder of the built programs of real nodes."""
    return binaries() / "node"


def lab_folder(name: str) -> Path:
    """The folder of the lab that `specdecode lab up --name NAME` runs."""
    return cache() / "labs" / name
