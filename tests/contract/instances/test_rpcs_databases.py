"""The RPCs of databases and users, on one real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty
from opsplane.instances.v1 import databases_pb2, instance_pb2

from tests.instances_rpc import InstancesApi, api, fetch
from tests.rpc_harness import require_status

__all__ = ["api"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "instances/orders"

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def orders(api: InstancesApi) -> AsyncIterator[instance_pb2.Instance]:
    yield await api.create("orders", database="shop", username="owner")


async def test_databases_come_and_go(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    request = databases_pb2.CreateDatabaseRequest(parent=NAME, database_id="reports-2")
    made = await api.done(await api.stub.CreateDatabase(request), databases_pb2.Database)
    assert (made.name, made.owner, made.charset) == (f"{NAME}/databases/reports-2", "owner", "UTF8")
    assert made.size_bytes > 0
    listed = await api.stub.ListDatabases(databases_pb2.ListDatabasesRequest(parent=NAME, page_size=1))
    assert [one.name for one in listed.databases] == [made.name]
    rest = databases_pb2.ListDatabasesRequest(parent=NAME, page_size=1, page_token=listed.next_page_token)
    assert [one.name for one in (await api.stub.ListDatabases(rest)).databases] == [f"{NAME}/databases/shop"]
    assert await fetch((await api.info(NAME, database="reports-2")).rw.uri, "SELECT current_database()") == "reports-2"
    with require_status(EXISTS):
        await api.stub.CreateDatabase(request)
    missing = databases_pb2.Database(owner="nobody")
    with require_status(NOT_FOUND):
        await api.stub.CreateDatabase(
            databases_pb2.CreateDatabaseRequest(parent=NAME, database_id="x", database=missing)
        )
    delete = databases_pb2.DeleteDatabaseRequest(name=made.name)
    await api.done(await api.stub.DeleteDatabase(delete), Empty)
    with require_status(NOT_FOUND):
        await api.stub.DeleteDatabase(delete)


async def test_users_come_and_go(api: InstancesApi, orders: instance_pb2.Instance) -> None:
    user = databases_pb2.User(password="readers secret", privilege=databases_pb2.PRIVILEGE_READ_ONLY, max_connections=3)
    request = databases_pb2.CreateUserRequest(parent=NAME, user_id="reader", user=user)
    made = await api.done(await api.stub.CreateUser(request), databases_pb2.User)
    name = f"{NAME}/users/reader"
    assert (made.name, made.password, made.privilege) == (name, "", databases_pb2.PRIVILEGE_READ_ONLY)
    assert made.max_connections == 3
    assert made.HasField("password_time")
    told = await api.info(NAME, user="reader")
    assert told.password == "readers secret"
    assert await fetch(told.rw.uri, "SELECT current_user::text") == "reader"
    listed = await api.stub.ListUsers(databases_pb2.ListUsersRequest(parent=NAME))
    assert [one.name for one in listed.users] == [f"{NAME}/users/owner", name]

    change = databases_pb2.User(name=name, databases=["shop"])
    operation = await api.stub.UpdateUser(databases_pb2.UpdateUserRequest(user=change))
    changed = await api.done(operation, databases_pb2.User)
    assert (list(changed.databases), changed.max_connections) == (["shop"], 3)

    rotated = await api.stub.RotatePassword(databases_pb2.RotatePasswordRequest(name=name))
    await api.done(rotated, databases_pb2.User)
    fresh = await api.info(NAME, user="reader")
    assert fresh.password not in ("", "readers secret")
    assert await fetch(fresh.rw.uri, "SELECT 1") == 1
    with pytest.raises(asyncpg.InvalidPasswordError):
        await fetch(told.rw.uri, "SELECT 1")

    delete = databases_pb2.DeleteUserRequest(name=name)
    await api.done(await api.stub.DeleteUser(delete), Empty)
    with require_status(NOT_FOUND):
        await api.info(NAME, user="reader")
    with require_status(PRECONDITION, "FIRST_USER"):
        await api.stub.DeleteUser(databases_pb2.DeleteUserRequest(name=f"{NAME}/users/owner"))
    with require_status(INVALID, "RESERVED_NAME"):
        await api.stub.CreateUser(databases_pb2.CreateUserRequest(parent=NAME, user_id="opsplane_admin"))
    with require_status(NOT_FOUND):
        somewhere = databases_pb2.User(databases=["nowhere"])
        await api.stub.CreateUser(databases_pb2.CreateUserRequest(parent=NAME, user_id="lost", user=somewhere))
