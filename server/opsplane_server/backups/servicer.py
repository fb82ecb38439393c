"""Backups, RPC in and RPC out. Requests are validated and callers known before they come here."""

from __future__ import annotations

from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc, schedules_pb2

from opsplane_server.backups import convert, names
from opsplane_server.backups.changing import BackupChanges
from opsplane_server.backups.deleting import Deletions
from opsplane_server.backups.exporting import Exports
from opsplane_server.backups.listing import BACKUP_FILTER, SCHEDULE_FILTER, conditions
from opsplane_server.backups.making import Requests, check_serving
from opsplane_server.backups.ports import BackupStore, Instances, ScheduleStore
from opsplane_server.backups.restoring import Moment, Restores
from opsplane_server.backups.schedules import UPDATABLE as SCHEDULE_UPDATABLE
from opsplane_server.backups.schedules import Schedules
from opsplane_server.backups.submitting import Submitting
from opsplane_server.backups.verifying import Verifications
from opsplane_server.errors import NotFound
from opsplane_server.platform.changes import Changes
from opsplane_server.platform.model import Operation
from opsplane_server.rpc.ids import new_id
from opsplane_server.rpc.masks import changed_fields
from opsplane_server.rpc.paging import next_page_token, page_request
from opsplane_server.rpc.times import moment

Context = grpc.aio.ServicerContext[Any, Any]

# The full name; taking it from the descriptor also loads the roles of the RPCs, which no message refers to.
SERVICE = backups_pb2.DESCRIPTOR.services_by_name["Backups"].full_name

BACKUP_UPDATABLE = ("retention_days", "description", "labels")


class BackupsServicer(backups_pb2_grpc.BackupsServicer):
    """`opsplane.backups.v1.Backups`."""

    def __init__(
        self,
        changes: Changes,
        submitting: Submitting,
        instances: Instances,
        requests: Requests,
        backup_changes: BackupChanges,
        deletions: Deletions,
        restores: Restores,
        verifications: Verifications,
        exports: Exports,
        schedules: Schedules,
        *,
        backup_store: BackupStore,
        schedule_store: ScheduleStore,
    ) -> None:
        self._changes = changes
        self._submitting = submitting
        self._instances = instances
        self._requests = requests
        self._backup_changes = backup_changes
        self._deletions = deletions
        self._restores = restores
        self._verifications = verifications
        self._exports = exports
        self._schedules = schedules
        self._backup_store = backup_store
        self._schedule_store = schedule_store

    # --- backups

    async def CreateBackup(
        self, request: backups_pb2.CreateBackupRequest, context: Context
    ) -> operations_pb2.Operation:
        """See the proto, as for all methods below. Asks about the instance before the transaction."""
        replayed = await self._changes.replay(request, operations_pb2.Operation)
        if replayed is not None:
            return replayed
        facts = await self._instances.get(request.backup.instance)
        check_serving(facts)
        wanted = convert.backup_from_proto(request.backup, names.backup(request.backup_id or new_id()), new_id())

        async def create() -> tuple[Operation, backup_pb2.Backup]:
            operation, backup = await self._requests.create(
                wanted, facts, verb="CreateBackup", request_id=request.request_id
            )
            return operation, convert.backup_to_proto(backup)

        return await self._submitting.submit(request, create)

    async def GetBackup(self, request: backups_pb2.GetBackupRequest, context: Context) -> backup_pb2.Backup:
        """Reads."""
        return convert.backup_to_proto(await self._backup_store.get(request.name))

    async def ListBackups(
        self, request: backups_pb2.ListBackupsRequest, context: Context
    ) -> backups_pb2.ListBackupsResponse:
        """Reads a page."""
        binding = f"ListBackups {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        found = await self._backup_store.find(page, conditions(request.filter, BACKUP_FILTER))
        return backups_pb2.ListBackupsResponse(
            backups=[convert.backup_to_proto(backup) for backup in found[: page.size]],
            next_page_token=_next(binding, found, page.size),
        )

    async def UpdateBackup(
        self, request: backups_pb2.UpdateBackupRequest, context: Context
    ) -> operations_pb2.Operation:
        """Changes the fields of the mask at once; the operation tells what came of it."""
        fields = changed_fields(request.update_mask, request.backup, BACKUP_UPDATABLE)

        async def update() -> tuple[Operation, backup_pb2.Backup]:
            wanted = convert.backup_from_proto(request.backup, request.backup.name, "")
            operation, backup = await self._backup_changes.update(
                wanted, fields, request.etag, request_id=request.request_id
            )
            return operation, convert.backup_to_proto(backup)

        return await self._submitting.submit(request, update)

    async def DeleteBackup(
        self, request: backups_pb2.DeleteBackupRequest, context: Context
    ) -> operations_pb2.Operation:
        """Deletes."""

        async def delete() -> tuple[Operation | None, Empty]:
            try:
                operation = await self._deletions.create(
                    request.name, etag=request.etag, force=request.force, request_id=request.request_id
                )
            except NotFound:
                if not request.allow_missing:
                    raise
                return None, Empty()
            return operation, Empty()

        return await self._submitting.submit(request, delete)

    async def RestoreBackup(
        self, request: backups_pb2.RestoreBackupRequest, context: Context
    ) -> operations_pb2.Operation:
        """Looks for the backup and for the name of the instance before the transaction."""
        replayed = await self._changes.replay(request, operations_pb2.Operation)
        if replayed is not None:
            return replayed
        instance_id = request.instance_id or new_id()
        stop_time = None
        if request.WhichOneof("source") == "point_in_time":
            wanted = request.point_in_time
            stop_time = moment(wanted.time)
            backup = (await self._restores.find(Moment(wanted.instance, wanted.instance_uid, stop_time))).name
        else:
            backup = request.backup
        if request.instance_id:
            await self._restores.check_free(instance_id)

        async def restore() -> tuple[Operation, Message]:
            return await self._restores.create(
                backup, instance_id, request.instance, stop_time=stop_time, request_id=request.request_id
            )

        return await self._submitting.submit(request, restore)

    async def VerifyBackup(
        self, request: backups_pb2.VerifyBackupRequest, context: Context
    ) -> operations_pb2.Operation:
        """Submits."""

        async def verify() -> tuple[Operation, backup_pb2.Backup]:
            operation, backup = await self._verifications.create(request.name, request_id=request.request_id)
            return operation, convert.backup_to_proto(backup)

        return await self._submitting.submit(request, verify)

    async def ExportBackup(
        self, request: backups_pb2.ExportBackupRequest, context: Context
    ) -> operations_pb2.Operation:
        """Asks about the connection before the transaction."""
        replayed = await self._changes.replay(request, operations_pb2.Operation)
        if replayed is not None:
            return replayed
        export = convert.export_from_proto(request)
        await self._exports.check(export)

        async def submit() -> tuple[Operation, backups_pb2.ExportBackupResponse]:
            return await self._exports.create(export, request)

        return await self._submitting.submit(request, submit)

    # --- schedules

    async def CreateSchedule(
        self, request: schedules_pb2.CreateScheduleRequest, context: Context
    ) -> schedules_pb2.Schedule:
        """Asks about the instances before the transaction."""
        replayed = await self._changes.replay(request, schedules_pb2.Schedule)
        if replayed is not None:
            return replayed
        wanted = convert.schedule_from_proto(request.schedule, names.schedule(request.schedule_id or new_id()))
        await self._schedules.check(wanted.instances)

        async def create() -> schedules_pb2.Schedule:
            return convert.schedule_to_proto(await self._schedules.create(wanted))

        return await self._submitting.apply(request, schedules_pb2.Schedule, create)

    async def GetSchedule(self, request: schedules_pb2.GetScheduleRequest, context: Context) -> schedules_pb2.Schedule:
        """Reads."""
        return convert.schedule_to_proto(await self._schedule_store.get(request.name))

    async def ListSchedules(
        self, request: schedules_pb2.ListSchedulesRequest, context: Context
    ) -> schedules_pb2.ListSchedulesResponse:
        """Reads a page."""
        binding = f"ListSchedules {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        found = await self._schedule_store.find(page, conditions(request.filter, SCHEDULE_FILTER))
        return schedules_pb2.ListSchedulesResponse(
            schedules=[convert.schedule_to_proto(schedule) for schedule in found[: page.size]],
            next_page_token=_next(binding, found, page.size),
        )

    async def UpdateSchedule(
        self, request: schedules_pb2.UpdateScheduleRequest, context: Context
    ) -> schedules_pb2.Schedule:
        """Changes the fields of the mask; asks about new instances before the transaction."""
        replayed = await self._changes.replay(request, schedules_pb2.Schedule)
        if replayed is not None:
            return replayed
        fields = changed_fields(request.update_mask, request.schedule, SCHEDULE_UPDATABLE)
        wanted = convert.schedule_from_proto(request.schedule, request.schedule.name)
        if "instances" in fields:
            known = (await self._schedule_store.get(wanted.name)).instances
            await self._schedules.check([name for name in wanted.instances if name not in known])

        async def update() -> schedules_pb2.Schedule:
            return convert.schedule_to_proto(await self._schedules.update(wanted, fields, request.etag))

        return await self._submitting.apply(request, schedules_pb2.Schedule, update)

    async def DeleteSchedule(self, request: schedules_pb2.DeleteScheduleRequest, context: Context) -> Empty:
        """Deletes."""

        async def delete() -> Empty:
            try:
                await self._schedules.delete(request.name, etag=request.etag)
            except NotFound:
                if not request.allow_missing:
                    raise
            return Empty()

        return await self._submitting.apply(request, Empty, delete)


def _next(binding: str, found: list[Any], size: int) -> str:
    return next_page_token(binding, [found[size - 1].key]) if len(found) > size else ""
