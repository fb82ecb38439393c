"""Changes to backups that are there: how long they are kept, what is said of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from google.protobuf.message import Message

from opsplane_server.backups import convert
from opsplane_server.backups.model import Backup, BackupState
from opsplane_server.backups.ports import BackupStore
from opsplane_server.backups.settling import Settling
from opsplane_server.errors import FailedPrecondition
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import Operation
from opsplane_server.platform.operations import Operations
from opsplane_server.rpc import etags

UPDATE_KIND: Final = "backups.update"


class BackupChanges:
    """Changes backups, and answers for the operations that tell of it."""

    def __init__(self, store: BackupStore, operations: Operations, settling: Settling) -> None:
        self._store = store
        self._operations = operations
        self._settling = settling

    async def update(
        self, wanted: Backup, fields: Collection[str], etag: str, *, request_id: str = ""
    ) -> tuple[Operation, Backup]:
        """Sets `fields` to those of `wanted`; joins the caller's transaction, and is done when that is.

        Raises NotFound, Aborted for an old `etag`, FailedPrecondition for one that is being deleted.
        """
        current = await self._store.lock(wanted.name)
        etags.check(etag, current.name, current.revision)
        if current.state is BackupState.DELETING:
            raise FailedPrecondition(
                f"{current.name} is being deleted", reason="BACKUP_DELETING", metadata={"resource": current.name}
            )
        changed = replace(
            current,
            retention_days=wanted.retention_days if "retention_days" in fields else current.retention_days,
            description=wanted.description if "description" in fields else current.description,
            labels=wanted.labels if "labels" in fields else current.labels,
        )
        operation = await self._operations.submit(
            kind=UPDATE_KIND, verb="UpdateBackup", target=current.name, request_id=request_id
        )
        await self._store.save(changed)
        await self._settling.settle(await self._store.lock_source(current.instance_uid))
        return operation, await self._store.get(current.name)

    async def handle(self, execution: Execution) -> Message:
        """The handler of `backups.update`: all is done already, the response is the Backup."""
        return convert.backup_to_proto(await self._store.get(execution.operation.target))
