"""An instance of MariaDB or MySQL that serves, as the tests of both use it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomysql  # type: ignore[import-untyped]
from opsplane_server.instances.engines.mysql import MysqlAdmin
from opsplane_server.instances.model import Access, CopySource, Engine, InstanceSpec, Secrets
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.provider import LocalProvider

from tests import instances_harness as harness
from tests.instances_harness import silent

ADMIN = MysqlAdmin()


@dataclass
class Serving:
    """port: by instance."""

    folder: Path
    machine: Machine
    provider: LocalProvider
    spec: InstanceSpec
    secrets: dict[str, Secrets]
    access: Access
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def mariadb(self) -> bool:
        return self.spec.engine is Engine.MARIADB

    @asynccontextmanager
    async def client(self, user: str, password: str, name: str = "", database: str = "") -> AsyncIterator[Client]:
        """A connection over TCP."""
        connection = await aiomysql.connect(
            host="127.0.0.1",
            port=self.ports[name or self.spec.name],
            user=user,
            password=password.encode().decode("latin-1"),  # as which it encodes it
            db=database or None,
            autocommit=True,
        )
        try:
            yield Client(connection)
        finally:
            await connection.ensure_closed()

    @asynccontextmanager
    async def owner(self, name: str = "") -> AsyncIterator[Client]:
        """The first user in the first database."""
        password = self.secrets[name or self.spec.name].users["app"]
        async with self.client("app", password, name, "app") as client:
            yield client

    @asynccontextmanager
    async def restored(self, instance_id: str, source: CopySource) -> AsyncIterator[str]:
        """A new instance from a copy; its name."""
        spec = harness.spec(
            instance_id,
            engine=self.spec.engine,
            version=self.spec.version,
            memory_bytes=self.spec.resources.memory_bytes,
        )
        self.secrets[spec.name] = harness.passwords()
        status = await self.provider.create(spec, self.secrets[spec.name], source, silent)
        assert status.endpoints is not None
        self.ports[spec.name] = status.endpoints.rw.port
        try:
            yield spec.name
        finally:
            await self.provider.delete(spec.name, silent)

    def copy_folder(self, location: str) -> Path:
        return self.machine.layout.copy(location)


class Client:
    """A connection."""

    def __init__(self, connection: aiomysql.Connection) -> None:
        self._connection = connection

    async def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql, arguments or None)
            return list(await cursor.fetchall())

    async def run(self, *statements: str) -> None:
        for statement in statements:
            await self.rows(statement)

    async def values(self, sql: str) -> Sequence[Any]:
        return [row[0] for row in await self.rows(sql)]
