"""Operations of a whole server: its workers die, its two services work together, and it keeps passwords to itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc
from opsplane.instances.v1 import events_pb2, instance_pb2, instances_pb2, instances_pb2_grpc

from tests.instances_server import instances_server
from tests.server_process import ServerProcess, kill
from tests.waiting import until

pytestmark = pytest.mark.slow

PASSWORD = "a password nobody else has"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with instances_server("--workers", "2") as running:
        yield running


class Client:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.instances: Any = instances_pb2_grpc.InstancesStub(channel)
        self.backups: Any = backups_pb2_grpc.BackupsStub(channel)
        self._operations = operations_pb2_grpc.OperationsStub(channel)

    async def create(self, instance_id: str, **fields: Any) -> operations_pb2.Operation:
        message = instance_pb2.Instance(engine=instance_pb2.ENGINE_POSTGRESQL, password=PASSWORD, **fields)
        return await self.instances.CreateInstance(
            instances_pb2.CreateInstanceRequest(instance=message, instance_id=instance_id)
        )

    async def ended(self, operation: operations_pb2.Operation) -> operations_pb2.Operation:
        while not operation.done:
            request = operations_pb2.WaitOperationRequest(name=operation.name)
            try:
                operation = await self._operations.WaitOperation(request, timeout=90, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:  # of the worker that it asked
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
        assert not operation.HasField("error"), operation.error
        return operation

    async def is_gone(self, name: str) -> bool:
        call = self.instances.GetInstance(instances_pb2.GetInstanceRequest(name=name))
        return await call.code() is grpc.StatusCode.NOT_FOUND

    async def events(self, name: str) -> list[str]:
        found = await self.instances.ListEvents(events_pb2.ListEventsRequest(parent=name))
        return [events_pb2.Event.Kind.Name(event.kind) for event in reversed(found.events)]


async def test_workers_that_die_leave_no_operation_undone(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        operations = [await client.create(f"survivor-{number}") for number in range(2)]
        folder = server.data_dir / "instances" / "survivor-0"
        await until(folder.exists)
        for worker in server.workers():
            kill(worker)
        await until(lambda: server.get("/ready")[0] == 200)
        for operation in operations:
            await client.ended(operation)
        for number in range(2):
            assert await client.events(f"instances/survivor-{number}") == ["KIND_CREATED"]


async def test_deleted_after_a_final_backup(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        await client.ended(await client.create("last"))
        request = instances_pb2.DeleteInstanceRequest(
            name="instances/last", final_backup=True, final_backup_id="last-words", final_backup_retention_days=3
        )
        await client.ended(await client.instances.DeleteInstance(request))
        assert await client.is_gone("instances/last")
        backup = await client.backups.GetBackup(backups_pb2.GetBackupRequest(name="backups/last-words"))
        assert (backup.state, backup.type) == (backup_pb2.Backup.STATE_READY, backup_pb2.Backup.TYPE_FINAL)
        assert (backup.instance, backup.retention_days) == ("instances/last", 3)
        assert not (server.data_dir / "instances" / "last").exists()


async def test_deleted_when_its_time_has_come(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        expiry = Timestamp()
        expiry.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
        await client.ended(await client.create("fleeting", expire_time=expiry))
        await until(lambda: client.is_gone("instances/fleeting"))
        assert (await client.events("instances/fleeting"))[-1] == "KIND_DELETED"
        assert not (server.data_dir / "instances" / "fleeting").exists()


def test_no_file_and_no_log_holds_a_password(server: ServerProcess) -> None:
    """The last of the module: over all that the others left, in our database and in the instances'."""
    needle = PASSWORD.encode()
    assert PASSWORD not in server.errors() + server.output()
    held = [path for path in server.data_dir.rglob("*") if path.is_file() and needle in path.read_bytes()]
    assert held == []
