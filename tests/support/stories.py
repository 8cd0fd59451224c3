"""Tests that run at the same time: a cluster test mostly waits, and a module of them takes as long as its longest.

A module imports the fixture `stage` and marks its tests with `@story`. Each gets a `Scene` of its own, before its other
parameters; all selected stories of a module start together, and each test awaits the end of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from specdecode.cluster.kube import Resource
from specdecode.lab.lab import Lab
from specdecode.sim.load import new_session
from support.operators import Operator, account
from support.scene import Scene
from support.view import View

Story = Callable[..., Awaitable[None]]

AT_ONCE = 9
"""Stories that play at the same time; more would only slow each other down."""


def story(function: Story | None = None, *, own_operator: bool = False) -> Any:
    """Makes a test of a coroutine function whose first parameter is its `Scene`.

    The stories of a module share one operator process; with `own_operator` a story has one of its own, not started.
    """
    if function is None:
        return lambda f: story(f, own_operator=own_operator)

    async def test(request: pytest.FixtureRequest, stage: dict[str, asyncio.Task[None]], **_: Any) -> None:
        await stage[request.node.nodeid]

    scene, *others = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [inspect.Parameter(name, kinds) for name in ("request", "stage")]
    test.__signature__ = inspect.Signature([*own, *others])  # type: ignore[attr-defined]
    test.__name__, test.__doc__, test.__module__ = function.__name__, function.__doc__, function.__module__
    test.story, test.own_operator = function, own_operator  # type: ignore[attr-defined]
    return test


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(
    lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """Starts all selected stories of the module; their tasks by test."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item.obj, "story")]
    folder: Path = tmp_path_factory.mktemp("operators")
    kubeconfig = await account(lab)
    async with AsyncExitStack() as stack:
        view = await stack.enter_async_context(View.open(lab.kube))
        session = await stack.enter_async_context(new_session())
        names = {item.nodeid: _namespace(item.name) for item in items}
        await lab.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in names.values()])
        for name in names.values():
            await lab.wait(f"the service account of {name}", lambda: lab.kube.list(ACCOUNTS, name))  # noqa: B023
        shared = Operator(kubeconfig, [names[i.nodeid] for i in items if not i.obj.own_operator], folder / "shared.log")
        stack.push_async_callback(shared.stop)
        if not all(item.obj.own_operator for item in items):
            await shared.start()
        tasks, turn = {}, asyncio.Semaphore(AT_ONCE)
        for item in items:
            name = names[item.nodeid]
            operator = Operator(kubeconfig, [name], folder / f"{name}.log") if item.obj.own_operator else shared
            scene = Scene(lab, view, session, name, operator)
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            tasks[item.nodeid] = asyncio.create_task(_play(item.obj, scene, parameters, turn), name=item.nodeid)
        try:
            yield tasks
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)


ACCOUNTS = Resource("v1", "serviceaccounts")


async def _play(test: Any, scene: Scene, parameters: dict[str, Any], turn: asyncio.Semaphore) -> None:
    async with turn:
        try:
            await test.story(scene, **parameters)
            assert not scene.operator.complaints(scene.namespace)
        except Exception as e:
            e.add_note(scene.describe())
            raise
        finally:
            if test.own_operator:
                await scene.operator.stop()
            await scene.close()


def _namespace(test: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", test.lower().removeprefix("test_")).strip("-")
    return f"{words[:40].strip('-')}-{uuid4().hex[:6]}"
