"""Restores: a new instance from a backup, or from a moment that a backup and the archived log lead to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
from google.protobuf.message import Message
from opsplane.instances.v1 import copies_pb2, instance_pb2

from opsplane_server.backups import convert_copies, names
from opsplane_server.backups.following import follow, request_id
from opsplane_server.backups.model import Backup, InstanceFacts
from opsplane_server.backups.ports import BackupStore, Instances
from opsplane_server.backups.retention import before, good_ones
from opsplane_server.backups.verifying import check_ready
from opsplane_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import Operation
from opsplane_server.platform.operations import Operations
from opsplane_server.rpc.times import timestamp

log = structlog.get_logger(__name__)

RESTORE_KIND: Final = "backups.restore"


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment in the life of an instance; instance_uid is empty for the newest of that name."""

    instance: str
    instance_uid: str
    time: datetime


class Restores:
    """Takes in what is to be restored."""

    def __init__(self, store: BackupStore, instances: Instances, operations: Operations) -> None:
        self._store = store
        self._instances = instances
        self._operations = operations

    async def check_free(self, instance_id: str) -> None:
        """Raises AlreadyExists when there is such an instance."""
        name = names.instance(instance_id)
        try:
            await self._instances.get(name)
        except NotFound:
            return
        raise AlreadyExists.resource(name)

    async def find(self, moment: Moment) -> Backup:
        """The newest good backup before a moment. Raises NotFound, FailedPrecondition (MOMENT_NOT_COVERED)."""
        facts = await self._facts(moment)
        now = datetime.now(UTC)
        if moment.time > now:
            raise _not_covered(moment, "it has not come yet")
        if facts is not None and facts.latest_time is not None and moment.time > facts.latest_time:
            raise _not_covered(moment, f"the log is archived up to {facts.latest_time.isoformat()}")
        uid = facts.uid if facts is not None else moment.instance_uid
        backups = await self._store.of_source(uid or (await self._store.newest_source(moment.instance)).uid)
        found = before(backups, moment.time)
        if found is not None:
            return found
        if any(backup.copy is not None and backup.copy.cut_time <= moment.time for backup in good_ones(backups)):
            raise _not_covered(moment, "the log of the instance was not archived when the backups before it were made")
        raise NotFound(
            f"there is no backup of {moment.instance} before {moment.time.isoformat()}",
            reason="NO_BACKUP_BEFORE",
            metadata={"resource": moment.instance},
        )

    async def create(
        self,
        backup_name: str,
        instance_id: str,
        settings: instance_pb2.Instance,
        *,
        stop_time: datetime | None = None,
        request_id: str = "",
    ) -> tuple[Operation, instance_pb2.Instance]:
        """Submits a restore, up to `stop_time` where there is one, and tells what will come of it.

        Joins the caller's transaction. Raises NotFound, InvalidArgument, FailedPrecondition.
        """
        backup = await self._store.lock(backup_name)
        check_ready(backup)
        assert backup.copy is not None
        storage = settings.resources.storage_bytes
        if 0 < storage < backup.copy.restore_size_bytes:
            raise InvalidArgument.of(
                "instance.resources.storage_bytes",
                f"is less than the {backup.copy.restore_size_bytes} bytes that {backup.name} needs",
                reason="STORAGE_TOO_SMALL",
            )
        operation = await self._operations.submit(
            kind=RESTORE_KIND, verb="RestoreBackup", target=names.instance(instance_id), request_id=request_id
        )
        await self._store.use(backup, operation.name)
        request = copies_pb2.RestoreCopyRequest(
            copy=convert_copies.copy_to_proto(backup.copy),
            backup=backup.name,
            instance_id=instance_id,
            instance=settings,
            archive=backup.instance_uid if stop_time is not None else "",
            stop_time=timestamp(stop_time),
        )
        # The request holds passwords, so it does not go with the operation.
        await self._store.seal(operation.name, request)
        return operation, _described(request, backup)

    async def _facts(self, moment: Moment) -> InstanceFacts | None:
        """The instance, if it is the one that is meant and still there."""
        try:
            facts = await self._instances.get(moment.instance)
        except NotFound:
            return None
        return facts if moment.instance_uid in ("", facts.uid) else None


def _described(request: copies_pb2.RestoreCopyRequest, backup: Backup) -> instance_pb2.Instance:
    """The instance as far as it is known beforehand."""
    source, wanted = request.copy.settings, request.instance
    found = instance_pb2.Instance(
        engine=source.engine, version=source.version, database=source.database, username=source.username
    )
    found.resources.CopyFrom(source.resources)
    found.MergeFrom(wanted)
    found.ClearField("password")
    for webhook in found.webhooks:
        webhook.ClearField("signing_key")
    found.name = names.instance(request.instance_id)
    found.source_backup = backup.name
    found.state = instance_pb2.Instance.STATE_RESTORING
    return found


def _not_covered(moment: Moment, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{moment.time.isoformat()} of {moment.instance} can not be restored: {why}",
        reason="MOMENT_NOT_COVERED",
        metadata={"resource": moment.instance},
    )


class Restorer:
    """Does restores: the handler of `backups.restore`."""

    def __init__(self, store: BackupStore, instances: Instances) -> None:
        self._store = store
        self._instances = instances

    async def handle(self, execution: Execution) -> Message:
        """Has the instance made; the response is the Instance."""
        operation = execution.operation.name
        remote = execution.data.get("restoring", "")
        if not remote:
            request = await self._store.unseal(operation)
            remote = await self._instances.restore(request, request_id(execution, "restore"))
            await execution.checkpoint("restoring", data={"restoring": remote})
        made = await follow(self._instances, execution, remote, instance_pb2.Instance)
        async with execution.transaction():
            await self._store.leave(operation)
        log.info("instance restored", instance=made.name, backup=made.source_backup)
        return made

    async def failed(self, operation: Operation) -> None:
        """The hook of a restore that came to nothing."""
        await self._store.leave(operation.name)
