"""Which class drafts for a configuration: the tests by which a release's model runner chooses it, run on that.

The runners need a GPU, their choice does not: a chain of `if … elif …` over the speculative configuration.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_RUNNERS = {"V1": "vllm/v1/worker/gpu_model_runner.py", "V2": "vllm/v1/worker/gpu/spec_decode/__init__.py"}


def drafter(release: Path, runner: str, config: Any) -> str | None:
    """The class that drafts; None where the runner would refuse the configuration. Raises LookupError without a choice.

    `runner`: the model runner, V1 or V2.
    """
    path = release / _RUNNERS[runner]
    tree = ast.parse(path.read_text())
    known = {"self": SimpleNamespace(speculative_config=config), "speculative_config": config}
    for choice in (node for node in ast.walk(tree) if isinstance(node, ast.If)):
        branches = list(_branches(choice))
        if not all(_is_about_speculation(test) for test, _ in branches) or not any(_made(b) for _, b in branches):
            continue
        for test, body in branches:
            if eval(compile(ast.Expression(test), str(path), "eval"), known):
                return _made(body)
        return None
    raise LookupError(f"{path} does not choose a drafter as releases so far do")


def _branches(choice: ast.If) -> Iterator[tuple[ast.expr, list[ast.stmt]]]:
    yield choice.test, choice.body
    if len(choice.orelse) == 1 and isinstance(choice.orelse[0], ast.If):
        yield from _branches(choice.orelse[0])


def _is_about_speculation(test: ast.expr) -> bool:
    text = ast.unparse(test).removeprefix("self.")
    return text.startswith("speculative_config.") and ("method ==" in text or ".use" in text)


def _made(body: list[ast.stmt]) -> str | None:
    """The class whose object is returned, or kept as the drafter."""
    for node in ast.walk(ast.Module(body, [])):
        if not isinstance(node, (ast.Return, ast.Assign)) or not isinstance(node.value, ast.Call):
            continue
        if isinstance(node, ast.Return) or ast.unparse(node.targets[0]) == "self.drafter":
            return ast.unparse(node.value.func)
    return None
