"""FtpTransfer: transfers in PostgreSQL, sessions of our own, and Kafka where there is one."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from opsplane.ftptransfer.v1 import ftptransfer_pb2
from opsplane.ftptransfer.v1.ftptransfer_pb2_grpc import add_FtpTransferServicer_to_server

from opsplane_server.backups.exporting import STAGING
from opsplane_server.backups.remote.transfers import CONNECTION as BACKUP_EXPORTS
from opsplane_server.composition.foundation import Foundation, Service
from opsplane_server.config import Settings
from opsplane_server.config_services import FtpTransferSettings
from opsplane_server.errors import FailedPrecondition
from opsplane_server.ftptransfer.connections import ConnectionCatalog, Connections
from opsplane_server.ftptransfer.connections_file import ConnectionsFile, ConnectionsFileError
from opsplane_server.ftptransfer.engine import TransferEngine
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.files import Files
from opsplane_server.ftptransfer.metrics import TransferMetrics
from opsplane_server.ftptransfer.servicer import FtpTransferServicer, Limits
from opsplane_server.ftptransfer.sessions.pool import SessionPool
from opsplane_server.ftptransfer.stats import Heartbeat
from opsplane_server.ftptransfer.stores.postgres import (
    PostgresConnectionStore,
    PostgresFigureStore,
    PostgresInbox,
    PostgresOutbox,
    PostgresSweeps,
    PostgresTransferFollowing,
    PostgresTransferQueue,
    PostgresTransferStore,
    queue_database,
)
from opsplane_server.ftptransfer.transfers import Transfers
from opsplane_server.ftptransfer.upkeep import Upkeep
from opsplane_server.ftptransfer.watch import TransferWatcher
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.signals import Signal

SERVICE = ftptransfer_pb2.DESCRIPTOR.services_by_name["FtpTransfer"].full_name


async def build(foundation: Foundation, stack: AsyncExitStack) -> Service:
    """Builds the service."""
    settings, database = foundation.settings.ftptransfer, foundation.database
    work = foundation.signals.topic("ftptransfer_queue")
    changes = foundation.signals.topic("ftptransfer_changes")
    figures = TransferFigures()
    stack.enter_context(TransferMetrics(figures))
    try:
        file = await stack.enter_async_context(ConnectionsFile(settings.connections_file))
    except ConnectionsFileError as error:
        raise FailedPrecondition(str(error), reason="CONNECTIONS_FILE") from error
    connection_store = PostgresConnectionStore(database, foundation.secrets)
    store, figure_store = PostgresTransferStore(database), PostgresFigureStore(database)
    catalog = ConnectionCatalog(file, connection_store)
    transfers = Transfers(
        store,
        catalog,
        work=work,
        changes=changes,
        max_attempts=settings.max_attempts,
        queue_limit=settings.queue_limit,
    )
    sessions = await stack.enter_async_context(
        SessionPool(
            foundation.settings.data_dir / "ftp-slots",
            figures,
            max_sessions=settings.max_sessions_per_pod,
            max_sessions_per_connection=settings.max_sessions_per_connection,
            idle_timeout=settings.session_timeout_seconds,
            active_ports=(settings.active_first_port, settings.active_last_port),
        )
    )
    queue_connections = await stack.enter_async_context(queue_database(foundation.dsn))
    keep = timedelta(days=settings.keep_days)
    await stack.enter_async_context(Upkeep(PostgresSweeps(queue_connections), work=work, changes=changes, keep=keep))
    queue = PostgresTransferQueue(queue_connections, catalog, work=work, changes=changes)
    engine = TransferEngine(
        queue,
        sessions,
        work,
        figures,
        worker=foundation.owner,
        sessions_per_connection=settings.max_sessions_per_connection,
        drain_seconds=foundation.settings.server.shutdown_grace_seconds,
    )
    heartbeat = Heartbeat(figure_store, figures, sessions, worker=foundation.owner, draining=lambda: engine.draining)
    await stack.enter_async_context(heartbeat)
    if settings.kafka_bootstrap_servers:
        # Before the engine, to be left after it: what ends while it drains is published too.
        await _kafka(foundation, settings, transfers, figures, work, changes, stack)
    await stack.enter_async_context(engine)
    watcher = TransferWatcher(PostgresTransferFollowing(database), changes)
    servicer = FtpTransferServicer(
        foundation.changes,
        database,
        catalog,
        Connections(
            file,
            connection_store,
            store,
            folders=settings.local_folders,
            forbidden=[foundation.settings.data_dir, foundation.settings.key_file.parent],
            reserved={BACKUP_EXPORTS: _exports(foundation.settings) / STAGING},
        ),
        transfers,
        Files(catalog, sessions, max_upload_bytes=settings.max_upload_bytes),
        watcher,
        figures,
        transfer_store=store,
        figure_store=figure_store,
        limits=Limits(
            "kafka" if settings.kafka_bootstrap_servers else "postgres",
            settings.max_sessions_per_pod,
            settings.max_sessions_per_connection,
        ),
    )
    return Service(
        registrations=[Registration(SERVICE, lambda server: add_FtpTransferServicer_to_server(servicer, server))],
        drain=watcher.drain,
    )


def _exports(settings: Settings) -> Path:
    """Where the service Instances writes archives of backups."""
    return (settings.instances.export_folder or settings.data_dir / "exports").absolute()


async def _kafka(
    foundation: Foundation,
    settings: FtpTransferSettings,
    transfers: Transfers,
    figures: TransferFigures,
    work: Signal,
    changes: Signal,
    stack: AsyncExitStack,
) -> None:
    # Here, because the driver takes memory of every worker that reads from no Kafka.
    from opsplane_server.ftptransfer.queues.kafka.cluster import KafkaCluster, Topics, quieten_driver
    from opsplane_server.ftptransfer.queues.kafka.intake import KafkaIntake
    from opsplane_server.ftptransfer.queues.kafka.publisher import ResultPublisher

    password = settings.kafka_sasl_password
    cluster = KafkaCluster(
        settings.kafka_bootstrap_servers,
        security_protocol=settings.kafka_security_protocol,
        sasl_mechanism=settings.kafka_sasl_mechanism,
        sasl_username=settings.kafka_sasl_username,
        sasl_password="" if password is None else password.get_secret_value(),
        ssl_ca_file=settings.kafka_ssl_ca_file,
        ssl_cert_file=settings.kafka_ssl_cert_file,
        ssl_key_file=settings.kafka_ssl_key_file,
        ssl_check_hostname=settings.kafka_ssl_check_hostname,
    )
    quieten_driver()
    topics = Topics(
        tasks=settings.kafka_input_topic,
        results=settings.kafka_result_topic,
        failures=settings.kafka_fail_topic,
        group=settings.kafka_consumer_group,
    )
    inbox = PostgresInbox(foundation.database, transfers, work=work, changes=changes, worker=foundation.owner)
    outbox = PostgresOutbox(foundation.database)
    await stack.enter_async_context(ResultPublisher(cluster, topics, outbox, changes, figures, owner=foundation.owner))
    await stack.enter_async_context(
        KafkaIntake(cluster, topics, inbox, figures, most_pending=settings.kafka_most_pending)
    )
