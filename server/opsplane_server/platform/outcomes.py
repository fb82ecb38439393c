"""How operations end, as the result that their callers read."""

from __future__ import annotations

from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2

from opsplane_server.errors import OpsplaneError
from opsplane_server.platform.model import Operation, OperationState, Outcome
from opsplane_server.rpc.interceptors.errors import status_of


def succeeded(response: Message | None) -> Outcome:
    """What the handler returned; without a response google.protobuf.Empty, as google.longrunning asks."""
    packed = any_pb2.Any()
    packed.Pack(response if response is not None else empty_pb2.Empty())
    return Outcome(OperationState.SUCCEEDED, response=packed)


def cancelled() -> Outcome:
    """The handler has honoured a wish to cancel."""
    return Outcome(
        OperationState.CANCELLED,
        error=status_pb2.Status(code=code_pb2.CANCELLED, message="the operation was cancelled"),
    )


def failed(error: OpsplaneError) -> Outcome:
    """The handler said why it can not be done: code, reason, message and details are kept."""
    return Outcome(OperationState.FAILED, error=status_of(error))


def failed_unexpectedly(operation: Operation) -> Outcome:
    """A mistake of ours; what went wrong is in the log alone, since it may hold anything."""
    where = f"after step {operation.step!r}" if operation.step else "at its first step"
    return failed(OpsplaneError(f"internal error in {operation.name} {where}; the server's log says more"))


def crashed(operation: Operation) -> Outcome:
    """Each process that took it up died or hung."""
    where = f"after step {operation.step!r}" if operation.step else "at its first step"
    return failed(
        OpsplaneError(
            f"gave up {where}: {operation.crashes} server processes ended while they worked on {operation.name}",
            reason="OPERATION_CRASHED_REPEATEDLY",
            metadata={"crashes": str(operation.crashes)},
        )
    )
