"""The operations of Instances over a real database, wired as the server wires them, for tests.

Calls are submitted as the RPCs submit them; an executor of the test's choice works on them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from google.longrunning import operations_pb2
from google.protobuf.message import Message
from opsplane.instances.v1 import instance_pb2, instances_pb2
from opsplane_server.instances.events import Events
from opsplane_server.instances.instances import Instances, Providers
from opsplane_server.instances.model import Engine, ProviderKind
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.operations.final_backups import FinalBackups
from opsplane_server.instances.operations.frame import Frame
from opsplane_server.instances.operations.handlers import build_failure_hooks, build_handlers
from opsplane_server.instances.ports import EngineAdmin, Provider
from opsplane_server.instances.records import Instance
from opsplane_server.instances.stores.postgres import (
    PostgresEventStore,
    PostgresInstanceStore,
    PostgresPendingPasswords,
    PostgresWebhookOutbox,
)
from opsplane_server.instances.submission import Submission
from opsplane_server.platform.execution import FailureHook, Handler
from opsplane_server.platform.executor import OperationExecutor
from opsplane_server.platform.model import Operation, OperationState
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.rpc.peers import Peer, Peers
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.secrets import SecretBox

from tests.platform_harness import Platform, connect, prepare

MIGRATIONS = Migrations("instances", "opsplane_server.instances")
NODE = "here"
PASSWORD = "a password nobody else has"


@dataclass(frozen=True)
class Room:
    """The room without its RPCs."""

    platform: Platform
    store: PostgresInstanceStore
    pending: PostgresPendingPasswords
    event_store: PostgresEventStore
    events: Events
    frame: Frame
    backups: FinalBackups
    instances: Instances
    exports: Path

    def handlers(self) -> Mapping[str, Handler]:
        """By kind."""
        return build_handlers(self.frame, self.backups, node=NODE, exports=self.exports)

    def failure_hooks(self) -> Mapping[str, FailureHook]:
        """By kind."""
        return build_failure_hooks(self.frame)

    def executor(self, *, owner: str = "worker") -> OperationExecutor:
        """Works on the room's operations while it is open."""
        return self.platform.executor(self.handlers(), owner=owner, node=NODE, failure_hooks=self.failure_hooks())

    async def submit(
        self, kind: str, name: str, request: Message | None = None, *, target: str = "", password: str = ""
    ) -> Operation:
        """What an RPC without checks of its own would submit."""
        async with self.platform.database.transaction():
            operation = await self.platform.operations.submit(
                kind=kind, verb=kind.title(), target=target or name, request=request, node=NODE
            )
            if kind in kinds.EXCLUSIVE:
                record = await self.store.lock(name)
                assert not record.operation
                state = kinds.STATES.get(kind, record.state)
                await self.store.save(replace(record, operation=operation.name, state=state))
            if password:
                await self.pending.keep(operation.name, password)
        return operation

    async def ended(self, operation: Operation | operations_pb2.Operation, *, well: bool = True) -> Operation:
        """The operation when it is done, and whether it ended as it should."""
        finished = await self.platform.operations.wait(operation.name, 60)
        assert finished.state.done, finished
        assert (finished.state is OperationState.SUCCEEDED) is well, finished
        return finished

    async def create(self, name: str = "orders", **fields: object) -> operations_pb2.Operation:
        """Submits the creation of a PostgreSQL instance."""
        message = instance_pb2.Instance(engine=instance_pb2.ENGINE_POSTGRESQL, password=PASSWORD, **fields)  # type: ignore[arg-type]
        return await self.instances.create(instances_pb2.CreateInstanceRequest(instance=message, instance_id=name))

    async def created(self, name: str = "orders", **fields: object) -> Instance:
        """An instance that is ready; an executor must be open."""
        await self.ended(await self.create(name, **fields))
        return await self.store.get(f"instances/{name}")

    async def kinds_of_events(self, name: str = "instances/orders") -> list[str]:
        """What happened, oldest first."""
        found = await self.event_store.list_events(name, PageRequest(1000, None), [])
        return [event.kind.value for event in reversed(found)]


@asynccontextmanager
async def open_room(
    dsn: str,
    folder: Path,
    provider: Provider,
    admins: Mapping[Engine, EngineAdmin],
    *,
    backups: Peer | None = None,
) -> AsyncIterator[Room]:
    """The room over a database that `prepare_room` has prepared. backups: where that service is."""
    box = SecretBox.from_key_file(folder / "secrets.key", create=True)
    remote = {"backups": backups} if backups is not None else {}
    async with connect(dsn) as platform, Peers(Peer("", ""), served=[], remote=remote) as peers:
        signal = platform.signals.topic("instances")
        store = PostgresInstanceStore(platform.database, box, signal)
        pending = PostgresPendingPasswords(platform.database, box)
        event_store = PostgresEventStore(platform.database, signal)
        events = Events(store, event_store, PostgresWebhookOutbox(platform.database, box))
        providers = {ProviderKind.LOCAL: provider}
        yield Room(
            platform=platform,
            store=store,
            pending=pending,
            event_store=event_store,
            events=events,
            frame=Frame(store, pending, events, providers, admins),
            backups=FinalBackups(peers),
            instances=Instances(
                store,
                Submission(platform.changes, platform.operations),
                Providers(providers, default=ProviderKind.LOCAL, machine=NODE),
                webhook_hosts=[],
            ),
            exports=folder / "exports",
        )


async def prepare_room(dsn: str) -> None:
    """Migrates an empty database."""
    await prepare(dsn)
    await migrate(dsn, [MIGRATIONS])
