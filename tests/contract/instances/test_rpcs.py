"""The RPCs of Instances, with one real PostgreSQL that most tests share."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from opsplane.common.v1 import platform_pb2
from opsplane.instances.v1 import (
    connections_pb2,
    databases_pb2,
    events_pb2,
    instance_pb2,
    instances_pb2,
    lifecycle_pb2,
    monitoring_pb2,
    usage_pb2,
    webhooks_pb2,
)

from tests.instances_rpc import VIEWER, InstancesApi, api, create_request, fetch, unpacked
from tests.rpc_harness import require_status

__all__ = ["api"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "instances/orders"
PASSWORD = "first-user's secret @/:?&%"
READER_PASSWORD = "the reader's secret"

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def orders(api: InstancesApi) -> AsyncIterator[instance_pb2.Instance]:
    yield await api.create("orders", password=PASSWORD, database="shop", username="owner", labels={"team": "a.b"})


async def update(api: InstancesApi, mask: list[str] | None = None, **fields: Any) -> instance_pb2.Instance:
    message = instance_pb2.Instance(name=NAME, **fields)
    request = instances_pb2.UpdateInstanceRequest(instance=message, update_mask=FieldMask(paths=mask or []))
    return await api.done(await api.stub.UpdateInstance(request), instance_pb2.Instance)


# --- creating


async def test_a_new_instance_serves(orders: instance_pb2.Instance) -> None:
    assert orders.name == NAME
    assert orders.state == instance_pb2.Instance.STATE_READY
    assert orders.state_message == ""
    assert orders.running_version.startswith("18.")
    assert (orders.database, orders.username, orders.password) == ("shop", "owner", "")
    assert orders.provider == instance_pb2.PROVIDER_LOCAL
    assert orders.resources.storage_bytes == 1 << 30
    assert orders.resources.memory_bytes == orders.resources.memory_request_bytes == 512 << 20
    assert orders.resources.cpu_millis == orders.resources.cpu_request_millis == 500
    assert [node.id for node in orders.nodes] == [orders.current_primary]
    assert orders.ready_node_count == 1
    assert orders.endpoints.rw.address == f"{orders.endpoints.rw.host}:{orders.endpoints.rw.port}"
    assert not orders.endpoints.HasField("ro")
    assert not orders.HasField("high_availability")
    assert orders.etag


async def test_validating_changes_nothing(api: InstancesApi) -> None:
    request = create_request("checked", high_availability=instance_pb2.HighAvailability(), expire_time=None)
    request.validate_only = True
    operation = await api.stub.CreateInstance(request)
    assert operation.name == ""
    preview = unpacked(operation, instance_pb2.Instance)
    assert preview.name == "instances/checked"
    assert preview.high_availability.node_count == 3
    assert preview.high_availability.automatic_failover
    with require_status(NOT_FOUND):
        await api.get("instances/checked")


async def test_a_create_is_safe_to_repeat(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    request = create_request("twice", password="long enough")
    request.request_id = str(uuid.uuid4())
    first = await api.stub.CreateInstance(request)
    assert (await api.stub.CreateInstance(request)).name == first.name
    await api.ended(first)
    assert (await api.stub.CreateInstance(request)).name == first.name
    request.instance.password = "another one"
    with require_status(INVALID, "REQUEST_ID_REUSED"):
        await api.stub.CreateInstance(request)
    await api.delete("instances/twice")
    with require_status(NOT_FOUND):
        await api.get("instances/twice")


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"version": "9"}, PRECONDITION, "ENGINE_NOT_INSTALLED"),
        ({"username": "opsplane_admin"}, INVALID, "RESERVED_NAME"),
        ({"username": "pg_read_all_data"}, INVALID, "RESERVED_NAME"),
        ({"database": "template1"}, INVALID, "RESERVED_NAME"),
        ({"provider": instance_pb2.PROVIDER_KUBERNETES}, PRECONDITION, "PROVIDER_NOT_CONFIGURED"),
        ({"parameters": {"no_such_parameter": "1"}}, INVALID, None),
        ({"parameters": {"port": "1"}}, INVALID, None),
        ({"webhooks": [webhooks_pb2.Webhook(url="http://a"), webhooks_pb2.Webhook(url="http://a")]}, INVALID, None),
    ],
)
async def test_what_can_not_be_is_refused(
    api: InstancesApi, fields: dict[str, Any], code: grpc.StatusCode, reason: str | None
) -> None:
    with require_status(code, reason):
        await api.stub.CreateInstance(create_request("refused", **fields))


async def test_a_name_is_taken_once(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    with require_status(EXISTS, "ALREADY_EXISTS"):
        await api.stub.CreateInstance(create_request("orders"))


# --- connecting


async def test_clients_connect_with_what_they_are_told(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    told = await api.info(NAME)
    assert (told.username, told.password, told.database) == ("owner", PASSWORD, "shop")
    for uri in (told.rw.uri, told.rw.multi_host_uri, told.r.uri, told.any.uri):
        assert await fetch(uri, "SELECT current_user || ' ' || current_database()") == "owner shop"
    assert told.rw.hosts == [f"{orders.nodes[0].host}:{orders.nodes[0].port}"]
    assert told.command == f"psql -h {told.rw.host} -p {told.rw.port} -U owner shop"
    assert told.rw.jdbc_url.startswith(f"jdbc:postgresql://{told.rw.host}:{told.rw.port}/shop")
    assert not told.HasField("ro")


async def test_connection_info_names_who_and_what_is_missing(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    with require_status(NOT_FOUND) as refusal:
        await api.info(NAME, user="nobody")
    assert "users/nobody" in refusal.message
    with require_status(NOT_FOUND) as refusal:
        await api.info(NAME, database="nothing")
    assert "databases/nothing" in refusal.message
    await fetch((await api.info(NAME)).rw.uri, "SELECT 1")


async def test_reading_secrets_is_audited_without_them(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    before = await events(api, 'kind="KIND_CONNECTION_INFO_READ"')
    await api.info(NAME)
    after = await events(api, 'kind="CONNECTION_INFO_READ"')
    assert len(after) == len(before) + 1
    assert after[0].principal == "anonymous"
    assert after[0].resource == f"{NAME}/users/owner"
    audit = await api.audit.ListAuditEvents(platform_pb2.ListAuditEventsRequest(page_size=1000))
    read = [event for event in audit.audit_events if event.method.endswith("/GetConnectionInfo")]
    assert read[0].resource == NAME


# --- changing


async def test_settings_change_while_it_serves(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    before = await api.get(NAME)
    changed = await update(api, parameters={"work_mem": "9MB", "max_connections": "77"}, labels={"team": "b"})
    assert changed.parameters == {"work_mem": "9MB", "max_connections": "77"}
    assert changed.labels == {"team": "b"}
    assert changed.resources == before.resources
    assert changed.pending_restart_parameters == ["max_connections"]
    assert changed.etag != before.etag
    assert await fetch((await api.info(NAME)).rw.uri, "SHOW work_mem") == "9MB"
    request = lifecycle_pb2.RestartInstanceRequest(name=NAME, etag=changed.etag)
    restarted = await api.done(await api.stub.RestartInstance(request), instance_pb2.Instance)
    assert restarted.pending_restart_parameters == []
    assert await fetch((await api.info(NAME)).rw.uri, "SHOW max_connections") == "77"


async def test_only_what_the_mask_names_changes(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    memory = instance_pb2.Resources(memory_bytes=300 << 20, cpu_millis=60)
    changed = await update(api, ["resources.memory_bytes"], resources=memory)
    assert changed.resources.memory_bytes == changed.resources.memory_request_bytes == 300 << 20
    assert changed.resources.cpu_millis == 500
    assert changed.labels == (await update(api, ["deletion_protection"])).labels


@pytest.mark.parametrize(
    ("mask", "fields"),
    [
        (["engine"], {}),
        (["name"], {}),
        ([], {"username": "other"}),
        ([], {"version": "16"}),
        (["resources.storage_bytes"], {"resources": instance_pb2.Resources(storage_bytes=256 << 20)}),
        (["parameters"], {"parameters": {"listen_addresses": "*"}}),
    ],
)
async def test_what_can_not_change_is_refused(
    api: InstancesApi, orders: instance_pb2.Instance, mask: list[str], fields: dict[str, Any]
) -> None:
    with require_status(INVALID):
        await update(api, mask, **fields)


async def test_an_old_etag_is_refused(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    request = instances_pb2.UpdateInstanceRequest(
        instance=instance_pb2.Instance(name=NAME, labels={"a": "b"}), etag="old"
    )
    with require_status(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        await api.stub.UpdateInstance(request)


async def test_one_change_at_a_time(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    await api.platform.run("UPDATE instances.instances SET operation = 'operations/x' WHERE name = $1", NAME)
    try:
        with require_status(PRECONDITION, "OPERATION_IN_PROGRESS"):
            await update(api, labels={"a": "b"})
    finally:
        await api.platform.run("UPDATE instances.instances SET operation = '' WHERE name = $1", NAME)


async def test_a_protected_instance_stays(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    assert (await update(api, deletion_protection=True)).deletion_protection
    with require_status(PRECONDITION, "DELETION_PROTECTED"):
        await api.stub.DeleteInstance(instances_pb2.DeleteInstanceRequest(name=NAME))
    with require_status(PRECONDITION, "DELETION_PROTECTED"):
        await api.stub.DeleteDatabase(databases_pb2.DeleteDatabaseRequest(name=f"{NAME}/databases/shop"))
    assert not (await update(api, ["deletion_protection"])).deletion_protection


async def test_stopped_and_started(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    told = await api.info(NAME)
    stop = lifecycle_pb2.StopInstanceRequest(name=NAME)
    stopped = await api.done(await api.stub.StopInstance(stop), instance_pb2.Instance)
    assert stopped.state == instance_pb2.Instance.STATE_STOPPED
    with pytest.raises(ConnectionRefusedError):
        await fetch(told.rw.uri, "SELECT 1")
    assert (await api.info(NAME)).rw == connections_pb2.ConnectionEndpoint(
        host=told.rw.host,
        port=told.rw.port,
        uri=told.rw.uri,
        multi_host_uri=told.rw.multi_host_uri,
        jdbc_url=told.rw.jdbc_url,
        multi_host_jdbc_url=told.rw.multi_host_jdbc_url,
    )
    with require_status(PRECONDITION, "INSTANCE_NOT_SERVING"):
        await api.stub.ListDatabases(databases_pb2.ListDatabasesRequest(parent=NAME))
    with require_status(PRECONDITION, "INSTANCE_STOPPED"):
        await api.stub.RestartInstance(lifecycle_pb2.RestartInstanceRequest(name=NAME))
    start = lifecycle_pb2.StartInstanceRequest(name=NAME)
    started = await api.done(await api.stub.StartInstance(start), instance_pb2.Instance)
    assert started.state == instance_pb2.Instance.STATE_READY
    assert await fetch(told.rw.uri, "SELECT 1") == 1


async def test_a_single_server_has_no_other_primary(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    with require_status(PRECONDITION, "NOT_HIGHLY_AVAILABLE"):
        await api.stub.Failover(lifecycle_pb2.FailoverRequest(name=NAME))
    with require_status(PRECONDITION, "NOT_HIGHLY_AVAILABLE"):
        await api.stub.Switchover(lifecycle_pb2.SwitchoverRequest(name=NAME))
    with require_status(NOT_FOUND):
        await api.stub.RestartInstance(lifecycle_pb2.RestartInstanceRequest(name=NAME, node="orders-9"))


async def test_only_a_newer_version_is_an_upgrade(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    with require_status(INVALID):
        await api.stub.UpgradeInstance(lifecycle_pb2.UpgradeInstanceRequest(name=NAME, version="16"))
    with require_status(PRECONDITION, "ENGINE_NOT_INSTALLED"):
        await api.stub.UpgradeInstance(lifecycle_pb2.UpgradeInstanceRequest(name=NAME, version="99"))
    with require_status(PRECONDITION, "NO_UPGRADE"):
        await api.stub.RollbackUpgrade(lifecycle_pb2.RollbackUpgradeRequest(name=NAME, discard_writes=True))


# --- reading


async def test_instances_are_listed_and_filtered(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    async def listed(text: str) -> list[str]:
        answer = await api.stub.ListInstances(instances_pb2.ListInstancesRequest(filter=text))
        return [one.name for one in answer.instances]

    await update(api, labels={"team": "b"})
    assert await listed("") == [NAME]
    assert await listed('engine="ENGINE_POSTGRESQL" AND state=READY AND labels.team="b"') == [NAME]
    assert await listed("highly_available=true") == []
    for text in ("engine=ORACLE", "labels.Team=a", "nothing=1"):
        with require_status(INVALID, "FILTER_INVALID"):
            await listed(text)


async def test_parameters_say_where_they_come_from(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    await update(api, ["parameters"], parameters={"work_mem": "9MB"})

    async def listed(text: str) -> list[monitoring_pb2.Parameter]:
        request = monitoring_pb2.ListParametersRequest(parent=NAME, filter=text, page_size=1000)
        return list((await api.stub.ListParameters(request)).parameters)

    [work_mem] = await listed('parameter="work_mem"')
    assert work_mem.source == monitoring_pb2.PARAMETER_SOURCE_SET
    assert work_mem.settable
    assert not work_mem.requires_restart
    [buffers] = await listed('parameter="shared_buffers"')
    assert buffers.source == monitoring_pb2.PARAMETER_SOURCE_DERIVED
    assert buffers.requires_restart
    assert {"port", "data_directory"} <= {one.parameter for one in await listed("settable=false")}
    assert all("buffers" in one.parameter for one in await listed('parameter:"buffers" AND settable=true'))


async def test_slow_queries_are_found(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    await fetch((await api.info(NAME)).rw.uri, "SELECT 'a secret constant', pg_sleep(0.6)")
    request = monitoring_pb2.ListSlowQueriesRequest(parent=NAME, filter="max_time>=500")
    answer = await api.stub.ListSlowQueries(request)
    assert any("pg_sleep" in one.query for one in answer.slow_queries)
    assert not any("secret" in one.query for one in answer.slow_queries)


async def events(api: InstancesApi, text: str = "", **options: Any) -> list[events_pb2.Event]:
    request = events_pb2.ListEventsRequest(parent=NAME, filter=text, page_size=1000)
    return list((await api.stub.ListEvents(request, **options)).events)


async def test_events_name_who_asked_to_admins_alone(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    assert [event.principal for event in await events(api, "kind=KIND_CREATED")] == ["anonymous"]
    assert [event.principal for event in await events(api, "kind=KIND_CREATED", metadata=VIEWER)] == [""]
    with require_status(grpc.StatusCode.PERMISSION_DENIED):
        await api.stub.GetConnectionInfo(connections_pb2.GetConnectionInfoRequest(name=NAME), metadata=VIEWER)
    with require_status(NOT_FOUND):
        await api.stub.ListEvents(events_pb2.ListEventsRequest(parent="instances/never"))


async def test_usage_is_told_with_its_prices(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    usage = await api.stub.GetUsage(usage_pb2.GetUsageRequest(name=NAME))
    assert usage.currency_code == "EUR"
    assert usage.rates.cpu_core_hour_micros == 10
    with require_status(NOT_FOUND):
        await api.stub.GetUsage(usage_pb2.GetUsageRequest(name="instances/never"))


# --- the end: these tests change what the others share


async def test_a_lost_record_is_taken_in_again(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    uri = (await api.info(NAME)).rw.uri
    await fetch(uri, "CREATE TABLE kept AS SELECT 42 AS answer")
    request = lifecycle_pb2.RecoverInstanceRequest(name=NAME)
    with require_status(EXISTS):
        await api.stub.RecoverInstance(request)
    await api.platform.run("DELETE FROM instances.instances")
    recovered = await api.done(await api.stub.RecoverInstance(request), instance_pb2.Instance)
    assert recovered.state == instance_pb2.Instance.STATE_READY
    assert recovered.uid == orders.uid
    assert (await api.info(NAME)).rw.uri == uri
    assert await fetch(uri, "SELECT answer FROM kept") == 42
    with require_status(NOT_FOUND):
        await api.stub.RecoverInstance(lifecycle_pb2.RecoverInstanceRequest(name="instances/never"))


async def test_no_secret_is_kept_in_plain_text(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    user = databases_pb2.User(password=READER_PASSWORD)
    request = databases_pb2.CreateUserRequest(parent=NAME, user_id="reader", user=user)
    await api.done(await api.stub.CreateUser(request), databases_pb2.User)
    async with api.platform.database.connection() as connection:
        tables = await connection.fetch(
            """SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
               WHERE schemaname IN ('instances', 'platform')"""
        )
        stored = [
            repr(dict(row)) for table in tables for row in await connection.fetch(f"SELECT * FROM {table['name']}")
        ]
    assert any(NAME in row for row in stored)
    for secret in (PASSWORD, READER_PASSWORD):
        assert not [row for row in stored if secret in row]
        found = [path for path in api.folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        assert found == []


async def test_a_deleted_instance_leaves_its_events(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    operation = await api.stub.DeleteInstance(instances_pb2.DeleteInstanceRequest(name=NAME))
    await api.done(operation, Empty)
    with require_status(NOT_FOUND):
        await api.get(NAME)
    assert (await events(api))[0].kind == events_pb2.Event.KIND_DELETED
    with require_status(NOT_FOUND):
        await api.stub.DeleteInstance(instances_pb2.DeleteInstanceRequest(name=NAME))
    missing = instances_pb2.DeleteInstanceRequest(name=NAME, allow_missing=True)
    await api.done(await api.stub.DeleteInstance(missing), Empty)
    assert not (api.folder / "instances" / "orders").exists()
