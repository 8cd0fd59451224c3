"""Tests that run at the same time: a cluster test mostly waits, and all of them together take little longer than one.

A test marked with `@story` gets a `Scene` of its own before its other parameters. All selected stories start with the
first, at most `AT_ONCE` of them at a time, and each test awaits the end of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from support.scene import Scene

Stage = dict[str, "asyncio.Task[None]"]
"""The stories that have started, by the id of their test."""

AT_ONCE = 10
"""More would only slow each other down."""


def story(function: Callable[..., Awaitable[None]] | None = None, *, own_operator: bool = False) -> Any:
    """Makes a test of a coroutine function whose first parameter is its `Scene`.

    All stories share one operator process; with `own_operator` a story has one of its own, which it starts itself.
    """
    if function is None:
        return lambda f: story(f, own_operator=own_operator)

    async def test(request: pytest.FixtureRequest, stage: Stage, **_: Any) -> None:
        await stage[request.node.nodeid]

    scene, *others = inspect.signature(function).parameters.values()
    fixtures = [inspect.Parameter(name, scene.kind) for name in ("request", "stage")]
    test.__signature__ = inspect.Signature([*fixtures, *others])  # type: ignore[attr-defined]
    test.__name__, test.__doc__, test.__module__ = function.__name__, function.__doc__, function.__module__
    test.story, test.own_operator = function, own_operator  # type: ignore[attr-defined]
    return test


async def play(test: pytest.Function, scene: Scene, turn: asyncio.Semaphore) -> None:
    """One story from its start to its end; a failure tells what there was to see."""
    parameters = test.callspec.params if hasattr(test, "callspec") else {}
    async with turn:
        try:
            await test.obj.story(scene, **parameters)
            assert not scene.operator.complaints(scene.namespace)
        except Exception as e:
            e.add_note(scene.describe())
            raise
        finally:
            if test.obj.own_operator:
                await scene.operator.stop()
            await scene.close()


def namespace_of(test: pytest.Function) -> str:
    """A name that is new, and tells the test."""
    words = re.sub(r"[^a-z0-9]+", "-", test.name.lower().removeprefix("test_")).strip("-")
    return f"{words[:40].strip('-')}-{uuid4().hex[:6]}"
