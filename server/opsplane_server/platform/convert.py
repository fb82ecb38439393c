"""Between the platform's types and its protos."""

from __future__ import annotations

from datetime import datetime

from google.longrunning import operations_pb2
from google.protobuf import any_pb2, timestamp_pb2
from google.protobuf.message import Message
from opsplane.common.v1 import platform_pb2

from opsplane_server.platform.model import AuditEvent, Operation


def operation_to_proto(operation: Operation) -> operations_pb2.Operation:
    """The operation with OperationMetadata, and its response or error once it is done."""
    metadata = any_pb2.Any()
    metadata.Pack(
        platform_pb2.OperationMetadata(
            target=operation.target,
            verb=operation.verb,
            stage=operation.stage,
            progress_percent=operation.progress_percent,
            create_time=_timestamp(operation.create_time),
            update_time=_timestamp(operation.update_time),
            end_time=_timestamp(operation.end_time) if operation.end_time is not None else None,
            request_id=operation.request_id,
            cancel_requested=operation.cancel_requested,
            attempt=operation.attempt,
        )
    )
    return operations_pb2.Operation(
        name=operation.name,
        metadata=metadata,
        done=operation.state.done,
        error=operation.error,
        response=operation.response,
    )


def audit_event_to_proto(event: AuditEvent) -> platform_pb2.AuditEvent:
    """The event as it is listed."""
    return platform_pb2.AuditEvent(
        event_id=event.id,
        event_time=_timestamp(event.event_time) if event.event_time is not None else None,
        principal=event.principal,
        method=event.method,
        resource=event.resource,
        request_id=event.request_id,
        peer=event.peer,
        trace_id=event.trace_id,
    )


def resource_of(request: Message, response: Message) -> str:
    """Name of the resource that a call has made or changed, empty where neither message says.

    It is the target of an operation, else the `name` of the answer, else the `name` or `parent` that was asked for.
    """
    if isinstance(response, operations_pb2.Operation):
        metadata = platform_pb2.OperationMetadata()
        response.metadata.Unpack(metadata)
        return metadata.target
    for message, field in ((response, "name"), (request, "name"), (request, "parent")):
        value = getattr(message, field, "")
        if isinstance(value, str) and value:
            return value
    return ""


def _timestamp(time: datetime) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
