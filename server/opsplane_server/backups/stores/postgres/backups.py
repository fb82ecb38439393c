"""Backups and their sources in PostgreSQL."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import asyncpg
from opsplane.instances.v1 import copies_pb2

from opsplane_server.backups import names
from opsplane_server.backups.model import Backup, Source
from opsplane_server.backups.stores.postgres.listing import page_of
from opsplane_server.backups.stores.postgres.rows import backup_of, changing, of_copy
from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.secrets import SecretBox

_SELECT: Final = "SELECT * FROM backups.backups"

_COLUMNS: Final[Mapping[str, str]] = {
    "instance": "instance",
    "instance_uid": "source_uid",
    "engine": "engine",
    "state": "state",
    "type": "type",
    "method": "method",
    "schedule": "schedule",
    "last_good": "last_good",
    "verification.state": "(CASE WHEN verifying_since IS NULL THEN verification_state ELSE 'RUNNING' END)",
    "create_time": "create_time",
    "cut_time": "cut_time",
    "expire_time": "expire_time",
}

# What holds a base: a backup that failed consists of nothing.
_BUILDS_ON: Final = "SELECT FROM backups.backups n WHERE n.base = 'backups/' || b.id AND n.state <> 'FAILED'"


class PostgresBackupStore:
    """`ports.BackupStore` on PostgreSQL."""

    def __init__(self, database: Database, secrets: SecretBox) -> None:
        self._database = database
        self._secrets = secrets

    # --- sources

    async def lock_source(self, uid: str) -> Source:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow("SELECT * FROM backups.sources WHERE uid = $1 FOR UPDATE", uid)
        if row is None:
            raise NotFound(f"there are no backups of an instance with uid {uid}")
        return _source(row)

    async def meet(self, source: Source) -> Source:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                """INSERT INTO backups.sources (uid, name, live, window_days) VALUES ($1, $2, $3, $4)
                   ON CONFLICT DO NOTHING""",
                source.uid,
                source.name,
                source.live,
                None if source.window is None else source.window.days,
            )
        return await self.lock_source(source.uid)

    async def save_source(self, source: Source) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE backups.sources SET name = $2, live = $3, window_days = $4, pruned = $5 WHERE uid = $1",
                source.uid,
                source.name,
                source.live,
                None if source.window is None else source.window.days,
                source.pruned,
            )

    async def forget_source(self, uid: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                """DELETE FROM backups.sources s WHERE s.uid = $1
                   AND NOT EXISTS (SELECT FROM backups.backups b WHERE b.source_uid = s.uid)""",
                uid,
            )

    async def list_sources(self) -> list[Source]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT * FROM backups.sources ORDER BY create_time, uid")
        return [_source(row) for row in rows]

    async def newest_source(self, instance: str) -> Source:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM backups.sources WHERE name = $1 ORDER BY create_time DESC, uid DESC LIMIT 1", instance
            )
        if row is None:
            raise NotFound(f"there is no backup of {instance}", metadata={"resource": instance})
        return _source(row)

    # --- backups

    async def insert(self, backup: Backup) -> Backup:
        """See the port."""
        values = {
            "id": names.last(backup.name),
            "uid": backup.uid,
            "instance": backup.instance,
            "source_uid": backup.instance_uid,
            "type": backup.type.value,
            "incremental": backup.incremental,
            "engine": backup.engine,
            "schedule": backup.schedule,
            "schedule_key": backup.schedule_key,
            "due_time": backup.due_time,
            **changing(backup),
        }
        places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"""INSERT INTO backups.backups ({", ".join(values)}) VALUES ({places})
                    ON CONFLICT (id) DO NOTHING RETURNING *""",
                *values.values(),
            )
        if row is None:
            raise AlreadyExists.resource(backup.name)
        return backup_of(row)

    async def get(self, name: str) -> Backup:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(f"{_SELECT} WHERE id = $1", names.last(name))
        if row is None:
            raise NotFound.resource(name)
        return backup_of(row)

    async def lock(self, name: str) -> Backup:
        """See the port."""
        await self.lock_source((await self.get(name)).instance_uid)
        return await self.get(name)

    async def save(self, backup: Backup) -> Backup:
        """See the port."""
        values = changing(backup) | (of_copy(backup.copy) if backup.copy is not None else {})
        sets = ", ".join(f"{column} = ${place}" for place, column in enumerate(values, start=2))
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"UPDATE backups.backups SET {sets}, revision = revision + 1 WHERE key = $1 RETURNING *",
                backup.key,
                *values.values(),
            )
        if row is None:
            raise NotFound.resource(backup.name)
        return backup_of(row)

    async def delete(self, backup: Backup) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM backups.backups WHERE key = $1", backup.key)

    async def of_source(self, uid: str) -> list[Backup]:
        """See the port."""
        return await self._list(f"{_SELECT} WHERE source_uid = $1 ORDER BY key", uid)

    async def deleted_by(self, operation: str) -> list[Backup]:
        """See the port."""
        return await self._list(
            f"{_SELECT} WHERE state = 'DELETING' AND operation = $1 ORDER BY key DESC",
            operation,
        )

    async def find(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Backup]:
        """See the port."""
        query, args = page_of(_SELECT, page=page, conditions=conditions, columns=_COLUMNS)
        return await self._list(query, *args)

    # --- uses

    async def use(self, backup: Backup, operation: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO backups.uses (backup_key, operation) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                backup.key,
                operation,
            )

    async def users_of(self, backups: Collection[Backup]) -> set[str]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT operation FROM backups.uses WHERE backup_key = ANY ($1)", [backup.key for backup in backups]
            )
        return {row["operation"] for row in rows}

    async def leave(self, operation: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM backups.uses WHERE operation = $1", operation)
            await connection.execute("DELETE FROM backups.sealed_requests WHERE operation = $1", operation)

    async def seal(self, operation: str, request: copies_pb2.RestoreCopyRequest) -> None:
        """See the port."""
        plain = base64.b64encode(request.SerializeToString()).decode()
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO backups.sealed_requests (operation, request) VALUES ($1, $2)",
                operation,
                self._secrets.encrypt(plain, operation),
            )

    async def unseal(self, operation: str) -> copies_pb2.RestoreCopyRequest:
        """See the port."""
        async with self._database.connection() as connection:
            token = await connection.fetchval(
                "SELECT request FROM backups.sealed_requests WHERE operation = $1", operation
            )
        if token is None:
            raise NotFound(f"the request of {operation} is not kept any more")
        return copies_pb2.RestoreCopyRequest.FromString(base64.b64decode(self._secrets.decrypt(token, operation)))

    # --- upkeep

    async def expired(self, now: datetime, limit: int) -> list[Backup]:
        """See the port."""
        return await self._list(
            f"""SELECT b.* FROM backups.backups b
                WHERE b.expire_time <= $1
                  AND (b.state IN ('READY', 'FAILED') OR b.state = 'DELETING' AND b.operation = '')
                  AND NOT EXISTS ({_BUILDS_ON})
                  AND NOT EXISTS (SELECT FROM backups.uses u WHERE u.backup_key = b.key)
                ORDER BY b.key LIMIT $2""",
            now,
            limit,
        )

    async def counts(self) -> Mapping[str, int]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT state, count(*) AS count FROM backups.backups GROUP BY state")
        return {row["state"]: row["count"] for row in rows}

    async def good_times(self) -> Mapping[str, datetime]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT instance, cut_time FROM backups.backups WHERE last_good")
        return {row["instance"]: row["cut_time"] for row in rows}

    async def _list(self, query: str, *args: object) -> list[Backup]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(query, *args)
        return [backup_of(row) for row in rows]


def _source(row: asyncpg.Record) -> Source:
    days = row["window_days"]
    return Source(
        uid=row["uid"],
        name=row["name"],
        live=row["live"],
        window=None if days is None else timedelta(days=days),
        pruned=row["pruned"],
    )
