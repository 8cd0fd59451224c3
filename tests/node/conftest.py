"""The operator installed by its chart on real nodes, and a scene for each story.

Stories that leave the nodes alone play at the same time; what drains nodes comes after them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from specdecode.lab.errors import LabError
from specdecode.lab.realnodes import needs, products
from specdecode.lab.realnodes.cluster import RealLab
from support.installed import InstalledOperator
from support.real_scene import RealScene, session_through
from support.stories import Stage, namespace_of, play
from support.view import View

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


Scenes = Callable[[pytest.Function], Awaitable[RealScene]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def new_scene(real_lab: RealLab, operator: InstalledOperator) -> AsyncIterator[Scenes]:
    """Makes a scene for a test. They share a view of the cluster, and the session of the clients."""
    async with View.open(real_lab.kube) as view, session_through(real_lab.sockets) as session:

        async def make(test: pytest.Function) -> RealScene:
            scene = RealScene(real_lab, view, session, namespace_of(test), operator)
            await scene.open()
            return scene

        yield make


@pytest_asyncio.fixture(loop_scope="session")
async def scene(new_scene: Scenes, request: pytest.FixtureRequest) -> AsyncIterator[RealScene]:
    """For a test that needs the nodes for itself."""
    made = await new_scene(request.node)
    try:
        yield made
        assert not made.operator.complaints(made.namespace)
    finally:
        await made.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage(new_scene: Scenes, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """Starts all selected stories."""
    tests = [i for i in request.session.items if isinstance(i, pytest.Function) and hasattr(i.obj, "story")]
    stories: Stage = {}
    turn = asyncio.Semaphore(AT_ONCE)
    for test in tests:
        stories[test.nodeid] = asyncio.create_task(play(test, await new_scene(test), turn), name=test.nodeid)
    try:
        yield stories
    finally:
        for task in stories.values():
            task.cancel()
        await asyncio.gather(*stories.values(), return_exceptions=True)
