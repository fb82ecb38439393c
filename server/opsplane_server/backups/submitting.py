"""How calls of this service are done: once for a request_id, audited, or only tried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.longrunning import operations_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message
from opsplane.common.v1 import platform_pb2

from opsplane_server.platform.changes import Changes
from opsplane_server.platform.convert import operation_to_proto
from opsplane_server.platform.model import Operation
from opsplane_server.platform.ports import Transactions

M = TypeVar("M", bound=Message)


class Submitting:
    """Does an action with the furniture of `Changes`; with `validate_only` every check, and then undoes it."""

    def __init__(self, changes: Changes, transactions: Transactions) -> None:
        self._changes = changes
        self._transactions = transactions

    async def submit(
        self, request: Any, action: Callable[[], Awaitable[tuple[Operation | None, Message]]]
    ) -> operations_pb2.Operation:
        """`action` submits an operation and tells what will come of it; None where nothing is to be done any more."""

        async def act() -> operations_pb2.Operation:
            operation, outcome = await action()
            if operation is None or request.validate_only:
                return _done(operation, outcome, getattr(request, "name", ""))
            return operation_to_proto(operation)

        return await self.apply(request, operations_pb2.Operation, act)

    async def apply(self, request: Any, response_type: type[M], action: Callable[[], Awaitable[M]]) -> M:
        """Does it, or only tries it."""
        if request.validate_only:
            return await self._tried(action)
        return await self._changes.apply(request, response_type, action)

    async def _tried(self, action: Callable[[], Awaitable[M]]) -> M:
        answer: list[M] = []
        try:
            async with self._transactions.transaction():
                answer.append(await action())
                raise _Undo
        except _Undo:
            return answer[0]


class _Undo(Exception):
    """Takes back what was only tried."""


def _done(operation: Operation | None, outcome: Message, name: str) -> operations_pb2.Operation:
    """An operation that is done and has no name, because there is none."""
    metadata = any_pb2.Any()
    metadata.Pack(
        platform_pb2.OperationMetadata(
            target=operation.target if operation is not None else name,
            verb=operation.verb if operation is not None else "",
            progress_percent=100,
        )
    )
    response = any_pb2.Any()
    response.Pack(outcome)
    return operations_pb2.Operation(metadata=metadata, done=True, response=response)
