"""The operator at work on the lab: one shared process, and a scene for each story."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from specdecode.lab.lab import Lab
from specdecode.sim.load import new_session
from support.operators import Operator, account
from support.scene import Scene
from support.stories import AT_ONCE, Stage, namespace_of, play
from support.view import View


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage(
    lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    """Starts all selected stories."""
    tests = {i.nodeid: i for i in request.session.items if isinstance(i, pytest.Function) and hasattr(i.obj, "story")}
    names = {nodeid: namespace_of(test) for nodeid, test in tests.items()}
    sharing = [names[nodeid] for nodeid, test in tests.items() if not test.obj.own_operator]
    logs = tmp_path_factory.mktemp("operators")
    kubeconfig = await account(lab)
    await lab.make_namespaces(*names.values())
    async with AsyncExitStack() as stack:
        view = await stack.enter_async_context(View.open(lab.kube))
        session = await stack.enter_async_context(new_session())
        shared = Operator(kubeconfig, sharing, logs / "shared.log")
        stack.push_async_callback(shared.stop)
        if sharing:
            await shared.start()
        stories: Stage = {}
        turn = asyncio.Semaphore(AT_ONCE)
        # Those with an operator of their own take longest: they begin first.
        for nodeid, test in sorted(tests.items(), key=lambda item: not item[1].obj.own_operator):
            name = names[nodeid]
            operator = Operator(kubeconfig, [name], logs / f"{name}.log") if test.obj.own_operator else shared
            scene = Scene(lab, view, session, name, operator)
            stories[nodeid] = asyncio.create_task(play(test, scene, turn), name=nodeid)
        end = asyncio.create_task(_stop_after(stories, shared))
        try:
            yield stories
        finally:
            for task in (end, *stories.values()):
                task.cancel()
            await asyncio.gather(end, *stories.values(), return_exceptions=True)


async def _stop_after(stories: Stage, operator: Operator) -> None:
    """Other tests need the machine."""
    await asyncio.wait(stories.values())
    await operator.stop()
