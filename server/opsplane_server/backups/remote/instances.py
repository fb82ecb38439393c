"""The service Instances over a channel."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2
from opsplane.common.v1 import platform_pb2, platform_pb2_grpc
from opsplane.instances.v1 import copies_pb2, copies_pb2_grpc, instances_pb2, instances_pb2_grpc

from opsplane_server.backups import convert_copies
from opsplane_server.backups.model import Copy, InstanceFacts, Notice, Packing
from opsplane_server.backups.ports import RemoteOperation
from opsplane_server.backups.remote.errors import answered, error_of
from opsplane_server.rpc.peers import Peers

_SERVICE: Final = "instances"
_PAGE: Final = 1000
_SECONDS: Final = 60.0


class RemoteInstances:
    """`ports.Instances` through generated stubs."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def get(self, name: str) -> InstanceFacts:
        """See the port."""
        async with answered():
            stub = instances_pb2_grpc.InstancesStub(self._peers.channel(_SERVICE))
            found = await stub.GetInstance(instances_pb2.GetInstanceRequest(name=name), timeout=_SECONDS)
        return convert_copies.facts_from_proto(found)

    async def list_all(self) -> list[InstanceFacts]:
        """See the port."""
        found: list[InstanceFacts] = []
        token = ""
        while True:
            async with answered():
                stub = instances_pb2_grpc.InstancesStub(self._peers.channel(_SERVICE))
                page = await stub.ListInstances(
                    instances_pb2.ListInstancesRequest(page_size=_PAGE, page_token=token), timeout=_SECONDS
                )
            found += [convert_copies.facts_from_proto(one) for one in page.instances]
            token = page.next_page_token
            if not token:
                return found

    async def copy(self, instance: str, copy_id: str, base: str, request_id: str) -> str:
        """See the port."""
        request = copies_pb2.CopyInstanceRequest(name=instance, copy_id=copy_id, base=base, request_id=request_id)
        async with answered():
            return _name(await self._copies().CopyInstance(request, timeout=_SECONDS))

    async def restore(self, request: copies_pb2.RestoreCopyRequest, request_id: str) -> str:
        """See the port."""
        sent = copies_pb2.RestoreCopyRequest()
        sent.CopyFrom(request)
        sent.request_id = request_id
        async with answered():
            return _name(await self._copies().RestoreCopy(sent, timeout=_SECONDS))

    async def check(self, copy: Copy, request_id: str) -> str:
        """See the port."""
        request = copies_pb2.CheckCopyRequest(copy=convert_copies.copy_to_proto(copy), request_id=request_id)
        async with answered():
            return _name(await self._copies().CheckCopy(request, timeout=_SECONDS))

    async def archive(self, location: str, path: str, packing: Packing, *, overwrite: bool, request_id: str) -> str:
        """See the port."""
        request = copies_pb2.ArchiveCopyRequest(
            location=location, path=path, packing=packing.value, overwrite=overwrite, request_id=request_id
        )
        async with answered():
            return _name(await self._copies().ArchiveCopy(request, timeout=_SECONDS))

    async def delete_copy(self, location: str, request_id: str) -> str:
        """See the port."""
        request = copies_pb2.DeleteCopyRequest(location=location, request_id=request_id)
        async with answered():
            return _name(await self._copies().DeleteCopy(request, timeout=_SECONDS))

    async def prune_log(self, uid: str, keep_from: str, request_id: str) -> str:
        """See the port."""
        request = copies_pb2.DeleteCopyRequest(archive=uid, keep_from=keep_from, request_id=request_id)
        async with answered():
            return _name(await self._copies().DeleteCopy(request, timeout=_SECONDS))

    async def record(self, notice: Notice) -> None:
        """See the port."""
        async with answered():
            await self._copies().RecordEvent(convert_copies.event_to_proto(notice), timeout=_SECONDS)

    async def watch(self, operation: str) -> AsyncGenerator[RemoteOperation, None]:
        """See the port."""
        async with answered():
            stub = platform_pb2_grpc.PlatformStub(self._peers.channel(_SERVICE))
            call = stub.WatchOperation(platform_pb2.WatchOperationRequest(name=operation))
            try:
                async for state in call:
                    yield _state(state)
            finally:
                call.cancel()

    async def cancel(self, operation: str) -> None:
        """See the port."""
        async with answered():
            stub = operations_pb2_grpc.OperationsStub(self._peers.channel(_SERVICE))
            await stub.CancelOperation(operations_pb2.CancelOperationRequest(name=operation), timeout=_SECONDS)

    def _copies(self) -> copies_pb2_grpc.InstanceCopiesStub:
        return copies_pb2_grpc.InstanceCopiesStub(self._peers.channel(_SERVICE))


def _name(operation: operations_pb2.Operation) -> str:
    name: str = operation.name
    return name


def _state(message: operations_pb2.Operation) -> RemoteOperation:
    metadata = platform_pb2.OperationMetadata()
    message.metadata.Unpack(metadata)
    failed = message.WhichOneof("result") == "error"
    return RemoteOperation(
        name=message.name,
        done=message.done,
        stage=metadata.stage,
        progress_percent=metadata.progress_percent,
        error=error_of(message.error) if failed else None,
        cancelled=failed and message.error.code == code_pb2.CANCELLED,
        response=message.response if message.WhichOneof("result") == "response" else None,
    )
