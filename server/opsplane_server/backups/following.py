"""Follows an operation of another service for one of our own, whose progress and cancellation it shares."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeVar

from google.protobuf import any_pb2
from google.protobuf.message import Message

from opsplane_server.backups.ports import Instances
from opsplane_server.errors import FailedPrecondition, OpsplaneError, Unavailable
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import OperationCancelled

M = TypeVar("M", bound=Message)

_NAMESPACE: Final = uuid.UUID("6d6f0c3a-5f0e-4b8e-9a0a-1f0f7a5f2f11")


def request_id(execution: Execution, step: str) -> str:
    """The same UUID whenever this step of the operation is done again."""
    return str(uuid.uuid5(_NAMESPACE, f"{execution.operation.name} {step}"))


async def follow(
    instances: Instances, execution: Execution, operation: str, response_type: type[M], *, share: int = 100
) -> M:
    """The response of a remote operation when it is done; it makes up `share` percent of ours.

    Raises its error, and OperationCancelled when it was cancelled because ours was.
    """
    async with (
        passing_on(execution, lambda: instances.cancel(operation)),
        aclosing(instances.watch(operation)) as states,
    ):
        async for state in states:
            if not state.done:
                await execution.checkpoint(
                    execution.step,
                    stage=state.stage,
                    progress_percent=state.progress_percent * share // 100,
                )
                continue
            if state.cancelled and execution.cancel_requested:
                raise OperationCancelled
            if state.error is not None:
                raise final(state.error)
            return unpack(state.response, response_type)
    raise OpsplaneError(f"{operation} was not followed to its end")


def final(error: OpsplaneError) -> OpsplaneError:
    """The error with which something has ended for good: raised as Unavailable it would be tried again for ever."""
    if isinstance(error, Unavailable):
        return FailedPrecondition(error.message, reason=error.reason, metadata=error.metadata)
    return error


def unpack(response: any_pb2.Any | None, response_type: type[M]) -> M:
    """The message of an operation's response."""
    message = response_type()
    if response is None or not response.Unpack(message):
        raise OpsplaneError(f"the answer is no {response_type.DESCRIPTOR.full_name}")
    return message


@asynccontextmanager
async def passing_on(execution: Execution, cancel: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Calls `cancel` when our operation is to be cancelled within the block."""

    async def pass_on() -> None:
        await execution.cancelled()
        await cancel()

    task = asyncio.create_task(pass_on(), name=f"pass on the end of {execution.operation.name}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
