"""Backups: records and schedules in PostgreSQL, copies through the service Instances, archives through FtpTransfer."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

from opsplane.backups.v1.backups_pb2_grpc import add_BackupsServicer_to_server
from opsplane.backups.v1.requests_pb2_grpc import add_BackupRequestsServicer_to_server

from opsplane_server.backups.changing import UPDATE_KIND, BackupChanges
from opsplane_server.backups.clock import Clock
from opsplane_server.backups.deleting import DELETE_KIND, Deletions, Remover
from opsplane_server.backups.exporting import EXPORT_KIND, Exporter, Exports
from opsplane_server.backups.figures import BackupFigures
from opsplane_server.backups.making import CREATE_KIND, DISCARD_KIND, Maker, Requests
from opsplane_server.backups.metrics import BackupMetrics
from opsplane_server.backups.notices import Teller
from opsplane_server.backups.remote.instances import RemoteInstances
from opsplane_server.backups.remote.transfers import RemoteTransfers
from opsplane_server.backups.requests_servicer import SERVICE as REQUESTS_SERVICE
from opsplane_server.backups.requests_servicer import BackupRequestsServicer
from opsplane_server.backups.restoring import RESTORE_KIND, Restorer, Restores
from opsplane_server.backups.retaining import Retaining
from opsplane_server.backups.schedules import Schedules
from opsplane_server.backups.servicer import SERVICE, BackupsServicer
from opsplane_server.backups.settling import Settling
from opsplane_server.backups.standing import Standing
from opsplane_server.backups.stores.postgres import (
    PostgresBackupStore,
    PostgresLead,
    PostgresNoticeStore,
    PostgresScheduleStore,
)
from opsplane_server.backups.submitting import Submitting
from opsplane_server.backups.upkeep import Upkeep
from opsplane_server.backups.verifying import VERIFY_KIND, Verifications, Verifier
from opsplane_server.composition.foundation import Foundation, Service, run_executor
from opsplane_server.rpc.server import Registration

_OTHERS: Final = 20


async def build(foundation: Foundation, stack: AsyncExitStack, *, tick_seconds: float = 1.0) -> Service:
    """Builds the service; `tick_seconds` is how often it looks whether a schedule is due."""
    settings, database = foundation.settings.backups, foundation.database
    backups = PostgresBackupStore(database, foundation.secrets)
    schedules = PostgresScheduleStore(database, foundation.secrets)
    notices = PostgresNoticeStore(database, foundation.secrets)
    instances, transfers = RemoteInstances(foundation.peers), RemoteTransfers(foundation.peers)
    operations = foundation.operations
    figures = BackupFigures()
    stack.enter_context(BackupMetrics(figures))
    settling = Settling(backups, schedules, keep_failed=timedelta(days=settings.keep_failed_days))
    standing = Standing(schedules)
    requests = Requests(backups, operations)
    verifications = Verifications(backups, operations)
    deletions = Deletions(backups, operations)
    exports = Exports(backups, operations, transfers)
    changes = BackupChanges(backups, operations, settling)
    maker = Maker(backups, instances, operations, settling, standing, notices, verifications, figures)
    verifier = Verifier(backups, instances, settling, standing, notices, figures)
    remover = Remover(backups, instances, settling, notices)
    restorer = Restorer(backups, instances)
    exporter = Exporter(backups, instances, transfers, notices)
    workers = foundation.settings.server.workers
    # They wait for operations of Instances: among these in one executor they could take all its places, and wait for
    # ever. And the places are the bound on how many backups are made at once: the others stay QUEUED.
    await run_executor(
        foundation,
        stack,
        "backups-making",
        {CREATE_KIND: maker.handle},
        {CREATE_KIND: maker.failed},
        concurrency=max(1, settings.max_concurrent_backups // workers),
    )
    await run_executor(
        foundation,
        stack,
        "backups-verifying",
        {VERIFY_KIND: verifier.handle},
        {VERIFY_KIND: verifier.failed},
        concurrency=max(1, settings.max_concurrent_verifications // workers),
    )
    await run_executor(
        foundation,
        stack,
        "backups-others",
        {
            DISCARD_KIND: maker.discard,
            UPDATE_KIND: changes.handle,
            DELETE_KIND: remover.handle,
            RESTORE_KIND: restorer.handle,
            EXPORT_KIND: exporter.handle,
        },
        {DELETE_KIND: remover.failed, RESTORE_KIND: restorer.failed, EXPORT_KIND: exporter.failed},
        concurrency=_OTHERS,
    )
    retaining = Retaining(database, backups, instances, settling, deletions)
    clock = Clock(database, schedules, backups, instances, requests, standing, notices)
    await stack.enter_async_context(
        Upkeep(
            PostgresLead(database),
            clock,
            retaining,
            Teller(notices, instances),
            backups,
            schedules,
            figures,
            owner=foundation.owner,
            tick_seconds=tick_seconds,
        )
    )
    servicer = BackupsServicer(
        foundation.changes,
        Submitting(foundation.changes, database),
        instances,
        requests,
        changes,
        deletions,
        Restores(backups, instances, operations),
        verifications,
        exports,
        Schedules(schedules, backups, instances, settling),
        backup_store=backups,
        schedule_store=schedules,
    )
    internal = BackupRequestsServicer(foundation.changes, instances, requests)
    return Service(
        registrations=[
            Registration(SERVICE, lambda server: add_BackupsServicer_to_server(servicer, server)),
            Registration(REQUESTS_SERVICE, lambda server: add_BackupRequestsServicer_to_server(internal, server)),
        ]
    )
