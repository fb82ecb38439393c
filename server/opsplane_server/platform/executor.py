"""Works on operations: takes leases, runs handlers, renews, resumes, ends.

A lease belongs to one process for a while by the database's clock. When a process dies and renews it no more,
another goes on from the last checkpoint under the next generation; what the first one still writes is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import NoReturn, Self

import structlog
from google.protobuf.message import Message

from opsplane_server.errors import LeaseLost, OpsplaneError, Unavailable
from opsplane_server.platform import outcomes
from opsplane_server.platform.execution import Execution, FailureHook, Handler
from opsplane_server.platform.model import Lease, Operation, OperationCancelled, OperationState, Outcome
from opsplane_server.platform.operations import CANCEL_TOPIC, CHANGE_TOPIC, WORK_TOPIC
from opsplane_server.platform.ports import OperationStore, Topics, Transactions

log = structlog.get_logger(__name__)

_MAX_DELAY = 30.0


class OperationExecutor:
    """Runs `concurrency` operations at a time of the kinds that it has handlers for.

    `owner` names this process and no other, nor an earlier one; `node` names its machine. After `max_crashes`
    processes have died over an operation it ends as FAILED instead of killing the next one.
    """

    def __init__(
        self,
        store: OperationStore,
        transactions: Transactions,
        handlers: Mapping[str, Handler],
        *,
        owner: str,
        node: str,
        signals: Topics,
        failure_hooks: Mapping[str, FailureHook] | None = None,
        lease_seconds: float = 15.0,
        poll_seconds: float = 1.0,
        concurrency: int = 50,
        max_crashes: int = 10,
    ) -> None:
        self._store = store
        self._transactions = transactions
        self._handlers = handlers
        self._failure_hooks = failure_hooks or {}
        self._owner = owner
        self._node = node
        self._work = signals.topic(WORK_TOPIC)
        self._cancel = signals.topic(CANCEL_TOPIC)
        self._change = signals.topic(CHANGE_TOPIC)
        self._lease_time = timedelta(seconds=lease_seconds)
        self._poll_seconds = poll_seconds
        self._concurrency = concurrency
        self._max_crashes = max_crashes
        self._running: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Event] = {}
        self._freed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._loops = [
            asyncio.create_task(self._take_up(), name="take up operations"),
            asyncio.create_task(self._pass_on_cancels(), name="pass on cancels"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops taking operations up, then cancels the handlers and gives all leases back, so that others go on."""
        await _stop(self._loops)
        await _stop(list(self._running.values()))
        # Also what was acquired while the loop was being stopped, and never started.
        await self._release()
        self._work.notify()

    async def _take_up(self) -> None:
        while True:
            seen = self._work.generation
            try:
                taken = await self._acquire()
            except Exception as failure:
                _log_failure("operations not taken up", failure)
                await asyncio.sleep(self._poll_seconds)
                continue
            for operation in taken:
                self._start(operation)
            if len(self._running) >= self._concurrency:
                self._freed.clear()
                await self._freed.wait()
            elif not taken:
                await self._work.changed(seen, self._poll_seconds)

    async def _acquire(self) -> list[Operation]:
        return await self._store.acquire(
            self._handlers.keys(),
            owner=self._owner,
            node=self._node,
            lease=self._lease_time,
            limit=self._concurrency - len(self._running),
            busy=self._running.keys(),
        )

    def _start(self, operation: Operation) -> None:
        name = operation.name
        self._cancels[name] = asyncio.Event()
        task = self._running[name] = asyncio.create_task(self._execute(operation), name=name)

        def ended(_: asyncio.Task[None]) -> None:
            del self._running[name], self._cancels[name]
            self._freed.set()

        task.add_done_callback(ended)
        self._change.notify()

    async def _pass_on_cancels(self) -> None:
        while True:
            seen = self._cancel.generation
            if self._running:
                try:
                    names = await self._store.cancel_requests(self._owner)
                except Exception as failure:
                    _log_failure("cancel requests not read", failure)
                else:
                    for name in names & self._cancels.keys():
                        self._cancels[name].set()
            await self._cancel.changed(seen, self._poll_seconds)

    async def _execute(self, operation: Operation) -> None:
        lease = Lease(operation.name, self._owner, operation.generation)
        with structlog.contextvars.bound_contextvars(operation=operation.name, kind=operation.kind):
            log.info("operation taken up", step=operation.step, attempt=operation.attempt)
            try:
                await self._hold(operation, lease)
            except asyncio.CancelledError:
                await self._release(operation.name)
                raise

    async def _hold(self, operation: Operation, lease: Lease) -> None:
        """Runs the handler while the lease is renewed; losing it cancels the handler at once."""
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep(lease))
                outcome = await self._outcome(operation, lease)
                keeper.cancel()
            await self._finish(lease, outcome)
        except* LeaseLost:
            log.warning("operation lost to another process")
        except* Exception:
            log.exception("operation left to be taken up again")

    async def _keep(self, lease: Lease) -> NoReturn:
        """Renews the lease every third of its time; raises LeaseLost when it is gone or can not be renewed in time.

        The time left, by the monotonic clock, only ever ends this process's own work early; whether another may
        take over is the database's to say.
        """
        clock = asyncio.get_running_loop().time
        seconds = self._lease_time.total_seconds()
        renewed = clock()
        while True:
            await asyncio.sleep(seconds / 3)
            started = clock()
            try:
                async with asyncio.timeout_at(renewed + seconds):
                    await self._store.renew(lease, self._lease_time)
            except TimeoutError as error:
                raise LeaseLost(f"{lease.name} could not be renewed in time") from error
            except Unavailable as error:
                if clock() >= renewed + seconds:
                    raise LeaseLost(f"{lease.name} could not be renewed in time") from error
            else:
                renewed = started

    async def _outcome(self, operation: Operation, lease: Lease) -> Outcome:
        """Runs the handler until it ends, again from the last checkpoint when something it needs was away."""
        if operation.crashes >= self._max_crashes:
            return outcomes.crashed(operation)
        for delay in _delays():
            try:
                current = await self._store.renew(lease, self._lease_time)
                return outcomes.succeeded(await self._handle(current, lease))
            except (Exception, asyncio.CancelledError) as error:
                # At shutdown, or with the lease lost, what a handler raises says nothing about its work.
                if _stopping():
                    raise asyncio.CancelledError from error
                if isinstance(error, LeaseLost):
                    raise
                if not isinstance(error, Unavailable):
                    return self._failure(operation, error)
                log.warning("operation waits", reason=error.reason, detail=error.message, seconds=delay)
            await asyncio.sleep(delay)
        raise AssertionError("delays never end")

    def _failure(self, operation: Operation, error: BaseException) -> Outcome:
        if isinstance(error, OperationCancelled):
            return outcomes.cancelled()
        if isinstance(error, OpsplaneError):
            return outcomes.failed(error)
        log.error("operation failed unexpectedly", exc_info=error)
        return outcomes.failed_unexpectedly(operation)

    async def _handle(self, operation: Operation, lease: Lease) -> Message | None:
        cancel = self._cancels[operation.name]
        if operation.cancel_requested:
            cancel.set()
        execution = Execution(
            operation,
            lease,
            store=self._store,
            transactions=self._transactions,
            change=self._change,
            cancel=cancel,
            lease_time=self._lease_time,
        )
        return await self._handlers[operation.kind](execution)

    async def _finish(self, lease: Lease, outcome: Outcome) -> None:
        """Ends the operation, as soon as the database answers."""
        for delay in _delays():
            try:
                operation = await self._end(lease, outcome)
            except Unavailable as error:
                log.warning("operation can not end yet", detail=error.message, seconds=delay)
                await asyncio.sleep(delay)
            else:
                break
        self._change.notify()
        log.info("operation ended", state=operation.state.value, attempt=operation.attempt)

    async def _end(self, lease: Lease, outcome: Outcome) -> Operation:
        try:
            async with self._transactions.transaction():
                operation = await self._store.finish(lease, outcome)
                hook = self._failure_hooks.get(operation.kind)
                if hook is not None and outcome.state is not OperationState.SUCCEEDED:
                    await hook(operation)
                return operation
        except (Unavailable, LeaseLost):
            raise
        except Exception:
            # A broken hook must not keep its operation running for ever.
            log.exception("operation ended without its failure hook")
            return await self._store.finish(lease, outcome)

    async def _release(self, name: str | None = None) -> None:
        try:
            await self._store.release(self._owner, name)
        except Unavailable as error:
            # Others take over when the lease has run out.
            log.warning("leases not given back", detail=error.message)


def _delays() -> Iterator[float]:
    """Seconds between attempts, without end."""
    delay = 0.25
    while True:
        yield delay
        delay = min(2 * delay, _MAX_DELAY)


def _stopping() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(event: str, failure: Exception) -> None:
    if isinstance(failure, Unavailable):
        log.warning(event, detail=failure.message)
    else:
        log.error(event, exc_info=failure)
