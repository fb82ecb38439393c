"""Connections in PostgreSQL. The password is encrypted, apart from the other settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

import asyncpg
from pydantic import TypeAdapter

from opsplane_server.errors import AlreadyExists, NotFound
from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.model import Connection, FtpServer, LocalFolder
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.filters import where
from opsplane_server.storage.secrets import SecretBox

_COLUMNS: Final = {"title": "title", "kind": "kind", "host": "host", "create_time": "create_time"}
_SELECT: Final = """
SELECT key, id, title, kind, settings::text AS settings, password, revision, create_time, update_time
FROM ftptransfer.connections
"""

_ftp_server: Final = TypeAdapter(FtpServer)
_local_folder: Final = TypeAdapter(LocalFolder)


class PostgresConnectionStore:
    """`ports.ConnectionStore` on PostgreSQL."""

    def __init__(self, database: Database, secrets: SecretBox) -> None:
        self._database = database
        self._secrets = secrets

    async def insert(self, connection: Connection) -> Connection:
        """See the port."""
        async with self._database.connection() as database:
            try:
                row = await database.fetchrow(
                    """INSERT INTO ftptransfer.connections (id, title, kind, host, settings, password)
                       VALUES ($1, $2, $3, $4, $5::jsonb, $6) RETURNING key, revision, create_time, update_time""",
                    connection.id,
                    connection.title,
                    *self._kept(connection),
                )
            except asyncpg.UniqueViolationError:
                raise AlreadyExists.resource(names.connection(connection.id)) from None
        assert row is not None
        return replace(connection, **row)

    async def get(self, connection_id: str) -> Connection:
        """See the port."""
        return await self._one(f"{_SELECT} WHERE id = $1", connection_id)

    async def lock(self, connection_id: str) -> Connection:
        """See the port."""
        return await self._one(f"{_SELECT} WHERE id = $1 FOR UPDATE", connection_id)

    async def find(self, ids: Collection[str]) -> dict[str, Connection]:
        """See the port."""
        async with self._database.connection() as database:
            rows = await database.fetch(f"{_SELECT} WHERE id = ANY ($1::text[])", list(ids))
        return {row["id"]: self._connection(row) for row in rows}

    async def revisions(self, ids: Collection[str]) -> dict[str, int]:
        """See the port."""
        async with self._database.connection() as database:
            rows = await database.fetch(
                "SELECT id, revision FROM ftptransfer.connections WHERE id = ANY ($1::text[])", list(ids)
            )
        return {row["id"]: row["revision"] for row in rows}

    async def list_connections(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Connection]:
        """See the port."""
        args: list[object] = [page.key[0] if page.key else None, page.size + 1]
        condition = where(conditions, _COLUMNS, args)
        async with self._database.connection() as database:
            rows = await database.fetch(
                f"{_SELECT} WHERE ($1::bigint IS NULL OR key < $1) AND {condition} ORDER BY key DESC LIMIT $2", *args
            )
        return [self._connection(row) for row in rows]

    async def update(self, connection: Connection) -> Connection:
        """See the port."""
        async with self._database.connection() as database:
            row = await database.fetchrow(
                """UPDATE ftptransfer.connections
                   SET title = $2, kind = $3, host = $4, settings = $5::jsonb, password = $6,
                       revision = nextval('ftptransfer.revisions'), update_time = now()
                   WHERE id = $1 RETURNING revision, update_time""",
                connection.id,
                connection.title,
                *self._kept(connection),
            )
        if row is None:
            raise NotFound.resource(names.connection(connection.id))
        return replace(connection, **row)

    async def delete(self, connection_id: str) -> None:
        """See the port."""
        async with self._database.connection() as database:
            await database.execute("DELETE FROM ftptransfer.connections WHERE id = $1", connection_id)

    async def _one(self, query: str, connection_id: str) -> Connection:
        async with self._database.connection() as database:
            row = await database.fetchrow(query, connection_id)
        if row is None:
            raise NotFound.resource(names.connection(connection_id))
        return self._connection(row)

    def _kept(self, connection: Connection) -> tuple[str, str, str, bytes | None]:
        """kind, host, settings, password."""
        kind = connection.kind
        if isinstance(kind, LocalFolder):
            return "local", "", _local_folder.dump_json(kind).decode(), None
        password = self._secrets.encrypt(kind.password, names.connection(connection.id)) if kind.password else None
        return "ftp", kind.host, _ftp_server.dump_json(kind, exclude={"password"}).decode(), password

    def _connection(self, row: asyncpg.Record) -> Connection:
        kind: FtpServer | LocalFolder
        if row["kind"] == "local":
            kind = _local_folder.validate_json(row["settings"])
        else:
            kind = _ftp_server.validate_json(row["settings"])
            if row["password"] is not None:
                password = self._secrets.decrypt(row["password"], names.connection(row["id"]))
                kind = replace(kind, password=password)
        fields: dict[str, Any] = {name: row[name] for name in ("id", "title", "revision", "key")}
        return Connection(kind=kind, create_time=row["create_time"], update_time=row["update_time"], **fields)
