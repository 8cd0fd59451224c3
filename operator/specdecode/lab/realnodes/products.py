"""The images that the lab's real nodes have: the operator's, as its Dockerfile says, and the simulated vLLM's.

The steps of the Dockerfile's build stage are carried out here: pinned dependencies, checked by hash, in a virtual
environment in /opt/specdecode, and in it the project's wheel. Only the base differs (`contents.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import specdecode
from specdecode.lab import images, paths
from specdecode.lab.errors import LabError
from specdecode.lab.realnodes import contents, dockerfile
from specdecode.lab.realnodes.archive import Config, Image, Layer, write_archive, write_layer
from specdecode.lab.realnodes.needs import SEARCHED

PREFIX = "/opt/specdecode"
_PYTHON = f"{PREFIX}/bin/python"
OPERATOR = f"docker.io/library/specdecode-operator:{specdecode.__version__}"
VLLM = ("docker.io/vllm/vllm-openai:v0.24.0",)
"""The names under which the simulator is there; it emulates the version in the tag."""

_MAKERS = ("contents.py", "products.py", "archive.py", "dockerfile.py")


def build() -> Path:
    """The archive with all images; it is made again when something that goes into it has changed. Raises `LabError`."""
    folder = paths.cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    stage = folder / "stage"
    layers = [
        _layer(folder, "dependencies", _stamp("requirements"), lambda path: _dependencies(stage, path)),
        _layer(folder, "wheel", _stamp("operator"), lambda path: _wheel(stage, path)),
    ]
    vllm = _layer(folder, "vllm", _stamp(), _vllm_programs)
    simulated = [Image(name, [*layers, vllm], _simulator_config(name)) for name in VLLM]
    wanted = [Image(OPERATOR, layers, _operator_config()), *simulated]
    made, stamp_file = folder / "images.tar", folder / "images.stamp"
    stamp = repr([(image.name, image.config, [layer.digest for layer in image.layers]) for image in wanted])
    if not (made.is_file() and stamp_file.is_file() and stamp_file.read_text() == stamp):
        new = folder / "images.new"
        write_archive(new, wanted)
        new.replace(made)
        stamp_file.write_text(stamp)
    return made


def _operator_config() -> Config:
    said = dockerfile.config_of((paths.CHECKOUT / "Dockerfile").read_text())
    return replace(said, env={**said.env, "PATH": said.env["PATH"].replace("$PATH", SEARCHED)})


def _simulator_config(name: str) -> Config:
    env = {"PATH": f"/usr/local/bin:{PREFIX}/bin:{SEARCHED}", **images.emulated_version(name)}
    return Config(images.simulator(_PYTHON).entrypoint, env=env)


def _layer(folder: Path, name: str, stamp: str, write: Callable[[Path], Layer]) -> Layer:
    path, record = folder / f"{name}.tar", folder / f"{name}.json"
    if path.is_file() and record.is_file():
        known = json.loads(record.read_text())
        if known["stamp"] == stamp:
            return Layer(path, known["digest"])
    layer = write(path.with_suffix(".new"))
    layer.path.replace(path)
    record.write_text(json.dumps({"stamp": stamp, "digest": layer.digest}))
    return Layer(path, layer.digest)


def _stamp(source: str | None = None) -> str:
    files = [Path(__file__).with_name(name) for name in _MAKERS]
    if source is not None:
        found = (path for path in (paths.CHECKOUT / source).rglob("*") if path.is_file())
        files += sorted(path for path in found if "__pycache__" not in path.parts)
    digest = hashlib.sha256(f"{sys.version} {contents.base_python()}".encode())
    for file in files:
        digest.update(str(file).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _dependencies(stage: Path, path: Path) -> Layer:
    shutil.rmtree(stage, ignore_errors=True)
    # Its scripts find their interpreter beside them: the environment is made here and used in /opt.
    _uv("venv", "--quiet", "--relocatable", "--python", str(contents.base_python()), str(stage))
    wanted = str(paths.CHECKOUT / "requirements" / "operator.txt")
    _install(stage, "--only-binary", ":all:", "--require-hashes", "-r", wanted)
    packages = contents.tree(stage)
    base = contents.interpreter()
    return write_layer(
        path,
        {**base, **contents.libraries({**base, **packages}), **_in_place(packages, stage)},
        contents.merged_links(),
        ["/tmp", "/proc", "/sys", "/dev", "/run", "/root"],
    )


def _wheel(stage: Path, path: Path) -> Layer:
    with tempfile.TemporaryDirectory() as made:
        constraints = str(paths.CHECKOUT / "requirements" / "dev.txt")
        _uv("build", "--quiet", "--wheel", "--require-hashes", "--build-constraints", constraints, "--out-dir", made,
            str(paths.CHECKOUT))  # fmt: skip
        (wheel,) = Path(made).glob("*.whl")
        _install(stage, "--no-deps", "--offline", "--reinstall", str(wheel))
    files = {name: file for name, file in contents.tree(stage).items() if "specdecode" in name[len(str(stage)) :]}
    return write_layer(path, _in_place(files, stage))


def _in_place(files: dict[str, Path], stage: Path) -> dict[str, Path]:
    return {PREFIX + name.removeprefix(str(stage)): file for name, file in files.items()}


def _vllm_programs(path: Path) -> Layer:
    with tempfile.TemporaryDirectory() as folder:
        programs = images.simulator(_PYTHON).install(Path(folder))
        return write_layer(path, {f"/usr/local/bin/{file.name}": file for file in sorted(programs.iterdir())})


def _install(stage: Path, *what: str) -> None:
    _uv("pip", "install", "--quiet", "--python", str(stage), "--compile-bytecode", *what)


def _uv(*arguments: str) -> None:
    beside_us = Path(sys.executable).with_name("uv")
    uv = str(beside_us) if beside_us.is_file() else shutil.which("uv")
    if uv is None:
        raise LabError("uv is missing, which makes the images of real nodes: run `make setup`")
    env = os.environ | {"UV_LINK_MODE": "copy", "UV_PYTHON_DOWNLOADS": "never"}
    result = subprocess.run([uv, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise LabError(f"`uv {' '.join(arguments)}` failed:\n{result.stdout[-3000:]}")
