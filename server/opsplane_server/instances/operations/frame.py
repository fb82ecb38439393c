"""What the handlers of this room have in common: how one begins, ends, fails and is taken up again.

A handler does its work by calls that bear repetition, and writes its outcome in one transaction together with the
step DONE, so that a process that takes the operation up after that repeats the answer alone. When the work fails,
the error is kept first, with the step UNDO: from there on every process undoes, and none tries again.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar

import structlog
from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from opsplane_server.errors import DataLoss, FailedPrecondition, LeaseLost, NotFound, OpsplaneError, Unavailable
from opsplane_server.instances import names
from opsplane_server.instances.events import Events, about
from opsplane_server.instances.model import Engine, InstanceState, ProviderKind, Status
from opsplane_server.instances.operations import failures, kinds
from opsplane_server.instances.ports import EngineAdmin, Progress, Provider
from opsplane_server.instances.records import EventKind, Instance
from opsplane_server.instances.states import state_of
from opsplane_server.instances.stores.ports import InstanceStore, PendingPasswords
from opsplane_server.platform.execution import Execution, Handler
from opsplane_server.platform.model import Operation, OperationCancelled

log = structlog.get_logger(__name__)

T = TypeVar("T")

UNDO: Final = "undo"
DONE: Final = "done"

# Why the database of our own is away, rather than an instance: that is waited for as long as it takes.
_OWN_DATABASE: Final = "DATABASE_UNAVAILABLE"

# Why a provider does not say what it has: it is half an instance, which nobody can use.
_INCOMPLETE: Final = "INSTANCE_INCOMPLETE"

Work: TypeAlias = Callable[[Execution, Instance], Awaitable[Message]]
GiveUp: TypeAlias = Callable[[Execution, Instance, Exception], Awaitable[None]]


class Found(Enum):
    """What a provider has under the name of an instance. OWN: its own, half of one, or nothing."""

    OWN = "own"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


class Frame:
    """Makes handlers of work. patience: for how long an operation waits for something that can not be reached."""

    def __init__(
        self,
        store: InstanceStore,
        pending: PendingPasswords,
        events: Events,
        providers: Mapping[ProviderKind, Provider],
        admins: Mapping[Engine, EngineAdmin],
        *,
        patience: timedelta = timedelta(minutes=2),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.store = store
        self.pending = pending
        self.events = events
        self.now = now
        self._providers = providers
        self._admins = admins
        self._patience = patience
        # Since when operations of this process wait for something.
        self._away: dict[str, datetime] = {}

    def provider(self, kind: ProviderKind) -> Provider:
        """Raises FailedPrecondition where this server has none of that kind."""
        provider = self._providers.get(kind)
        if provider is None:
            raise FailedPrecondition(f"the provider {kind} is not set up here", reason="PROVIDER_NOT_CONFIGURED")
        return provider

    def provider_of(self, instance: Instance) -> Provider:
        """What runs it."""
        return self.provider(instance.spec.provider)

    def admin(self, engine: Engine) -> EngineAdmin:
        """What speaks its SQL."""
        return self._admins[engine]

    def exclusive(self, work: Work, give_up: GiveUp | None = None) -> Handler:
        """A handler of a kind that changes the instance which its target is or is in.

        `work` ends by `end` and its like; when it raises, `give_up` undoes and frees the record, by default `release`.
        """
        undo = give_up or self.release

        async def handle(execution: Execution) -> Message | None:
            if execution.step == DONE:
                return _outcome(execution)
            name = names.parent(execution.operation.target)
            instance = await self.store.find(name)
            if instance is None or instance.operation != execution.operation.name:
                # Undone by a process that died right after; the name may be another instance's by now.
                raise failures.recall(execution.data) if execution.step == UNDO else NotFound.resource(name)
            return await self._try(
                execution, lambda: work(execution, instance), lambda error: undo(execution, instance, error)
            )

        return handle

    def beside(
        self,
        work: Callable[[Execution], Awaitable[Message]],
        give_up: Callable[[Execution, Exception], Awaitable[None]] | None = None,
    ) -> Handler:
        """A handler of a kind that changes no record. `give_up` removes what the work has made."""

        async def undo(execution: Execution, error: Exception) -> None:
            if give_up is not None:
                await give_up(execution, error)

        async def handle(execution: Execution) -> Message | None:
            if execution.step == DONE:
                return _outcome(execution)
            return await self._try(execution, lambda: work(execution), lambda error: undo(execution, error))

        return handle

    async def _try(
        self,
        execution: Execution,
        work: Callable[[], Awaitable[Message]],
        give_up: Callable[[Exception], Awaitable[None]],
    ) -> Message:
        if execution.step == UNDO:
            error = failures.recall(execution.data)
        else:
            try:
                answer = await work()
                self._away.pop(execution.operation.name, None)
                return answer
            except Exception as raised:
                error = _alone(raised)
                if isinstance(error, LeaseLost):
                    raise error from None
                if isinstance(error, Unavailable):
                    if error.reason == _OWN_DATABASE or self._waits(execution.operation):
                        raise error from None
                    error = FailedPrecondition(error.message, reason=error.reason, metadata=error.metadata)
                elif not isinstance(error, (OpsplaneError, OperationCancelled)):
                    log.exception("an instance could not be changed")
            self._away.pop(execution.operation.name, None)
            await self.keep_failure(execution, error)
        await give_up(error)
        raise error

    def _waits(self, operation: Operation) -> bool:
        since = self._away.setdefault(operation.name, self.now())
        return self.now() - since < self._patience

    def progress(self, execution: Execution, first: int = 0, last: int = 100) -> Progress:
        """Tells the operation's watchers how far a part of it is that goes from `first` to `last` percent."""
        told: tuple[str, int] | None = None

        async def tell(stage: str, percent: int) -> None:
            nonlocal told
            news = stage, first + (last - first) * min(max(percent, 0), 100) // 100
            if news != told:
                told = news
                await execution.checkpoint(execution.step, stage=stage, progress_percent=news[1])

        return tell

    async def end(
        self,
        execution: Execution,
        name: str,
        *,
        status: Status | None,
        response: Callable[[Instance], Message],
        event: tuple[EventKind, str] | None = None,
        resource: str = "",
        change: Callable[[Instance], Instance] = lambda instance: instance,
        also: Callable[[], Awaitable[None]] | None = None,
    ) -> Message:
        """Writes the outcome and frees the record. status: as it is now, None where that is not changed.

        `also` does what else belongs to the transaction.
        """
        operation = execution.operation
        async with execution.transaction():
            record = change(await self.store.lock(name))
            if status is not None:
                state, message = state_of(record.spec, status)
                record = replace(record, status=status, state=state, state_message=message)
            record = await self.store.save(replace(record, operation="", previous=None))
            if also is not None:
                await also()
            if event is not None:
                happened = about(
                    record.spec, *event, resource=resource, operation=operation.name, principal=operation.principal
                )
                await self.events.record(happened)
            await self.pending.forget(operation.name)
            answer = response(record)
            await self.done(execution, answer)
        return answer

    async def done(self, execution: Execution, answer: Message) -> None:
        """Keeps the answer: to be called in the transaction of the outcome."""
        packed = any_pb2.Any()
        packed.Pack(answer)
        data = {"response": base64.b64encode(packed.SerializeToString()).decode()}
        await execution.checkpoint(DONE, data=data, progress_percent=100)

    async def release(
        self,
        execution: Execution,
        instance: Instance,
        error: Exception,
        *,
        event: tuple[EventKind, str] | None = None,
    ) -> None:
        """Frees the record of an operation that failed: with the settings before it, and the state that it is in."""
        operation = execution.operation
        status = await self.look(instance)
        async with execution.transaction():
            record = await self.store.lock(instance.name)
            if record.operation != operation.name:  # freed by a process that died after it
                return
            record = replace(record.reverted(), operation="")
            status = status or record.status
            state, message = state_of(record.spec, status)
            await self.store.save(replace(record, status=status, state=state, state_message=message))
            await self.pending.forget(operation.name)
            if event is not None:
                happened = about(record.spec, *event, operation=operation.name, principal=operation.principal)
                await self.events.record(happened)

    async def look(self, instance: Instance) -> Status | None:
        """How the instance stands, with nothing when it is not there; None when its provider can not say."""
        try:
            return await self.provider_of(instance).status(instance.name)
        except NotFound:
            return Status()
        except (Unavailable, FailedPrecondition) as unknown:
            log.warning("status not read", instance=instance.name, detail=unknown.message)
            return None

    async def found(self, instance: Instance) -> Found:
        """Whose data lie under the name of an instance: its record may have been lost, and this one made since."""
        placement = instance.spec.placement
        namespace = placement.namespace if placement is not None else ""
        try:
            manifest = await self.provider_of(instance).find(instance.name, namespace=namespace)
        except NotFound:
            return Found.OWN
        except (FailedPrecondition, DataLoss) as unreadable:
            return Found.OWN if unreadable.reason == _INCOMPLETE else Found.UNKNOWN
        return Found.OWN if manifest.spec.uid == instance.uid else Found.FOREIGN

    async def keep_failure(self, execution: Execution, error: Exception) -> None:
        """Keeps why it failed, so that nobody tries again."""
        await execution.checkpoint(UNDO, data=failures.remember(error), stage="undoing")

    async def failed(self, operation: Operation) -> None:
        """The failure hook of kinds in EXCLUSIVE: frees a record that the handler could not free any more."""
        name = names.parent(operation.target)
        await self.pending.forget(operation.name)
        if await self.store.find(name) is None:
            return
        record = await self.store.lock(name)
        if record.operation != operation.name:
            return
        reason = operation.error.message if operation.error is not None else ""
        record = replace(record.reverted(), operation="")
        state, message = state_of(record.spec, record.status)
        if operation.kind in (kinds.CREATE, kinds.RESTORE_COPY, kinds.RECOVER):
            state, message = InstanceState.FAILED, reason
        await self.store.save(replace(record, state=state, state_message=message))
        await self.events.record(
            about(record.spec, EventKind.FAILED, f"{operation.verb} failed: {reason}", operation=operation.name)
        )


async def cancellable(execution: Execution, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. A wish to cancel ends it first, and raises OperationCancelled."""
    task = asyncio.create_task(work)
    wish = asyncio.create_task(execution.cancelled())
    try:
        await asyncio.wait((task, wish), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait((task,))
        if task.cancelled() or task.exception() is not None:
            raise OperationCancelled
        return task.result()
    finally:
        for one in (task, wish):
            one.cancel()
        await asyncio.gather(task, wish, return_exceptions=True)


def _alone(error: Exception) -> Exception:
    """The only error of a task group, where one failed task has cancelled the rest."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _outcome(execution: Execution) -> Message:
    packed = any_pb2.Any.FromString(base64.b64decode(execution.data["response"]))
    kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(packed.TypeName()))
    return kind.FromString(packed.value)
