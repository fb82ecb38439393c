"""Deleting instances, after a final backup where one is wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.backups.v1.backup_pb2 import Backup
from opsplane.instances.v1.instances_pb2 import DeleteInstanceRequest

from opsplane_server.instances.events import about
from opsplane_server.instances.model import InstanceState
from opsplane_server.instances.operations.final_backups import FinalBackups
from opsplane_server.instances.operations.frame import Found, Frame
from opsplane_server.instances.records import EventKind, Instance
from opsplane_server.platform.execution import Execution

_DELETING: Final = "deleting"
_BACKED_UP: Final = 70  # percent of a deletion with a final backup


class Deletion:
    """The work of DELETE. A final backup can be cancelled, the deletion itself can not."""

    def __init__(self, frame: Frame, backups: FinalBackups) -> None:
        self._frame = frame
        self._backups = backups

    async def delete(self, execution: Execution, instance: Instance) -> Message:
        """Makes the final backup, then removes everything but backups and the archived log that they need."""
        frame, operation = self._frame, execution.operation
        request = execution.request(DeleteInstanceRequest)
        first = _BACKED_UP if request.final_backup else 0
        if execution.step != _DELETING:
            backup = ""
            if request.final_backup:
                backup = await self._backups.make(
                    execution,
                    instance.name,
                    Backup.TYPE_FINAL,
                    backup_id=request.final_backup_id,
                    retention_days=request.final_backup_retention_days,
                    progress=frame.progress(execution, 0, first),
                )
            async with execution.transaction():
                record = await frame.store.lock(instance.name)
                await frame.store.save(replace(record, state=InstanceState.DELETING, state_message=""))
                await execution.checkpoint(_DELETING, data={"backup": backup}, stage="deleting")
        backup = execution.data["backup"]
        provider = frame.provider_of(instance)
        if await frame.found(instance) is not Found.FOREIGN:
            await provider.delete(instance.name, frame.progress(execution, first, 100))
        if not backup and not await self._backups.any_of(instance.uid):
            await provider.delete_archive(instance.uid, "")
        words = f"deleted after the final backup {backup}" if backup else "deleted"
        async with execution.transaction():
            record = await frame.store.lock(instance.name)
            happened = about(
                record.spec,
                EventKind.DELETED,
                words,
                resource=backup,
                operation=operation.name,
                principal=operation.principal,
            )
            if not record.hidden:
                await frame.events.record(happened)
            await frame.store.delete(instance.name)
            await frame.done(execution, Empty())
        return Empty()
