"""What is done in the background for stored records, by one process of all: counts, summaries, indexes, retention."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

import structlog

from opsplane_server.background import Background
from opsplane_server.errors import Aborted, Unavailable
from opsplane_server.logingest.ports import DayStore, Indexes, Leadership, Pruning, Rollups
from opsplane_server.storage.signals import Signal

log = structlog.get_logger(__name__)

_DAYS_AHEAD: Final = 2
# A day stays this much longer than its records are taken in, so that none is on its way when it goes, and is called
# over only when most of what comes late has come.
_GRACE: Final = timedelta(hours=1)
_FOLD: Final = 500
_FOLD_REST_SECONDS: Final = 0.5
_FOLD_POLL_SECONDS: Final = 2.0
_SUMMARIZE: Final = 512
_SUMMARIZE_SECONDS: Final = (0.25, 2.0)  # after work, after none
_FILTER_RANGES: Final = 32
_FILTER_SHARE: Final = 3  # of the time of its work it rests so many times
_FILTER_SECONDS: Final = 2.0
_PRUNE: Final = 2000
_REMOVE_COUNTS: Final = 5000
_CHECK_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 5.0


class Upkeep(Background):
    """Does it while this process leads. `signal` tells that groups were stored.

    retention: how long records are kept by their own time, at most a day and an hour longer. archive: folder for days
    that are removed; None for none. tail: how long followers may go back. dedup: how long batch ids are known.
    """

    _task_name = "log upkeep"

    def __init__(
        self,
        leadership: Leadership,
        rollups: Rollups,
        days: DayStore,
        indexes: Indexes,
        pruning: Pruning,
        signal: Signal,
        *,
        retention: timedelta = timedelta(days=30),
        archive: Path | None = None,
        tail: timedelta = timedelta(hours=24),
        dedup: timedelta = timedelta(days=14),
        interval: timedelta = timedelta(minutes=1),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._leadership = leadership
        self._rollups = rollups
        self._days = days
        self._indexes = indexes
        self._pruning = pruning
        self._signal = signal
        self._retention = retention
        self._archive = archive
        self._tail = tail
        self._dedup = dedup
        self._interval = interval.total_seconds()
        self._now = now

    async def fold(self) -> int:
        """Counts all groups that are settled; returns how many. Raises Unavailable, Aborted."""
        folded = 0
        while count := await self._rollups.fold(_FOLD):
            folded += count
        return folded

    async def ensure_days(self) -> None:
        """Creates what records of today and the next days need. Raises Unavailable."""
        today = self._now().date()
        await self._days.ensure_days([today + timedelta(days=ahead) for ahead in range(-1, _DAYS_AHEAD + 1)])

    async def prune(self) -> None:
        """Forgets groups and batches that are old enough, in bounded steps. Raises Unavailable."""
        while await self._pruning.prune_groups(self._tail, _PRUNE) == _PRUNE:
            pass
        while await self._pruning.prune_batches(self._dedup, _PRUNE) == _PRUNE:
            pass

    async def retain(self) -> list[date]:
        """Removes the days that are old enough, archived if so configured; returns them. Raises Unavailable."""
        # What is not counted yet would be counted after its day is gone.
        await self.fold()
        first = (self._now() - self._retention - _GRACE).date()
        expired = await self._days.expire_before(first)
        while await self._rollups.remove_before(first, _REMOVE_COUNTS):
            pass
        removed = []
        for day in expired:
            try:
                archived = await self._days.remove(day, self._archive)
            except OSError as error:
                log.error("a day can not be archived and stays", day=str(day), error=str(error))
                continue
            file = None if archived is None else str(archived.path)
            log.info("day removed", day=str(day), archive=file, records=archived and archived.record_count)
            removed.append(day)
        return removed

    async def index(self) -> list[date]:
        """Makes the indexes of days that are over; returns the days. Raises Unavailable."""
        days = []
        while day := await self._indexes.index_next((self._now() - _GRACE).date()):
            days.append(day)
        return days

    async def _run(self) -> None:
        while True:
            try:
                async with self._leadership.leading() as leads:
                    if leads:
                        log.info("log upkeep begins")
                        await self._lead()
            except* Unavailable:
                log.warning("log upkeep is left to others")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _lead(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._check())
            tasks.create_task(self._repeat(self._fold_soon))
            tasks.create_task(self._repeat(self._summarize))
            tasks.create_task(self._repeat(self._summarize_filters))
            for action in (self.ensure_days, self.prune, self.retain, self.index):
                tasks.create_task(self._repeat(self._then_rest(action)))

    async def _repeat(self, action: Callable[[], Awaitable[object]]) -> None:
        """For ever; one that fails does not keep the others from going on."""
        while True:
            try:
                await action()
            except (Unavailable, Aborted) as failure:
                log.warning("log upkeep put off", detail=failure.message)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:
                log.exception("log upkeep failed")
                await asyncio.sleep(self._interval)

    def _then_rest(self, action: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        async def act() -> None:
            await action()
            await asyncio.sleep(self._interval)

        return act

    async def _check(self) -> NoReturn:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            await self._leadership.check()

    async def _fold_soon(self) -> None:
        seen = self._signal.generation
        if await self._rollups.fold(_FOLD) < _FOLD:
            await asyncio.sleep(_FOLD_REST_SECONDS)
            await self._signal.changed(seen, _FOLD_POLL_SECONDS)

    async def _summarize(self) -> None:
        after_work, after_none = _SUMMARIZE_SECONDS
        await asyncio.sleep(after_work if await self._indexes.summarize(_SUMMARIZE) else after_none)

    async def _summarize_filters(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        new = await self._indexes.summarize_filters(_FILTER_RANGES)
        await asyncio.sleep((clock() - began) * _FILTER_SHARE if new else _FILTER_SECONDS)
