"""Schedules in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import asyncpg

from opsplane_server.backups import names
from opsplane_server.backups.model import Period, Schedule, ScheduleStatus, Tier
from opsplane_server.backups.stores.postgres.listing import page_of
from opsplane_server.backups.stores.postgres.webhooks import seal_webhooks, unseal_webhooks
from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.secrets import SecretBox

_SELECT: Final = "SELECT * FROM backups.schedules s"

_OVERDUE: Final = "NOT s.suspended AND i.pending_due + s.overdue_after < now()"

_COLUMNS: Final[Mapping[str, str]] = {
    "instances": "instances[]",
    "suspended": "suspended",
    "overdue": f"(EXISTS (SELECT FROM backups.schedule_instances i WHERE i.schedule_key = s.key AND {_OVERDUE}))",
    "create_time": "create_time",
}


class PostgresScheduleStore:
    """`ports.ScheduleStore` on PostgreSQL."""

    def __init__(self, database: Database, secrets: SecretBox) -> None:
        self._database = database
        self._secrets = secrets

    async def insert(self, schedule: Schedule) -> Schedule:
        """See the port."""
        values = {"id": names.last(schedule.name), **self._settings(schedule)}
        places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                f"""INSERT INTO backups.schedules ({", ".join(values)}) VALUES ({places})
                    ON CONFLICT (id) DO NOTHING RETURNING *""",
                *values.values(),
            )
            if row is None:
                raise AlreadyExists.resource(schedule.name)
            await self._set_instances(row["key"], schedule.instances)
        return await self.get(schedule.name)

    async def get(self, name: str) -> Schedule:
        """See the port."""
        return self._one(name, await self._list(f"{_SELECT} WHERE id = $1", names.last(name)))

    async def lock(self, name: str) -> Schedule:
        """See the port."""
        return self._one(name, await self._list(f"{_SELECT} WHERE id = $1 FOR UPDATE", names.last(name)))

    async def by_keys(self, keys: Collection[int]) -> list[Schedule]:
        """See the port."""
        return await self._list(f"{_SELECT} WHERE key = ANY ($1)", list(keys)) if keys else []

    async def find(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Schedule]:
        """See the port."""
        query, args = page_of(_SELECT, page=page, conditions=conditions, columns=_COLUMNS)
        return await self._list(query, *args)

    async def save(self, schedule: Schedule) -> Schedule:
        """See the port."""
        values = self._settings(schedule)
        sets = ", ".join(f"{column} = ${place}" for place, column in enumerate(values, start=2))
        async with self._database.transaction() as connection:
            await connection.execute(
                f"UPDATE backups.schedules SET {sets}, revision = revision + 1, update_time = now() WHERE key = $1",
                schedule.key,
                *values.values(),
            )
            await self._set_instances(schedule.key, schedule.instances)
        return await self.get(schedule.name)

    async def delete(self, schedule: Schedule) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM backups.schedules WHERE key = $1", schedule.key)

    async def sources(self, key: int) -> list[str]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT DISTINCT source_uid FROM backups.backups WHERE schedule_key = $1 ORDER BY source_uid", key
            )
        return [row["source_uid"] for row in rows]

    async def due(self, now: datetime) -> list[Schedule]:
        """See the port."""
        return await self._list(f"{_SELECT} WHERE next_run_time <= $1 ORDER BY next_run_time, key", now)

    async def set_run(self, key: int, last: datetime, following: datetime) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE backups.schedules SET last_run_time = $2, next_run_time = $3 WHERE key = $1",
                key,
                last,
                following,
            )

    async def lock_status(self, key: int, instance: str) -> ScheduleStatus | None:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM backups.schedule_instances WHERE schedule_key = $1 AND instance = $2 FOR UPDATE",
                key,
                instance,
            )
        return None if row is None else _status(row)

    async def save_status(self, key: int, status: ScheduleStatus) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                """UPDATE backups.schedule_instances SET last_backup = $3, last_success_time = $4,
                   last_failure_time = $5, last_error = $6, since_full = $7, since_verified = $8, pending_due = $9,
                   told_due = $10
                   WHERE schedule_key = $1 AND instance = $2""",
                key,
                status.instance,
                status.last_backup,
                status.last_success_time,
                status.last_failure_time,
                status.last_error,
                status.since_full,
                status.since_verified,
                status.pending_due,
                status.told_due,
            )

    async def overdue_untold(self, now: datetime) -> list[tuple[Schedule, ScheduleStatus]]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT i.* FROM backups.schedule_instances i JOIN backups.schedules s ON s.key = i.schedule_key
                   WHERE NOT s.suspended AND i.pending_due + s.overdue_after < $1
                     AND i.told_due IS DISTINCT FROM i.pending_due
                   ORDER BY i.pending_due LIMIT 1000""",
                now,
            )
        schedules = {schedule.key: schedule for schedule in await self.by_keys({row["schedule_key"] for row in rows})}
        return [(schedules[row["schedule_key"]], _status(row)) for row in rows if row["schedule_key"] in schedules]

    def _settings(self, schedule: Schedule) -> dict[str, object]:
        return {
            "instances": list(schedule.instances),
            "cron": schedule.cron,
            "time_zone": schedule.time_zone,
            "tiers": json.dumps([_tier_to_json(tier) for tier in schedule.tiers]),
            "full_every": schedule.full_every,
            "verify_every": schedule.verify_every,
            "overdue_after": schedule.overdue_after,
            "suspended": schedule.suspended,
            "labels": json.dumps(dict(schedule.labels)),
            "webhooks": seal_webhooks(self._secrets, schedule.webhooks, schedule.name),
            "next_run_time": schedule.next_run_time,
        }

    async def _set_instances(self, key: int, instances: Iterable[str]) -> None:
        wanted = list(instances)
        async with self._database.connection() as connection:
            await connection.execute(
                "DELETE FROM backups.schedule_instances WHERE schedule_key = $1 AND instance <> ALL ($2)", key, wanted
            )
            await connection.execute(
                """INSERT INTO backups.schedule_instances (schedule_key, instance)
                   SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING""",
                key,
                wanted,
            )

    async def _list(self, query: str, *args: object) -> list[Schedule]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
            statuses = await connection.fetch(
                "SELECT * FROM backups.schedule_instances WHERE schedule_key = ANY ($1)", [row["key"] for row in rows]
            )
        by_place = {(row["schedule_key"], row["instance"]): _status(row) for row in statuses}
        return [self._schedule(row, by_place) for row in rows]

    def _one(self, name: str, found: Sequence[Schedule]) -> Schedule:
        if not found:
            raise NotFound.resource(name)
        return found[0]

    def _schedule(self, row: asyncpg.Record, statuses: Mapping[tuple[int, str], ScheduleStatus]) -> Schedule:
        name = names.schedule(row["id"])
        return Schedule(
            name=name,
            instances=tuple(row["instances"]),
            cron=row["cron"],
            time_zone=row["time_zone"],
            tiers=tuple(_tier(value) for value in json.loads(row["tiers"])),
            full_every=row["full_every"],
            verify_every=row["verify_every"],
            overdue_after=row["overdue_after"],
            suspended=row["suspended"],
            labels=json.loads(row["labels"]),
            webhooks=unseal_webhooks(self._secrets, row["webhooks"], name),
            next_run_time=row["next_run_time"],
            last_run_time=row["last_run_time"],
            statuses=tuple(
                statuses.get((row["key"], instance), ScheduleStatus(instance)) for instance in row["instances"]
            ),
            create_time=row["create_time"],
            update_time=row["update_time"],
            key=row["key"],
            revision=row["revision"],
        )


def _tier_to_json(tier: Tier) -> dict[str, str | int]:
    return {"name": tier.name, "period": tier.period.value, "days": tier.keep_days, "count": tier.keep_count}


def _tier(value: Mapping[str, str | int]) -> Tier:
    return Tier(str(value["name"]), Period(str(value["period"])), int(value["days"]), int(value["count"]))


def _status(row: asyncpg.Record) -> ScheduleStatus:
    return ScheduleStatus(
        instance=row["instance"],
        last_backup=row["last_backup"],
        last_success_time=row["last_success_time"],
        last_failure_time=row["last_failure_time"],
        last_error=row["last_error"],
        since_full=row["since_full"],
        since_verified=row["since_verified"],
        pending_due=row["pending_due"],
        told_due=row["told_due"],
    )
