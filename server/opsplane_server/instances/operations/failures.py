"""Errors kept and made again: what an operation failed with survives the process that it failed in."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from opsplane_server import errors
from opsplane_server.errors import FieldViolation, InvalidArgument, OpsplaneError
from opsplane_server.platform.model import OperationCancelled
from opsplane_server.rpc.codes import ERROR_CLASSES

_CLASSES: Final = {
    kind.__name__: kind
    for kind in (
        errors.NotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.Aborted,
        errors.OutOfRange,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.ResourceExhausted,
        errors.Unavailable,
        errors.DataLoss,
        errors.Unimplemented,
        errors.OpsplaneError,
    )
}
_CANCELLED: Final = "OperationCancelled"


def remember(error: Exception) -> dict[str, Any]:
    """The error as JSON. What is none of the domain's, our own mistake, is told without its words."""
    if isinstance(error, OperationCancelled):
        return {"class": _CANCELLED}
    if not isinstance(error, OpsplaneError):
        return {"class": "OpsplaneError", "message": "internal error; the server's log says more", "reason": "INTERNAL"}
    kept: dict[str, Any] = {
        "class": type(error).__name__,
        "message": error.message,
        "reason": error.reason,
        "metadata": error.metadata,
    }
    if isinstance(error, InvalidArgument):
        kept["violations"] = [[violation.field, violation.description] for violation in error.violations]
    return kept


def recall(kept: dict[str, Any]) -> Exception:
    """The error that was remembered."""
    if kept["class"] == _CANCELLED:
        return OperationCancelled()
    message, reason = kept["message"], kept["reason"]
    if kept["class"] == InvalidArgument.__name__:
        violations = [FieldViolation(field, description) for field, description in kept["violations"]]
        return InvalidArgument(message, violations, reason=reason)
    kind = _CLASSES.get(kept["class"], OpsplaneError)
    return kind(message, reason=reason, metadata=kept.get("metadata"))


def words(error: Exception) -> str:
    """Why something failed, for people; nothing of what our own mistakes say, which may be anything."""
    if isinstance(error, OperationCancelled):
        return "it was cancelled"
    return error.message if isinstance(error, OpsplaneError) else "internal error"


def of_status(status: status_pb2.Status) -> OpsplaneError:
    """The domain's error for what another service answered."""
    kind = ERROR_CLASSES.get(status.code, OpsplaneError)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            break
    reason, metadata = info.reason or None, dict(info.metadata)
    if kind is InvalidArgument:
        return InvalidArgument(status.message, reason=reason)
    return kind(status.message, reason=reason, metadata=metadata)


def of_call(error: grpc.aio.AioRpcError) -> OpsplaneError:
    """The domain's error for a call that failed."""
    status = rpc_status.from_call(error)
    if status is None:
        status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    return of_status(status)
