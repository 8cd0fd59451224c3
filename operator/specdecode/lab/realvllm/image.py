"""Real vLLM as a stand-in for its container image: one process imports it, and every pod is forked from that."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from specdecode.lab.errors import LabError
from specdecode.lab.images import Image
from specdecode.lab.lifeline import Child, Lifeline
from specdecode.lab.realvllm.installation import FORK_SERVER, VERSION, Installation

NAME = f"vllm/vllm-openai-cpu:v{VERSION}"
"""How a manifest asks for it."""
PATTERN = "vllm/vllm-openai-cpu:*"

READY = "ready"
"""What the fork server prints once it takes clients."""
_READY_WITHIN = 180.0
ENVIRONMENT: Mapping[str, str] = {
    # One thread a pod: pods share few cores, and threads that wait for each other would measure the scheduler.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # With numba's default two pods on two cores drafted at random speed.
    "NUMBA_NUM_THREADS": "1",
    # The engine runs its worker itself: a process less.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
"""What every vLLM on few cores wants."""
_FROM_THE_MACHINE = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


@asynccontextmanager
async def fork_server(installation: Installation) -> AsyncIterator[Mapping[str, Image]]:
    """Imports vLLM in a process of its own; the images of a `Lab` whose pods are forked from it while this is open.

    Raises `LabError` if it does not get ready.
    """
    folder = Path(tempfile.mkdtemp(prefix="specdecode-vllm-"))
    lifeline = Lifeline([folder])
    try:
        address, log = folder / "socket", folder / "log"
        inherited = {name: os.environ[name] for name in _FROM_THE_MACHINE if name in os.environ}
        with log.open("wb") as output:
            child = await lifeline.spawn(
                [str(installation.python), str(FORK_SERVER), "serve", str(address)],
                output=output,
                # What it finds out about a model's class takes a process that imports all of vLLM: kept for later pods.
                env={**inherited, **ENVIRONMENT, "VLLM_CACHE_ROOT": str(installation.cache)},
                cwd=installation.models,
            )
        await _until_ready(child, log)
        # -S: the client needs the standard library only, and is there at once.
        client = (sys.executable, "-S", str(FORK_SERVER), "run", str(address))
        yield {PATTERN: Image(entrypoint=("vllm", "serve"), programs={"vllm": client})}
    finally:
        await lifeline.close()


async def _until_ready(child: Child, log: Path) -> None:
    ended = asyncio.create_task(child.wait())
    try:
        async with asyncio.timeout(_READY_WITHIN):
            while READY not in (written := await asyncio.to_thread(log.read_text, errors="replace")).splitlines():
                if ended.done():
                    raise LabError(f"vLLM could not be imported:\n{written[-4000:]}")
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise LabError(f"vLLM was not imported within {_READY_WITHIN:.0f} s") from None
    finally:
        ended.cancel()
