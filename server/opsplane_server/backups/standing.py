"""How schedules stand with their instances, brought up to date by what came of their backups."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from opsplane_server.backups.model import Backup, Schedule, Webhook
from opsplane_server.backups.ports import ScheduleStore


class Standing:
    """Notes successes and failures. Methods join the caller's transaction, in which the backup's source is locked."""

    def __init__(self, schedules: ScheduleStore) -> None:
        self._schedules = schedules

    async def succeeded(self, backup: Backup) -> bool:
        """Notes a good backup; returns whether it is this one's turn to be verified."""
        schedule = await self._schedule(backup)
        if schedule is None or (status := await self._schedules.lock_status(schedule.key, backup.instance)) is None:
            return False
        since_verified = status.since_verified + 1
        verify = 0 < schedule.verify_every <= since_verified
        due, last = backup.due_time, schedule.last_run_time
        await self._schedules.save_status(
            schedule.key,
            replace(
                status,
                last_success_time=datetime.now(UTC),
                last_error="",
                since_full=status.since_full + 1 if backup.base else 1,
                since_verified=0 if verify else since_verified,
                # Of the times that went by meanwhile the last one still wants a backup.
                pending_due=last if due is not None and last is not None and last > due else None,
            ),
        )
        return verify

    async def failed(self, backup: Backup, message: str) -> tuple[Webhook, ...]:
        """Notes a failure; returns where to send word of it."""
        schedule = await self._schedule(backup)
        if schedule is None:
            return ()
        await self.missed(schedule, backup.instance, message)
        return schedule.webhooks

    async def missed(self, schedule: Schedule, instance: str, message: str) -> None:
        """Notes that there is no backup, and why."""
        status = await self._schedules.lock_status(schedule.key, instance)
        if status is not None:
            await self._schedules.save_status(
                schedule.key, replace(status, last_failure_time=datetime.now(UTC), last_error=message)
            )

    async def webhooks(self, backup: Backup) -> tuple[Webhook, ...]:
        """Those of the backup's schedule."""
        schedule = await self._schedule(backup)
        return () if schedule is None else schedule.webhooks

    async def _schedule(self, backup: Backup) -> Schedule | None:
        if backup.schedule_key is None:
            return None
        return next(iter(await self._schedules.by_keys([backup.schedule_key])), None)
