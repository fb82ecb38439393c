"""How every change of an instance is submitted: checked, safe to repeat, audited, and one at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from google.longrunning import operations_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message

from opsplane_server.errors import FailedPrecondition, NotFound
from opsplane_server.instances.convert import check_etag
from opsplane_server.instances.model import InstanceState, NodeState
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.records import Instance
from opsplane_server.instances.stores.ports import InstanceStore
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.convert import operation_to_proto
from opsplane_server.platform.operations import Operations

_SERVING = (InstanceState.READY, InstanceState.DEGRADED, InstanceState.UPDATING, InstanceState.FAILING_OVER)


@dataclass(frozen=True, slots=True)
class Plan:
    """A change that passed every check.

    preview: what would come of it. write: what else belongs to the transaction that submits it; it gets the name of
    the operation. request: what the operation gets in place of the call's request, secrets are taken out of either.
    """

    kind: str
    target: str
    node: str
    preview: Message
    write: Callable[[str], Awaitable[None]]
    request: Message | None = None


class Submission:
    """Submits plans as operations."""

    def __init__(self, changes: Changes, operations: Operations) -> None:
        self._changes = changes
        self._operations = operations

    async def submit(
        self,
        request: Message,
        plan: Callable[[], Awaitable[Plan]],
        *,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> operations_pb2.Operation:
        """Plans and submits in one transaction; only plans when the request says `validate_only`.

        `check` is what takes longer and must hold no lock meanwhile, such as questions to an engine.
        """
        if check is not None:
            replayed = await self._changes.replay(request, operations_pb2.Operation)
            if replayed is not None:
                return replayed
            await check()
        if getattr(request, "validate_only", False):
            return done((await plan()).preview)

        async def apply() -> operations_pb2.Operation:
            planned = await plan()
            operation = await self._operations.submit(
                kind=planned.kind,
                verb=type(request).__name__.removesuffix("Request"),
                target=planned.target,
                request=without_secrets(planned.request or request),
                request_id=getattr(request, "request_id", ""),
                node=planned.node,
                hidden=planned.kind in kinds.HIDDEN,
            )
            await planned.write(operation.name)
            return operation_to_proto(operation)

        return await self._changes.apply(request, operations_pb2.Operation, apply)


def done(response: Message) -> operations_pb2.Operation:
    """An operation without a name that has nothing left to do."""
    packed = any_pb2.Any()
    packed.Pack(response)
    return operations_pb2.Operation(done=True, response=packed)


def without_secrets(request: Message) -> Message:
    """A copy without passwords and keys, wherever in it they are."""
    copy = type(request)()
    copy.CopyFrom(request)
    _clear(copy)
    return copy


def _clear(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in ("password", "signing_key"):
            message.ClearField(field.name)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else [value]:
                _clear(part)


class Exclusive:
    """Changes of an instance, one at a time: the record names the operation that has it."""

    def __init__(self, store: InstanceStore) -> None:
        self._store = store

    async def lock(self, name: str, *, etag: str = "") -> Instance:
        """The record, free and of this etag. Raises NotFound, Aborted, FailedPrecondition (OPERATION_IN_PROGRESS)."""
        instance = shown(await self._store.lock(name))
        check_etag(etag, instance)
        if instance.operation:
            raise FailedPrecondition(
                f"{name} is being changed: wait for {instance.operation}, or cancel it",
                reason="OPERATION_IN_PROGRESS",
                metadata={"resource": name, "operation": instance.operation},
            )
        return instance

    def plan(self, kind: str, instance: Instance, preview: Message, *, target: str = "") -> Plan:
        """A plan that takes the record as it is given here, with the state of the kind."""

        async def write(operation: str) -> None:
            await self._store.save(taken(instance, kind, operation))

        return Plan(kind, target or instance.name, instance.spec.machine, preview, write)


def taken(instance: Instance, kind: str, operation: str) -> Instance:
    """The record while an operation of this kind changes it."""
    state = kinds.STATES.get(kind)
    if state is None:
        return replace(instance, operation=operation)
    return replace(instance, operation=operation, state=state, state_message="")


def shown(instance: Instance) -> Instance:
    """The instance; NotFound for a scratch instance, of which no caller knows."""
    if instance.hidden:
        raise NotFound.resource(instance.name)
    return instance


def check_serving(instance: Instance) -> None:
    """Raises FailedPrecondition (INSTANCE_NOT_SERVING) unless its primary takes connections, as far as is known."""
    status = instance.status
    primary = next((node for node in status.nodes if node.id == status.primary), None)
    if instance.state in _SERVING and primary is not None and primary.state is NodeState.READY:
        return
    raise FailedPrecondition(
        f"{instance.name} does not serve: it is {instance.state}",
        reason="INSTANCE_NOT_SERVING",
        metadata={"resource": instance.name, "state": instance.state.value},
    )
