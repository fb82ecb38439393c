"""InstanceCopies, as the service Backups calls it, with one real PostgreSQL and a restore of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from opsplane.instances.v1 import copies_pb2, events_pb2, instance_pb2, webhooks_pb2

from tests.instances_rpc import InstancesApi, api, fetch
from tests.rpc_harness import require_status

__all__ = ["api"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "instances/orders"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def copy(api: InstancesApi) -> AsyncIterator[copies_pb2.InstanceCopy]:
    """A copy of an instance with a table of three rows."""
    await api.create("orders", database="shop", username="owner", labels={"team": "a"}, parameters={"work_mem": "9MB"})
    await fetch((await api.info(NAME)).rw.uri, "CREATE TABLE items AS SELECT generate_series(1, 3) AS id")
    request = copies_pb2.CopyInstanceRequest(name=NAME, copy_id="first")
    yield await api.done(await api.copies.CopyInstance(request), copies_pb2.InstanceCopy)


async def test_a_copy_tells_what_is_in_it(copy: copies_pb2.InstanceCopy) -> None:
    assert copy.engine_version.startswith("18.")
    assert "shop" in copy.databases
    assert "owner" in copy.users
    assert copy.settings.parameters == {"work_mem": "9MB"}
    assert copy.settings.password == ""
    assert copy.size_bytes > 0
    assert copy.start_time.ToDatetime() <= copy.cut_time.ToDatetime() <= copy.complete_time.ToDatetime()


async def test_a_copy_becomes_a_new_instance(api: InstancesApi, copy: copies_pb2.InstanceCopy) -> None:
    wanted = instance_pb2.Instance(
        password="a new password", resources=instance_pb2.Resources(memory_bytes=256 << 20), labels={"team": "b"}
    )
    request = copies_pb2.RestoreCopyRequest(copy=copy, backup="backups/first", instance_id="again", instance=wanted)
    restored = await api.done(await api.copies.RestoreCopy(request), instance_pb2.Instance)
    assert (restored.name, restored.state) == ("instances/again", instance_pb2.Instance.STATE_READY)
    assert restored.source_backup == "backups/first"
    assert restored.source_time == copy.cut_time
    assert (restored.database, restored.username) == ("shop", "owner")
    assert restored.labels == {"team": "b"}
    assert restored.parameters == {"work_mem": "9MB"}
    assert restored.resources.memory_bytes == 256 << 20
    info = await api.info("instances/again")
    assert await fetch(info.rw.uri, "SELECT count(*) FROM items") == 3
    assert info.password == "a new password"
    with require_status(grpc.StatusCode.ALREADY_EXISTS):
        await api.copies.RestoreCopy(request)
    await api.delete("instances/again")


async def test_a_copy_of_what_is_not_installed_is_refused(api: InstancesApi, copy: copies_pb2.InstanceCopy) -> None:
    old = copies_pb2.InstanceCopy()
    old.CopyFrom(copy)
    old.engine_version = "9.6.1"
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "ENGINE_NOT_INSTALLED"):
        await api.copies.RestoreCopy(copies_pb2.RestoreCopyRequest(copy=old, instance_id="old"))
    with require_status(grpc.StatusCode.FAILED_PRECONDITION, "ENGINE_NOT_INSTALLED"):
        await api.copies.CheckCopy(copies_pb2.CheckCopyRequest(copy=old))
    with require_status(grpc.StatusCode.NOT_FOUND):
        await api.copies.CopyInstance(copies_pb2.CopyInstanceRequest(name="instances/never", copy_id="never"))


async def test_a_copy_is_archived_and_deleted(api: InstancesApi, copy: copies_pb2.InstanceCopy) -> None:
    request = copies_pb2.ArchiveCopyRequest(location=copy.location, path="orders.tar.gz", packing="TAR_GZIP")
    archive = await api.done(await api.copies.ArchiveCopy(request), copies_pb2.CopyArchive)
    assert (api.folder / "exports" / "orders.tar.gz").stat().st_size == archive.size_bytes
    second = copies_pb2.CopyInstanceRequest(name=NAME, copy_id="second")
    made = await api.done(await api.copies.CopyInstance(second), copies_pb2.InstanceCopy)
    await api.done(await api.copies.DeleteCopy(copies_pb2.DeleteCopyRequest(location=made.location)), Empty)
    assert [path.name for path in (api.folder / "backups").iterdir()] == ["first"]


async def test_operations_of_services_are_not_listed(api: InstancesApi, copy: copies_pb2.InstanceCopy) -> None:
    listed = await api.operations.ListOperations(operations_pb2.ListOperationsRequest(page_size=1000))
    assert len(listed.operations) > 0
    assert not [one for one in listed.operations if b"CopyInstance" in one.metadata.value]


async def test_events_of_backups_are_recorded_once(api: InstancesApi, copy: copies_pb2.InstanceCopy) -> None:
    instance = await api.get(NAME)
    event = events_pb2.Event(
        kind=events_pb2.Event.KIND_BACKUP_COMPLETED,
        instance=NAME,
        instance_uid=instance.uid,
        resource="backups/first",
        message="backed up",
    )
    webhook = webhooks_pb2.Webhook(url="http://127.0.0.1:1/x", kinds=[event.kind])
    request = copies_pb2.RecordEventRequest(event=event, webhooks=[webhook], deduplication_key="first")
    await api.copies.RecordEvent(request)
    await api.copies.RecordEvent(request)
    found = await api.stub.ListEvents(events_pb2.ListEventsRequest(parent=NAME, filter="kind=KIND_BACKUP_COMPLETED"))
    assert [one.message for one in found.events] == ["backed up"]
    assert found.events[0].severity == events_pb2.Event.SEVERITY_INFO
    assert (await api.get(NAME)).last_backup == "backups/first"
    assert await api.platform.value("SELECT count(*) FROM instances.webhook_posts") == 1
    with require_status(grpc.StatusCode.INVALID_ARGUMENT):
        await api.copies.RecordEvent(copies_pb2.RecordEventRequest(event=events_pb2.Event(instance=NAME)))
