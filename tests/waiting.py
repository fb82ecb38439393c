"""Waiting for what must become true, instead of sleeping and hoping."""

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], bool | Awaitable[bool]], *, timeout: float = 60.0) -> None:
    """Returns as soon as `condition` holds; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        for _ in itertools.count():
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.01)
