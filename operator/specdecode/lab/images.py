"""Which local program stands for a container image.

The process node has no container runtime: an image is an entrypoint and a few programs of its own, which shadow those
of the machine on the container's PATH.
"""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from specdecode.sim.settings import PREFIX
from specdecode.vllm.version import Version


def _no_variables(name: str) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Image:
    """A stand-in for an image.

    `programs` maps the beginning of a command line to what runs instead: `vllm` replaces that program, and
    `python3 -m vllm.entrypoints.openai.api_server` replaces this use of `python3` and leaves the others alone.
    `variables` gives the environment that the image brings, from the image's full name.
    """

    entrypoint: tuple[str, ...] = ()
    programs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    variables: Callable[[str], Mapping[str, str]] = _no_variables
    python: str = sys.executable
    """The interpreter beside which the programs of the other uses are."""

    def install(self, folder: Path) -> Path:
        """Writes the image's programs as executable files into `folder`, which then goes first on the PATH."""
        rules: dict[str, dict[str, Sequence[str]]] = defaultdict(dict)
        for words, replacement in self.programs.items():
            name, _, rest = words.partition(" ")
            rules[name][rest] = replacement
        folder.mkdir(parents=True, exist_ok=True)
        for name, cases in rules.items():
            program = folder / name
            program.write_text(_script(name, cases, self.python))
            program.chmod(0o755)
        return folder


def find(images: Mapping[str, Image], name: str) -> Image | None:
    """The stand-in of the first pattern that matches the image's name; None if there is none."""
    return next((image for pattern, image in images.items() if fnmatchcase(name, pattern)), None)


def _script(name: str, cases: Mapping[str, Sequence[str]], python: str) -> str:
    lines = ["#!/bin/sh"]
    for rest in sorted(cases, key=len, reverse=True):
        count = len(rest.split())
        command = shlex.join(cases[rest])
        seen = " ".join(f"${{{position}}}" for position in range(1, count + 1))
        lines.append(
            f'if [ "{seen}" = {shlex.quote(rest)} ]; then shift {count}; exec {command} "$@"; fi'
            if rest
            else f'exec {command} "$@"'
        )
    if "" not in cases:
        lines.append(f'exec {shlex.quote(str(Path(python).with_name(name)))} "$@"')
    return "\n".join(lines) + "\n"


_API_SERVER = "-m vllm.entrypoints.openai.api_server"


def emulated_version(image: str) -> Mapping[str, str]:
    """The environment in which the simulator emulates the vLLM version in the image's tag."""
    version = Version.from_image(image)
    return {} if version is None else {f"{PREFIX}VLLM_VERSION": str(version)}


def simulator(python: str = sys.executable) -> Image:
    """The image of vLLM, simulated by this project where `python` is."""
    program = (python, "-m", "specdecode.sim")
    return Image(
        entrypoint=("vllm", "serve"),
        programs={
            "vllm": program,
            f"python {_API_SERVER}": (*program, "serve"),
            f"python3 {_API_SERVER}": (*program, "serve"),
        },
        variables=emulated_version,
        python=python,
    )


DEFAULT_IMAGES: Mapping[str, Image] = {
    "*specdecode-operator*": Image(entrypoint=("specdecode",)),
    "*vllm*": simulator(),
}
