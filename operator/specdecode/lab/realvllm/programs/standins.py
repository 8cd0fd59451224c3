"""Lets the CUDA build of torch be imported without CUDA's libraries, 2 GB of download that a CPU has no use for.

torch on the package index is the build for CUDA, and its libraries name those of CUDA. This writes stand-ins beside
them, in which every call answers "no device". Run by the Python that has torch; needs a C compiler and binutils.

Usage: standins.py
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path

CUDA = re.compile(r"(_*cu[a-zA-Z]|_*cupti|_*nccl|_*nvrtc|_*nvshmem|_*nvtx|_*fatbin)")
TELLS = re.compile(r"Get(Error|Last)(String|Name)|getLastErrorString|ncclGet.*Error", re.IGNORECASE)
"""Functions that answer with text."""
NO_DEVICE = 100
"""cudaErrorNoDevice, CUDA_ERROR_NO_DEVICE."""


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Writes the stand-ins for what torch's libraries need and neither torch nor the machine has."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None, "run it with the Python that has torch"
    folder = Path(torch.origin).parent / "lib"
    libraries = sorted(folder.glob("*.so*"))
    system = _run("/sbin/ldconfig", "-p")
    needed: set[str] = set()
    undefined: set[str] = set()
    for library in libraries:
        needed |= set(re.findall(r"NEEDED.*\[(.*)\]", _run("readelf", "-d", str(library))))
        symbols = _run("nm", "-D", "--undefined-only", str(library))
        undefined |= {s.split("@")[0] for s in re.findall(r" U (\S+)", symbols)}
    there = {library.name for library in libraries}
    missing = sorted(n for n in needed - there if not re.search(rf"\b{re.escape(n)} ", system))
    functions = sorted(s for s in undefined if CUDA.match(s))
    source = "".join(
        f'const char *{f}() {{ return "no CUDA here"; }}\n'
        if TELLS.search(f)
        else f"int {f}() {{ return {NO_DEVICE}; }}\n"
        for f in functions
    )
    compiler = ("cc", "-shared", "-fPIC", "-w", "-O1", "-fno-builtin")
    # All functions are in one library with a name of its own, which the others need: a library that is asked for by
    # the names that torch knows would have to define the versions of its symbols, too.
    common = folder / "libcuda_stand_in.so"
    with tempfile.TemporaryDirectory() as scratch:
        code, nothing = Path(scratch, "all.c"), Path(scratch, "none.c")
        code.write_text(source)
        nothing.write_text("")
        _run(*compiler, f"-Wl,-soname,{common.name}", "-o", str(common), str(code))
        for name in missing:
            link = ("-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", f"-Wl,-soname,{name}")
            _run(*compiler, *link, "-o", str(folder / name), str(nothing), str(common))
    print(f"{len(missing)} libraries, {len(functions)} functions")


if __name__ == "__main__":
    main()
