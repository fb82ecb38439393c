"""The operations of Instances over a provider and Backups that obey tests: `world`, shared by a module."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.rpc import code_pb2, error_details_pb2
from opsplane.backups.v1 import backup_pb2, backups_pb2, backups_pb2_grpc, requests_pb2, requests_pb2_grpc
from opsplane.instances.v1 import instance_pb2
from opsplane_server.instances.model import Engine
from opsplane_server.platform.model import Operation, OperationState
from opsplane_server.rpc.identity import Internal
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.peers import Peer
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.embedded import EmbeddedPostgres

from tests.instances_fakes import FakeAdmin, FakeProvider
from tests.instances_operations import Room, open_room, prepare_room
from tests.platform_harness import calling_as
from tests.rpc_harness import registration, serving
from tests.waiting import until


class FakeBackups(
    requests_pb2_grpc.BackupRequestsServicer,
    backups_pb2_grpc.BackupsServicer,
    operations_pb2_grpc.OperationsServicer,  # type: ignore[misc]  # of a package without types
):
    """Backups whose operations end when and as a test wants."""

    def __init__(self) -> None:
        self.forgive()

    def forgive(self) -> None:
        self.asked: list[requests_pb2.BackUpRequest] = []
        self.error = ""
        self.held = False
        self.cancelled = False

    async def BackUp(  # noqa: N802
        self, request: requests_pb2.BackUpRequest, context: object
    ) -> operations_pb2.Operation:
        if request.request_id not in [asked.request_id for asked in self.asked]:
            self.asked.append(request)
        return operations_pb2.Operation(name="operations/backup")

    async def WaitOperation(  # noqa: N802
        self, request: operations_pb2.WaitOperationRequest, context: object
    ) -> operations_pb2.Operation:
        operation = operations_pb2.Operation(name=request.name, done=not self.held or self.cancelled)
        if not operation.done:
            await asyncio.sleep(0.05)
        elif self.error:
            operation.error.code = code_pb2.RESOURCE_EXHAUSTED
            operation.error.message = self.error
        else:
            operation.response.Pack(backup_pb2.Backup(name=f"backups/{self.asked[-1].backup_id}"))
        return operation

    async def CancelOperation(  # noqa: N802
        self, request: operations_pb2.CancelOperationRequest, context: object
    ) -> Empty:
        self.cancelled = True
        return Empty()

    async def ListBackups(  # noqa: N802
        self, request: backups_pb2.ListBackupsRequest, context: object
    ) -> backups_pb2.ListBackupsResponse:
        return backups_pb2.ListBackupsResponse()


@dataclass(frozen=True)
class World:
    """The room, and what it works on."""

    room: Room
    provider: FakeProvider
    admin: FakeAdmin
    backups: FakeBackups


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room_dsn(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres.dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        dsn = postgres.dsn.replace("/opsplane?", f"/{name}?")
        await prepare_room(dsn)
        yield dsn
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(room_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    provider, backups, internal = FakeProvider(), FakeBackups(), Internal()
    admin, folder = FakeAdmin(provider), tmp_path_factory.mktemp("room")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            serving(
                [
                    registration(requests_pb2_grpc.add_BackupRequestsServicer_to_server, backups),
                    registration(backups_pb2_grpc.add_BackupsServicer_to_server, backups),
                    Registration(
                        "google.longrunning.Operations",
                        lambda server: operations_pb2_grpc.add_OperationsServicer_to_server(backups, server),
                    ),
                ],
                standard(internal),
                address=f"unix:{folder}/backups.sock",
            )
        )
        admins = {Engine.POSTGRESQL: admin}
        room = await stack.enter_async_context(
            open_room(room_dsn, folder, provider, admins, backups=Peer(server.address, internal.token))
        )
        yield World(room, provider, admin, backups)


@pytest.fixture
def world(served: World) -> Iterator[World]:
    """With everything obedient again; instances of other tests have other names."""
    served.provider.forgive()
    served.admin.forgive()
    served.backups.forgive()
    with calling_as("somebody"):
        yield served


def message_of(operation: Operation) -> instance_pb2.Instance:
    message = instance_pb2.Instance()
    assert operation.response is not None
    assert operation.response.Unpack(message)
    return message


def reason_of(operation: Operation) -> str:
    assert operation.error is not None
    info = error_details_pb2.ErrorInfo()
    assert operation.error.details[0].Unpack(info)
    return str(info.reason)


async def replayed(room: Room, operation: Operation) -> Operation:
    """As if the process had died between the outcome and the end of the operation."""
    await room.platform.run(
        """UPDATE platform.operations
           SET state = 'PENDING', response = NULL, response_type = NULL, error_code = NULL, end_time = NULL,
           lease_owner = NULL, lease_until = NULL WHERE name = $1""",
        operation.name,
    )
    return await room.ended(operation, well=operation.state is OperationState.SUCCEEDED)


async def gone(room: Room, name: str) -> bool:
    return await room.store.find(name) is None


async def until_called(world: World, call: str) -> None:
    await until(lambda: call in world.provider.calls + world.admin.calls)


async def free(room: Room, name: str) -> bool:
    return not (await room.store.get(name)).operation
