"""Times at which something is due, told to an event loop on time: its own timers may be a millisecond late."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self


class Pacer:
    """Iterates over the times `first`, `first + interval`, ... before `end`, each when it has come.

    A consumer that is late gets those it missed at once. Times are those of time.perf_counter.
    """

    def __init__(self, first: float, interval: float, end: float) -> None:
        self._first = first
        self._interval = interval
        self._end = end
        self._due: asyncio.Queue[float | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()

    async def __aiter__(self) -> AsyncIterator[float]:
        while (due := await self._due.get()) is not None:
            yield due

    def _tell(self) -> None:
        number = 0
        while (due := self._first + number * self._interval) < self._end and not self._stopped.is_set():
            time.sleep(max(0.0, due - time.perf_counter()))
            self._loop.call_soon_threadsafe(self._due.put_nowait, due)
            number += 1
        self._loop.call_soon_threadsafe(self._due.put_nowait, None)
