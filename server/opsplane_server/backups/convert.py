"""proto <-> domain: backups, schedules, what is asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from opsplane.backups.v1 import backup_pb2, backups_pb2, schedules_pb2
from opsplane.instances.v1 import instance_pb2

from opsplane_server.backups import names
from opsplane_server.backups.convert_copies import webhook_to_proto
from opsplane_server.backups.model import (
    Backup,
    BackupType,
    Export,
    Packing,
    Period,
    Schedule,
    Tier,
    Verification,
    Webhook,
)
from opsplane_server.rpc import etags
from opsplane_server.rpc.times import duration, timestamp

_PACKINGS: Final = {
    backups_pb2.ARCHIVE_FORMAT_UNSPECIFIED: Packing.TAR_GZIP,
    backups_pb2.ARCHIVE_FORMAT_TAR: Packing.TAR,
    backups_pb2.ARCHIVE_FORMAT_TAR_GZIP: Packing.TAR_GZIP,
    backups_pb2.ARCHIVE_FORMAT_TAR_ZSTD: Packing.TAR_ZSTD,
}
_PERIODS: Final = {
    schedules_pb2.PERIOD_UNSPECIFIED: Period.ANY,
    schedules_pb2.PERIOD_HOUR: Period.HOUR,
    schedules_pb2.PERIOD_DAY: Period.DAY,
    schedules_pb2.PERIOD_WEEK: Period.WEEK,
    schedules_pb2.PERIOD_MONTH: Period.MONTH,
    schedules_pb2.PERIOD_YEAR: Period.YEAR,
}
_PERIOD_NUMBERS: Final = {period: number for number, period in _PERIODS.items()}
_TIME_ZONE: Final = "UTC"
_OVERDUE_AFTER: Final = timedelta(hours=1)
TYPES: Final = {backup_pb2.Backup.Type.Value(f"TYPE_{each.value}"): each for each in BackupType}


def backup_from_proto(message: backup_pb2.Backup, name: str, uid: str) -> Backup:
    """What the caller may set of a backup."""
    return Backup(
        name=name,
        uid=uid,
        instance=message.instance,
        instance_uid="",
        type=BackupType.ON_DEMAND,
        retention_days=message.retention_days,
        incremental=message.incremental,
        description=message.description,
        labels=dict(message.labels),
    )


def backup_to_proto(backup: Backup) -> backup_pb2.Backup:
    """The whole backup."""
    message = backup_pb2.Backup(
        name=backup.name,
        uid=backup.uid,
        instance=backup.instance,
        instance_uid=backup.instance_uid,
        retention_days=backup.retention_days,
        incremental=backup.incremental,
        description=backup.description,
        labels=backup.labels,
        state=backup_pb2.Backup.State.Value(f"STATE_{backup.state.value}"),
        error=backup.error,
        type=backup_pb2.Backup.Type.Value(f"TYPE_{backup.type.value}"),
        engine=instance_pb2.Engine.Value(f"ENGINE_{backup.engine}"),
        base_backup=backup.base,
        schedule=backup.schedule,
        tiers=backup.tiers,
        create_time=timestamp(backup.create_time),
        start_time=timestamp(backup.start_time),
        complete_time=timestamp(backup.complete_time),
        expire_time=timestamp(backup.expire_time),
        last_good=backup.last_good,
        verification=_verification(backup),
        etag=etags.etag(backup.name, backup.revision),
    )
    copy = backup.copy
    if copy is not None:
        message.method = backup_pb2.Backup.Method.Value(f"METHOD_{copy.method}")
        message.consistency = backup_pb2.Backup.Consistency.Value(f"CONSISTENCY_{copy.consistency}")
        message.engine_version = copy.engine_version
        message.provider = instance_pb2.Provider.Value(f"PROVIDER_{copy.provider}")
        message.node = copy.node
        message.databases.extend(copy.databases)
        message.size_bytes = copy.size_bytes
        message.restore_size_bytes = copy.restore_size_bytes
        message.cut_time.FromDatetime(copy.cut_time)
        message.location = copy.location
    return message


def _verification(backup: Backup) -> backup_pb2.Verification | None:
    if backup.verifying_since is not None:
        return backup_pb2.Verification(
            state=backup_pb2.Verification.STATE_RUNNING, start_time=timestamp(backup.verifying_since)
        )
    return None if backup.verification is None else _verification_to_proto(backup.verification)


def _verification_to_proto(found: Verification) -> backup_pb2.Verification:
    return backup_pb2.Verification(
        state=backup_pb2.Verification.State.Value(f"STATE_{found.state.value}"),
        start_time=timestamp(found.start_time),
        complete_time=timestamp(found.complete_time),
        restore_duration=duration(found.restore_duration),
        checks=[
            backup_pb2.Check(
                kind=backup_pb2.Check.Kind.Value(f"KIND_{check.kind}"),
                result=backup_pb2.Check.Result.Value(f"RESULT_{check.result}"),
                message=check.message,
                duration=duration(check.duration),
            )
            for check in found.checks
        ],
        table_count=found.table_count,
        row_count=found.row_count,
        message=found.message,
    )


def export_from_proto(request: backups_pb2.ExportBackupRequest) -> Export:
    """What is to be exported where, with the name of the file."""
    packing = _PACKINGS[request.format]
    destination = request.ftp if request.WhichOneof("destination") == "ftp" else request.file
    return Export(
        backup=request.name,
        connection=request.ftp.connection,
        path=_with_name(destination.path, request.name, packing),
        packing=packing,
        overwrite=request.overwrite,
    )


def _with_name(path: str, backup: str, packing: Packing) -> str:
    """The path with the name of the file: made from the backup's where only a folder is given."""
    return path if path and not path.endswith("/") else f"{path}{names.last(backup)}{packing.suffix}"


def schedule_from_proto(message: schedules_pb2.Schedule, name: str) -> Schedule:
    """What the caller may set of a schedule, with its defaults."""
    return Schedule(
        name=name,
        instances=tuple(message.instances),
        cron=message.cron,
        time_zone=message.time_zone or _TIME_ZONE,
        tiers=tuple(Tier(tier.name, _PERIODS[tier.period], tier.keep_days, tier.keep_count) for tier in message.tiers),
        full_every=message.full_every,
        verify_every=message.verify_every,
        overdue_after=message.overdue_after.ToTimedelta() if message.HasField("overdue_after") else _OVERDUE_AFTER,
        suspended=message.suspended,
        labels=dict(message.labels),
        webhooks=tuple(Webhook(one.url, one.signing_key, tuple(one.kinds)) for one in message.webhooks),
    )


def schedule_to_proto(schedule: Schedule) -> schedules_pb2.Schedule:
    """The whole schedule, without the keys of its webhooks, as it stands now."""
    now = datetime.now(UTC)
    statuses = [
        schedules_pb2.ScheduleStatus(
            instance=status.instance,
            last_backup=status.last_backup,
            last_success_time=timestamp(status.last_success_time),
            last_failure_time=timestamp(status.last_failure_time),
            last_error=status.last_error,
            overdue=schedule.is_overdue(status, now),
        )
        for status in schedule.statuses
    ]
    return schedules_pb2.Schedule(
        name=schedule.name,
        instances=schedule.instances,
        cron=schedule.cron,
        time_zone=schedule.time_zone,
        tiers=[
            schedules_pb2.RetentionTier(
                name=tier.name,
                period=_PERIOD_NUMBERS[tier.period],
                keep_days=tier.keep_days,
                keep_count=tier.keep_count,
            )
            for tier in schedule.tiers
        ],
        full_every=schedule.full_every,
        verify_every=schedule.verify_every,
        overdue_after=duration(schedule.overdue_after),
        suspended=schedule.suspended,
        labels=schedule.labels,
        webhooks=[webhook_to_proto(one, with_key=False) for one in schedule.webhooks],
        next_run_time=timestamp(schedule.next_run_time),
        last_run_time=timestamp(schedule.last_run_time),
        overdue=any(status.overdue for status in statuses),
        statuses=statuses,
        create_time=timestamp(schedule.create_time),
        update_time=timestamp(schedule.update_time),
        etag=etags.etag(schedule.name, schedule.revision),
    )
