"""Waits for something that another process brings about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from specdecode.lab.errors import LabError

T = TypeVar("T")

_EVERY = 0.05


async def eventually(for_what: str, check: Callable[[], Awaitable[T]], within: float = 30.0) -> T:
    """The first true result of `check`. Raises `LabError` if there is none within so many seconds."""
    try:
        async with asyncio.timeout(within):
            while True:
                if result := await check():
                    return result
                await asyncio.sleep(_EVERY)
    except TimeoutError:
        raise LabError(f"waited {within:g} s in vain for {for_what}") from None
