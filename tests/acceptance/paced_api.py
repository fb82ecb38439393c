"""An HTTP API that takes its time, for tests that compare runs: each call sleeps for as long as is drawn for it.

Paths are below `/steady` or `/slower`: below the latter `GET /orders` takes a fifth longer, all else is the same.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

STEADY: Final = "steady"
SLOWER: Final = "slower"
FACTOR: Final = 1.2
# Medians in seconds: long enough that a busy machine, which adds milliseconds, does not hide a fifth.
PATHS: Final = {"/pets": 0.1, "/orders": 0.12, "/users": 0.14}
_SPREAD: Final = 0.25

DOCUMENT: Final = {
    "openapi": "3.0.3",
    "info": {"title": "Paced", "version": "1"},
    "paths": {path: {"get": {"responses": {"200": {"description": "after a while"}}}} for path in PATHS},
}


@asynccontextmanager
async def paced_api(seed: int) -> AsyncIterator[str]:
    """Serves on a free port of loopback; the URL without a variant."""
    draw = random.Random(seed)  # noqa: S311  # no secret
    calls: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        calls.add(task)
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                _, variant, path = line.split()[1].decode().split("/", 2)
                median = PATHS[f"/{path}"] * (FACTOR if (variant, path) == (SLOWER, "orders") else 1.0)
                await asyncio.sleep(median * math.exp(draw.gauss(0, _SPREAD)))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            calls.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for call in list(calls):
            call.cancel()
        if calls:
            await asyncio.wait(calls)
