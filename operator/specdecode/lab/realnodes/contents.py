"""The files of a Python image, from this machine: no registry is asked for a base image.

The base is the interpreter that runs us with its standard library, a shell and a few tools, and the shared libraries
that all of these and the packages need; all at the paths that they have here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

from specdecode.lab.errors import LabError

TOOLS = ("sh", "cat", "dirname", "env", "ls", "realpath", "sleep")
"""Of the base: what a start script, a preStop hook or somebody who looks around asks for."""

_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip"}
_NO_USE = re.compile(r"\.a$|\.opt-[12]\.pyc$|/_tkinter\.")
"""Files for linking, for an optimising interpreter, and for windows on a screen."""
_MERGED = ("/bin", "/sbin", "/lib", "/lib64")
_LIBRARY = re.compile(r"(?:=> |^\s+)(/\S+) \(0x")


def base_python() -> Path:
    """The interpreter below our virtual environment."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def interpreter() -> dict[str, Path]:
    """The interpreter, its standard library and the tools, by their path in the image."""
    python = base_python()
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    programs = [python, *(Path(tool) for name in TOOLS if (tool := shutil.which(name)))]
    return {_place(program): program.resolve() for program in programs} | tree(library, _LEFT_OUT)


def tree(folder: Path, without: Iterable[str] = ()) -> dict[str, Path]:
    """All files and links below a folder at their own paths, without folders of some names."""
    left_out = set(without)
    files = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path): path
        for path in files
        if not left_out.intersection(path.relative_to(folder).parts[:-1]) and not _NO_USE.search(str(path))
    }


def libraries(files: Mapping[str, Path]) -> dict[str, Path]:
    """The shared libraries of this machine that some programs and libraries need, by their path in the image."""
    binaries = [str(path) for path in files.values() if _is_binary(path)]
    result = subprocess.run(["ldd", *binaries], capture_output=True, text=True)
    # It fails for a program that is linked statically, and says so.
    if missing := re.findall(r"^\s+(\S+) => not found", result.stdout, re.MULTILINE):
        raise LabError(f"shared libraries are missing on this machine: {', '.join(sorted(set(missing)))}")
    found = {Path(name) for line in result.stdout.splitlines() for name in _LIBRARY.findall(line)}
    ours = {path.resolve() for path in files.values()}
    return {_place(path): path.resolve() for path in found if path.resolve() not in ours}


def merged_links() -> dict[str, str]:
    """The links at the root, such as `/bin`, where this machine keeps all programs in /usr."""
    return {name: str(Path(name).readlink()) for name in _MERGED if Path(name).is_symlink()}


def _place(path: Path) -> str:
    return str(path.parent.resolve() / path.name)


def _is_binary(path: Path) -> bool:
    if path.is_symlink() or path.suffix in (".py", ".pyc", ".pyi"):  # most files: not worth a look
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
