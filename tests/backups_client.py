"""A client of Instances and Backups of a real server, for tests."""

from __future__ import annotations

from typing import Any, TypeVar

import asyncpg
import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc
from opsplane.instances.v1 import connections_pb2, instance_pb2, instances_pb2, instances_pb2_grpc

from tests.server_process import ServerProcess

M = TypeVar("M", bound=Message)


class Client:
    """Calls, and waits for the operations that answer."""

    def __init__(self, channel: grpc.aio.Channel, server: ServerProcess) -> None:
        self.server = server
        self.backups: Any = backups_pb2_grpc.BackupsStub(channel)
        self.instances: Any = instances_pb2_grpc.InstancesStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(channel)

    async def done(self, operation: operations_pb2.Operation, kind: type[M]) -> M:
        """The response of the operation, which must succeed."""
        while not operation.done:
            request = operations_pb2.WaitOperationRequest(name=operation.name)
            operation = await self.operations.WaitOperation(request, timeout=90)
        assert not operation.HasField("error"), operation.error
        response = kind()
        assert operation.response.Unpack(response)
        return response

    async def create(self, instance_id: str, **fields: Any) -> instance_pb2.Instance:
        """A small PostgreSQL that serves."""
        instance = instance_pb2.Instance(engine=instance_pb2.ENGINE_POSTGRESQL, **fields)
        request = instances_pb2.CreateInstanceRequest(instance_id=instance_id, instance=instance)
        return await self.done(await self.instances.CreateInstance(request), instance_pb2.Instance)

    async def back_up(self, instance: str, **fields: Any) -> backup_pb2.Backup:
        """A backup that is ready."""
        request = backups_pb2.CreateBackupRequest(backup=backup_pb2.Backup(instance=instance, **fields))
        return await self.done(await self.backups.CreateBackup(request), backup_pb2.Backup)

    async def query(self, instance: str, *statements: str) -> Any:
        """The value of the last statement, of its first user's database."""
        found = await self.instances.GetConnectionInfo(connections_pb2.GetConnectionInfoRequest(name=instance))
        connection = await asyncpg.connect(
            host=found.rw.host,
            port=found.rw.port,
            user=found.username,
            password=found.password,
            database=found.database,
        )
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    async def list(self, condition: str = "") -> list[backup_pb2.Backup]:
        """Backups, newest first."""
        return list((await self.backups.ListBackups(backups_pb2.ListBackupsRequest(filter=condition))).backups)

    async def remove(self, instance: str) -> None:
        """Deletes an instance."""
        request = instances_pb2.DeleteInstanceRequest(name=instance)
        await self.done(await self.instances.DeleteInstance(request), Empty)
