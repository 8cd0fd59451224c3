"""What a Dockerfile says about how containers run."""

from __future__ import annotations

import json
import re
import shlex

from specdecode.lab.realnodes.archive import Config


def config_of(text: str) -> Config:
    """ENV, USER, WORKDIR, ENTRYPOINT and CMD of the last stage. ENTRYPOINT and CMD must be lists, as JSON."""
    env: dict[str, str] = {}
    said: dict[str, str] = {}
    for instruction, rest in _instructions(text):
        if instruction == "FROM":
            env, said = {}, {}
        elif instruction == "ENV":
            env |= dict(word.split("=", 1) for word in shlex.split(rest))
        else:
            said[instruction] = rest
    return Config(
        entrypoint=json.loads(said.get("ENTRYPOINT", "[]")),
        command=json.loads(said.get("CMD", "[]")),
        env=env,
        user=said.get("USER", ""),
        working_dir=said.get("WORKDIR", "/"),
    )


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(word.upper(), rest.strip()) for word, _, rest in found]
