"""Statuses that other servers and operations end with, as errors of the domain."""

from __future__ import annotations

from typing import Final

from google.rpc import code_pb2

from opsplane_server import errors

ERROR_CLASSES: Final[dict[int, type[errors.OpsplaneError]]] = {
    code_pb2.INVALID_ARGUMENT: errors.InvalidArgument,
    code_pb2.NOT_FOUND: errors.NotFound,
    code_pb2.ALREADY_EXISTS: errors.AlreadyExists,
    code_pb2.FAILED_PRECONDITION: errors.FailedPrecondition,
    code_pb2.ABORTED: errors.Aborted,
    code_pb2.OUT_OF_RANGE: errors.OutOfRange,
    code_pb2.UNAUTHENTICATED: errors.Unauthenticated,
    code_pb2.PERMISSION_DENIED: errors.PermissionDenied,
    code_pb2.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    code_pb2.UNAVAILABLE: errors.Unavailable,
    # The call was cut, or its time is up; of the work that says nothing.
    code_pb2.CANCELLED: errors.Unavailable,
    code_pb2.DEADLINE_EXCEEDED: errors.Unavailable,
    code_pb2.DATA_LOSS: errors.DataLoss,
    code_pb2.UNIMPLEMENTED: errors.Unimplemented,
}
