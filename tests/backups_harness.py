"""Backups over a real database and real channels, wired as the server wires them; Instances is a stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc, requests_pb2_grpc, schedules_pb2
from opsplane.common.v1 import platform_pb2_grpc
from opsplane_server.backups.deleting import Deletions
from opsplane_server.backups.remote.instances import RemoteInstances
from opsplane_server.backups.retaining import Retaining
from opsplane_server.backups.settling import Settling
from opsplane_server.backups.stores.postgres import PostgresBackupStore, PostgresNoticeStore, PostgresScheduleStore
from opsplane_server.composition import backups as composition
from opsplane_server.composition.foundation import Foundation
from opsplane_server.config import Settings
from opsplane_server.config_services import BackupsSettings
from opsplane_server.platform.servicer import OperationsServicer, PlatformServicer
from opsplane_server.rpc.identity import Anonymous, Chain, Internal
from opsplane_server.rpc.ids import new_id
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.peers import Peer, Peers
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.secrets import SecretBox

from tests.backups_stand_in import StandIn, handlers, registrations
from tests.platform_harness import Platform, connect, prepare
from tests.rpc_harness import registration, serving

MIGRATIONS = Migrations("backups", "opsplane_server.backups")


@dataclass(frozen=True, slots=True)
class Backups:
    """The service as its callers see it, its stores, and the stand-in."""

    stub: backups_pb2_grpc.BackupsStub
    requests: requests_pb2_grpc.BackupRequestsStub
    operations: operations_pb2_grpc.OperationsStub
    platform: Platform
    stand_in: StandIn
    store: PostgresBackupStore
    schedules: PostgresScheduleStore
    notices: PostgresNoticeStore
    foundation: Foundation

    async def done(self, operation: operations_pb2.Operation) -> operations_pb2.Operation:
        """The operation when it is done."""
        await self.platform.operations.wait(operation.name, 30)
        found: operations_pb2.Operation = await self.operations.GetOperation(
            operations_pb2.GetOperationRequest(name=operation.name)
        )
        assert found.done, found
        return found

    async def answer(self, operation: operations_pb2.Operation, message: Any) -> Any:
        """The operation's response, which must be of that type."""
        found = operation if operation.done else await self.done(operation)
        assert not found.HasField("error"), found.error
        assert found.response.Unpack(message), found.response.type_url
        return message

    async def make(self, instance: str = "instances/orders", **fields: Any) -> backup_pb2.Backup:
        """A backup that is ready; `backup_id` and `force` apart, fields are those of Backup."""
        backup_id = fields.pop("backup_id", "")
        operation = await self.stub.CreateBackup(
            backups_pb2.CreateBackupRequest(backup_id=backup_id, backup=backup_pb2.Backup(instance=instance, **fields))
        )
        found: backup_pb2.Backup = await self.answer(operation, backup_pb2.Backup())
        return found

    async def get(self, name: str) -> backup_pb2.Backup:
        """The backup as it is now."""
        found: backup_pb2.Backup = await self.stub.GetBackup(backups_pb2.GetBackupRequest(name=name))
        return found

    async def list(self, condition: str = "") -> Sequence[backup_pb2.Backup]:
        """Backups, newest first."""
        found = await self.stub.ListBackups(backups_pb2.ListBackupsRequest(filter=condition))
        return list(found.backups)

    async def schedule(self, schedule_id: str, **fields: Any) -> schedules_pb2.Schedule:
        """A new schedule, yearly unless the fields say otherwise."""
        wanted = schedules_pb2.Schedule(**({"instances": ["instances/orders"], "cron": "@yearly"} | fields))
        found: schedules_pb2.Schedule = await self.stub.CreateSchedule(
            schedules_pb2.CreateScheduleRequest(schedule_id=schedule_id, schedule=wanted)
        )
        return found

    async def make_due(self, schedule: str, ago: timedelta = timedelta(seconds=1)) -> None:
        """Puts the next time of a schedule into the past."""
        await self.platform.run(
            "UPDATE backups.schedules SET next_run_time = now() - $2::interval WHERE id = $1",
            schedule.removeprefix("schedules/"),
            ago,
        )

    def retaining(self) -> Retaining:
        """Retention, to be told when to look."""
        settling = Settling(self.store, self.schedules, keep_failed=timedelta(days=7))
        deletions = Deletions(self.store, self.platform.operations)
        instances = RemoteInstances(self.foundation.peers)
        return Retaining(self.platform.database, self.store, instances, settling, deletions)

    async def age(self, backup: str, days: float) -> None:
        """Makes a backup older than it is."""
        await self.platform.run(
            """UPDATE backups.backups SET create_time = create_time - $2::interval, cut_time = cut_time - $2::interval
               WHERE id = $1""",
            backup.removeprefix("backups/"),
            timedelta(days=days),
        )


def _operations(servicer: OperationsServicer) -> Registration:
    return Registration(
        "google.longrunning.Operations",
        lambda server: operations_pb2_grpc.add_OperationsServicer_to_server(servicer, server),
    )


@asynccontextmanager
async def open_backups(
    dsn: str, folder: Path, *, settings: BackupsSettings | None = None, owner: str = "here/1"
) -> AsyncIterator[Backups]:
    """The service over a prepared database."""
    internal = Internal()
    box = SecretBox.from_key_file(folder / "secrets.key", create=not (folder / "secrets.key").exists())
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(connect(dsn))
        stand_in = StandIn(platform)
        changes, database = platform.changes, platform.database
        operations = OperationsServicer(platform.operations, changes)
        peer = await stack.enter_async_context(
            serving(
                [
                    *registrations(stand_in, changes),
                    _operations(operations),
                    registration(
                        platform_pb2_grpc.add_PlatformServicer_to_server,
                        PlatformServicer(platform.operations, platform.audit),
                    ),
                ],
                standard(Chain(internal, Anonymous())),
                address=f"unix:{folder}/peer-{new_id()}.sock",
            )
        )
        await stack.enter_async_context(platform.executor(handlers(stand_in), owner=f"{owner} stand-in"))
        own = Peer(peer.address, internal.token)
        foundation = Foundation(
            settings=Settings(data_dir=folder, backups=settings or BackupsSettings()),
            node="here",
            owner=owner,
            local_address="",
            dsn=dsn,
            database=database,
            signals=platform.signals,
            secrets=box,
            operations=platform.operations,
            changes=changes,
            peers=await stack.enter_async_context(Peers(own, served=["instances"], remote={})),
        )
        service = await composition.build(foundation, stack, tick_seconds=0.1)
        served = await stack.enter_async_context(
            serving(
                [
                    *service.registrations,
                    _operations(operations),
                ],
                standard(Anonymous()),
            )
        )
        channel = await stack.enter_async_context(served.channel())
        yield Backups(
            stub=backups_pb2_grpc.BackupsStub(channel),
            requests=requests_pb2_grpc.BackupRequestsStub(channel),
            operations=operations_pb2_grpc.OperationsStub(channel),
            platform=platform,
            stand_in=stand_in,
            store=PostgresBackupStore(database, box),
            schedules=PostgresScheduleStore(database, box),
            notices=PostgresNoticeStore(database, box),
            foundation=foundation,
        )


@pytest.fixture
async def backups(dsn: str, tmp_path: Path) -> AsyncIterator[Backups]:
    """Backups with an instance `orders`."""
    await prepare(dsn)
    await migrate(dsn, [MIGRATIONS])
    async with open_backups(dsn, tmp_path) as opened:
        opened.stand_in.add("orders")
        yield opened
