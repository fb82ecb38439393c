"""google.longrunning.Operations and opsplane.common.v1.Platform."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import grpc.aio
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from opsplane.common.v1 import platform_pb2, platform_pb2_grpc

from opsplane_server.errors import InvalidArgument
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.convert import audit_event_to_proto, operation_to_proto
from opsplane_server.platform.model import OperationState
from opsplane_server.platform.operations import Operations
from opsplane_server.platform.ports import AuditStore
from opsplane_server.rpc import filters
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.filters import FieldType
from opsplane_server.rpc.paging import next_page_token, page_request

_OPERATION_FIELDS: Mapping[str, FieldType | Collection[str]] = {
    "verb": FieldType.STRING,
    "target": FieldType.STRING,
    "state": [state.value for state in OperationState],
    "done": FieldType.BOOLEAN,
    "create_time": FieldType.TIME,
}
_AUDIT_FIELDS: Mapping[str, FieldType | Collection[str]] = {
    "principal": FieldType.STRING,
    "method": FieldType.STRING,
    "resource": FieldType.STRING,
    "event_time": FieldType.TIME,
}

# Longest that WaitOperation waits for a caller who does not say how long.
_WAIT_SECONDS = 60.0
# How long before the deadline of a call it answers.
_ANSWER_SECONDS = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


def patience(request: operations_pb2.WaitOperationRequest, remaining: float | None) -> float:
    """How many seconds WaitOperation waits for a caller who gives up in `remaining`."""
    asked = request.timeout.ToTimedelta().total_seconds() if request.HasField("timeout") else _WAIT_SECONDS
    # Sooner than the caller gives up, who would otherwise learn nothing.
    left = asked if remaining is None else remaining - _ANSWER_SECONDS
    return max(0.0, min(asked, left))


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]  # comes without types
    """The operations of all services. Those that a resource of its own stands for are found by name, not listed."""

    def __init__(self, operations: Operations, changes: Changes) -> None:
        self._operations = operations
        self._changes = changes

    async def GetOperation(
        self, request: operations_pb2.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Errors: NOT_FOUND."""
        return operation_to_proto(await self._operations.get(request.name))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        """Newest first; filter over verb, target, state, done, create_time. Errors: INVALID_ARGUMENT."""
        if request.name not in ("", "operations"):
            raise InvalidArgument.of("name", "must be empty or `operations`")
        binding = f"ListOperations {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=[int])
        found = await self._operations.list(page, filters.parse(request.filter, _OPERATION_FIELDS))
        shown = found[: page.size]
        return operations_pb2.ListOperationsResponse(
            operations=map(operation_to_proto, shown),
            next_page_token=next_page_token(binding, [shown[-1].id]) if len(found) > page.size else "",
        )

    async def CancelOperation(
        self, request: operations_pb2.CancelOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        """Asks only: the operation ends as CANCELLED at its next safe point, or is completed. Errors: NOT_FOUND."""

        async def cancel() -> empty_pb2.Empty:
            await self._operations.cancel(request.name)
            return empty_pb2.Empty()

        return await self._changes.apply(request, empty_pb2.Empty, cancel)

    async def DeleteOperation(
        self, request: operations_pb2.DeleteOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        """Errors: NOT_FOUND, FAILED_PRECONDITION (OPERATION_NOT_DONE)."""

        async def delete() -> empty_pb2.Empty:
            await self._operations.delete(request.name)
            return empty_pb2.Empty()

        return await self._changes.apply(request, empty_pb2.Empty, delete)

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        """Waits for the end, at most `timeout` or a minute. Errors: NOT_FOUND."""
        seconds = patience(request, current_call().remaining())
        return operation_to_proto(await self._operations.wait(request.name, seconds))


class PlatformServicer(platform_pb2_grpc.PlatformServicer):
    """Follows operations and lists the audit."""

    def __init__(self, operations: Operations, audit: AuditStore) -> None:
        self._operations = operations
        self._audit = audit

    async def WatchOperation(
        self, request: platform_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[operations_pb2.Operation]:
        """The operation now, then each later state until it is done."""
        async for operation in self._operations.watch(request.name):
            yield operation_to_proto(operation)

    async def ListAuditEvents(
        self, request: platform_pb2.ListAuditEventsRequest, context: Context
    ) -> platform_pb2.ListAuditEventsResponse:
        """Newest first."""
        binding = f"ListAuditEvents {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=[int])
        found = await self._audit.list_events(page, filters.parse(request.filter, _AUDIT_FIELDS))
        shown = found[: page.size]
        return platform_pb2.ListAuditEventsResponse(
            audit_events=map(audit_event_to_proto, shown),
            next_page_token=next_page_token(binding, [shown[-1].id]) if len(found) > page.size else "",
        )
