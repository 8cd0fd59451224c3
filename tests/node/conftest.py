"""The operator installed by its chart on real nodes, and a scene for each story.

Stories that leave the nodes alone play at the same time; what drains nodes comes after them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from specdecode.cluster.kube import Resource
from specdecode.lab.errors import LabError
from specdecode.lab.realnodes import needs, products
from specdecode.lab.realnodes.cluster import RealLab
from support.installed import InstalledOperator
from support.real_scene import RealScene, session_through
from support.stories import Stage, namespace_of, play
from support.view import View

SERVICE_ACCOUNTS = Resource("v1", "serviceaccounts")
AT_ONCE = 3


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def real_lab() -> AsyncIterator[RealLab]:
    """Three real nodes with four GPUs each."""
    if reasons := needs.lacking():
        pytest.skip(f"real nodes cannot run here: {'; '.join(reasons)}")
    try:
        opening = RealLab(nodes=3, gpus=4, archives=[await asyncio.to_thread(products.build)])
        opened = await opening.__aenter__()
    except LabError as e:
        pytest.fail(f"the tests on real nodes need what `make nodes` builds: {e}", pytrace=False)
    try:
        yield opened
    finally:
        await opening.__aexit__(None, None, None)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def operator(real_lab: RealLab) -> InstalledOperator:
    """The chart's release, with its operator running."""
    installed = InstalledOperator(real_lab)
    await installed.install()
    return installed


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def scenes(real_lab: RealLab, operator: InstalledOperator) -> AsyncIterator[AsyncExitStack]:
    """What scenes share: a view of the cluster, and clients that go through the Services."""
    async with AsyncExitStack() as stack:
        stack.view = await stack.enter_async_context(View.open(real_lab.kube))
        stack.session = await stack.enter_async_context(session_through(real_lab.sockets))
        yield stack


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage(
    real_lab: RealLab, operator: InstalledOperator, scenes: AsyncExitStack, request: pytest.FixtureRequest
) -> AsyncIterator[Stage]:
    """Starts all selected stories."""
    tests = [i for i in request.session.items if isinstance(i, pytest.Function) and hasattr(i.obj, "story")]
    stories: Stage = {}
    turn = asyncio.Semaphore(AT_ONCE)
    for test in tests:
        scene = RealScene(real_lab, scenes.view, scenes.session, namespace_of(test), operator)
        await scene.open()
        stories[test.nodeid] = asyncio.create_task(play(test, scene, turn), name=test.nodeid)
    try:
        yield stories
    finally:
        for task in stories.values():
            task.cancel()
        await asyncio.gather(*stories.values(), return_exceptions=True)
