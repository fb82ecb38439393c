"""Making, changing, starting, stopping and taking in instances."""

from __future__ import annotations

from datetime import UTC
from typing import Final

from google.protobuf.message import Message
from opsplane.instances.v1.copies_pb2 import RestoreCopyRequest
from opsplane.instances.v1.instances_pb2 import UpdateInstanceRequest
from opsplane.instances.v1.lifecycle_pb2 import RecoverInstanceRequest, RestartInstanceRequest

from opsplane_server.errors import FailedPrecondition, OpsplaneError
from opsplane_server.instances.convert import instance_message
from opsplane_server.instances.events import about
from opsplane_server.instances.model import CopySource, InstanceState, Status
from opsplane_server.instances.operations import failures
from opsplane_server.instances.operations.frame import Found, Frame, cancellable, log
from opsplane_server.instances.records import EventKind, Instance
from opsplane_server.instances.sql import NewUser
from opsplane_server.instances.states import state_of
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import OperationCancelled

_BEGUN: Final = "begun"
_ADOPTED: Final = 90  # percent of a recovery that adopting the servers is


class Lifecycle:
    """The work of CREATE, RESTORE_COPY, UPDATE, RECOVER, START, STOP and RESTART."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def create(self, execution: Execution, instance: Instance) -> Message:
        """Makes an empty instance."""
        return await self._make(execution, instance, None, (EventKind.CREATED, "created"))

    async def restore(self, execution: Execution, instance: Instance) -> Message:
        """Makes an instance from a copy."""
        request = execution.request(RestoreCopyRequest)
        source = CopySource(
            location=request.copy.location,
            archive=request.archive,
            stop_time=request.stop_time.ToDatetime(UTC) if request.HasField("stop_time") else None,
        )
        moment = source.stop_time or request.copy.cut_time.ToDatetime(UTC)
        words = f"made from {request.backup or 'a copy'}, with the data of {moment.isoformat(timespec='seconds')}"
        return await self._make(execution, instance, source, (EventKind.RESTORED, words))

    async def _make(
        self, execution: Execution, instance: Instance, source: CopySource | None, event: tuple[EventKind, str]
    ) -> Message:
        frame = self._frame
        secrets = await frame.store.secrets(instance.name)
        status = await cancellable(
            execution,
            frame.provider_of(instance).create(instance.spec, secrets, source, frame.progress(execution)),
        )
        return await frame.end(execution, instance.name, status=status, event=event, response=instance_message)

    async def unmake(self, execution: Execution, instance: Instance, error: Exception) -> None:
        """Removes what was made of an instance, and its record. What is not certainly its own stays."""
        frame, operation = self._frame, execution.operation
        if await frame.found(instance) is Found.OWN:
            await frame.provider_of(instance).delete(instance.name, frame.progress(execution))
        if isinstance(error, OperationCancelled):
            kind, words = EventKind.DELETED, "removed: its creation was cancelled"
        else:
            kind, words = EventKind.FAILED, f"not created: {failures.words(error)}"
        async with execution.transaction():
            record = await frame.store.lock(instance.name)
            happened = about(record.spec, kind, words, operation=operation.name, principal=operation.principal)
            await frame.events.record(happened)
            await frame.store.delete(instance.name)

    async def update(self, execution: Execution, instance: Instance) -> Message:
        """Makes changed settings true."""
        frame = self._frame
        changed = execution.request(UpdateInstanceRequest).update_mask.paths
        status: Status | None = None
        if instance.previous is not None:
            status = await frame.provider_of(instance).update(instance.spec, frame.progress(execution))
        else:
            status = await frame.look(instance)
        words = f"settings changed: {', '.join(changed)}" if changed else "settings changed"
        return await frame.end(
            execution,
            instance.name,
            status=status or instance.status,
            event=(EventKind.UPDATED, words),
            response=instance_message,
        )

    async def undo_update(self, execution: Execution, instance: Instance, error: Exception) -> None:
        """Goes back to the settings before, as far as the provider can."""
        if instance.previous is not None:
            try:
                await self._frame.provider_of(instance).update(instance.previous, self._frame.progress(execution))
            except OpsplaneError as refused:
                log.error("an update is not undone", instance=instance.name, detail=refused.message)
        await self._frame.release(execution, instance, error)

    async def start(self, execution: Execution, instance: Instance) -> Message:
        """Starts its servers."""
        frame = self._frame
        stopped = await _was_stopped(execution, instance)
        status = await frame.provider_of(instance).start(instance.name, frame.progress(execution))
        return await frame.end(
            execution,
            instance.name,
            status=status,
            event=(EventKind.STARTED, "started") if stopped else None,
            response=instance_message,
        )

    async def stop(self, execution: Execution, instance: Instance) -> Message:
        """Stops its servers."""
        frame = self._frame
        stopped = await _was_stopped(execution, instance)
        status = await frame.provider_of(instance).stop(instance.name, frame.progress(execution))
        return await frame.end(
            execution,
            instance.name,
            status=status,
            event=None if stopped else (EventKind.STOPPED, "stopped"),
            response=instance_message,
        )

    async def restart(self, execution: Execution, instance: Instance) -> Message:
        """Restarts one server or all."""
        frame = self._frame
        node = execution.request(RestartInstanceRequest).node
        status = await frame.provider_of(instance).restart(instance.name, node, frame.progress(execution))
        return await frame.end(
            execution,
            instance.name,
            status=status,
            event=(EventKind.RESTARTED, f"{node} restarted" if node else "restarted"),
            response=instance_message,
        )

    async def recover(self, execution: Execution, instance: Instance) -> Message:
        """Takes in servers whose record was lost: adopts or starts them, and sets the first user's password."""
        frame, name, user = self._frame, instance.name, instance.spec.username
        provider, progress = frame.provider_of(instance), frame.progress(execution, 0, _ADOPTED)
        request = execution.request(RecoverInstanceRequest)
        found = await provider.find(name, namespace=request.namespace)
        password = (await frame.store.secrets(name)).users.get(user, "")
        anew = bool(password) and password != found.secrets.users.get(user)
        if found.stopped and not anew:
            status = await provider.status(name)
        else:
            status = await provider.start(name, progress)
        if anew:
            await self._set_password(instance, password)
            if found.stopped:
                status = await provider.stop(name, progress)
        return await frame.end(
            execution,
            name,
            status=status,
            event=(EventKind.RECOVERED, "taken in: its record was lost"),
            response=instance_message,
        )

    async def _set_password(self, instance: Instance, password: str) -> None:
        frame, user = self._frame, instance.spec.username
        provider, admin = frame.provider_of(instance), frame.admin(instance.spec.engine)
        access = await provider.access(instance.name)
        found = next((info for info in await admin.list_users(access) if info.name == user), None)
        if found is None:
            raise FailedPrecondition(f"the first user {user} is not there any more", reason="FIRST_USER_MISSING")
        await admin.update_user(
            access,
            NewUser(user, password, found.privilege, found.databases, found.max_connections),
        )
        await provider.set_password(instance.name, user, password)

    async def leave(self, execution: Execution, instance: Instance, error: Exception) -> None:
        """Forgets the record that could not be made true; servers and data stay as they are."""
        frame, operation = self._frame, execution.operation
        async with execution.transaction():
            record = await frame.store.lock(instance.name)
            words = f"not taken in: {failures.words(error)}"
            happened = about(
                record.spec, EventKind.FAILED, words, operation=operation.name, principal=operation.principal
            )
            await frame.events.record(happened)
            await frame.store.delete(instance.name)


async def _was_stopped(execution: Execution, instance: Instance) -> bool:
    """Whether it was stopped when the operation began; what became of it since is no news of somebody else."""
    if execution.step != _BEGUN:
        stopped = state_of(instance.spec, instance.status)[0] is InstanceState.STOPPED
        await execution.checkpoint(_BEGUN, data={"stopped": stopped})
    return bool(execution.data["stopped"])
