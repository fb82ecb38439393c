"""The errors that the domain speaks.

Adapters turn driver errors into these, the work raises them, and one interceptor maps each class to a gRPC status
with `google.rpc` details (see `opsplane_server.rpc.interceptors.errors`). Nothing here knows about gRPC.

    OpsplaneError
    ├── InvalidArgument      a field of the request is wrong
    ├── NotFound             the resource is not there
    ├── AlreadyExists        a resource of this name is there
    ├── FailedPrecondition   the resource is not in the state for this
    ├── Aborted              somebody else changed it meanwhile; read and try again
    ├── OutOfRange           a cursor or offset beyond what is kept
    ├── Unauthenticated      no or unknown credentials
    ├── PermissionDenied     the caller's role is too low
    ├── ResourceExhausted    a quota or limit; come back later
    ├── Unavailable          what it stands on can not be reached now; safe to retry
    ├── DataLoss             stored data is damaged
    ├── Unimplemented        the API has it, this version does not
    └── LeaseLost            this process no longer holds the operation that it works on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request: its path as in the proto (`scenarios[0].stages[1].target`) and what is wrong."""

    field: str
    description: str


class OpsplaneError(Exception):
    """Base of all: a message for people, and for programs a `reason` in UPPER_SNAKE_CASE with string `metadata`."""

    default_reason = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})


class InvalidArgument(OpsplaneError):
    """A request that can never succeed as it is; `violations` names each bad field."""

    default_reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, violations: Sequence[FieldViolation] = (), *, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str, *, reason: str | None = None) -> InvalidArgument:
        """The common case: one bad field."""
        return cls(f"{field}: {description}", (FieldViolation(field, description),), reason=reason)


class NotFound(OpsplaneError):
    """The resource is not there (or not for this caller)."""

    default_reason = "NOT_FOUND"

    @classmethod
    def resource(cls, name: str) -> NotFound:
        """`name` is the full resource name."""
        return cls(f"{name} does not exist", metadata={"resource": name})


class AlreadyExists(OpsplaneError):
    """A resource of this name is there already."""

    default_reason = "ALREADY_EXISTS"

    @classmethod
    def resource(cls, name: str) -> AlreadyExists:
        """`name` is the full resource name."""
        return cls(f"{name} already exists", metadata={"resource": name})


class FailedPrecondition(OpsplaneError):
    """The resource is not in the state that this call needs; the `reason` says which."""

    default_reason = "FAILED_PRECONDITION"


class Aborted(OpsplaneError):
    """Somebody else changed the resource meanwhile: read it again and repeat."""

    default_reason = "ABORTED"


class OutOfRange(OpsplaneError):
    """A cursor or offset beyond what is kept."""

    default_reason = "OUT_OF_RANGE"


class Unauthenticated(OpsplaneError):
    """No credentials, or unknown ones."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(OpsplaneError):
    """The caller is known, but its role does not allow the call."""

    default_reason = "PERMISSION_DENIED"


class _Retryable(OpsplaneError):
    """An error that passes: `retry_after` is when to come back."""

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta = timedelta(seconds=1),
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after = retry_after


class ResourceExhausted(_Retryable):
    """A quota or limit is used up."""

    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(_Retryable):
    """The database or another service can not be reached now."""

    default_reason = "UNAVAILABLE"


class DataLoss(OpsplaneError):
    """Stored data is damaged beyond repair."""

    default_reason = "DATA_LOSS"


class Unimplemented(OpsplaneError):
    """The API has it, this version does not."""

    default_reason = "UNIMPLEMENTED"


class LeaseLost(OpsplaneError):
    """Another process has taken over the operation; this one must change nothing more."""

    default_reason = "LEASE_LOST"
