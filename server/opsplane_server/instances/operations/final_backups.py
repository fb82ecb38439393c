"""Backups that are made before an instance is deleted or upgraded, by the service Backups over its own API."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

import grpc
import structlog
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc, requests_pb2, requests_pb2_grpc
from opsplane.common.v1.platform_pb2 import OperationMetadata

from opsplane_server.errors import FailedPrecondition, OpsplaneError, Unavailable
from opsplane_server.instances.operations import failures
from opsplane_server.instances.ports import Progress
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import OperationCancelled
from opsplane_server.rpc.peers import Peers

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_SERVICE: Final = "backups"
_WAIT: Final = timedelta(seconds=1)
_NAMESPACE: Final = uuid.UUID("6f6d5f0c-7a5e-4c3a-9d0c-2f4f1a0b8e11")


class FinalBackups:
    """Asks Backups for them, and waits. Raises what it answers, FailedPrecondition when a backup did not succeed."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def make(
        self,
        execution: Execution,
        instance: str,
        kind: backup_pb2.Backup.Type.ValueType,
        *,
        backup_id: str,
        retention_days: int,
        progress: Progress,
    ) -> str:
        """The name of the backup, once it is complete. A wish to cancel ends it, and raises OperationCancelled.

        May be called again: the same operation asks for the same backup.
        """
        request = requests_pb2.BackUpRequest(
            instance=instance,
            backup_id=backup_id,
            type=kind,
            retention_days=retention_days,
            request_id=str(uuid.uuid5(_NAMESPACE, execution.operation.name)),
        )
        channel = self._peers.channel(_SERVICE)
        operation = await _call(requests_pb2_grpc.BackupRequestsStub(channel).BackUp, request)
        operations = operations_pb2_grpc.OperationsStub(channel)
        cancelled = False
        while not operation.done:
            if execution.cancel_requested and not cancelled:
                await _call(operations.CancelOperation, operations_pb2.CancelOperationRequest(name=operation.name))
                cancelled = True
            wait = operations_pb2.WaitOperationRequest(name=operation.name)
            wait.timeout.FromTimedelta(_WAIT)
            operation = await _call(operations.WaitOperation, wait)
            metadata = OperationMetadata()
            if operation.metadata.Unpack(metadata):
                await progress("backing up", metadata.progress_percent)
        if cancelled:
            raise OperationCancelled
        if operation.HasField("error"):
            error = failures.of_status(operation.error)
            raise FailedPrecondition(
                f"the backup before did not succeed: {error.message}",
                reason="BACKUP_FAILED",
                metadata={"cause": error.reason},
            )
        backup = backup_pb2.Backup()
        operation.response.Unpack(backup)
        return backup.name

    async def any_of(self, uid: str) -> bool:
        """Whether there are backups of an instance; True as well where nobody says. Raises Unavailable."""
        if _SERVICE not in self._peers:
            return True
        stub = backups_pb2_grpc.BackupsStub(self._peers.channel(_SERVICE))
        request = backups_pb2.ListBackupsRequest(page_size=1, filter=f'instance_uid="{uid}"')
        try:
            return bool((await _call(stub.ListBackups, request)).backups)
        except Unavailable:
            raise
        except OpsplaneError as error:
            log.warning("backups not listed", uid=uid, detail=error.message)
            return True


async def _call(method: Callable[[M], Awaitable[T]], request: M) -> T:
    try:
        return await method(request)
    except grpc.aio.AioRpcError as error:
        raise failures.of_call(error) from None
