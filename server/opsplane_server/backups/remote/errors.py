"""What other services answer with, as errors of the domain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from opsplane_server import errors
from opsplane_server.rpc.codes import ERROR_CLASSES

_BROKEN: Final = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED)


@asynccontextmanager
async def answered() -> AsyncIterator[None]:
    """Raises the domain's errors for what calls within the block are answered with."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error)
        if status is None:
            # Our services always send details: without them it is the connection that speaks.
            code = code_pb2.UNAVAILABLE if error.code() in _BROKEN else error.code().value[0]
            status = status_pb2.Status(code=code, message=error.details() or error.code().name)
        raise error_of(status) from error


def error_of(status: status_pb2.Status) -> errors.OpsplaneError:
    """The domain's error of a status, with its reason, metadata and fields."""
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
    reason = info.reason or None
    kind = ERROR_CLASSES.get(status.code, errors.OpsplaneError)
    if kind is errors.InvalidArgument:
        violations = [
            errors.FieldViolation(violation.field, violation.description) for violation in bad_request.field_violations
        ]
        return errors.InvalidArgument(status.message, violations, reason=reason)
    return kind(status.message, reason=reason, metadata=dict(info.metadata))
