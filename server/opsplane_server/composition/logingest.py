"""LogIngest: PostgreSQL for everything, over connections of its own for what is written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final

import grpc
from opsplane.logingest.v1 import logingest_pb2

from opsplane_server.composition.foundation import Foundation, Service
from opsplane_server.config_services import LogIngestSettings
from opsplane_server.logingest.acceptance import Acceptance
from opsplane_server.logingest.ingest import Ingest
from opsplane_server.logingest.otlp import LOGS_SERVICE, LogsCollector
from opsplane_server.logingest.quotas import Quotas
from opsplane_server.logingest.search import Searcher
from opsplane_server.logingest.servicer import LogIngestServicer
from opsplane_server.logingest.stores.postgres import (
    PostgresDays,
    PostgresGroupReader,
    PostgresIndexes,
    PostgresPartitions,
    PostgresPruning,
    PostgresRecordSearch,
    PostgresRecordWriters,
    PostgresRollups,
)
from opsplane_server.logingest.streams import SERVICE, LogStreams
from opsplane_server.logingest.tail import LogTail
from opsplane_server.logingest.upkeep import Upkeep
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.database import Database
from opsplane_server.storage.leadership import PostgresLeadership
from opsplane_server.storage.signals import Signal

# Connections by which each worker stores logs: one decodes while the other waits for PostgreSQL.
_LANES: Final = 2


async def build(foundation: Foundation, stack: AsyncExitStack) -> Service:
    """Builds the service."""
    settings, database = foundation.settings.logingest, foundation.database
    signal = foundation.signals.topic("logingest_groups")
    ingest = await _ingest(foundation, settings, signal, stack)
    await _upkeep(foundation, settings, signal, stack)
    quotas = Quotas(settings.quota_bytes_per_second, settings.quotas)
    streams = LogStreams(ingest, quotas)
    tail = await stack.enter_async_context(LogTail(PostgresGroupReader(database), signal))
    search = Searcher(PostgresRecordSearch(database))
    # LogStreams has the RPCs that write.
    servicer = LogIngestServicer(search, tail, PostgresRollups(database))  # type: ignore[abstract]
    collector = LogsCollector(ingest, quotas)

    def drain() -> None:
        streams.drain()
        tail.close()

    return Service(
        registrations=[
            _registration(SERVICE, {**streams.handlers(), **_reading(servicer)}),
            _registration(LOGS_SERVICE, collector.handlers()),
        ],
        drain=drain,
    )


async def _ingest(foundation: Foundation, settings: LogIngestSettings, signal: Signal, stack: AsyncExitStack) -> Ingest:
    partitions = PostgresPartitions(foundation.database)
    writers = await stack.enter_async_context(PostgresRecordWriters(foundation.dsn, partitions, connections=_LANES))
    acceptance = Acceptance(
        retention=timedelta(days=settings.retention_days), future=timedelta(seconds=settings.future_tolerance_seconds)
    )
    return await stack.enter_async_context(
        Ingest(writers, acceptance, signal, lanes=_LANES, pending_bytes=settings.pending_bytes)
    )


async def _upkeep(foundation: Foundation, settings: LogIngestSettings, signal: Signal, stack: AsyncExitStack) -> None:
    # Connections of its own: it holds one while it leads and another while it builds indexes.
    database = await stack.enter_async_context(Database(foundation.dsn, min_size=1, max_size=4))
    await stack.enter_async_context(
        Upkeep(
            PostgresLeadership(database, "logingest.upkeep"),
            PostgresRollups(database),
            PostgresDays(database, PostgresPartitions(database)),
            PostgresIndexes(database),
            PostgresPruning(database),
            signal,
            retention=timedelta(days=settings.retention_days),
            archive=settings.archive_folder,
            tail=timedelta(hours=settings.tail_hours),
            dedup=timedelta(days=settings.dedup_days),
        )
    )


def _reading(servicer: LogIngestServicer) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """The RPCs that read; the generated function would add those that write too, which take undecoded requests."""
    return {
        "SearchLogs": grpc.unary_unary_rpc_method_handler(
            servicer.SearchLogs,
            request_deserializer=logingest_pb2.SearchLogsRequest.FromString,
            response_serializer=logingest_pb2.SearchLogsResponse.SerializeToString,
        ),
        "TailLogs": grpc.unary_stream_rpc_method_handler(
            servicer.TailLogs,
            request_deserializer=logingest_pb2.TailLogsRequest.FromString,
            response_serializer=logingest_pb2.TailLogsResponse.SerializeToString,
        ),
        "GetStats": grpc.unary_unary_rpc_method_handler(
            servicer.GetStats,
            request_deserializer=logingest_pb2.GetStatsRequest.FromString,
            response_serializer=logingest_pb2.GetStatsResponse.SerializeToString,
        ),
    }


def _registration(service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> Registration:
    generic = grpc.method_handlers_generic_handler(service, dict(handlers))
    return Registration(service, lambda server: server.add_generic_rpc_handlers([generic]))
