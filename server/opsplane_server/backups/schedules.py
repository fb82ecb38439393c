"""Schedules: what to back up when, and what to keep of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime

from opsplane_server.backups.cron import Timetable
from opsplane_server.backups.model import Schedule, Webhook
from opsplane_server.backups.ports import BackupStore, Instances, ScheduleStore
from opsplane_server.backups.settling import Settling
from opsplane_server.errors import InvalidArgument
from opsplane_server.rpc import etags

UPDATABLE = (
    "instances",
    "cron",
    "time_zone",
    "tiers",
    "full_every",
    "verify_every",
    "overdue_after",
    "suspended",
    "labels",
    "webhooks",
)


class Schedules:
    """Creates, changes and deletes schedules. Methods but `check` join the caller's transaction."""

    def __init__(self, store: ScheduleStore, backups: BackupStore, instances: Instances, settling: Settling) -> None:
        self._store = store
        self._backups = backups
        self._instances = instances
        self._settling = settling

    async def check(self, instances: Collection[str]) -> None:
        """Raises NotFound for an instance that is not there."""
        for name in instances:
            await self._instances.get(name)

    async def create(self, schedule: Schedule) -> Schedule:
        """Raises InvalidArgument (cron, time_zone), AlreadyExists."""
        timetable = Timetable(schedule.cron, schedule.time_zone)
        due = None if schedule.suspended else timetable.after(datetime.now(UTC))
        return await self._store.insert(replace(schedule, next_run_time=due))

    async def update(self, wanted: Schedule, fields: Collection[str], etag: str) -> Schedule:
        """Sets `fields` to those of `wanted`. Raises InvalidArgument, NotFound, Aborted for an old `etag`."""
        current = await self._store.lock(wanted.name)
        etags.check(etag, current.name, current.revision)
        for field in ("instances", "cron"):
            if field in fields and not getattr(wanted, field):
                raise InvalidArgument.of(f"schedule.{field}", "must not be empty")
        changed = replace(current, **{field: getattr(wanted, field) for field in UPDATABLE if field in fields})
        changed = replace(changed, webhooks=_with_known_keys(changed.webhooks, current.webhooks))
        timetable = Timetable(changed.cron, changed.time_zone)
        if changed.suspended:
            changed = replace(changed, next_run_time=None)
        elif current.next_run_time is None or {"cron", "time_zone"} & set(fields):
            changed = replace(changed, next_run_time=timetable.after(datetime.now(UTC)))
        # Sources before the statuses, as everyone locks them.
        sources = [await self._backups.lock_source(uid) for uid in await self._store.sources(current.key)]
        stored = await self._store.save(changed)
        if changed.suspended or {"cron", "time_zone"} & set(fields):
            await self._await_nothing(stored)
        if {"tiers", "time_zone"} & set(fields):
            for source in sources:
                await self._settling.settle(source)
        return await self._store.get(stored.name)

    async def delete(self, name: str, *, etag: str) -> None:
        """Raises NotFound, Aborted."""
        schedule = await self._store.lock(name)
        etags.check(etag, schedule.name, schedule.revision)
        # Before the schedule goes, since that touches its backups.
        sources = [await self._backups.lock_source(uid) for uid in await self._store.sources(schedule.key)]
        await self._store.delete(schedule)
        for source in sources:
            await self._settling.settle(source)

    async def _await_nothing(self, schedule: Schedule) -> None:
        """Times of before are not waited for any more."""
        for status in schedule.statuses:
            locked = await self._store.lock_status(schedule.key, status.instance)
            if locked is not None and locked.pending_due is not None:
                await self._store.save_status(schedule.key, replace(locked, pending_due=None, told_due=None))


def _with_known_keys(wanted: Collection[Webhook], known: Collection[Webhook]) -> tuple[Webhook, ...]:
    """A webhook without a key keeps the one that its URL has."""
    keys = {webhook.url: webhook.signing_key for webhook in known}
    return tuple(replace(one, signing_key=one.signing_key or keys.get(one.url, "")) for one in wanted)
