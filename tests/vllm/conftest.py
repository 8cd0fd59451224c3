"""A lab whose pods run real vLLM on the CPU, forked from one process that has it imported, and the operator at work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from specdecode.lab.errors import LabError
from specdecode.lab.lab import Lab
from specdecode.lab.realvllm.image import fork_server
from specdecode.sim.load import new_session
from support.operators import Operator, account
from support.real_vllm import installed
from support.view import View
from support.vllm_scene import VllmScene


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab() -> AsyncIterator[Lab]:
    """A control plane and a node with eight GPUs."""
    found = installed()
    async with AsyncExitStack() as stack:
        try:
            images = await stack.enter_async_context(fork_server(found))
            opened = await stack.enter_async_context(Lab(gpus=8, images=images))
        except LabError as e:
            pytest.fail(str(e), pytrace=False)
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def scene(lab: Lab, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VllmScene]:
    """A namespace with an operator of its own; what there was to see is told where the test fails."""
    namespace = f"real-{uuid4().hex[:6]}"
    await lab.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}])
    async with AsyncExitStack() as stack:
        view = await stack.enter_async_context(View.open(lab.kube))
        session = await stack.enter_async_context(new_session())
        operator = Operator(await account(lab), [namespace], tmp_path / "operator.log")
        stack.push_async_callback(operator.stop)
        await operator.start()
        made = VllmScene(lab, view, session, namespace, operator)
        stack.push_async_callback(made.close)
        yield made
        print(made.describe())  # pytest shows it where the test failed
        print(made.report())
        assert not operator.complaints(namespace)
