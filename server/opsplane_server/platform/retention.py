"""Removes what is no longer asked for: operations that ended long ago and request ids that nobody repeats."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Protocol

import structlog

from opsplane_server.background import Background
from opsplane_server.errors import Unavailable

log = structlog.get_logger(__name__)

_BATCH = 1000


class Purgeable(Protocol):
    """A store that can forget its oldest rows."""

    async def purge(self, older_than: timedelta, limit: int) -> int:
        """Removes up to `limit` rows older than that; returns how many."""
        ...


class Retention(Background):
    """Purges each store every `interval`, in batches so that no transaction is long. The audit is kept for ever.

    Several processes may run it at once: each batch leaves out what another is removing.
    """

    _task_name = "retention"

    def __init__(
        self,
        operations: Purgeable,
        requests: Purgeable,
        *,
        operations_age: timedelta = timedelta(days=30),
        requests_age: timedelta = timedelta(days=7),
        interval: timedelta = timedelta(hours=1),
    ) -> None:
        self._ages = {"operations": (operations, operations_age), "requests": (requests, requests_age)}
        self._interval = interval

    async def purge(self) -> dict[str, int]:
        """Removes all that is old enough; returns how many rows of each store. Raises Unavailable."""
        removed = dict.fromkeys(self._ages, 0)
        for name, (store, age) in self._ages.items():
            while count := await store.purge(age, _BATCH):
                removed[name] += count
        return removed

    async def _run(self) -> None:
        while True:
            try:
                log.info("retention done", **await self.purge())
            except Unavailable as failure:
                log.warning("retention put off", detail=failure.message)
            except Exception:
                log.exception("retention failed")
            await asyncio.sleep(self._interval.total_seconds())
