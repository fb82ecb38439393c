"""Instances over a real database, real servers and a real channel, put together as the server does it, for tests.

A module of tests asks for `api`, which lives as long as the module, and so must its event loop:

    pytestmark = pytest.mark.asyncio(loop_scope="module")
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import grpc
import pytest_asyncio
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message
from opsplane.common.v1 import platform_pb2_grpc
from opsplane.instances.v1 import connections_pb2, copies_pb2_grpc, instance_pb2, instances_pb2, instances_pb2_grpc
from opsplane_server.composition import instances as composition
from opsplane_server.composition.foundation import Foundation
from opsplane_server.config import Settings
from opsplane_server.config_services import InstancesSettings
from opsplane_server.platform.servicer import OperationsServicer, PlatformServicer
from opsplane_server.rpc.identity import Anonymous, Chain, StaticToken, StaticTokens
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.peers import Peer, Peers
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.embedded import EmbeddedPostgres
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.secrets import SecretBox

from tests.instances_harness import machine_folder, port_range
from tests.platform_harness import Platform, connect, prepare
from tests.rpc_harness import bearer, registration, serving

M = TypeVar("M", bound=Message)

NODE = "here"
VIEWER = bearer("token-of-a-viewer-0001")


@dataclass(frozen=True, slots=True)
class InstancesApi:
    """The services as their callers see them."""

    stub: instances_pb2_grpc.InstancesStub
    copies: copies_pb2_grpc.InstanceCopiesStub
    operations: operations_pb2_grpc.OperationsStub
    audit: platform_pb2_grpc.PlatformStub
    platform: Platform
    folder: Path

    async def done(self, operation: operations_pb2.Operation, kind: type[M]) -> M:
        """The response of an operation when it has succeeded."""
        ended = await self.ended(operation)
        assert not ended.HasField("error"), ended.error
        return unpacked(ended, kind)

    async def ended(self, operation: operations_pb2.Operation) -> operations_pb2.Operation:
        """The operation when it is done."""
        while not operation.done:
            operation = await self.operations.WaitOperation(
                operations_pb2.WaitOperationRequest(name=operation.name), timeout=90
            )
        return operation

    async def create(self, instance_id: str, **fields: object) -> instance_pb2.Instance:
        """A PostgreSQL instance that is ready."""
        operation = await self.stub.CreateInstance(create_request(instance_id, **fields))
        return await self.done(operation, instance_pb2.Instance)

    async def get(self, name: str) -> instance_pb2.Instance:
        """The instance now."""
        return await self.stub.GetInstance(instances_pb2.GetInstanceRequest(name=name))

    async def info(self, name: str, **fields: str) -> connections_pb2.ConnectionInfo:
        """How to reach it, with the password."""
        return await self.stub.GetConnectionInfo(connections_pb2.GetConnectionInfoRequest(name=name, **fields))

    async def delete(self, name: str) -> None:
        """Deletes an instance that may not be there."""
        request = instances_pb2.DeleteInstanceRequest(name=name, allow_missing=True)
        await self.ended(await self.stub.DeleteInstance(request))


async def fetch(uri: str, query: str) -> Any:
    """The first value of a query's first row."""
    connection = await asyncpg.connect(uri, timeout=20)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def create_request(instance_id: str, **fields: object) -> instances_pb2.CreateInstanceRequest:
    """Asks for a small PostgreSQL instance."""
    wanted = {"engine": instance_pb2.ENGINE_POSTGRESQL, **fields}
    return instances_pb2.CreateInstanceRequest(
        instance_id=instance_id,
        instance=instance_pb2.Instance(**wanted),  # type: ignore[arg-type]
    )


def unpacked(operation: operations_pb2.Operation, kind: type[M]) -> M:
    """The response of an operation that is done."""
    assert operation.done
    response = kind()
    assert operation.response.Unpack(response), operation
    return response


@asynccontextmanager
async def instances_api(postgres: EmbeddedPostgres) -> AsyncIterator[InstancesApi]:
    """The service on a machine of its own, over an empty database of the session's server."""
    name = f"test_{uuid.uuid4().hex}"
    dsn = postgres.dsn.replace("/opsplane?", f"/{name}?")
    connection = await asyncpg.connect(postgres.dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        await prepare(dsn)
        await migrate(dsn, [Migrations("instances", "opsplane_server.instances")])
        with machine_folder() as folder:
            async with _served(dsn, folder) as api:
                yield api
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@asynccontextmanager
async def _served(dsn: str, folder: Path) -> AsyncIterator[InstancesApi]:
    first, last = port_range()
    tokens = StaticTokens([StaticToken.configured("viewer", {"*": "viewer"}, token=VIEWER[0][1].split()[1])])
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(connect(dsn))
        peers = await stack.enter_async_context(Peers(Peer("unix:nobody", "token"), served=[], remote={}))
        foundation = Foundation(
            settings=Settings(
                data_dir=folder, instances=InstancesSettings(first_port=first, last_port=last, cpu_core_hour_micros=10)
            ),
            node=NODE,
            owner="worker",
            local_address="",
            dsn=dsn,
            database=platform.database,
            signals=platform.signals,
            secrets=SecretBox.from_key_file(folder / "secrets.key", create=True),
            operations=platform.operations,
            changes=platform.changes,
            peers=peers,
        )
        service = await composition.build(foundation, stack)
        operations = OperationsServicer(platform.operations, platform.changes)
        registrations = [
            *service.registrations,
            Registration(
                "google.longrunning.Operations",
                lambda server: operations_pb2_grpc.add_OperationsServicer_to_server(operations, server),
            ),
            registration(
                platform_pb2_grpc.add_PlatformServicer_to_server,
                PlatformServicer(platform.operations, platform.audit),
            ),
        ]
        served = await stack.enter_async_context(serving(registrations, standard(Chain(tokens, Anonymous()))))
        stack.callback(service.drain)
        executor = platform.executor(service.handlers, node=NODE, failure_hooks=service.failure_hooks)
        await stack.enter_async_context(executor)
        channel: grpc.aio.Channel = await stack.enter_async_context(served.channel())
        yield InstancesApi(
            stub=instances_pb2_grpc.InstancesStub(channel),
            copies=copies_pb2_grpc.InstanceCopiesStub(channel),
            operations=operations_pb2_grpc.OperationsStub(channel),
            audit=platform_pb2_grpc.PlatformStub(channel),
            platform=platform,
            folder=folder,
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(postgres: EmbeddedPostgres) -> AsyncIterator[InstancesApi]:
    """The service, for all tests of a module."""
    async with instances_api(postgres) as served:
        yield served
