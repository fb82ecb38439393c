"""Turns what a handler raises into a status that a program can act on.

Domain errors become their status with `google.rpc` details; anything else is our fault, is logged with its
traceback and told to the caller as INTERNAL with nothing but the trace id. A call that was aborted, cancelled or
has run out of time passes unharmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry import trace

from opsplane_server import errors
from opsplane_server.rpc.interceptors.chain import Context, Handler, Method

log = structlog.get_logger(__name__)

DOMAIN: Final = "opsplane.dev"

_CODES: Final[dict[type[errors.OpsplaneError], int]] = {
    errors.InvalidArgument: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.FailedPrecondition: code_pb2.FAILED_PRECONDITION,
    errors.Aborted: code_pb2.ABORTED,
    errors.OutOfRange: code_pb2.OUT_OF_RANGE,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.ResourceExhausted: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.DataLoss: code_pb2.DATA_LOSS,
    errors.Unimplemented: code_pb2.UNIMPLEMENTED,
    errors.LeaseLost: code_pb2.ABORTED,
}

# gRPC clients refuse trailing metadata of more than 8 KiB by default. The message travels twice, once
# percent-encoded (up to three times as long), the details base64-encoded.
_MAX_MESSAGE_BYTES: Final = 600
_MAX_VIOLATION_BYTES: Final = 200
_MAX_DETAILS_BYTES: Final = 2600


class Errors:
    """Maps exceptions to statuses."""

    def wrap(self, method: Method, handler: Handler) -> Handler:
        """Map what the method raises."""

        async def call(request: Any, context: Context) -> Any:
            try:
                return await handler(request, context)
            except Exception as raised:
                error = _alone(raised)
                if isinstance(error, (grpc.aio.AbortError, grpc.aio.InternalError)):
                    raise error from None  # already answered, or the caller is gone
                if not isinstance(error, errors.OpsplaneError):
                    error = _unexpected(error, method)
                status = rpc_status.to_status(status_of(error))
                # An abort with all its parts, not abort_with_status: only so the span's code is right.
                await context.abort(status.code, status.details, status.trailing_metadata)

        return call


def status_of(error: errors.OpsplaneError) -> status_pb2.Status:
    """Return the status with its details, cut to what fits in the trailing metadata of a call."""
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), code_pb2.INTERNAL)
    status = status_pb2.Status(code=code, message=_cut(error.message, _MAX_MESSAGE_BYTES))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, _MAX_VIOLATION_BYTES)
    _add(status, info)
    if isinstance(error, errors.InvalidArgument) and error.violations:
        _add(status, _bad_request(error.violations, _MAX_DETAILS_BYTES - status.ByteSize()))
    elif isinstance(error, errors.FailedPrecondition):
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=info.metadata.get("resource", ""), description=status.message
        )
        _add(status, error_details_pb2.PreconditionFailure(violations=[violation]))
    elif isinstance(error, (errors.ResourceExhausted, errors.Unavailable)):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        _add(status, retry)
    return status


def _alone(error: Exception) -> Exception:
    """Return the only error of a task group, where one failed task has cancelled the rest."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _unexpected(error: Exception, method: Method) -> errors.OpsplaneError:
    span = trace.get_current_span()
    span.record_exception(error)
    trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    log.error("unexpected error", method=method.path, trace_id=trace_id, exc_info=error)
    return errors.OpsplaneError(f"internal error, trace id {trace_id}", metadata={"trace_id": trace_id})


def _bad_request(violations: Sequence[errors.FieldViolation], room: int) -> error_details_pb2.BadRequest:
    """Return as many violations as fit in `room` bytes, at least one, and how many are left out."""
    bad = error_details_pb2.BadRequest()
    for number, violation in enumerate(violations):
        one = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, _MAX_VIOLATION_BYTES),
            description=_cut(violation.description, _MAX_VIOLATION_BYTES),
        )
        if number and bad.ByteSize() + one.ByteSize() > room:
            bad.field_violations.add(description=f"and {len(violations) - number} more")
            break
        bad.field_violations.append(one)
    return bad


def _add(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _cut(text: str, limit: int) -> str:
    """Return at most `limit` bytes of UTF-8."""
    raw = text.encode(errors="replace")
    return text if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "..."
