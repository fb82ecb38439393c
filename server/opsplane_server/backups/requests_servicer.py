"""BackupRequests: backups that Opsplane's own services ask for."""

from __future__ import annotations

from typing import Any

import grpc
from google.longrunning import operations_pb2
from opsplane.backups.v1 import requests_pb2, requests_pb2_grpc

from opsplane_server.backups import convert, names
from opsplane_server.backups.making import Requests
from opsplane_server.backups.model import Backup
from opsplane_server.backups.ports import Instances
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.convert import operation_to_proto
from opsplane_server.rpc.ids import new_id

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = requests_pb2.DESCRIPTOR.services_by_name["BackupRequests"].full_name


class BackupRequestsServicer(requests_pb2_grpc.BackupRequestsServicer):
    """`opsplane.backups.v1.BackupRequests`."""

    def __init__(self, changes: Changes, instances: Instances, requests: Requests) -> None:
        self._changes = changes
        self._instances = instances
        self._requests = requests

    async def BackUp(self, request: requests_pb2.BackUpRequest, context: Context) -> operations_pb2.Operation:
        """See the proto. The state of the instance does not matter: it is being deleted or upgraded."""
        replayed = await self._changes.replay(request, operations_pb2.Operation)
        if replayed is not None:
            return replayed
        facts = await self._instances.get(request.instance)
        wanted = Backup(
            name=names.backup(request.backup_id or new_id()),
            uid=new_id(),
            instance=request.instance,
            instance_uid="",
            type=convert.TYPES[request.type],
            retention_days=request.retention_days,
        )

        async def create() -> operations_pb2.Operation:
            operation, _ = await self._requests.create(wanted, facts, verb="BackUp", request_id=request.request_id)
            return operation_to_proto(operation)

        return await self._changes.apply(request, operations_pb2.Operation, create)
