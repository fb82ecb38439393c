"""A PostgreSQL instance that is copied and restored, for tests."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from opsplane_server.instances.model import CopySource, Engine, InstanceSpec, PointInTimeRecovery, Secrets
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.provider import LocalProvider

from tests import instances_harness as harness
from tests.instances_harness import silent


@dataclass(frozen=True)
class Copied:
    """An instance that serves, and the machine that it is on. secrets: its own and those of restored ones, by name."""

    folder: Path
    machine: Machine
    provider: LocalProvider
    spec: InstanceSpec
    secrets: dict[str, Secrets] = field(default_factory=dict)

    @asynccontextmanager
    async def connected(self, name: str = "", database: str = "app") -> AsyncIterator[asyncpg.Connection]:
        """As the owner, through its endpoint."""
        name = name or self.spec.name
        endpoints = (await self.provider.status(name)).endpoints
        assert endpoints is not None
        connection = await asyncpg.connect(
            host=endpoints.rw.host,
            port=endpoints.rw.port,
            user="app",
            password=self.secrets[name].users["app"],
            database=database,
            timeout=30,
        )
        try:
            yield connection
        finally:
            await connection.close(timeout=10)

    async def execute(self, statement: str, name: str = "") -> None:
        async with self.connected(name) as connection:
            await connection.execute(statement)

    async def values(self, statement: str, name: str = "") -> list[object]:
        """The first column."""
        async with self.connected(name) as connection:
            return [row[0] for row in await connection.fetch(statement)]

    @asynccontextmanager
    async def restored(self, instance_id: str, source: CopySource) -> AsyncIterator[str]:
        """The name of an instance made from a copy; it is gone afterwards."""
        spec = dataclasses.replace(harness.spec(instance_id, version=self.spec.version))
        self.secrets[spec.name] = harness.passwords()
        try:
            await self.provider.create(spec, self.secrets[spec.name], source, silent)
            yield spec.name
        finally:
            await self.provider.delete(spec.name, silent)

    def copy_folder(self, location: str) -> Path:
        return self.machine.layout.copy(location)


@contextmanager
def copied(version: str, *, archived: bool = True) -> Iterator[Copied]:
    """An instance with a table `kept` of 2000 rows."""
    with harness.machine_folder() as folder:
        machine = harness.machine(folder)
        provider = harness.provider(machine)
        recovery = PointInTimeRecovery(7) if archived else None
        spec = harness.spec("orders", version=exact(provider, version), point_in_time_recovery=recovery)
        result = Copied(folder, machine, provider, spec, {spec.name: harness.passwords()})
        asyncio.run(_fill(result))
        yield result


async def _fill(copied: Copied) -> None:
    await copied.provider.create(copied.spec, copied.secrets[copied.spec.name], None, silent)
    await copied.execute("CREATE TABLE kept AS SELECT n, repeat('x', 500) AS filler FROM generate_series(1, 2000) n")
    await copied.execute("ANALYZE kept")


def exact(provider: LocalProvider, major: str) -> str:
    """The newest version of a major one."""
    return next(version for version in provider.versions(Engine.POSTGRESQL) if version.startswith(f"{major}."))
