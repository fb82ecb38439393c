"""The calls of the Mini DBaaS document, as docs/seed-calls/mini-dbaas.md has them, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opsplane.instances.v1 import (
    connections_pb2,
    databases_pb2,
    instance_pb2,
    instances_pb2,
    instances_pb2_grpc,
    lifecycle_pb2,
)
from opsplane_server.instances.model import Engine

from tests import mysql_servers
from tests.components import cache_folder
from tests.instances_server import instances_server
from tests.server_process import ServerProcess
from tests.unit.test_seed_calls import examples, request_of

pytestmark = pytest.mark.slow

M = TypeVar("M", bound=Message)

SERVICE = instances_pb2.DESCRIPTOR.services_by_name["Instances"].full_name
READY = instance_pb2.Instance.STATE_READY


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with instances_server(program_folders=cache_folder() / "mariadb" / "usr") as running:
        yield running


class Client:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = instances_pb2_grpc.InstancesStub(channel)
        self._operations = operations_pb2_grpc.OperationsStub(channel)

    async def done(self, operation: operations_pb2.Operation, kind: type[M]) -> M:
        while not operation.done:
            request = operations_pb2.WaitOperationRequest(name=operation.name)
            operation = await self._operations.WaitOperation(request, timeout=90)
        assert not operation.HasField("error"), operation.error
        response = kind()
        assert operation.response.Unpack(response)
        return response


def documented(kind: type[M]) -> list[M]:
    """The requests of this type in the document, in its order."""
    ours = [one for one in examples() if one.place.startswith("mini-dbaas.md") and f" {SERVICE}/" in one.text]
    found = [request_of(example) for example in ours]
    return [request for request in found if isinstance(request, kind)]


def creation(instance_id: str) -> instances_pb2.CreateInstanceRequest:
    """The first request that creates this instance."""
    creations = documented(instances_pb2.CreateInstanceRequest)
    return next(request for request in creations if request.instance_id == instance_id)


async def fetch(host: str, port: int, told: connections_pb2.ConnectionInfo, query: str) -> Any:
    """Asks as the document's node-postgres code does: by host, port, user, password and database."""
    connection = await asyncpg.connect(
        host=host, port=port, user=told.username, password=told.password, database=told.database, timeout=30
    )
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_every_creation_of_the_document_passes_the_checks(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        for request in documented(instances_pb2.CreateInstanceRequest):
            request.validate_only = True
            call = Client(channel).stub.CreateInstance(request)
            if await call.code() is not grpc.StatusCode.OK:
                # MySQL, MariaDB and Kubernetes are there or not.
                assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
                wanted = request.instance
                if wanted.provider != instance_pb2.PROVIDER_KUBERNETES:
                    assert wanted.engine != instance_pb2.ENGINE_POSTGRESQL
                    assert "install" in await call.details()
                continue
            preview = instance_pb2.Instance()
            assert (await call).response.Unpack(preview)
            assert preview.database == (request.instance.database or "app")
            assert preview.resources.storage_bytes == (request.instance.resources.storage_bytes or 1 << 30)


async def test_a_single_server_lives_as_in_the_quick_start(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        request = creation("my-postgres")
        made = await client.done(await client.stub.CreateInstance(request), instance_pb2.Instance)
        assert made.state == READY
        listed = await client.stub.ListInstances(instances_pb2.ListInstancesRequest())
        assert [one.name for one in listed.instances] == [made.name]
        got = await client.stub.GetInstance(instances_pb2.GetInstanceRequest(name=made.name))
        assert got.resources.storage_bytes == 2 << 30
        told = await client.stub.GetConnectionInfo(connections_pb2.GetConnectionInfoRequest(name=made.name))
        assert (told.username, told.password, told.database) == ("app", "securepass123", "myapp")
        assert await fetch(told.rw.host, told.rw.port, told, "SELECT current_database()") == "myapp"
        operation = await client.stub.DeleteInstance(instances_pb2.DeleteInstanceRequest(name=made.name))
        await client.done(operation, Empty)
        assert (await client.stub.ListInstances(instances_pb2.ListInstancesRequest())).instances == []


async def test_mariadb_serves_too(server: ServerProcess, tmp_path: Path) -> None:
    mysql_servers.programs(Engine.MARIADB, tmp_path)  # skips where there is none
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        made = await client.done(await client.stub.CreateInstance(creation("my-mariadb")), instance_pb2.Instance)
        assert (made.state, made.database) == (READY, "app")
        told = await client.stub.GetConnectionInfo(connections_pb2.GetConnectionInfoRequest(name=made.name))
        assert (told.username, told.password) == ("app", "mariapass123")
        listed = await client.stub.ListDatabases(databases_pb2.ListDatabasesRequest(parent=made.name))
        assert [one.name for one in listed.databases] == [f"{made.name}/databases/app"]
        request = databases_pb2.CreateUserRequest(parent=made.name, user_id="reader")
        await client.done(await client.stub.CreateUser(request), databases_pb2.User)
        operation = await client.stub.DeleteInstance(instances_pb2.DeleteInstanceRequest(name=made.name))
        await client.done(operation, Empty)


async def test_a_cluster_changes_its_primary_as_in_the_document(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        request = creation("api-test-pg-cluster")
        made = await client.done(await client.stub.CreateInstance(request), instance_pb2.Instance)
        [listing] = [one for one in documented(instances_pb2.ListInstancesRequest) if one.filter]
        assert [one.name for one in (await client.stub.ListInstances(listing)).instances] == [made.name]
        assert made.placement.namespace == "dbaas-api-test-pg-ha"
        assert "placement.namespace" in [notice.field for notice in made.notices]
        assert made.high_availability.node_count == made.ready_node_count == 3
        ends = made.endpoints
        assert all(one.address for one in (ends.rw, ends.ro, ends.r, ends.any))

        [asked] = [one for one in documented(connections_pb2.GetConnectionInfoRequest) if one.database]
        told = await client.stub.GetConnectionInfo(asked)
        assert (told.username, told.password, told.database) == ("dbuser", "postgres123", "testdb")
        assert not await fetch(told.rw.host, told.rw.port, told, "SELECT pg_is_in_recovery()")
        assert await fetch(told.ro.host, told.ro.port, told, "SELECT pg_is_in_recovery()")
        await fetch(told.rw.host, told.rw.port, told, "CREATE TABLE orders (data text)")

        [switchover] = documented(lifecycle_pb2.SwitchoverRequest)
        changed = await client.done(await client.stub.Switchover(switchover), instance_pb2.Instance)
        assert changed.current_primary == changed.last_failover.new_primary == switchover.target_node
        [failover] = documented(lifecycle_pb2.FailoverRequest)
        changed = await client.done(await client.stub.Failover(failover), instance_pb2.Instance)
        assert changed.current_primary == changed.last_failover.new_primary != switchover.target_node
        # The same host and port stand for the new primary.
        await fetch(told.rw.host, told.rw.port, told, "INSERT INTO orders VALUES ('one')")
        operation = await client.stub.DeleteInstance(instances_pb2.DeleteInstanceRequest(name=made.name))
        await client.done(operation, Empty)
