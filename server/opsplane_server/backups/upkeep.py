"""What one process at a time must do: the clock of schedules, retention, word of events, the overview."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final

import structlog

from opsplane_server.background import Background
from opsplane_server.backups.clock import Clock
from opsplane_server.backups.figures import BackupFigures, Overview
from opsplane_server.backups.notices import Teller
from opsplane_server.backups.ports import BackupStore, Lead, ScheduleStore
from opsplane_server.backups.retaining import Retaining
from opsplane_server.errors import Aborted, FailedPrecondition, Unavailable
from opsplane_server.rpc.paging import MAX, PageRequest

log = structlog.get_logger(__name__)

_LEAD: Final = timedelta(seconds=15)


@dataclass(slots=True)
class _Duty:
    """Something to do every so many seconds, for the first time at once."""

    name: str
    seconds: float
    do: Callable[[], Awaitable[object]]
    due: float = 0.0


class Upkeep(Background):
    """Does its duties while it is entered and leads; another process takes the lead when this one gives it or dies.

    A process that lost the lead without knowing does no harm: each duty decides under locks. `tick_seconds` is how
    often it looks at the clock; the other duties are multiples of that.
    """

    _task_name = "upkeep of backups"

    def __init__(
        self,
        lead: Lead,
        clock: Clock,
        retaining: Retaining,
        teller: Teller,
        backups: BackupStore,
        schedules: ScheduleStore,
        figures: BackupFigures,
        *,
        owner: str,
        tick_seconds: float = 1.0,
    ) -> None:
        self._lead = lead
        self._backups = backups
        self._schedules = schedules
        self._figures = figures
        self._owner = owner
        self._tick_seconds = tick_seconds
        self._duties = [
            _Duty("start what is due", tick_seconds, clock.tick),
            _Duty("look at sources", 30 * tick_seconds, retaining.look),
            _Duty("tell what is overdue", 5 * tick_seconds, clock.tell_overdue),
            _Duty("delete what has expired", 5 * tick_seconds, retaining.delete_expired),
            _Duty("tell events", tick_seconds, teller.tell),
            _Duty("look at all", 10 * tick_seconds, self._look_at_all),
        ]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        try:
            await self._lead.give(self._owner)
        except Unavailable as failure:
            log.warning("lead not given back", detail=failure.message)

    async def _run(self) -> None:
        leads, renew_at = False, 0.0
        while True:
            # A third of its time is left to the lead when it is renewed: each time is a write.
            if not leads or time.monotonic() >= renew_at:
                renew_at = time.monotonic() + _LEAD.total_seconds() * 2 / 3
                try:
                    leads = await self._lead.take(self._owner, _LEAD)
                except (Unavailable, Aborted) as failure:
                    log.warning("upkeep of backups put off", detail=failure.message)
                    leads = False
            if leads:
                await self._do_all()
            else:
                self._figures.overview = None
            await asyncio.sleep(self._tick_seconds)

    async def _do_all(self) -> None:
        for duty in self._duties:
            now = time.monotonic()
            if now < duty.due:
                continue
            duty.due = now + duty.seconds
            try:
                await duty.do()
            except (Unavailable, Aborted, FailedPrecondition) as failure:
                log.warning("upkeep of backups put off", duty=duty.name, detail=failure.message)
            except Exception:
                # One broken duty must not keep the others from being done.
                log.exception("upkeep of backups failed", duty=duty.name)

    async def _look_at_all(self) -> None:
        self._figures.overview = Overview(
            states=await self._backups.counts(),
            schedules=(await self._schedules.find(PageRequest(MAX, None), []))[:MAX],
            good_times=await self._backups.good_times(),
            time=datetime.now(UTC),
        )
