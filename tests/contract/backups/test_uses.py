"""What backups are used for: restores, verifications, exports."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.backups.v1 import backup_pb2, backups_pb2
from opsplane.common.v1 import platform_pb2
from opsplane.instances.v1 import instance_pb2
from opsplane_server.errors import DataLoss, FailedPrecondition, Unavailable
from opsplane_server.storage.migrations import migrate

from tests.backups_harness import MIGRATIONS, Backups, open_backups
from tests.backups_stand_in import MIB
from tests.platform_harness import prepare
from tests.rpc_harness import require_status
from tests.waiting import until

StatusCode = grpc.StatusCode
Verification = backup_pb2.Verification
PASSWORD = "never-in-the-clear-7Q"


def at(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def restore_of(
    backup: str, instance_id: str, storage_bytes: int = 0, *, dry: bool = False
) -> backups_pb2.RestoreBackupRequest:
    request = backups_pb2.RestoreBackupRequest(backup=backup, instance_id=instance_id, validate_only=dry)
    request.instance.resources.storage_bytes = storage_bytes
    request.instance.password = PASSWORD
    return request


# --- restores


async def test_restore_makes_an_instance_of_its_own_size(backups: Backups) -> None:
    made = await backups.make()
    request = restore_of(made.name, "recovered-postgres", 2048 * MIB)
    operation = await backups.stub.RestoreBackup(request)
    metadata = platform_pb2.OperationMetadata()
    assert operation.metadata.Unpack(metadata)
    assert metadata.target == "instances/recovered-postgres"
    instance = await backups.answer(operation, instance_pb2.Instance())
    assert instance.name == "instances/recovered-postgres"
    [asked] = backups.stand_in.restored
    assert asked.backup == made.name
    assert asked.copy.location == made.location
    assert asked.copy.tables == {"app.public.orders": 3}, "the copy comes back as it was told"
    assert asked.instance.resources.storage_bytes == 2048 * MIB
    assert asked.instance.password == PASSWORD
    assert asked.archive == ""


async def test_password_of_a_restore_is_nowhere_in_the_database(backups: Backups) -> None:
    made = await backups.make()
    await backups.stand_in.hold("restore")
    operation = await backups.stub.RestoreBackup(restore_of(made.name, "recovered"))
    await until(lambda: len(backups.stand_in.restored) == 1)
    async with backups.platform.database.connection() as connection:
        tables = await connection.fetch(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('platform', 'backups')"
        )
        for table in tables:
            rows = await connection.fetch(f"SELECT t::text AS text FROM {table['schemaname']}.{table['tablename']} t")
            text = "".join(row["text"] for row in rows)
            assert PASSWORD not in text
            assert PASSWORD.encode().hex() not in text
    await backups.stand_in.let_go("restore")
    await backups.done(operation)
    assert await backups.platform.value("SELECT count(*) FROM backups.sealed_requests") == 0


async def test_restore_is_refused_where_it_can_not_succeed(backups: Backups) -> None:
    made = await backups.make()
    with require_status(StatusCode.INVALID_ARGUMENT, "STORAGE_TOO_SMALL") as refusal:
        await backups.stub.RestoreBackup(restore_of(made.name, "new", 256 * MIB))
    assert refusal.bad_fields == ["instance.resources.storage_bytes"]
    with require_status(StatusCode.ALREADY_EXISTS):
        await backups.stub.RestoreBackup(restore_of(made.name, "orders"))
    with require_status(StatusCode.NOT_FOUND):
        await backups.stub.RestoreBackup(restore_of("backups/none", "new"))
    backups.stand_in.errors["copy"] = DataLoss("broken")
    await backups.done(
        await backups.stub.CreateBackup(
            backups_pb2.CreateBackupRequest(backup_id="bad", backup=backup_pb2.Backup(instance="instances/orders"))
        )
    )
    with require_status(StatusCode.FAILED_PRECONDITION, "BACKUP_NOT_READY"):
        await backups.stub.RestoreBackup(restore_of("backups/bad", "new"))
    assert backups.stand_in.restored == []


async def test_restore_that_is_only_tried_is_told_and_not_done(backups: Backups) -> None:
    made = await backups.make()
    described = await backups.answer(
        await backups.stub.RestoreBackup(restore_of(made.name, "new", dry=True)), instance_pb2.Instance()
    )
    assert described.name == "instances/new"
    assert described.engine == instance_pb2.ENGINE_POSTGRESQL
    assert described.source_backup == made.name
    assert described.password == ""
    assert backups.stand_in.restored == []


async def test_backup_in_use_is_not_deleted(backups: Backups) -> None:
    made = await backups.make()
    await backups.stand_in.hold("restore")
    restore = await backups.stub.RestoreBackup(restore_of(made.name, "new"))
    delete = backups_pb2.DeleteBackupRequest(name=made.name)
    with require_status(StatusCode.FAILED_PRECONDITION, "BACKUP_IN_USE") as refusal:
        await backups.stub.DeleteBackup(delete)
    assert restore.name in refusal.message
    await backups.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=restore.name))
    ended = await backups.done(restore)
    assert ended.error.code == StatusCode.CANCELLED.value[0]
    assert "instances/new" not in backups.stand_in.instances
    await backups.answer(await backups.stub.DeleteBackup(delete), Empty())


async def test_errors_of_the_restore_are_those_of_the_operation(backups: Backups) -> None:
    made = await backups.make()
    backups.stand_in.errors["restore"] = FailedPrecondition("install PostgreSQL 18", reason="ENGINE_NOT_INSTALLED")
    ended = await backups.done(await backups.stub.RestoreBackup(restore_of(made.name, "new")))
    assert ended.error.code == StatusCode.FAILED_PRECONDITION.value[0]
    assert ended.error.message == "install PostgreSQL 18"
    await backups.answer(await backups.stub.DeleteBackup(backups_pb2.DeleteBackupRequest(name=made.name)), Empty())


async def test_moment_is_restored_from_the_newest_backup_before_it(backups: Backups) -> None:
    ledger = backups.stand_in.add("ledger", logged=True)
    first = await backups.make(ledger.name)
    second = await backups.make(ledger.name)
    third = await backups.make(ledger.name)

    def request(moment: datetime, **fields: str) -> backups_pb2.RestoreBackupRequest:
        point = backups_pb2.PointInTime(instance=ledger.name, time=at(moment), **fields)
        return backups_pb2.RestoreBackupRequest(point_in_time=point, instance_id=f"i{uuid.uuid4().hex}")

    wanted = third.cut_time.ToDatetime(tzinfo=UTC) - timedelta(microseconds=1)
    await backups.done(await backups.stub.RestoreBackup(request(wanted)))
    [asked] = backups.stand_in.restored
    assert asked.backup == second.name
    assert asked.archive == ledger.uid
    assert asked.stop_time.ToDatetime(tzinfo=UTC) == wanted

    with require_status(StatusCode.NOT_FOUND, "NO_BACKUP_BEFORE"):
        await backups.stub.RestoreBackup(request(first.cut_time.ToDatetime(tzinfo=UTC) - timedelta(seconds=1)))
    with require_status(StatusCode.FAILED_PRECONDITION, "MOMENT_NOT_COVERED"):
        await backups.stub.RestoreBackup(request(datetime.now(UTC) + timedelta(hours=1)))
    ledger.point_in_time_recovery.latest_time.FromDatetime(wanted - timedelta(seconds=1))
    with require_status(StatusCode.FAILED_PRECONDITION, "MOMENT_NOT_COVERED"):
        await backups.stub.RestoreBackup(request(wanted))

    # Of the instance that had the name before, and is gone.
    old = ledger.uid
    del backups.stand_in.instances[ledger.name]
    backups.stand_in.add("ledger", logged=True)
    with require_status(StatusCode.NOT_FOUND):
        await backups.stub.RestoreBackup(request(wanted))
    await backups.done(await backups.stub.RestoreBackup(request(wanted, instance_uid=old)))
    assert backups.stand_in.restored[-1].archive == old


async def test_moment_without_archived_log_is_not_covered(backups: Backups) -> None:
    await backups.make()
    point = backups_pb2.PointInTime(instance="instances/orders", time=at(datetime.now(UTC)))
    with require_status(StatusCode.FAILED_PRECONDITION, "MOMENT_NOT_COVERED"):
        await backups.stub.RestoreBackup(backups_pb2.RestoreBackupRequest(point_in_time=point, instance_id="new"))


# --- verifications


async def test_verification_tells_what_it_found(backups: Backups) -> None:
    made = await backups.make()
    await backups.stand_in.hold("check")
    operation = await backups.stub.VerifyBackup(backups_pb2.VerifyBackupRequest(name=made.name))
    assert (await backups.get(made.name)).verification.state == Verification.STATE_RUNNING
    assert [one.name for one in await backups.list('verification.state="STATE_RUNNING"')] == [made.name]
    with require_status(StatusCode.FAILED_PRECONDITION, "VERIFICATION_RUNNING"):
        await backups.stub.VerifyBackup(backups_pb2.VerifyBackupRequest(name=made.name))
    await backups.stand_in.let_go("check")

    verified = await backups.answer(operation, backup_pb2.Backup())

    found = verified.verification
    assert found.state == Verification.STATE_PASSED
    assert [check.kind for check in found.checks] == [1, 2, 3, 4, 5]
    assert {check.result for check in found.checks} == {backup_pb2.Check.RESULT_PASSED}
    assert (found.table_count, found.row_count) == (1, 3)
    assert found.restore_duration.seconds == 1
    assert verified.last_good
    assert [one.name for one in await backups.list('verification.state="STATE_PASSED"')] == [made.name]
    await until(lambda: "BACKUP_VERIFIED" in backups.stand_in.event_kinds(made.name))


async def test_backup_that_does_not_pass_is_no_longer_the_last_good_one(backups: Backups) -> None:
    first = await backups.make()
    second = await backups.make()
    backups.stand_in.failed_checks.add(second.location)
    operation = await backups.stub.VerifyBackup(backups_pb2.VerifyBackupRequest(name=second.name))
    verified = await backups.answer(operation, backup_pb2.Backup())
    assert verified.verification.state == Verification.STATE_FAILED
    assert "ROWS" in verified.verification.message
    assert not verified.last_good
    assert (await backups.get(first.name)).last_good
    await until(lambda: "VERIFICATION_FAILED" in backups.stand_in.event_kinds(second.name))
    third = await backups.make(incremental=True)
    assert third.base_backup == first.name, "nothing builds on a bad one"


async def test_backup_that_can_not_be_restored_does_not_pass(backups: Backups) -> None:
    made = await backups.make()
    backups.stand_in.errors["check"] = DataLoss("pg_control is missing")
    operation = await backups.stub.VerifyBackup(backups_pb2.VerifyBackupRequest(name=made.name))
    verified = await backups.answer(operation, backup_pb2.Backup())
    assert verified.verification.state == Verification.STATE_FAILED
    assert verified.verification.message == "pg_control is missing"


async def test_verification_that_could_not_be_done_says_nothing_of_the_backup(backups: Backups) -> None:
    made = await backups.make()
    await backups.done(await backups.stub.VerifyBackup(backups_pb2.VerifyBackupRequest(name=made.name)))
    before = (await backups.get(made.name)).verification
    backups.stand_in.errors["check"] = FailedPrecondition("no server", reason="ENGINE_NOT_INSTALLED")
    ended = await backups.done(await backups.stub.VerifyBackup(backups_pb2.VerifyBackupRequest(name=made.name)))
    assert ended.error.message == "no server"
    assert (await backups.get(made.name)).verification == before


async def test_what_another_service_calls_unavailable_in_the_end_is_not_tried_for_ever(backups: Backups) -> None:
    made = await backups.make()
    backups.stand_in.errors["restore"] = FailedPrecondition("away", reason="AWAY")
    await backups.stand_in.hold("restore")
    operation = await backups.stub.RestoreBackup(restore_of(made.name, "new"))
    await until(lambda: backups.stand_in.running.get("restore", 0) == 1)
    await backups.platform.run(
        """UPDATE platform.operations SET error_code = 14, error_message = 'away', error_details = '{}',
           state = 'FAILED', end_time = now(), revision = revision + 1
           WHERE kind = 'standin.restore'"""
    )
    backups.platform.signals.topic("platform_operations_change").notify()
    ended = await backups.done(operation)
    assert ended.error.message == "away"


# --- exports


async def test_export_writes_one_archive(backups: Backups) -> None:
    made = await backups.make(backup_id="one")
    request = backups_pb2.ExportBackupRequest(name=made.name)
    request.file.path = "weekly/"
    exported = await backups.answer(await backups.stub.ExportBackup(request), backups_pb2.ExportBackupResponse())
    assert exported.path == "weekly/one.tar.gz"
    assert exported.size_bytes == 7 * MIB
    assert len(exported.sha256) == 64
    assert backups.stand_in.archives["weekly/one.tar.gz"].packing == "TAR_GZIP"
    await until(lambda: "BACKUP_EXPORTED" in backups.stand_in.event_kinds(made.name))
    assert await backups.platform.value("SELECT count(*) FROM backups.uses") == 0


@pytest.mark.parametrize(
    ("path", "number", "written"),
    [
        ("", backups_pb2.ARCHIVE_FORMAT_TAR, "one.tar"),
        ("mine.bin", backups_pb2.ARCHIVE_FORMAT_TAR_ZSTD, "mine.bin"),
        ("a/b/", backups_pb2.ARCHIVE_FORMAT_TAR_ZSTD, "a/b/one.tar.zst"),
    ],
)
async def test_name_of_the_archive_follows_from_path_and_format(
    backups: Backups, path: str, number: backups_pb2.ArchiveFormat.ValueType, written: str
) -> None:
    made = await backups.make(backup_id="one")
    request = backups_pb2.ExportBackupRequest(name=made.name, format=number, overwrite=True)
    request.file.path = path
    await backups.answer(await backups.stub.ExportBackup(request), backups_pb2.ExportBackupResponse())
    assert list(backups.stand_in.archives) == [written]
    assert backups.stand_in.archives[written].overwrite


async def test_export_by_ftp_needs_the_service_for_it(backups: Backups) -> None:
    made = await backups.make()
    request = backups_pb2.ExportBackupRequest(name=made.name)
    request.ftp.connection = "connections/offsite"
    with require_status(StatusCode.FAILED_PRECONDITION, "SERVICE_NOT_SERVED"):
        await backups.stub.ExportBackup(request)


# --- crashes


async def test_another_process_goes_on_where_one_has_ended(dsn: str, tmp_path: Path) -> None:
    await prepare(dsn)
    await migrate(dsn, [MIGRATIONS])
    async with open_backups(dsn, tmp_path, owner="here/1") as first:
        instance = first.stand_in.add("orders")
        await first.stand_in.hold("copy")
        operation = await first.stub.CreateBackup(
            backups_pb2.CreateBackupRequest(backup_id="one", backup=backup_pb2.Backup(instance=instance.name))
        )
        await until(lambda: first.stand_in.running.get("copy", 0) == 1)
    async with open_backups(dsn, tmp_path, owner="here/2") as second:
        second.stand_in.instances[instance.name] = instance
        made = await second.answer(operation, backup_pb2.Backup())
        assert made.state == backup_pb2.Backup.STATE_READY
        assert set(second.stand_in.copies) == {made.location}
        assert await second.platform.value("SELECT count(*) FROM platform.operations WHERE kind = 'standin.copy'") == 1


async def test_instances_that_are_away_for_a_while_delay_a_backup_and_no_more(backups: Backups) -> None:
    backups.stand_in.errors["copy"] = Unavailable("not now")
    operation = await backups.stub.CreateBackup(
        backups_pb2.CreateBackupRequest(backup=backup_pb2.Backup(instance="instances/orders"))
    )
    await until(lambda: backups.stand_in.most_running.get("copy", 0) == 1)
    del backups.stand_in.errors["copy"]
    await backups.answer(operation, backup_pb2.Backup())
