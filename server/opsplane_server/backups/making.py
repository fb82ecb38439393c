"""Backups are asked for, and made by the instance's provider."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from opsplane.instances.v1 import copies_pb2

from opsplane_server.backups import convert, convert_copies, notices
from opsplane_server.backups.figures import BackupFigures
from opsplane_server.backups.following import final, follow, request_id, unpack
from opsplane_server.backups.model import Backup, BackupState, Copy, InstanceFacts, Source
from opsplane_server.backups.ports import BackupStore, Instances, NoticeStore
from opsplane_server.backups.retention import base_for
from opsplane_server.backups.settling import Settling
from opsplane_server.backups.standing import Standing
from opsplane_server.backups.verifying import Verifications
from opsplane_server.errors import FailedPrecondition, NotFound
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import Operation, OperationCancelled, OperationState
from opsplane_server.platform.operations import Operations

log = structlog.get_logger(__name__)

CREATE_KIND: Final = "backups.create"
DISCARD_KIND: Final = "backups.discard"

# In these states an instance serves, or is about to again.
_SERVING: Final = frozenset({"READY", "DEGRADED", "UPDATING"})


class Requests:
    """Takes in what is to be backed up. Methods join the caller's transaction."""

    def __init__(self, store: BackupStore, operations: Operations) -> None:
        self._store = store
        self._operations = operations

    async def create(
        self, wanted: Backup, facts: InstanceFacts, *, verb: str, request_id: str = ""
    ) -> tuple[Operation, Backup]:
        """Stores the backup as QUEUED with the operation that makes it. Raises AlreadyExists."""
        await self._store.meet(Source(facts.uid, facts.name, window=facts.window))
        operation = await self._operations.submit(
            kind=CREATE_KIND, verb=verb, target=wanted.name, request_id=request_id
        )
        backup = await self._store.insert(
            replace(wanted, instance=facts.name, instance_uid=facts.uid, engine=facts.engine, operation=operation.name)
        )
        return operation, backup


def check_serving(facts: InstanceFacts) -> None:
    """Raises FailedPrecondition for an instance that can not be copied now."""
    if facts.state not in _SERVING:
        raise FailedPrecondition(
            f"{facts.name} does not serve: it is {facts.state}",
            reason="INSTANCE_NOT_SERVING",
            metadata={"resource": facts.name, "state": facts.state},
        )


class Maker:
    """Makes backups: the handler of `backups.create`, and what follows when one comes to nothing."""

    def __init__(
        self,
        store: BackupStore,
        instances: Instances,
        operations: Operations,
        settling: Settling,
        standing: Standing,
        notice_store: NoticeStore,
        verifications: Verifications,
        figures: BackupFigures,
    ) -> None:
        self._store = store
        self._instances = instances
        self._operations = operations
        self._settling = settling
        self._standing = standing
        self._notices = notice_store
        self._verifications = verifications
        self._figures = figures

    async def handle(self, execution: Execution) -> Message:
        """Copies the instance; the response is the Backup."""
        backup = await self._begin(execution)
        if backup.state is BackupState.READY:
            return convert.backup_to_proto(backup)
        remote = execution.data.get("copying", "")
        if not remote:
            base = (await self._store.get(backup.base)).copy if backup.base else None
            remote = await self._instances.copy(
                backup.instance, backup.uid, base.location if base else "", request_id(execution, "copy")
            )
            await execution.checkpoint("copying", data={"copying": remote})
        made = await follow(self._instances, execution, remote, copies_pb2.InstanceCopy)
        async with execution.transaction():
            backup = await self._complete(backup.name, convert_copies.copy_from_proto(made), execution.operation.name)
        self._figures.made(backup)
        log.info("backup ready", backup=backup.name, instance=backup.instance)
        return convert.backup_to_proto(backup)

    async def failed(self, operation: Operation) -> None:
        """The hook of an operation that came to nothing: a cancelled backup goes, a failed one says why."""
        try:
            backup = await self._store.lock(operation.target)
        except NotFound:
            return
        if backup.operation != operation.name or not backup.state.under_way:
            return
        if operation.data.get("copying"):
            # Whatever of the copy is there, or still being made, must not stay for ever.
            await self._operations.submit(
                kind=DISCARD_KIND,
                verb="DeleteBackup",
                target=backup.name,
                request=operations_pb2.GetOperationRequest(name=operation.data["copying"]),
                hidden=True,
            )
        if operation.state is OperationState.CANCELLED:
            await self._store.delete(backup)
        else:
            await self._note_failure(backup, operation)
        await self._settling.settle(await self._store.lock_source(backup.instance_uid))
        self._figures.not_made(backup, cancelled=operation.state is OperationState.CANCELLED)

    async def discard(self, execution: Execution) -> None:
        """The handler of `backups.discard`: ends a copy that nobody wants any more, and removes it."""
        remote = execution.request(operations_pb2.GetOperationRequest).name
        try:
            await self._instances.cancel(remote)
            async for state in self._instances.watch(remote):
                if state.done and state.error is None and not state.cancelled:
                    location = unpack(state.response, copies_pb2.InstanceCopy).location
                    removal = await self._instances.delete_copy(location, request_id(execution, "discard"))
                    async for removing in self._instances.watch(removal):
                        if removing.error is not None:
                            raise final(removing.error)
        except NotFound:
            log.info("copy is gone already", copying=remote)

    async def _begin(self, execution: Execution) -> Backup:
        """Takes the backup out of the queue, and says for good what it builds on, which is kept from then on."""
        async with execution.transaction():
            backup = await self._store.lock(execution.operation.target)
            if backup.state is not BackupState.QUEUED:
                return backup
            if execution.cancel_requested:
                raise OperationCancelled
            base = None
            if backup.incremental:
                base = base_for(await self._store.of_source(backup.instance_uid))
            backup = await self._store.save(
                replace(
                    backup,
                    state=BackupState.RUNNING,
                    start_time=datetime.now(UTC),
                    base=base.name if base is not None else "",
                )
            )
            await self._settle(backup)
            return backup

    async def _complete(self, name: str, copy: Copy, operation: str) -> Backup:
        backup = await self._store.lock(name)
        backup = await self._store.save(
            replace(
                backup,
                state=BackupState.READY,
                copy=copy,
                # The engine may have had to make a full one.
                base=backup.base if copy.base else "",
                start_time=copy.start_time,
                complete_time=copy.complete_time,
                operation="",
            )
        )
        await self._settle(backup)
        words = f"{backup.name} is complete: {copy.size_bytes} bytes, the data of {copy.cut_time.isoformat()}"
        await self._notices.add(notices.of_backup(backup, "BACKUP_COMPLETED", "INFO", words, operation=operation))
        if await self._standing.succeeded(backup):
            backup = (await self._verifications.create(backup.name))[1]
        return await self._store.get(name)

    async def _note_failure(self, backup: Backup, operation: Operation) -> None:
        error = operation.error or status_pb2.Status(code=code_pb2.INTERNAL, message="the backup failed")
        backup = await self._store.save(
            replace(
                backup,
                state=BackupState.FAILED,
                error=error,
                base="",
                complete_time=datetime.now(UTC),
                operation="",
            )
        )
        webhooks = await self._standing.failed(backup, error.message)
        words = f"{backup.name} failed: {error.message}"
        await self._notices.add(
            notices.of_backup(backup, "BACKUP_FAILED", "ERROR", words, operation=operation.name, webhooks=webhooks)
        )

    async def _settle(self, backup: Backup) -> None:
        await self._settling.settle(await self._store.lock_source(backup.instance_uid))
