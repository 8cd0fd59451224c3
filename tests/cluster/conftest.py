"""One lab for all cluster tests of a run; each test gets a namespace of its own.

The node lives in the session's event loop: a test that waits for pods has to await, in that loop
(`pytest.mark.asyncio(loop_scope="session")`), or the pods stand still.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from specdecode.cluster.kube import Resource
from specdecode.lab.backoff import BackOff
from specdecode.lab.errors import LabError
from specdecode.lab.images import Image
from specdecode.lab.lab import Lab

HTTP_PROGRAM = Path(__file__).with_name("http_program.py")
NAMESPACES = Resource("v1", "namespaces")

# What the tests' own images stand for: `test/http` is the program above, `test/shell` whatever the command says.
TEST_IMAGES = {"test/http*": Image((sys.executable, "-S", str(HTTP_PROGRAM))), "test/shell*": Image(("/bin/sh",))}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab() -> AsyncIterator[Lab]:
    """A control plane and a node with eight GPUs, whose crash back-off starts at half a second."""
    opening = Lab(gpus=8, images=TEST_IMAGES, back_off=BackOff(base=0.5, cap=4.0))
    try:
        opened = await opening.__aenter__()
    except LabError as e:
        pytest.fail(f"the cluster tests need the local control plane: {e}", pytrace=False)
    try:
        yield opened
    finally:
        await opening.__aexit__(None, None, None)


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(lab: Lab) -> AsyncIterator[str]:
    """A fresh namespace, ready for pods; what runs in it ends with the test."""
    name = f"t-{uuid4().hex[:8]}"
    await lab.make_namespaces(name)
    yield name
    await lab.kube.delete(NAMESPACES, name)
