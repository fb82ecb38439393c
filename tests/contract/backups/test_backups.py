"""Backups by their RPCs: made, listed, changed, deleted."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from opsplane.backups.v1 import backup_pb2, backups_pb2, requests_pb2
from opsplane.common.v1 import platform_pb2
from opsplane.instances.v1 import instance_pb2
from opsplane_server.errors import DataLoss, ResourceExhausted

from tests.backups_harness import Backups
from tests.rpc_harness import require_status
from tests.waiting import until

State = backup_pb2.Backup.State
StatusCode = grpc.StatusCode


def creation(instance: str = "instances/orders", **fields: Any) -> backups_pb2.CreateBackupRequest:
    return backups_pb2.CreateBackupRequest(backup=backup_pb2.Backup(instance=instance), **fields)


async def test_backup_is_there_at_once_and_complete_in_the_end(backups: Backups) -> None:
    await backups.stand_in.hold("copy")
    operation = await backups.stub.CreateBackup(
        backups_pb2.CreateBackupRequest(
            backup_id="daily-backup-001",
            backup=backup_pb2.Backup(
                instance="instances/orders", retention_days=7, description="before the move", labels={"team": "shop"}
            ),
        )
    )
    metadata = platform_pb2.OperationMetadata()
    assert operation.metadata.Unpack(metadata)
    assert (metadata.target, metadata.verb) == ("backups/daily-backup-001", "CreateBackup")
    queued = await backups.get("backups/daily-backup-001")
    assert queued.state in (State.STATE_QUEUED, State.STATE_RUNNING)
    await backups.stand_in.let_go("copy")

    made: backup_pb2.Backup = await backups.answer(operation, backup_pb2.Backup())

    assert made == await backups.get("backups/daily-backup-001")
    instance = backups.stand_in.instances["instances/orders"]
    assert made.state == State.STATE_READY
    assert made.type == backup_pb2.Backup.TYPE_ON_DEMAND
    assert made.method == backup_pb2.Backup.METHOD_PHYSICAL
    assert made.consistency == backup_pb2.Backup.CONSISTENCY_TRANSACTION
    assert (made.instance, made.instance_uid) == (instance.name, instance.uid)
    assert (made.engine, made.engine_version) == (instance_pb2.ENGINE_POSTGRESQL, "18.4")
    assert made.provider == instance_pb2.PROVIDER_LOCAL
    assert list(made.databases) == ["app"]
    assert made.size_bytes > 0
    assert made.restore_size_bytes > made.size_bytes
    assert made.create_time.ToDatetime() <= made.start_time.ToDatetime() <= made.cut_time.ToDatetime()
    assert made.last_good
    assert not made.HasField("expire_time"), "the last good one does not expire"
    assert made.location == f"copies/{made.uid}"
    assert (made.description, dict(made.labels), made.retention_days) == ("before the move", {"team": "shop"}, 7)


async def test_progress_of_the_copy_is_that_of_the_backup(backups: Backups) -> None:
    await backups.stand_in.hold("copy")
    operation = await backups.stub.CreateBackup(creation())

    async def under_way() -> bool:
        found = await backups.operations.GetOperation(operations_pb2.GetOperationRequest(name=operation.name))
        metadata = platform_pb2.OperationMetadata()
        found.metadata.Unpack(metadata)
        return metadata.stage == "copy under way" and metadata.progress_percent == 50

    await until(under_way)
    await backups.stand_in.let_go("copy")
    await backups.done(operation)


async def test_same_request_id_makes_one_backup(backups: Backups) -> None:
    request = creation(request_id=str(uuid.uuid4()))
    first = await backups.stub.CreateBackup(request)
    again = await backups.stub.CreateBackup(request)
    assert first.name == again.name
    await backups.done(first)
    assert len(await backups.list()) == 1


async def test_newer_backup_takes_over_as_the_last_good_one(backups: Backups) -> None:
    first = await backups.make(retention_days=7)
    second = await backups.make()
    first = await backups.get(first.name)
    assert not first.last_good
    assert (first.expire_time.ToDatetime() - first.create_time.ToDatetime()).days == 7
    assert second.last_good


async def test_validate_only_changes_nothing(backups: Backups) -> None:
    operation = await backups.stub.CreateBackup(creation(backup_id="one", validate_only=True))
    assert operation.done
    assert operation.name == ""
    described = await backups.answer(operation, backup_pb2.Backup())
    assert described.name == "backups/one"
    assert described.state == State.STATE_QUEUED
    assert await backups.list() == []


async def test_what_can_not_be_backed_up_is_refused(backups: Backups) -> None:
    with require_status(StatusCode.NOT_FOUND):
        await backups.stub.CreateBackup(creation("instances/nobody"))
    backups.stand_in.instances["instances/orders"].state = instance_pb2.Instance.STATE_STOPPED
    with require_status(StatusCode.FAILED_PRECONDITION, "INSTANCE_NOT_SERVING"):
        await backups.stub.CreateBackup(creation())
    backups.stand_in.instances["instances/orders"].state = instance_pb2.Instance.STATE_READY
    await backups.make(backup_id="one")
    with require_status(StatusCode.ALREADY_EXISTS):
        await backups.stub.CreateBackup(creation(backup_id="one"))


async def test_failure_is_kept_with_its_reason(backups: Backups) -> None:
    backups.stand_in.errors["copy"] = ResourceExhausted("the disk is full", reason="NO_ROOM")
    operation = await backups.done(await backups.stub.CreateBackup(creation(backup_id="one")))
    failed = await backups.get("backups/one")
    assert operation.error.message == "the disk is full"
    assert failed.state == State.STATE_FAILED
    assert failed.error == operation.error
    assert failed.HasField("complete_time")
    assert failed.HasField("expire_time")
    await until(lambda: backups.stand_in.event_kinds("backups/one") == ["BACKUP_FAILED"])


async def test_refusal_of_the_copy_fails_the_backup(backups: Backups) -> None:
    backups.stand_in.errors["refuse"] = DataLoss("any")
    operation = await backups.done(await backups.stub.CreateBackup(creation(backup_id="one")))
    assert operation.error.message == "it does not serve"
    assert (await backups.get("backups/one")).state == State.STATE_FAILED


async def test_cancelled_backup_is_gone(backups: Backups) -> None:
    await backups.stand_in.hold("copy")
    operation = await backups.stub.CreateBackup(creation(backup_id="one"))
    await until(lambda: backups.stand_in.running.get("copy", 0) == 1)
    await backups.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    ended = await backups.done(operation)
    assert ended.error.code == StatusCode.CANCELLED.value[0]
    with require_status(StatusCode.NOT_FOUND):
        await backups.get("backups/one")
    assert backups.stand_in.copies == {}
    await backups.stand_in.let_go("copy")


async def test_only_so_many_are_made_at_once(backups: Backups) -> None:
    await backups.stand_in.hold("copy")
    for number in range(6):
        backups.stand_in.add(f"shop-{number}")
    operations = [await backups.stub.CreateBackup(creation(f"instances/shop-{number}")) for number in range(6)]
    await until(lambda: backups.stand_in.running.get("copy", 0) == 4)
    assert len(await backups.list('state="STATE_QUEUED"')) == 2
    await backups.stand_in.let_go("copy")
    for operation in operations:
        await backups.done(operation)
    assert backups.stand_in.most_running["copy"] == 4
    assert len(await backups.list('state="STATE_READY"')) == 6


async def test_incremental_backup_builds_on_the_newest_good_one(backups: Backups) -> None:
    full = await backups.make(incremental=True)
    assert full.base_backup == "", "there was none to build on"
    second = await backups.make(incremental=True, retention_days=1)
    third = await backups.make(incremental=True)
    assert (second.base_backup, third.base_backup) == (full.name, second.name)
    second = await backups.get(second.name)
    assert not second.HasField("expire_time"), "the last good one builds on it"

    with require_status(StatusCode.FAILED_PRECONDITION, "HAS_INCREMENTALS"):
        await backups.stub.DeleteBackup(backups_pb2.DeleteBackupRequest(name=second.name))
    await backups.answer(
        await backups.stub.DeleteBackup(backups_pb2.DeleteBackupRequest(name=second.name, force=True)), Empty()
    )
    [left] = await backups.list()
    assert left.name == full.name
    assert left.last_good
    assert set(backups.stand_in.copies) == {full.location}


async def test_lists_are_filtered_and_paged(backups: Backups) -> None:
    backups.stand_in.add("other")
    first = await backups.make(labels={"team": "shop"})
    second = await backups.make("instances/other", labels={"team": "it's"})
    third = await backups.make()

    async def names(condition: str) -> list[str]:
        return [backup.name for backup in await backups.list(condition)]

    assert await names("") == [third.name, second.name, first.name]
    assert await names('instance="instances/orders" AND state="STATE_READY"') == [third.name, first.name]
    assert await names("last_good=true") == [third.name, second.name]
    assert await names('labels.team="shop"') == [first.name]
    assert await names('labels.team:"T\'S"') == [second.name]
    assert await names('labels.team!="shop"') == [third.name, second.name]
    assert await names(f'engine="ENGINE_POSTGRESQL" AND cut_time>"{second.cut_time.ToJsonString()}"') == [third.name]
    assert await names('verification.state="STATE_PASSED"') == []
    assert await names('type!="TYPE_FINAL" AND method="METHOD_PHYSICAL"') == [third.name, second.name, first.name]
    with require_status(StatusCode.INVALID_ARGUMENT):
        await names("size=3")
    with require_status(StatusCode.INVALID_ARGUMENT):
        await names('labels.x\') or true--="shop"')
    page = await backups.stub.ListBackups(backups_pb2.ListBackupsRequest(page_size=2))
    assert [backup.name for backup in page.backups] == [third.name, second.name]
    rest = await backups.stub.ListBackups(backups_pb2.ListBackupsRequest(page_size=2, page_token=page.next_page_token))
    assert [backup.name for backup in rest.backups] == [first.name]
    assert rest.next_page_token == ""


async def test_update_changes_what_the_mask_names(backups: Backups) -> None:
    made = await backups.make(description="old", labels={"a": "b"})
    wanted = backup_pb2.Backup(name=made.name, retention_days=30, description="new")
    request = backups_pb2.UpdateBackupRequest(
        backup=wanted, update_mask=FieldMask(paths=["retention_days"]), etag=made.etag
    )
    updated = await backups.answer(await backups.stub.UpdateBackup(request), backup_pb2.Backup())
    assert (updated.retention_days, updated.description, dict(updated.labels)) == (30, "old", {"a": "b"})
    with require_status(StatusCode.ABORTED, "ETAG_MISMATCH"):
        await backups.stub.UpdateBackup(request)
    with require_status(StatusCode.INVALID_ARGUMENT):
        await backups.stub.UpdateBackup(
            backups_pb2.UpdateBackupRequest(backup=wanted, update_mask=FieldMask(paths=["state"]))
        )


async def test_backup_is_deleted_by_request_though_it_is_the_last(backups: Backups) -> None:
    made = await backups.make()
    request = backups_pb2.DeleteBackupRequest(name=made.name)
    await backups.answer(await backups.stub.DeleteBackup(request), Empty())
    assert await backups.list() == []
    assert backups.stand_in.copies == {}
    await until(lambda: backups.stand_in.event_kinds(made.name) == ["BACKUP_COMPLETED", "BACKUP_DELETED"])
    with require_status(StatusCode.NOT_FOUND):
        await backups.stub.DeleteBackup(request)
    request.allow_missing = True
    assert (await backups.stub.DeleteBackup(request)).done


async def test_deletion_that_fails_is_tried_again(backups: Backups) -> None:
    made = await backups.make()
    backups.stand_in.errors["delete"] = DataLoss("the folder is stuck")
    operation = await backups.done(await backups.stub.DeleteBackup(backups_pb2.DeleteBackupRequest(name=made.name)))
    assert operation.error.message == "the folder is stuck"
    assert (await backups.get(made.name)).state == State.STATE_DELETING
    with require_status(StatusCode.FAILED_PRECONDITION, "BACKUP_DELETING"):
        await backups.stub.UpdateBackup(
            backups_pb2.UpdateBackupRequest(backup=backup_pb2.Backup(name=made.name, retention_days=3))
        )
    assert (await backups.get(made.name)).HasField("expire_time"), "when it is tried again"
    del backups.stand_in.errors["delete"]
    await backups.platform.run("UPDATE backups.backups SET expire_time = now()")

    async def gone() -> bool:
        return not await backups.list()

    await until(gone)


@pytest.mark.parametrize("kind", [backup_pb2.Backup.TYPE_FINAL, backup_pb2.Backup.TYPE_PRE_UPGRADE])
async def test_other_services_ask_for_backups_of_their_own(
    backups: Backups, kind: backup_pb2.Backup.Type.ValueType
) -> None:
    backups.stand_in.instances["instances/orders"].state = instance_pb2.Instance.STATE_DELETING
    operation = await backups.requests.BackUp(
        requests_pb2.BackUpRequest(instance="instances/orders", backup_id="last", type=kind, retention_days=3)
    )
    made = await backups.answer(operation, backup_pb2.Backup())
    assert made.name == "backups/last"
    assert made.type == kind
    assert made.retention_days == 3


async def test_operation_of_a_backup_under_way_is_named_to_who_deletes_it(backups: Backups) -> None:
    await backups.stand_in.hold("copy")
    operation = await backups.stub.CreateBackup(creation(backup_id="one"))
    with require_status(StatusCode.FAILED_PRECONDITION, "BACKUP_NOT_DONE") as refusal:
        await backups.stub.DeleteBackup(backups_pb2.DeleteBackupRequest(name="backups/one"))
    assert operation.name in refusal.message
    await backups.stand_in.let_go("copy")
    await backups.done(operation)
