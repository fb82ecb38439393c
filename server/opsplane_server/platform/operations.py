"""Long-running operations as their callers see them: submit, read, cancel, wait, watch.

Who works on them is `executor`; the two meet in the store alone, so they need not be in one process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from google.protobuf import any_pb2
from google.protobuf.message import Message

from opsplane_server.platform.model import NewOperation, Operation
from opsplane_server.platform.ports import OperationStore, Topics
from opsplane_server.rpc.calls import find_call
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.ids import new_id
from opsplane_server.rpc.paging import PageRequest

# Signals between processes: there is work to take up, somebody wants one cancelled, an operation has changed.
WORK_TOPIC = "platform_operations_work"
CANCEL_TOPIC = "platform_operations_cancel"
CHANGE_TOPIC = "platform_operations_change"

# Who asked for what nobody called for, such as a schedule.
SYSTEM = "system"


class Operations:
    """Submits and follows operations. Every method joins the caller's transaction where there is one."""

    def __init__(self, store: OperationStore, signals: Topics, *, poll_seconds: float = 1.0) -> None:
        self._store = store
        self._work = signals.topic(WORK_TOPIC)
        self._cancel = signals.topic(CANCEL_TOPIC)
        self._change = signals.topic(CHANGE_TOPIC)
        self._poll_seconds = poll_seconds

    async def submit(
        self,
        *,
        kind: str,
        verb: str,
        target: str,
        request: Message | None = None,
        request_id: str = "",
        node: str = "",
        hidden: bool = False,
    ) -> Operation:
        """Stores an operation; an executor with a handler for `kind` takes it up once the transaction is committed.

        `verb` is the RPC that asked for it, `target` the resource that it works on, `node` the only machine that
        may work on it (empty: any). `request` is stored as it is, so it must carry no secret.
        """
        call = find_call()
        packed = None
        if request is not None:
            packed = any_pb2.Any()
            packed.Pack(request)
        operation = await self._store.insert(
            NewOperation(
                name=f"operations/{new_id()}",
                kind=kind,
                verb=verb,
                target=target,
                principal=call.principal.name if call is not None else SYSTEM,
                request=packed,
                request_id=request_id,
                node=node or None,
                hidden=hidden,
            )
        )
        self._work.notify()
        return operation

    async def get(self, name: str) -> Operation:
        """Raises NotFound."""
        return await self._store.get(name)

    async def list(self, page: PageRequest, conditions: Sequence[Condition] = ()) -> list[Operation]:
        """Up to `page.size + 1` operations that are not hidden, newest first; the key of a page is the `id`."""
        return await self._store.list_operations(page, conditions)

    async def cancel(self, name: str) -> Operation:
        """Asks the handler to stop at its next safe point; a finished operation stays as it is. Raises NotFound.

        An operation that nobody has taken up yet is left to its handler too, which alone knows what to undo.
        """
        operation = await self._store.request_cancel(name)
        self._cancel.notify()
        self._change.notify()
        return operation

    async def delete(self, name: str) -> None:
        """Raises NotFound, FailedPrecondition (OPERATION_NOT_DONE)."""
        await self._store.delete(name)

    async def wait(self, name: str, seconds: float) -> Operation:
        """The operation when it is done, or as it is after `seconds`. Raises NotFound."""
        operation = await self._store.get(name)
        try:
            async with asyncio.timeout(seconds), aclosing(self.watch(name)) as states:
                async for state in states:
                    operation = state
        except TimeoutError:
            pass
        return operation

    async def watch(self, name: str) -> AsyncGenerator[Operation, None]:
        """The operation as it is, then each later state, ending after the final one. Raises NotFound.

        Whoever reads slower than it changes misses states in between, never the last one.
        """
        revision = 0
        while True:
            seen = self._change.generation
            operation = await self._store.get(name)
            if operation.revision > revision:
                revision = operation.revision
                yield operation
            if operation.state.done:
                return
            await self._change.changed(seen, self._poll_seconds)
