"""The clock of schedules: starts their backups when they are due, and says when one is overdue."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import structlog

from opsplane_server.backups import names, notices
from opsplane_server.backups.cron import Timetable
from opsplane_server.backups.making import Requests
from opsplane_server.backups.model import (
    Backup,
    BackupState,
    BackupType,
    InstanceFacts,
    Schedule,
    ScheduleStatus,
    Source,
)
from opsplane_server.backups.ports import BackupStore, Instances, NoticeStore, ScheduleStore
from opsplane_server.backups.standing import Standing
from opsplane_server.errors import NotFound, OpsplaneError, Unavailable
from opsplane_server.platform.ports import Transactions
from opsplane_server.rpc.ids import new_id

log = structlog.get_logger(__name__)

_LOOKUPS: Final = 10


@dataclass(frozen=True, slots=True)
class _Lookup:
    """What the service Instances says of an instance: facts, or that it is not there."""

    name: str
    facts: InstanceFacts | None


class Clock:
    """Looks at the clock when it is told to."""

    def __init__(
        self,
        transactions: Transactions,
        schedules: ScheduleStore,
        backups: BackupStore,
        instances: Instances,
        requests: Requests,
        standing: Standing,
        notice_store: NoticeStore,
    ) -> None:
        self._transactions = transactions
        self._schedules = schedules
        self._backups = backups
        self._instances = instances
        self._requests = requests
        self._standing = standing
        self._notices = notice_store

    async def tick(self) -> None:
        """Starts what is due now. Raises Unavailable, Aborted."""
        for schedule in await self._schedules.due(datetime.now(UTC)):
            try:
                found = await self._look_up(schedule.instances)
            except Unavailable as error:
                # Its time stays; it is late, not lost.
                log.warning("schedule put off", schedule=schedule.name, detail=error.message)
                continue
            except OpsplaneError as error:
                log.error("schedule not started", schedule=schedule.name, detail=error.message)
                continue
            async with self._transactions.transaction():
                await self._run(schedule, found)

    async def tell_overdue(self) -> None:
        """Sends word of what has become overdue. Raises Unavailable, Aborted."""
        now = datetime.now(UTC)
        for schedule, status in await self._schedules.overdue_untold(now):
            async with self._transactions.transaction():
                locked = await self._schedules.lock_status(schedule.key, status.instance)
                if locked is None or locked.pending_due is None or not schedule.is_overdue(locked, now):
                    continue
                await self._schedules.save_status(schedule.key, replace(locked, told_due=locked.pending_due))
                words = (
                    f"{schedule.name} has no backup of {status.instance} since it was due at "
                    f"{locked.pending_due.isoformat()}"
                )
                await self._notices.add(
                    notices.of_schedule(
                        schedule,
                        status.instance,
                        await self._known_uid(status.instance),
                        "BACKUP_OVERDUE",
                        "WARNING",
                        words,
                        locked.pending_due,
                    )
                )
            log.warning("backup overdue", schedule=schedule.name, instance=status.instance)

    async def _look_up(self, instances: tuple[str, ...]) -> list[_Lookup]:
        places = asyncio.Semaphore(_LOOKUPS)

        async def look_up(name: str) -> _Lookup:
            async with places:
                try:
                    return _Lookup(name, await self._instances.get(name))
                except NotFound:
                    return _Lookup(name, None)

        return await asyncio.gather(*(look_up(name) for name in instances))

    async def _run(self, seen: Schedule, found: list[_Lookup]) -> None:
        schedule = await self._schedules.lock(seen.name)
        if schedule.next_run_time != seen.next_run_time or schedule.next_run_time is None:
            return  # somebody was quicker, or has changed it
        timetable = Timetable(schedule.cron, schedule.time_zone)
        now = datetime.now(UTC)
        due = timetable.latest(schedule.next_run_time, now)
        await self._schedules.set_run(schedule.key, due, timetable.after(due))
        # Sources in the order of their uids, and before the status: as everyone locks them.
        for one in sorted(found, key=lambda one: one.facts.uid if one.facts else ""):
            if one.facts is not None:
                await self._backups.meet(Source(one.facts.uid, one.name, window=one.facts.window))
            status = await self._wait_for(schedule, one.name, due)
            if status is None:
                continue
            if one.facts is None:
                await self._not_there(schedule, one.name, due)
            elif await self._is_under_way(schedule, one.facts):
                log.warning("scheduled backup left out: the one before is under way", instance=one.name)
            else:
                await self._start(schedule, one.facts, status, due)

    async def _wait_for(self, schedule: Schedule, instance: str, due: datetime) -> ScheduleStatus | None:
        """Notes that a backup is wanted; None when the instance has left the schedule meanwhile."""
        status = await self._schedules.lock_status(schedule.key, instance)
        if status is not None and status.pending_due is None:
            status = replace(status, pending_due=due)
            await self._schedules.save_status(schedule.key, status)
        return status

    async def _start(self, schedule: Schedule, facts: InstanceFacts, status: ScheduleStatus, due: datetime) -> None:
        wanted = Backup(
            name=names.backup(new_id()),
            uid=new_id(),
            instance=facts.name,
            instance_uid=facts.uid,
            type=BackupType.SCHEDULED,
            incremental=0 < status.since_full < schedule.full_every,
            labels=schedule.labels,
            schedule=schedule.name,
            schedule_key=schedule.key,
            due_time=due,
        )
        _, backup = await self._requests.create(wanted, facts, verb="CreateBackup")
        await self._schedules.save_status(schedule.key, replace(status, last_backup=backup.name))
        log.info("scheduled backup started", schedule=schedule.name, backup=backup.name, instance=facts.name)

    async def _not_there(self, schedule: Schedule, instance: str, due: datetime) -> None:
        words = f"{instance} does not exist"
        await self._standing.missed(schedule, instance, words)
        uid = await self._known_uid(instance)
        await self._notices.add(
            notices.of_schedule(schedule, instance, uid, "BACKUP_FAILED", "ERROR", f"{schedule.name}: {words}", due)
        )

    async def _is_under_way(self, schedule: Schedule, facts: InstanceFacts) -> bool:
        return any(
            backup.schedule_key == schedule.key and backup.state in (BackupState.QUEUED, BackupState.RUNNING)
            for backup in await self._backups.of_source(facts.uid)
        )

    async def _known_uid(self, instance: str) -> str:
        try:
            return (await self._backups.newest_source(instance)).uid
        except NotFound:
            return ""
