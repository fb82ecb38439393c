"""Brings up to date what is told of the backups of an instance: what keeps them, until when, and the last good one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from opsplane_server.backups.cron import time_zone
from opsplane_server.backups.model import BackupState, Source
from opsplane_server.backups.ports import BackupStore, ScheduleStore
from opsplane_server.backups.retention import Policy, judge


class Settling:
    """Applies `retention` to what is stored."""

    def __init__(self, backups: BackupStore, schedules: ScheduleStore, *, keep_failed: timedelta) -> None:
        self._backups = backups
        self._schedules = schedules
        self._keep_failed = keep_failed

    async def settle(self, source: Source) -> None:
        """Stores what has changed about the backups of a source, which the caller has locked."""
        found = await self._backups.of_source(source.uid)
        schedules = await self._schedules.by_keys({one.schedule_key for one in found if one.schedule_key is not None})
        verdicts = judge(
            found,
            source,
            {schedule.key: Policy(schedule.retention, time_zone(schedule.time_zone)) for schedule in schedules},
            now=datetime.now(UTC),
            keep_failed=self._keep_failed,
        )
        for backup in found:
            if backup.state is BackupState.DELETING:
                continue
            verdict = verdicts[backup.key]
            changed = replace(backup, tiers=verdict.tiers, expire_time=verdict.expire_time, last_good=verdict.last_good)
            if _due(backup.expire_time) and _due(changed.expire_time):
                # Since when it is to be deleted does not change any more.
                changed = replace(changed, expire_time=backup.expire_time)
            if changed != backup:
                await self._backups.save(changed)


def _due(expire_time: datetime | None) -> bool:
    return expire_time is not None and expire_time <= datetime.now(UTC)
