"""Instances: PostgreSQL for what is kept, and the database servers of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import timedelta
from typing import Final

from opsplane.instances.v1 import usage_pb2
from opsplane.instances.v1.copies_pb2_grpc import add_InstanceCopiesServicer_to_server
from opsplane.instances.v1.instances_pb2_grpc import add_InstancesServicer_to_server

from opsplane_server.composition.foundation import Foundation, Service, run_executor
from opsplane_server.config_services import InstancesSettings
from opsplane_server.instances.backup_figures import BackupCatalog
from opsplane_server.instances.copies_servicer import SERVICE as COPIES_SERVICE
from opsplane_server.instances.copies_servicer import InstanceCopiesServicer
from opsplane_server.instances.databases import Databases, Engines
from opsplane_server.instances.engines.mysql import MysqlAdmin
from opsplane_server.instances.engines.postgres import PostgresAdmin
from opsplane_server.instances.events import Events
from opsplane_server.instances.expiry import Expiry
from opsplane_server.instances.instances import Instances, Providers
from opsplane_server.instances.metrics import InstanceMetricsCollector
from opsplane_server.instances.model import Engine, ProviderKind
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.operations.final_backups import FinalBackups
from opsplane_server.instances.operations.frame import Frame
from opsplane_server.instances.operations.handlers import build_failure_hooks, build_handlers
from opsplane_server.instances.ports import EngineAdmin, Provider
from opsplane_server.instances.providers.local.assembling import local_provider
from opsplane_server.instances.providers.local.layout import Layout
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.providers.local.machine import LocalSettings, Machine
from opsplane_server.instances.reading import Reading
from opsplane_server.instances.refreshing import Refresher
from opsplane_server.instances.sampling import Sampler
from opsplane_server.instances.servicer import SERVICE, InstancesServicer
from opsplane_server.instances.stores.postgres import (
    PostgresEventStore,
    PostgresInstanceStore,
    PostgresPendingPasswords,
    PostgresSampleStore,
    PostgresUsageStore,
    PostgresWebhookOutbox,
)
from opsplane_server.instances.submission import Submission
from opsplane_server.instances.supervision import Supervision
from opsplane_server.instances.usage import Meter, UsageRates
from opsplane_server.instances.watch import InstanceWatcher
from opsplane_server.instances.webhooks import WebhookPoster
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.accounts import create_folder

_COPIES: Final = 16
"""Copies, restores and checks that a process does at once; Backups bounds them further."""

# Changes of records, events and samples, for those who watch.
_CHANGES: Final = "instances"


async def build(foundation: Foundation, stack: AsyncExitStack) -> Service:
    """Builds the service."""
    settings, database, secrets = foundation.settings.instances, foundation.database, foundation.secrets
    signal = foundation.signals.topic(_CHANGES)
    store = PostgresInstanceStore(database, secrets, signal)
    pending = PostgresPendingPasswords(database, secrets)
    event_store = PostgresEventStore(database, signal)
    outbox = PostgresWebhookOutbox(database, secrets)
    samples, usage = PostgresSampleStore(database, signal), PostgresUsageStore(database)
    events = Events(store, event_store, outbox)
    layout = _layout(foundation)
    local = local_provider(Machine(layout, _local(settings), secrets))
    runners: Mapping[ProviderKind, Provider] = {ProviderKind.LOCAL: local}
    mysql = MysqlAdmin()
    admins: Mapping[Engine, EngineAdmin] = {
        Engine.POSTGRESQL: PostgresAdmin(),
        Engine.MYSQL: mysql,
        Engine.MARIADB: mysql,
    }
    providers = Providers(runners, default=ProviderKind.LOCAL, machine=foundation.node)
    engines = Engines(providers, admins)
    rates = UsageRates(
        cpu_core_hour_micros=settings.cpu_core_hour_micros,
        memory_gib_hour_micros=settings.memory_gib_hour_micros,
        storage_gib_hour_micros=settings.storage_gib_hour_micros,
        backup_gib_hour_micros=settings.backup_gib_hour_micros,
    )
    submission = Submission(foundation.changes, foundation.operations)
    instances = Instances(store, submission, providers, webhook_hosts=settings.webhook_hosts)
    watcher = InstanceWatcher(store, event_store, samples, signal, foundation.signals)
    servicer = InstancesServicer(
        foundation.changes,
        instances,
        Databases(store, pending, events, submission, engines),
        Reading(
            store,
            usage,
            providers,
            engines,
            rates=usage_pb2.UsageRates(**asdict(rates)),
            currency_code=settings.currency_code,
        ),
        watcher,
        store=store,
        events=event_store,
    )
    copies = InstanceCopiesServicer(
        foundation.changes,
        submission,
        instances,
        providers,
        events,
        store=store,
        webhook_hosts=settings.webhook_hosts,
    )
    frame = Frame(store, pending, events, runners, admins)
    create_folder(layout.instances)  # for the lock of the leader
    await stack.enter_async_context(
        Supervision(
            lambda: locked(layout.leader_lock),
            local,
            store,
            samples,
            Refresher(local, store, event_store, events, database),
            Sampler(local, admins),
            Meter(usage, database, rates),
            BackupCatalog(foundation.peers),
            stack.enter_context(InstanceMetricsCollector()),
            signal,
            foundation.signals,
            machine=foundation.node,
            interval=timedelta(seconds=settings.sample_interval_seconds),
            others=[
                WebhookPoster(outbox, allowed_hosts=settings.webhook_hosts).run,
                Expiry(store, database, foundation.operations, machine=foundation.node).run,
            ],
        )
    )
    handlers = build_handlers(frame, FinalBackups(foundation.peers), node=foundation.node, exports=layout.exports)
    hooks = build_failure_hooks(frame)
    # Deletions and upgrades wait for backups, which wait for these.
    await run_executor(
        foundation,
        stack,
        "copies",
        {kind: handlers[kind] for kind in kinds.HIDDEN},
        {kind: hooks[kind] for kind in kinds.HIDDEN & hooks.keys()},
        concurrency=_COPIES,
    )
    return Service(
        registrations=[
            Registration(SERVICE, lambda server: add_InstancesServicer_to_server(servicer, server)),
            Registration(COPIES_SERVICE, lambda server: add_InstanceCopiesServicer_to_server(copies, server)),
        ],
        handlers={kind: handler for kind, handler in handlers.items() if kind not in kinds.HIDDEN},
        failure_hooks={kind: hook for kind, hook in hooks.items() if kind not in kinds.HIDDEN},
        drain=watcher.drain,
    )


def _layout(foundation: Foundation) -> Layout:
    settings, usual = foundation.settings.instances, Layout.below(foundation.settings.data_dir)
    return Layout(
        instances=(settings.folder or usual.instances).absolute(),
        copies=(settings.copies_folder or usual.copies).absolute(),
        archive=(settings.archive_folder or usual.archive).absolute(),
        exports=(settings.export_folder or usual.exports).absolute(),
        binaries=usual.binaries,
    )


def _local(settings: InstancesSettings) -> LocalSettings:
    return LocalSettings(
        listen_host=settings.listen_host,
        advertised_host=settings.advertised_host or "",
        first_port=settings.first_port,
        last_port=settings.last_port,
        user=settings.user,
        start_timeout=settings.start_timeout_seconds,
        programs=settings.program_folders,
    )
