"""What a handler gets: its operation, where to go on, and fenced writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message

from opsplane_server.platform.model import Checkpoint, Lease, Operation
from opsplane_server.platform.ports import OperationStore, Signal, Transactions

M = TypeVar("M", bound=Message)


class Execution:
    """One process working on one operation.

    Every write of a handler goes through `transaction` or `checkpoint`, so that a process that lost its lease,
    asleep or cut off, changes nothing any more: both raise LeaseLost then, which a handler lets pass. An effect and
    the checkpoint after it in one transaction happen exactly once; an effect elsewhere must bear repetition.
    """

    def __init__(
        self,
        operation: Operation,
        lease: Lease,
        *,
        store: OperationStore,
        transactions: Transactions,
        change: Signal,
        cancel: asyncio.Event,
        lease_time: timedelta,
    ) -> None:
        self.operation = operation
        self.step = operation.step
        self.data: dict[str, Any] = operation.data
        self._lease = lease
        self._store = store
        self._transactions = transactions
        self._change = change
        self._cancel = cancel
        self._lease_time = lease_time

    def request(self, message_type: type[M]) -> M:
        """The request that was submitted; ValueError when it is not of that type."""
        message = message_type()
        if self.operation.request is None or not self.operation.request.Unpack(message):
            raise ValueError(f"{self.operation.name} carries no {message.DESCRIPTOR.full_name}")
        return message

    async def checkpoint(
        self,
        step: str,
        *,
        data: dict[str, Any] | None = None,
        stage: str = "",
        progress_percent: int | None = None,
    ) -> None:
        """Records that all before `step` is done: the next process starts a handler with this `step` and `data`.

        `data` (JSON) replaces what was saved, `stage` tells people what happens now, `progress_percent` (0 to 100)
        never falls; what is left out keeps its value. Raises LeaseLost.
        """
        await self._store.checkpoint(self._lease, Checkpoint(step, data, stage, progress_percent))
        self.step = step
        if data is not None:
            self.data = data
        self._change.notify()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """A transaction of the database in which this process holds the operation. Raises LeaseLost.

        It must be shorter than the lease: the database ends one that stays silent for that long.
        """
        async with self._transactions.transaction():
            await self._store.lock(self._lease, self._lease_time)
            yield
        self._change.notify()

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked to cancel; a handler that honours it raises OperationCancelled."""
        return self._cancel.is_set()

    async def cancelled(self) -> None:
        """Waits until somebody asks to cancel."""
        await self._cancel.wait()


# Does the work of one kind of operation and returns its response. It is called again, from the last checkpoint,
# when the process died, gave the lease back at shutdown, or raised Unavailable.
Handler = Callable[[Execution], Awaitable[Message | None]]

# Is called in the transaction that ends an operation as FAILED or CANCELLED, so that the resource which the
# operation worked on tells the same, whatever the handler did or could not do.
FailureHook = Callable[[Operation], Awaitable[None]]
