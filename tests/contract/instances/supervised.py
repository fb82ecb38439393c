"""What looks after instances, over a real database and a provider of the test's choice, with WatchInstance served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from opsplane.instances.v1 import instances_pb2_grpc
from opsplane.instances.v1.monitoring_pb2 import WatchInstanceRequest, WatchInstanceResponse
from opsplane_server.instances.backup_figures import BackupCatalog
from opsplane_server.instances.events import Events
from opsplane_server.instances.metrics import InstanceMetricsCollector
from opsplane_server.instances.model import Engine, InstanceSpec, InstanceState, Secrets, Status
from opsplane_server.instances.ports import EngineAdmin, Provider
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.records import Event, Instance
from opsplane_server.instances.refreshing import Refresher
from opsplane_server.instances.sampling import Sampler
from opsplane_server.instances.stores.postgres import (
    PostgresEventStore,
    PostgresInstanceStore,
    PostgresSampleStore,
    PostgresUsageStore,
    PostgresWebhookOutbox,
)
from opsplane_server.instances.supervision import Supervision
from opsplane_server.instances.usage import Meter, UsageRates
from opsplane_server.instances.watch import InstanceWatcher
from opsplane_server.rpc.identity import Anonymous, Chain
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.rpc.peers import Peer, Peers
from opsplane_server.storage.database import Database
from opsplane_server.storage.migrations import Migrations
from opsplane_server.storage.secrets import SecretBox
from opsplane_server.storage.signals import Signal, Signals
from prometheus_client import CollectorRegistry

from tests.postgres_fixtures import migrated
from tests.rpc_harness import registration, serving

MIGRATIONS = Migrations("instances", "opsplane_server.instances")
RATES = UsageRates(
    cpu_core_hour_micros=1_000_000,
    memory_gib_hour_micros=100_000,
    storage_gib_hour_micros=10_000,
    backup_gib_hour_micros=1_000,
)


@dataclass
class Clock:
    """The time that only the test moves."""

    time: datetime = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def seconds(self) -> float:
        """The same as a number."""
        return self.time.timestamp()


@dataclass(frozen=True)
class Room:
    """The stores and what works on them."""

    folder: Path
    provider: Provider
    admins: Mapping[Engine, EngineAdmin]
    database: Database
    signals: Signals
    changes: Signal
    store: PostgresInstanceStore
    event_store: PostgresEventStore
    events: Events
    samples: PostgresSampleStore
    usage: PostgresUsageStore
    refresher: Refresher
    meter: Meter
    clock: Clock
    peers: Peers
    watcher: InstanceWatcher
    stub: instances_pb2_grpc.InstancesStub
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    @asynccontextmanager
    async def supervised(self, *, interval: float = 0.5, others: Sequence[Any] = ()) -> AsyncIterator[Supervision]:
        """As in a process of the server: the first that is open leads."""
        collector = InstanceMetricsCollector(self.registry if not others else CollectorRegistry())
        with collector:
            async with Supervision(
                lambda: locked(self.folder / "leader.lock"),
                self.provider,
                self.store,
                self.samples,
                self.refresher,
                Sampler(self.provider, self.admins),
                self.meter,
                BackupCatalog(self.peers),
                collector,
                self.changes,
                self.signals,
                machine="here",
                interval=timedelta(seconds=interval),
                others=others,
            ) as supervision:
                yield supervision

    async def insert(self, spec: InstanceSpec, secrets: Secrets, status: Status) -> Instance:
        """The record of an instance that its provider has made."""
        record = Instance(spec=spec, version=spec.version, state=InstanceState.READY, status=status)
        return await self.store.insert(record, secrets)

    async def happened(self, name: str) -> list[Event]:
        """Its events, oldest first."""
        return list(reversed(await self.event_store.list_events(name, PageRequest(1000, None), [])))

    async def kinds(self, name: str) -> list[str]:
        """Their kinds."""
        return [event.kind.value for event in await self.happened(name)]

    def watch(self, name: str, *, seconds: float | None = None) -> AsyncIterator[WatchInstanceResponse]:
        """The stream of the RPC."""
        request = WatchInstanceRequest(name=name)
        if seconds is not None:
            request.interval.FromTimedelta(timedelta(seconds=seconds))
        return aiter(self.stub.WatchInstance(request))


@asynccontextmanager
async def open_room(
    dsn: str, folder: Path, provider: Provider, admins: Mapping[Engine, EngineAdmin], *, backups: Peer | None = None
) -> AsyncIterator[Room]:
    """Over an empty database. backups: a service Backups."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(migrated(dsn, [MIGRATIONS]))
        signals = await stack.enter_async_context(Signals(dsn))
        remote = {"backups": backups} if backups is not None else {}
        peers = await stack.enter_async_context(Peers(Peer("nowhere", ""), served=[], remote=remote))
        changes = signals.topic("instances")
        box = SecretBox.from_key_file(folder / "secrets.key", create=True)
        store = PostgresInstanceStore(database, box, changes)
        event_store = PostgresEventStore(database, changes)
        events = Events(store, event_store, PostgresWebhookOutbox(database, box))
        samples, usage = PostgresSampleStore(database, changes), PostgresUsageStore(database)
        watcher = InstanceWatcher(store, event_store, samples, changes, signals)
        clock = Clock()

        class Watching(instances_pb2_grpc.InstancesServicer):
            async def WatchInstance(  # noqa: N802
                self, request: WatchInstanceRequest, context: Any
            ) -> AsyncIterator[WatchInstanceResponse]:
                async for update in watcher.watch(request):
                    yield update

        servicer = Watching()  # type: ignore[abstract]
        served = await stack.enter_async_context(
            serving(
                [registration(instances_pb2_grpc.add_InstancesServicer_to_server, servicer)],
                standard(Chain(Anonymous())),
            )
        )
        channel = await stack.enter_async_context(served.channel())
        yield Room(
            folder=folder,
            provider=provider,
            admins=admins,
            database=database,
            signals=signals,
            changes=changes,
            store=store,
            event_store=event_store,
            events=events,
            samples=samples,
            usage=usage,
            refresher=Refresher(provider, store, event_store, events, database, clock=clock.seconds),
            meter=Meter(usage, database, RATES, now=clock),
            clock=clock,
            peers=peers,
            watcher=watcher,
            stub=instances_pb2_grpc.InstancesStub(channel),
        )
