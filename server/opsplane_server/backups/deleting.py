"""Deletes backups, by request and by retention."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from google.protobuf.message import Message

from opsplane_server.backups import notices
from opsplane_server.backups.following import final, request_id
from opsplane_server.backups.model import Backup, BackupState
from opsplane_server.backups.ports import BackupStore, Instances, NoticeStore
from opsplane_server.backups.settling import Settling
from opsplane_server.errors import FailedPrecondition
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import Operation
from opsplane_server.platform.operations import Operations
from opsplane_server.rpc import etags

log = structlog.get_logger(__name__)

DELETE_KIND: Final = "backups.delete"

# When a deletion that failed is tried again.
_AGAIN: Final = timedelta(minutes=1)


class Deletions:
    """Takes in what is to be deleted. Methods join the caller's transaction."""

    def __init__(self, store: BackupStore, operations: Operations) -> None:
        self._store = store
        self._operations = operations

    async def create(self, name: str, *, etag: str = "", force: bool = False, request_id: str = "") -> Operation:
        """Submits the deletion of a backup, with `force` also of what builds on it.

        Raises NotFound, Aborted (etag), FailedPrecondition (BACKUP_NOT_DONE, BACKUP_IN_USE, HAS_INCREMENTALS).
        """
        backup = await self._store.lock(name)
        etags.check(etag, backup.name, backup.revision)
        doomed = _with_what_builds_on(backup, await self._store.of_source(backup.instance_uid))
        await self._check(backup, doomed, force=force)
        operation = await self._operations.submit(
            kind=DELETE_KIND, verb="DeleteBackup", target=name, request_id=request_id
        )
        for one in doomed:
            await self._store.save(
                replace(one, state=BackupState.DELETING, last_good=False, expire_time=None, operation=operation.name)
            )
        return operation

    async def _check(self, backup: Backup, doomed: list[Backup], *, force: bool) -> None:
        for one in doomed:
            if one.state.under_way or (one.state is BackupState.DELETING and one.operation):
                raise FailedPrecondition(
                    f"{one.name} is {one.state}: wait for {one.operation} or cancel it",
                    reason="BACKUP_NOT_DONE",
                    metadata={"resource": one.name, "operation": one.operation},
                )
        users = sorted(await self._store.users_of(doomed))
        if users:
            raise FailedPrecondition(
                f"{backup.name} is needed by {', '.join(users)}",
                reason="BACKUP_IN_USE",
                metadata={"resource": backup.name, "operations": ",".join(users)},
            )
        if len(doomed) > 1 and not force:
            raise FailedPrecondition(
                f"{len(doomed) - 1} backups build on {backup.name}; use force to delete them as well",
                reason="HAS_INCREMENTALS",
                metadata={"resource": backup.name, "backups": ",".join(one.name for one in doomed[1:])},
            )


def _with_what_builds_on(backup: Backup, backups: list[Backup]) -> list[Backup]:
    """The backup and all that build on it, each after its base; `backups` are oldest first."""
    found = {backup.name: backup}
    for one in backups:
        if one.base in found and one.state is not BackupState.FAILED:
            found[one.name] = one
    return list(found.values())


class Remover:
    """Does deletions: the handler of `backups.delete`."""

    def __init__(self, store: BackupStore, instances: Instances, settling: Settling, notice_store: NoticeStore) -> None:
        self._store = store
        self._instances = instances
        self._settling = settling
        self._notices = notice_store

    async def handle(self, execution: Execution) -> Message | None:
        """Removes copies and records, what builds on another one first. A wish to cancel comes too late."""
        operation = execution.operation.name
        for backup in await self._store.deleted_by(operation):
            await execution.checkpoint(execution.step, stage=f"deleting {backup.name}")
            if backup.copy is not None:
                removal = await self._instances.delete_copy(
                    backup.copy.location, request_id(execution, f"delete {backup.uid}")
                )
                await self._done(removal)
            async with execution.transaction():
                source = await self._store.lock_source(backup.instance_uid)
                await self._store.delete(backup)
                await self._settling.settle(source)
                await self._notices.add(
                    notices.of_backup(
                        backup, "BACKUP_DELETED", "INFO", f"{backup.name} was deleted", operation=operation
                    )
                )
            log.info("backup deleted", backup=backup.name)
        return None

    async def failed(self, operation: Operation) -> None:
        """The hook of a deletion that did not succeed: what may be half gone is no backup any more, and tried again."""
        for backup in await self._store.deleted_by(operation.name):
            locked = await self._store.lock(backup.name)
            await self._store.save(replace(locked, operation="", expire_time=datetime.now(UTC) + _AGAIN))

    async def _done(self, operation: str) -> None:
        async for state in self._instances.watch(operation):
            if state.error is not None:
                raise final(state.error)
