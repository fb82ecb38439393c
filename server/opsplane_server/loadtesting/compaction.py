"""Compacts finished runs in the background (`metrics.compaction` says what that means)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from opsplane_server.background import Background
from opsplane_server.errors import Aborted, Unavailable
from opsplane_server.loadtesting.ports import WindowCompaction

log = structlog.get_logger(__name__)


class Compactor(Background):
    """Looks every `interval` for runs that ended longer than `age` ago, and compacts one at a time.

    Several processes may run it at once: a run that one of them works on is left out by the others.
    """

    _task_name = "compact runs"

    def __init__(self, store: WindowCompaction, *, age: timedelta, interval: timedelta = timedelta(minutes=10)) -> None:
        self._store = store
        self._age = age
        self._interval = interval

    async def compact(self) -> int:
        """Compacts all runs that are old enough; returns how many. Raises Unavailable, Aborted."""
        runs = 0
        while name := await self._store.compact_next(self._age):
            log.info("run compacted", run=name)
            runs += 1
        return runs

    async def _run(self) -> None:
        while True:
            try:
                await self.compact()
            except (Unavailable, Aborted) as failure:
                log.warning("compaction put off", detail=failure.message)
            except Exception:
                log.exception("compaction failed")
            await asyncio.sleep(self._interval.total_seconds())
