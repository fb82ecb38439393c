"""Records of instances in PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, TypeVar

import asyncpg

from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.instances.model import Secrets
from opsplane_server.instances.records import BackupFigures, Instance
from opsplane_server.instances.stores.postgres import passwords, rows
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.filters import where
from opsplane_server.storage.secrets import SecretBox
from opsplane_server.storage.signals import Signal

_COLUMNS: Final = {
    "engine": "engine",
    "provider": "provider",
    "state": "state",
    "highly_available": "(jsonb_typeof(spec -> 'high_availability') = 'object')",
    "placement.namespace": "(spec -> 'placement' ->> 'namespace')",
    "create_time": "create_time",
}
T = TypeVar("T")

_LABEL: Final = re.compile(r"labels\.[a-z]([a-z0-9_.-]{0,61}[a-z0-9])?")


class PostgresInstanceStore:
    """`ports.InstanceStore` on PostgreSQL."""

    def __init__(self, database: Database, secrets: SecretBox, changes: Signal) -> None:
        self._database = database
        self._secrets = secrets
        self._changes = changes

    async def insert(self, instance: Instance, secrets: Secrets) -> Instance:
        """See the port."""
        written = {"name": instance.name, "uid": instance.uid, **rows.columns(instance, self._secrets)}
        places = ", ".join(f"${number}" for number in range(1, len(written) + 1))
        async with self._database.transaction() as connection:
            try:
                await connection.execute(
                    f"INSERT INTO instances.instances ({', '.join(written)}) VALUES ({places})", *written.values()
                )
            except asyncpg.UniqueViolationError:
                raise AlreadyExists.resource(instance.name) from None
            await passwords.replace(connection, self._secrets, instance.name, secrets)
        self._changes.notify()
        return await self.get(instance.name)

    async def get(self, name: str) -> Instance:
        """See the port."""
        return _there(await self.find(name), name)

    async def find(self, name: str) -> Instance | None:
        """See the port."""
        return await self._one(f"{rows.SELECT} WHERE name = $1", name)

    async def lock(self, name: str) -> Instance:
        """See the port."""
        return _there(await self._one(f"{rows.SELECT} WHERE name = $1 FOR UPDATE", name), name)

    async def list_instances(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Instance]:
        """See the port."""
        args: list[object] = [page.key[0] if page.key else None, page.size + 1]
        matching = _matching(conditions, args)
        return await self._many(
            f"{rows.SELECT} WHERE NOT hidden AND ($1::bigint IS NULL OR key < $1) AND {matching} "
            "ORDER BY key DESC LIMIT $2",
            *args,
        )

    async def of_machine(self, machine: str) -> list[Instance]:
        """See the port."""
        return await self._many(f"{rows.SELECT} WHERE machine = $1 ORDER BY key", machine)

    async def save(self, instance: Instance) -> Instance:
        """See the port."""
        written = rows.columns(instance, self._secrets)
        settings = ", ".join(f"{column} = ${number}" for number, column in enumerate(written, 2))
        places = {column: f"${number}" for number, column in enumerate(written, 2)}
        async with self._database.connection() as connection:
            update_time = await connection.fetchval(
                f"""UPDATE instances.instances SET {settings}, update_time = CASE
                        WHEN (state, state_message, revision)
                             IS DISTINCT FROM ({places["state"]}, {places["state_message"]}, {places["revision"]})
                        THEN now() ELSE update_time END
                    WHERE name = $1 RETURNING update_time""",
                instance.name,
                *written.values(),
            )
        if update_time is None:
            raise NotFound.resource(instance.name)
        self._changes.notify()
        return await self.get(instance.name)

    async def delete(self, name: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM instances.instances WHERE name = $1", name)
        self._changes.notify()

    async def set_backups(self, uid: str, figures: BackupFigures) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            status = await connection.execute(
                """UPDATE instances.instances SET backup = $2, backup_cut_time = $3, backup_size_bytes = $4
                   WHERE uid = $1 AND (backup, backup_cut_time, backup_size_bytes) IS DISTINCT FROM ($2, $3, $4)""",
                uid,
                figures.name,
                figures.cut_time,
                figures.size_bytes,
            )
        if status != "UPDATE 0":
            self._changes.notify()

    async def secrets(self, name: str) -> Secrets:
        """See the port."""
        async with self._database.connection() as connection:
            return _there(await passwords.read(connection, self._secrets, name), name)

    async def set_secrets(self, name: str, secrets: Secrets) -> None:
        """See the port."""
        async with self._database.transaction() as connection:
            await passwords.replace(connection, self._secrets, name, secrets)

    async def set_password(self, name: str, user: str, password: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await passwords.set_one(connection, self._secrets, name, user, password)

    async def password_times(self, name: str) -> Mapping[str, datetime]:
        """See the port."""
        async with self._database.connection() as connection:
            return await passwords.times(connection, name)

    async def _one(self, query: str, *args: object) -> Instance | None:
        found = await self._many(query, *args)
        return found[0] if found else None

    async def _many(self, query: str, *args: object) -> list[Instance]:
        async with self._database.connection() as connection:
            return [rows.instance(row, self._secrets) for row in await connection.fetch(query, *args)]


def _there(found: T | None, name: str) -> T:
    if found is None:
        raise NotFound.resource(name)
    return found


def _matching(conditions: Sequence[Condition], args: list[object]) -> str:
    columns = dict(_COLUMNS)
    for condition in conditions:
        if _LABEL.fullmatch(condition.field):
            args.append(condition.field.removeprefix("labels."))
            columns[condition.field] = f"(labels ->> ${len(args)}::text)"
    return where(conditions, columns, args)
