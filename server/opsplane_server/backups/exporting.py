"""Exports: a backup as one archive, in a file of the server or on an FTP server."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import structlog
from google.protobuf.message import Message
from opsplane.backups.v1 import backups_pb2
from opsplane.instances.v1 import copies_pb2

from opsplane_server.backups import convert, names, notices
from opsplane_server.backups.following import follow, passing_on, request_id
from opsplane_server.backups.model import Backup, Export
from opsplane_server.backups.ports import BackupStore, Instances, NoticeStore, Shipment, Shipping
from opsplane_server.backups.verifying import check_ready
from opsplane_server.errors import FailedPrecondition
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import Operation, OperationCancelled
from opsplane_server.platform.operations import Operations

log = structlog.get_logger(__name__)

EXPORT_KIND: Final = "backups.export"

# Where archives lie below the export folder until they are sent.
STAGING: Final = "ftp"
# Writing the archive is about half of sending it.
_ARCHIVE_SHARE: Final = 50


class Exports:
    """Takes in what is to be exported."""

    def __init__(self, store: BackupStore, operations: Operations, shipping: Shipping) -> None:
        self._store = store
        self._operations = operations
        self._shipping = shipping

    async def check(self, export: Export) -> None:
        """Raises FailedPrecondition (SERVICE_NOT_SERVED), NotFound (connection), InvalidArgument."""
        if not export.connection:
            return
        if not self._shipping.served():
            raise FailedPrecondition(
                "backups are sent by the service FtpTransfer, which is not served here",
                reason="SERVICE_NOT_SERVED",
                metadata={"service": "ftptransfer"},
            )
        await self._shipping.check(export.connection)

    async def create(
        self, export: Export, request: backups_pb2.ExportBackupRequest
    ) -> tuple[Operation, backups_pb2.ExportBackupResponse]:
        """Submits an export; joins the caller's transaction. Raises NotFound, FailedPrecondition."""
        backup = await self._store.lock(export.backup)
        check_ready(backup)
        operation = await self._operations.submit(
            kind=EXPORT_KIND,
            verb="ExportBackup",
            target=backup.name,
            request=request,
            request_id=request.request_id,
        )
        await self._store.use(backup, operation.name)
        return operation, backups_pb2.ExportBackupResponse(backup=backup.name, path=export.path)


class Exporter:
    """Does exports: the handler of `backups.export`."""

    def __init__(self, store: BackupStore, instances: Instances, shipping: Shipping, notice_store: NoticeStore) -> None:
        self._store = store
        self._instances = instances
        self._shipping = shipping
        self._notices = notice_store

    async def handle(self, execution: Execution) -> Message:
        """Writes the archive and sends it; the response is an ExportBackupResponse."""
        export = convert.export_from_proto(execution.request(backups_pb2.ExportBackupRequest))
        backup = await self._store.get(export.backup)
        assert backup.copy is not None
        staged = bool(export.connection)
        operation = names.last(execution.operation.name)
        path = f"{STAGING}/{operation}/{names.last(export.path)}" if staged else export.path
        remote = execution.data.get("archiving", "")
        if not remote:
            remote = await self._instances.archive(
                backup.copy.location,
                path,
                export.packing,
                overwrite=export.overwrite or staged,
                request_id=request_id(execution, "archive"),
            )
            await execution.checkpoint("archiving", data={"archiving": remote})
        share = _ARCHIVE_SHARE if staged else 100
        archive = await follow(self._instances, execution, remote, copies_pb2.CopyArchive, share=share)
        response = backups_pb2.ExportBackupResponse(
            backup=backup.name, path=export.path, size_bytes=archive.size_bytes, sha256=archive.sha256
        )
        if staged:
            response.transfer = await self._send(execution, export, archive)
        await self._finish(execution, backup, response, export.connection)
        return response

    async def failed(self, operation: Operation) -> None:
        """The hook of an export that came to nothing."""
        await self._store.leave(operation.name)

    async def _send(self, execution: Execution, export: Export, archive: copies_pb2.CopyArchive) -> str:
        """Has the archive sent, and removes it here whatever came of it; returns the name of the transfer."""
        transfer = await self._shipping.send(
            archive.file,
            export.connection,
            export.path,
            sha256=archive.sha256,
            overwrite=export.overwrite,
            request_id=request_id(execution, "send"),
        )
        last = Shipment(transfer, done=False)
        async with (
            passing_on(execution, lambda: self._shipping.cancel(transfer)),
            aclosing(self._shipping.watch(transfer)) as shipments,
        ):
            async for last in shipments:
                sent = last.bytes_transferred * (100 - _ARCHIVE_SHARE) // max(1, archive.size_bytes)
                await execution.checkpoint(
                    execution.step, stage="sending the archive", progress_percent=min(99, _ARCHIVE_SHARE + sent)
                )
        await self._shipping.remove(archive.file, request_id(execution, "remove"))
        if last.cancelled and execution.cancel_requested:
            raise OperationCancelled
        if last.error is not None:
            raise last.error
        return transfer

    async def _finish(
        self, execution: Execution, backup: Backup, response: backups_pb2.ExportBackupResponse, connection: str
    ) -> None:
        where = f"{connection}, {response.path}" if connection else response.path
        words = f"{backup.name} was exported to {where}: {response.size_bytes} bytes"
        operation = execution.operation.name
        async with execution.transaction():
            if operation in await self._store.users_of([backup]):
                await self._store.leave(operation)
                await self._notices.add(
                    notices.of_backup(backup, "BACKUP_EXPORTED", "INFO", words, operation=operation)
                )
        log.info("backup exported", backup=backup.name, path=response.path, bytes=response.size_bytes)
