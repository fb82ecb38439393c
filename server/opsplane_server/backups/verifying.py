"""Verifications: a backup is restored into a scratch instance, checked, and the instance is removed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog
from google.protobuf.message import Message
from opsplane.instances.v1 import copies_pb2

from opsplane_server.backups import convert, convert_copies, notices
from opsplane_server.backups.figures import BackupFigures
from opsplane_server.backups.following import follow, request_id
from opsplane_server.backups.model import Backup, BackupState, Verification, VerificationState
from opsplane_server.backups.ports import BackupStore, Instances, NoticeStore
from opsplane_server.backups.settling import Settling
from opsplane_server.backups.standing import Standing
from opsplane_server.errors import DataLoss, FailedPrecondition, NotFound
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import Operation
from opsplane_server.platform.operations import Operations

log = structlog.get_logger(__name__)

VERIFY_KIND: Final = "backups.verify"


class Verifications:
    """Takes in what is to be verified. Methods join the caller's transaction."""

    def __init__(self, store: BackupStore, operations: Operations) -> None:
        self._store = store
        self._operations = operations

    async def create(self, name: str, *, request_id: str = "") -> tuple[Operation, Backup]:
        """Submits a verification. Raises NotFound, FailedPrecondition."""
        backup = await self._store.lock(name)
        check_ready(backup)
        if backup.verifying_since is not None:
            raise FailedPrecondition(
                f"{name} is being verified", reason="VERIFICATION_RUNNING", metadata={"resource": name}
            )
        operation = await self._operations.submit(
            kind=VERIFY_KIND, verb="VerifyBackup", target=name, request_id=request_id
        )
        await self._store.use(backup, operation.name)
        return operation, await self._store.save(replace(backup, verifying_since=datetime.now(UTC)))


def check_ready(backup: Backup) -> None:
    """Raises FailedPrecondition for a backup that can not be restored, verified or exported."""
    if backup.state is not BackupState.READY:
        raise FailedPrecondition(
            f"{backup.name} is {backup.state}, not READY",
            reason="BACKUP_NOT_READY",
            metadata={"resource": backup.name, "state": backup.state.value},
        )


class Verifier:
    """Does verifications: the handler of `backups.verify`."""

    def __init__(
        self,
        store: BackupStore,
        instances: Instances,
        settling: Settling,
        standing: Standing,
        notice_store: NoticeStore,
        figures: BackupFigures,
    ) -> None:
        self._store = store
        self._instances = instances
        self._settling = settling
        self._standing = standing
        self._notices = notice_store
        self._figures = figures

    async def handle(self, execution: Execution) -> Message:
        """Has the copy checked; the response is the Backup, whatever was found."""
        name, operation = execution.operation.target, execution.operation.name
        backup = await self._store.get(name)
        if operation not in await self._store.users_of([backup]):
            return convert.backup_to_proto(backup)
        assert backup.copy is not None
        started = backup.verifying_since or datetime.now(UTC)
        remote = execution.data.get("checking", "")
        if not remote:
            remote = await self._instances.check(backup.copy, request_id(execution, "check"))
            await execution.checkpoint("checking", data={"checking": remote})
        try:
            report = await follow(self._instances, execution, remote, copies_pb2.CopyReport)
            found = convert_copies.verification_from_proto(report, started, datetime.now(UTC))
        except DataLoss as error:
            # It could not even be restored, and that is what was to be found out.
            found = Verification(VerificationState.FAILED, started, datetime.now(UTC), message=error.message)
        async with execution.transaction():
            backup = await self._store.lock(name)
            backup = await self._store.save(replace(backup, verification=found, verifying_since=None))
            await self._store.leave(operation)
            await self._settling.settle(await self._store.lock_source(backup.instance_uid))
            await self._tell(backup, found, operation)
            backup = await self._store.get(name)
        self._figures.verified(found.state)
        log.info("backup verified", backup=name, state=found.state.value, rows=found.row_count)
        return convert.backup_to_proto(backup)

    async def failed(self, operation: Operation) -> None:
        """The hook of a verification that found nothing out: the one before it holds."""
        await self._store.leave(operation.name)
        try:
            backup = await self._store.lock(operation.target)
        except NotFound:
            return
        await self._store.save(replace(backup, verifying_since=None))

    async def _tell(self, backup: Backup, found: Verification, operation: str) -> None:
        if found.state is VerificationState.PASSED:
            words = f"{backup.name} can be restored: {found.table_count} tables with {found.row_count} rows were read"
            notice = notices.of_backup(backup, "BACKUP_VERIFIED", "INFO", words, operation=operation)
        else:
            webhooks = await self._standing.webhooks(backup)
            words = f"{backup.name} did not pass its verification: {found.message}"
            notice = notices.of_backup(
                backup, "VERIFICATION_FAILED", "ERROR", words, operation=operation, webhooks=webhooks
            )
        await self._notices.add(notice)
