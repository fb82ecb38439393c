"""A highly available instance under supervision, and clients that never stop writing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import asyncpg
import psutil
import psycopg
from opsplane.instances.v1.connections_pb2 import ConnectionInfo
from opsplane_server.instances.connections import Login, connection_info
from opsplane_server.instances.model import (
    Engine,
    HighAvailability,
    InstanceSpec,
    InstanceState,
    NodeRole,
    NodeState,
    Secrets,
    Status,
)
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import LocalManifest
from opsplane_server.instances.providers.local.provider import LocalProvider
from opsplane_server.instances.records import Instance
from opsplane_server.storage import postmaster

from tests import instances_harness as harness
from tests.instances_harness import silent
from tests.waiting import until


@dataclass
class HighlyAvailable:
    """The instance, its provider, and what the test needs to look behind it."""

    machine: Machine
    provider: LocalProvider
    spec: InstanceSpec
    secrets: Secrets
    told: list[str] = field(default_factory=list)
    _supervision: asyncio.Task[NoReturn] | None = None

    @property
    def manifest(self) -> LocalManifest:
        return self.machine.manifests.load(self.spec.name)

    def node(self, node_id: str) -> LocalNode:
        return self.machine.node(self.manifest, node_id)

    def replicas(self) -> list[LocalNode]:
        return [node for node in self.machine.nodes(self.manifest) if not node.is_primary]

    def process(self, node_id: str) -> psutil.Process | None:
        found = postmaster.find(self.node(node_id).folder.data)
        return found.process if found is not None else None

    def kill(self, node_id: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Its main process alone; what that has forked lives on."""
        process = self.process(node_id)
        assert process is not None, f"{node_id} does not run"
        process.send_signal(number)

    def supervise(self) -> None:
        """Begins to."""
        self._supervision = asyncio.create_task(self.provider.supervise(self.told.append))

    async def leave(self) -> None:
        """Ends the supervision."""
        task, self._supervision = self._supervision, None
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def status(self) -> Status:
        return await self.provider.status(self.spec.name)

    async def info(self) -> ConnectionInfo:
        """What GetConnectionInfo answers."""
        record = Instance(self.spec, self.spec.version, InstanceState.READY, status=await self.status())
        return connection_info(
            record, Login(self.spec.username, self.secrets.users[self.spec.username], self.spec.database)
        )

    async def whole(self, *, nodes: int | None = None, timeout: float = 120.0) -> Status:
        """Waits until every node serves, one of them as the primary."""
        wanted = nodes or self.spec.node_count

        async def is_whole() -> bool:
            status = await self.status()
            roles = [node.role for node in status.nodes]
            return (
                len(status.nodes) == wanted
                and all(node.state is NodeState.READY for node in status.nodes)
                and roles.count(NodeRole.PRIMARY) == 1
                and all(entry.condition is None for entry in self.manifest.nodes)
            )

        await until(is_whole, timeout=timeout)
        return await self.status()

    async def level(self) -> None:
        """Waits until the replicas have replayed all that is written so far."""
        engine = self.provider._engines[self.spec.engine]
        end = (await engine.inspect(self.node(self.manifest.primary))).position

        async def is_level() -> bool:
            views = [await engine.inspect(node) for node in self.replicas()]
            return all(view.position >= end for view in views)

        await until(is_level)

    @asynccontextmanager
    async def session(self, port: int) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """The first user's, on a port of this machine."""
        connection = await asyncpg.connect(
            host="127.0.0.1",
            port=port,
            user=self.spec.username,
            password=self.secrets.users[self.spec.username],
            database=self.spec.database,
            timeout=30,
        )
        try:
            yield connection
        finally:
            connection.terminate()


@asynccontextmanager
async def highly_available(
    availability: HighAvailability, *, version: str | None = None
) -> AsyncIterator[HighlyAvailable]:
    """A new instance `orders` with a table `written`, on a machine of its own."""
    with harness.machine_folder() as folder:
        machine = harness.machine(folder)
        provider = harness.provider(machine)
        spec = harness.spec(
            "orders",
            version=version or provider.versions(Engine.POSTGRESQL)[0],
            high_availability=availability,
            memory_bytes=128 * harness.MIB,
        )
        instance = HighlyAvailable(machine, provider, spec, harness.passwords())
        status = await provider.create(spec, instance.secrets, None, silent)
        assert status.endpoints is not None
        async with instance.session(status.endpoints.rw.port) as session:
            await session.execute("CREATE TABLE written (writer text, n bigint, PRIMARY KEY (writer, n))")
        instance.supervise()
        try:
            yield instance
        finally:
            await instance.leave()


# asyncpg has the last one for "none of these nodes is a primary now".
_BROKEN = (OSError, psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Writer:
    """Writes one number after the other, connects again after every error, and remembers what was acknowledged."""

    def __init__(self, name: str, uri: str) -> None:
        self.name = name
        self.uri = uri
        self.acknowledged: list[int] = []
        self.errors: list[Exception] = []
        self._next = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._write()
            except _BROKEN as error:
                self.errors.append(error)
                await asyncio.sleep(0.01)

    async def _write(self) -> None:
        raise NotImplementedError

    def _number(self) -> int:
        """Each is tried once: whether one that failed was written nobody promises."""
        self._next += 1
        return self._next


class AsyncpgWriter(Writer):
    """By asyncpg."""

    async def _write(self) -> None:
        connection = await asyncpg.connect(self.uri, timeout=20)
        try:
            while True:
                number = self._number()
                await connection.execute("INSERT INTO written VALUES ($1, $2)", self.name, number)
                self.acknowledged.append(number)
        finally:
            connection.terminate()


class PsycopgWriter(Writer):
    """By psycopg, and so libpq."""

    async def _write(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.uri, autocommit=True, connect_timeout=20) as connection:
            while True:
                number = self._number()
                await connection.execute("INSERT INTO written VALUES (%s, %s)", (self.name, number))
                self.acknowledged.append(number)


async def writers(instance: HighlyAvailable) -> list[Writer]:
    """By both drivers, each by the list of all nodes and by the one stable port."""
    info, number = await instance.info(), next(_numbers)
    return [
        AsyncpgWriter(f"asyncpg, all nodes, {number}", info.rw.multi_host_uri),
        AsyncpgWriter(f"asyncpg, one port, {number}", info.rw.uri),
        PsycopgWriter(f"psycopg, all nodes, {number}", info.rw.multi_host_uri),
        PsycopgWriter(f"psycopg, one port, {number}", info.rw.uri),
    ]


_numbers = itertools.count()


@asynccontextmanager
async def writing(all_writers: list[Writer]) -> AsyncIterator[None]:
    """They write for as long as the block runs."""
    tasks = [asyncio.create_task(writer.run()) for writer in all_writers]
    try:
        await on(all_writers)
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if not isinstance(result, asyncio.CancelledError):
                raise AssertionError("a writer has ended") from result


async def on(all_writers: list[Writer], count: int = 20) -> None:
    """Waits until each has got so many more numbers acknowledged."""
    wanted = {writer.name: len(writer.acknowledged) + count for writer in all_writers}
    await until(lambda: all(len(writer.acknowledged) >= wanted[writer.name] for writer in all_writers), timeout=60)


async def missing(instance: HighlyAvailable, all_writers: list[Writer]) -> dict[str, list[int]]:
    """What was acknowledged and is not there."""
    status = await instance.status()
    assert status.endpoints is not None
    async with instance.session(status.endpoints.rw.port) as session:
        rows = await session.fetch("SELECT writer, n FROM written")
    there = {(row["writer"], row["n"]) for row in rows}
    lost = {
        writer.name: [number for number in writer.acknowledged if (writer.name, number) not in there]
        for writer in all_writers
    }
    return {name: numbers for name, numbers in lost.items() if numbers}
