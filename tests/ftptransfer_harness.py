"""FtpTransfer over a real database and a real channel, wired as the server wires it, for tests."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from opsplane.ftptransfer.v1 import ftptransfer_pb2_grpc
from opsplane_server.ftptransfer.connections import ConnectionCatalog, Connections
from opsplane_server.ftptransfer.connections_file import ConnectionsFile
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.files import Files
from opsplane_server.ftptransfer.model import FtpServer, Outcome, Probe, Task
from opsplane_server.ftptransfer.servicer import FtpTransferServicer, Limits
from opsplane_server.ftptransfer.stores.postgres import (
    PostgresConnectionStore,
    PostgresFigureStore,
    PostgresSweeps,
    PostgresTransferFollowing,
    PostgresTransferQueue,
    PostgresTransferStore,
    queue_database,
)
from opsplane_server.ftptransfer.transfers import Transfers
from opsplane_server.ftptransfer.watch import TransferWatcher
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.storage.database import Database
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.secrets import SecretBox

from tests.ftptransfer_fakes import FolderServer
from tests.platform_harness import Platform, connect, prepare
from tests.rpc_harness import registration, serving

MIGRATIONS = Migrations("ftptransfer", "opsplane_server.ftptransfer")

CONNECTIONS = """
[remote-server-a]
type = ftp
host = ftp.example.com
port = 21
user = username
pass = hunter2
passive = true

[Other Server]
type = ftp
host = other.example.com
user = username
pass = hunter2

[local]
type = local
base_path = {base_path}
"""

LEASE_SECONDS = 30.0


class TriedServer(FolderServer):
    """A folder as an FTP server, which can be tried."""

    probed: FtpServer | None = None

    async def probe(self, server: FtpServer, path: str) -> Probe:
        self.probed = server
        return Probe(None, "list", 0.25, "220 a folder", ("MLST", "UTF8"), entry_count=3)


@dataclass(frozen=True, slots=True)
class FtpTransfer:
    """The service as its callers see it, its queue, and its stores."""

    stub: ftptransfer_pb2_grpc.FtpTransferStub
    platform: Platform
    database: Database
    queue: PostgresTransferQueue
    sweeps: PostgresSweeps
    transfers: Transfers
    store: PostgresTransferStore
    connections: PostgresConnectionStore
    figure_store: PostgresFigureStore
    figures: TransferFigures
    watcher: TransferWatcher
    catalog: ConnectionCatalog
    server: TriedServer
    folder: Path
    connections_file: Path

    async def take(self, limit: int = 100, *, worker: str = "w-1", without: Collection[str] = ()) -> Sequence[Task]:
        """Tasks of the queue."""
        return await self.queue.take(worker, limit, without=without)

    async def settle(self, *outcomes: tuple[Task, Outcome], worker: str = "w-1") -> None:
        """What came of tasks."""
        await self.queue.settle(worker, outcomes)

    async def sweep(self) -> None:
        """All that there is to sweep."""
        while await self.sweeps.sweep():
            pass

    async def expire(self, worker: str) -> None:
        """Lets the lease of a worker run out."""
        await self.platform.run("UPDATE ftptransfer.workers SET lease_until = now() WHERE worker = $1", worker)

    async def value(self, query: str, *args: object) -> object:
        """The first value of a query's first row."""
        return await self.platform.value(query, *args)


@pytest.fixture
async def ftp(dsn: str, tmp_path: Path) -> AsyncIterator[FtpTransfer]:
    """FtpTransfer without an engine: transfers stay in the queue until a test plays its part."""
    await prepare(dsn)
    await migrate(dsn, [MIGRATIONS])
    key_file = tmp_path / "secrets.key"
    key_file.write_text(base64.b64encode(os.urandom(32)).decode())
    key_file.chmod(0o600)
    folder, remote = tmp_path / "storage", tmp_path / "remote"
    folder.mkdir()
    remote.mkdir()
    file = tmp_path / "connections.ini"
    file.write_text(CONNECTIONS.format(base_path=folder))
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(connect(dsn))
        database = await stack.enter_async_context(queue_database(dsn))
        ini = await stack.enter_async_context(ConnectionsFile(file))
        work, changes = platform.signals.topic("ftptransfer_queue"), platform.signals.topic("ftptransfer_changes")
        connection_store = PostgresConnectionStore(platform.database, SecretBox.from_key_file(key_file, create=False))
        store = PostgresTransferStore(platform.database)
        catalog = ConnectionCatalog(ini, connection_store)
        transfers = Transfers(store, catalog, work=work, changes=changes)
        watcher = TransferWatcher(PostgresTransferFollowing(platform.database), changes)
        server, figures = TriedServer(remote), TransferFigures()
        figure_store = PostgresFigureStore(platform.database)
        servicer = FtpTransferServicer(
            platform.changes,
            platform.database,
            catalog,
            Connections(ini, connection_store, store, forbidden=[tmp_path / "data"]),
            transfers,
            Files(catalog, server, max_upload_bytes=10_000_000),
            watcher,
            figures,
            transfer_store=store,
            figure_store=figure_store,
            limits=Limits("postgres", 100, 10),
        )
        served = await stack.enter_async_context(
            serving(
                [registration(ftptransfer_pb2_grpc.add_FtpTransferServicer_to_server, servicer)],
                standard(Anonymous()),
            )
        )
        channel = await stack.enter_async_context(served.channel())
        yield FtpTransfer(
            stub=ftptransfer_pb2_grpc.FtpTransferStub(channel),
            platform=platform,
            database=database,
            queue=PostgresTransferQueue(database, catalog, work=work, changes=changes, lease_seconds=LEASE_SECONDS),
            sweeps=PostgresSweeps(database),
            transfers=transfers,
            store=store,
            connections=connection_store,
            figure_store=figure_store,
            figures=figures,
            watcher=watcher,
            catalog=catalog,
            server=server,
            folder=folder,
            connections_file=file,
        )
