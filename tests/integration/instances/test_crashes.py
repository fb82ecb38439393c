"""Processes that die at any point of an operation: the next ones end it, and nothing is half-made or leaked.

Each operation is worked on by processes of which the first dies at its first point, the next at its second, and so on
with growing steps, until one gets through.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import asyncpg
import psutil
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2
from opsplane.instances.v1 import copies_pb2, instance_pb2, instances_pb2, lifecycle_pb2
from opsplane_server.instances.engines.postgres import PostgresAdmin
from opsplane_server.instances.model import Engine, InstanceState, NodeRole, Status
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.records import Instance
from opsplane_server.instances.settings import new_password
from opsplane_server.platform.model import Operation, OperationState
from opsplane_server.storage.embedded import EmbeddedPostgres

from tests.instances_harness import machine, machine_folder, port_range, provider
from tests.instances_operations import PASSWORD, Room, open_room, prepare_room
from tests.integration.instances.crash_worker import Job
from tests.platform_harness import calling_as

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

PLACES: Final = (1, 2, 4, 8, 14, 22, 32, 45, 60, 80, 105, 140)


@dataclass(frozen=True)
class Machine:
    """The room, the folder that its instances lie in, and processes that work and die."""

    room: Room
    folder: Path
    ports: tuple[int, int]
    workers: asyncio.subprocess.Process

    async def work(self, operation: Operation | operations_pb2.Operation, *, kill_at: int = 0) -> bool:
        """Has a process work on it; False when it died as it should."""
        job = Job(
            dsn=self.room.platform.dsn,
            folder=str(self.folder),
            first_port=self.ports[0],
            last_port=self.ports[1],
            operation=operation.name,
            kill_at=kill_at,
            log=str(self.folder / "workers.log"),
        )
        assert self.workers.stdin is not None
        assert self.workers.stdout is not None
        self.workers.stdin.write(f"{job.to_json()}\n".encode())
        async with asyncio.timeout(120):
            status = int(await self.workers.stdout.readline())
        # Its lease ends with it, which others would wait for.
        await self.room.platform.run(
            "UPDATE platform.operations SET lease_until = clock_timestamp() WHERE lease_until IS NOT NULL"
        )
        assert status in (0, -9), (self.folder / "workers.log").read_text()[-4000:]
        return status == 0

    async def survive(self, operation: Operation | operations_pb2.Operation) -> Operation:
        """The operation when it has ended well, over the dead bodies of processes."""
        died = 0
        for place in PLACES:
            if await self.work(operation, kill_at=place):
                break
            died += 1
        else:
            assert await self.work(operation)
        assert died > 2
        return await self.room.ended(operation)

    def processes(self) -> list[psutil.Process]:
        """Main processes of servers, and whatever else works on the folder of instances."""
        found = []
        for process in psutil.process_iter():
            try:
                if any(str(self.folder / "instances") in word for word in process.cmdline()[1:]):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def names(self) -> list[str]:
        """What lies in the folder of instances, but for what belongs to all."""
        return sorted(
            path.name for path in (self.folder / "instances").iterdir() if path.is_dir() and path.name != ".proxy"
        )

    def nodes(self, instance: str) -> list[str]:
        """What lies in the folder of an instance's servers, below that what is not of the engine."""
        folder = self.folder / "instances" / instance / "nodes"
        return sorted(str(path.relative_to(folder)) for node in folder.iterdir() for path in (node, *node.iterdir()))

    @asynccontextmanager
    async def connected(self, instance: Instance, password: str = PASSWORD) -> AsyncIterator[asyncpg.Connection]:
        """As a client of the instance."""
        assert instance.status.endpoints is not None
        endpoint = instance.status.endpoints.rw
        connection = await asyncpg.connect(
            host=endpoint.host, port=endpoint.port, user="app", password=password, database="app", ssl=False
        )
        try:
            yield connection
        finally:
            await connection.close()

    async def created(self, name: str, **fields: object) -> Instance:
        """An instance made without trouble."""
        operation = await self.room.create(name, **fields)
        assert await self.work(operation)
        await self.room.ended(operation)
        return await self.room.store.get(f"instances/{name}")

    async def removed(self, name: str, *left: str) -> None:
        """Removes it without trouble, and checks that these alone are left."""
        operation = await self.room.instances.delete(instances_pb2.DeleteInstanceRequest(name=name))
        assert await self.work(operation)
        await self.room.ended(operation)
        self.check_left(*left)

    def files_with(self, text: str) -> list[Path]:
        """Files, of engines too, that hold a text."""
        return [path for path in self.folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]

    def check_left(self, *names: str) -> None:
        """One server each."""
        assert self.names() == sorted(names)
        servers = [process.cmdline() for process in self.processes() if "proxy" not in str(process.cmdline())]
        assert len(servers) == len(names), servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(postgres: EmbeddedPostgres) -> AsyncIterator[Machine]:
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres.dsn)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with machine_folder() as folder:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        dsn = postgres.dsn.replace("/opsplane?", f"/{name}?")
        await prepare_room(dsn)
        workers = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.instances.crash_worker",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        try:
            ports = port_range()
            local = provider(machine(folder, first_port=ports[0], last_port=ports[1]))
            async with open_room(dsn, folder, local, {Engine.POSTGRESQL: PostgresAdmin()}) as room:
                yield Machine(room, folder, ports, workers)
        finally:
            assert workers.stdin is not None
            workers.stdin.close()
            await workers.wait()
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await connection.close()


@pytest.fixture
def here(opened: Machine) -> Iterator[Machine]:
    with calling_as("somebody"):
        yield opened


async def test_create_and_delete(here: Machine) -> None:
    await here.survive(await here.room.create("orders"))
    instance = await here.room.store.get("instances/orders")
    assert (instance.state, instance.operation) == (InstanceState.READY, "")
    async with here.connected(instance) as client:
        assert await client.fetchval("SELECT current_user") == "app"
    here.check_left("orders")
    assert await here.room.kinds_of_events(instance.name) == ["CREATED"]
    await here.created("plain")
    made = [path.replace("orders", "plain") for path in here.nodes("orders")]
    assert here.nodes("plain") == [path for path in made if not path.startswith(".")]
    assert here.files_with(PASSWORD) == []
    await here.removed("instances/plain", "orders")

    await here.survive(await here.room.instances.delete(instances_pb2.DeleteInstanceRequest(name=instance.name)))
    here.check_left()
    assert await here.room.kinds_of_events(instance.name) == ["CREATED", "DELETED"]


@pytest.mark.parametrize("place", [4, 14, 26])
async def test_a_creation_that_is_cancelled_after_a_crash(here: Machine, place: int) -> None:
    operation = await here.room.create(f"halfway-{place}")
    assert not await here.work(operation, kill_at=place)
    await here.room.platform.operations.cancel(operation.name)
    assert not await here.work(operation, kill_at=place)
    assert await here.work(operation)
    assert (await here.room.ended(operation, well=False)).state is OperationState.CANCELLED
    here.check_left()
    assert await here.room.store.find(f"instances/halfway-{place}") is None


async def test_copy_and_restore(here: Machine) -> None:
    room = here.room
    source = await here.created("source")
    async with here.connected(source) as client:
        await client.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
    request = copies_pb2.CopyInstanceRequest(name=source.name, copy_id="copy-1")
    copied = await here.survive(await room.submit(kinds.COPY, source.name, request))
    copy = copies_pb2.InstanceCopy()
    assert copied.response is not None
    assert copied.response.Unpack(copy)
    assert [path.name for path in (here.folder / "backups").iterdir()] == [copy.location]

    password = new_password()
    restored = replace(
        source,
        spec=replace(source.spec, name="instances/restored", uid=str(uuid.uuid4())),
        status=Status(),
        state=InstanceState.RESTORING,
    )
    secrets = await room.store.secrets(source.name)
    await room.store.insert(restored, replace(secrets, admin=new_password(), users={"app": password}))
    restore = copies_pb2.RestoreCopyRequest(copy=copy, instance_id="restored", backup="backups/one")
    await here.survive(await room.submit(kinds.RESTORE_COPY, restored.name, restore))
    restored = await room.store.get(restored.name)
    async with here.connected(restored, password) as client:
        assert await client.fetchval("SELECT count(*) FROM kept") == 1000
    assert await room.kinds_of_events(restored.name) == ["RESTORED"]
    here.check_left("restored", "source")

    await here.survive(await room.submit(kinds.CHECK_COPY, source.name, copies_pb2.CheckCopyRequest(copy=copy)))
    here.check_left("restored", "source")
    await here.survive(
        await room.submit(kinds.DELETE_COPY, source.name, copies_pb2.DeleteCopyRequest(location=copy.location))
    )
    assert not list((here.folder / "backups").iterdir())
    await here.removed(source.name, "restored")
    await here.removed(restored.name)


async def test_failover(here: Machine) -> None:
    instance = await here.created("pair", high_availability=instance_pb2.HighAvailability(node_count=2))
    request = lifecycle_pb2.FailoverRequest(name=instance.name)
    await here.survive(await here.room.instances.change_primary(kinds.FAILOVER, request))
    after = await here.room.store.get(instance.name)
    assert after.status.primary == "pair-2"
    assert await here.room.kinds_of_events(instance.name) == ["CREATED", "FAILED_OVER"]
    async with here.connected(after) as client:
        assert not await client.fetchval("SELECT pg_is_in_recovery()")
    primaries = [node for node in after.status.nodes if node.role is NodeRole.PRIMARY]
    assert [node.id for node in primaries] == ["pair-2"]
    await here.removed(instance.name)


async def test_upgrade_and_back(here: Machine) -> None:
    room = here.room
    instance = await here.created("aged", version="16")
    async with here.connected(instance) as client:
        await client.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
    request = lifecycle_pb2.UpgradeInstanceRequest(name=instance.name, version="18", skip_backup=True)
    await here.survive(await room.instances.upgrade(request))
    instance = await room.store.get(instance.name)
    assert instance.state is InstanceState.READY
    async with here.connected(instance) as client:
        assert client.get_server_version().major == 18
        assert await client.fetchval("SELECT count(*) FROM kept") == 1000
        await client.execute("DROP TABLE kept")
    back = lifecycle_pb2.RollbackUpgradeRequest(name=instance.name, discard_writes=True)
    await here.survive(await room.instances.roll_back(back))
    assert here.nodes("aged") == ["aged-1", *(f"aged-1/{part}" for part in ("conf", "data", "log", "run"))]
    instance = await room.store.get(instance.name)
    async with here.connected(instance) as client:
        assert client.get_server_version().major == 16
        assert await client.fetchval("SELECT count(*) FROM kept") == 1000
    assert await room.kinds_of_events(instance.name) == ["CREATED", "UPGRADED", "UPGRADE_ROLLED_BACK"]
    await here.removed(instance.name)
