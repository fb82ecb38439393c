"""The backup calls of the Mini DBaaS document, as docs/seed-calls/mini-dbaas.md has them, against a real server."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

import grpc
import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.backups.v1 import backup_pb2, backups_pb2, schedules_pb2
from opsplane.instances.v1 import events_pb2, instance_pb2, instances_pb2

from tests.backups_client import Client
from tests.instances_server import instances_server
from tests.server_process import ServerProcess
from tests.unit.test_seed_calls import examples, request_of
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

M = TypeVar("M", bound=Message)


def documented(kind: type[M]) -> list[M]:
    """The requests of this type in the document, in its order."""
    found = [request_of(example) for example in examples() if example.place.startswith("mini-dbaas.md")]
    return [request for request in found if isinstance(request, kind)]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with instances_server() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: ServerProcess) -> AsyncIterator[Client]:
    """A client, and the document's instance with some rows in it."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        opened = Client(channel, server)
        [creation, *_] = documented(instances_pb2.CreateInstanceRequest)
        assert creation.instance_id == "my-postgres"
        await opened.done(await opened.instances.CreateInstance(creation), instance_pb2.Instance)
        await opened.query(
            "instances/my-postgres",
            "CREATE TABLE orders AS SELECT n AS id, repeat('x', 100) AS note FROM generate_series(1, 5000) n",
            "SELECT count(*) FROM orders",
        )
        yield opened


async def test_backup_of_the_document_is_made_and_restored(client: Client) -> None:
    [creation, *_] = documented(backups_pb2.CreateBackupRequest)
    made = await client.done(await client.backups.CreateBackup(creation), backup_pb2.Backup)
    assert made.name == "backups/daily-backup-001"
    assert made.retention_days == 7
    assert made.state == backup_pb2.Backup.STATE_READY
    assert made.method == backup_pb2.Backup.METHOD_PHYSICAL
    assert made.consistency == backup_pb2.Backup.CONSISTENCY_TRANSACTION
    assert made.start_time.ToDatetime() <= made.cut_time.ToDatetime() <= made.complete_time.ToDatetime()
    assert list(made.databases) == ["myapp"]
    assert made.last_good

    [listing, *_] = documented(backups_pb2.ListBackupsRequest)
    assert [backup.name for backup in (await client.backups.ListBackups(listing)).backups] == [made.name]

    # What is written after the cut is not in it.
    await client.query("instances/my-postgres", "DELETE FROM orders WHERE id > 10", "SELECT 1")
    [restore, *_] = documented(backups_pb2.RestoreBackupRequest)
    restored = await client.done(await client.backups.RestoreBackup(restore), instance_pb2.Instance)
    assert restored.name == "instances/recovered-postgres"
    assert restored.source_backup == made.name
    assert restored.source_time == made.cut_time
    assert restored.resources.storage_bytes == restore.instance.resources.storage_bytes
    assert await client.query("instances/recovered-postgres", "SELECT count(*) FROM orders") == 5000
    assert await client.query("instances/my-postgres", "SELECT count(*) FROM orders") == 10
    await client.remove("instances/recovered-postgres")


async def test_backup_of_the_document_is_verified(client: Client) -> None:
    [request, *_] = documented(backups_pb2.VerifyBackupRequest)
    verified = await client.done(await client.backups.VerifyBackup(request), backup_pb2.Backup)
    found = verified.verification
    assert found.state == backup_pb2.Verification.STATE_PASSED, found
    assert [backup_pb2.Check.Kind.Name(check.kind) for check in found.checks] == [
        "KIND_FILES",
        "KIND_START",
        "KIND_CATALOG",
        "KIND_ROWS",
        "KIND_CHECKSUMS",
    ]
    assert found.row_count >= 5000
    assert found.restore_duration.ToTimedelta().total_seconds() > 0
    listed = await client.instances.ListInstances(instances_pb2.ListInstancesRequest())
    assert [instance.name for instance in listed.instances] == ["instances/my-postgres"], "the scratch instance is gone"


async def test_backup_is_exported_as_one_archive(client: Client) -> None:
    request = backups_pb2.ExportBackupRequest(name="backups/daily-backup-001")
    request.file.path = "weekly/"
    exported = await client.done(await client.backups.ExportBackup(request), backups_pb2.ExportBackupResponse)
    assert exported.path == "weekly/daily-backup-001.tar.gz"
    file = client.server.data_dir / "exports" / exported.path
    content = file.read_bytes()
    assert len(content) == exported.size_bytes
    assert hashlib.sha256(content).hexdigest() == exported.sha256
    with tarfile.open(file) as archive:
        assert any(name.endswith("PG_VERSION") for name in archive.getnames())


async def test_schedule_of_the_document_keeps_what_its_tiers_say(client: Client) -> None:
    [creation, *_] = documented(schedules_pb2.CreateScheduleRequest)
    made = await client.backups.CreateSchedule(creation)
    assert made.next_run_time.ToDatetime().strftime("%H:%M") == "18:00", "three in the morning of Seoul"
    [reading, *_] = documented(schedules_pb2.GetScheduleRequest)
    assert await client.backups.GetSchedule(reading) == made
    [update, *_] = documented(schedules_pb2.UpdateScheduleRequest)
    assert (await client.backups.UpdateSchedule(update)).suspended
    [listing, *_] = documented(schedules_pb2.ListSchedulesRequest)
    assert list((await client.backups.ListSchedules(listing)).schedules) == []
    [deletion, *_] = documented(schedules_pb2.DeleteScheduleRequest)
    await client.backups.DeleteSchedule(deletion)


async def test_final_backup_outlives_its_instance(client: Client) -> None:
    [deletion, *_] = documented(backups_pb2.DeleteBackupRequest)
    await client.done(await client.backups.DeleteBackup(deletion), Empty)
    assert await client.list("") == []

    request = instances_pb2.DeleteInstanceRequest(name="instances/my-postgres", final_backup=True)
    await client.done(await client.instances.DeleteInstance(request), Empty)
    [last] = await client.list('instance="instances/my-postgres"')
    assert last.type == backup_pb2.Backup.TYPE_FINAL

    restore = backups_pb2.RestoreBackupRequest(backup=last.name, instance_id="again")
    await client.done(await client.backups.RestoreBackup(restore), instance_pb2.Instance)
    assert await client.query("instances/again", "SELECT count(*) FROM orders") == 10

    async def told() -> bool:
        events = await client.instances.ListEvents(events_pb2.ListEventsRequest(parent="instances/my-postgres"))
        kinds = [events_pb2.Event.Kind.Name(event.kind).removeprefix("KIND_") for event in events.events]
        return {"BACKUP_COMPLETED", "BACKUP_VERIFIED", "BACKUP_EXPORTED", "BACKUP_DELETED"} <= set(kinds)

    await until(told)
    await client.remove("instances/again")
