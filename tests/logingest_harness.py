"""LogIngest's write path over a real database and a real channel, wired as the server wires it, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from opsplane.logingest.v1 import logingest_pb2, logingest_pb2_grpc, records_pb2
from opsplane_server.logingest.acceptance import Acceptance
from opsplane_server.logingest.ingest import Ingest
from opsplane_server.logingest.quotas import Quotas
from opsplane_server.logingest.stores.postgres.partitions import PostgresPartitions
from opsplane_server.logingest.stores.postgres.writing import PostgresRecordWriters
from opsplane_server.logingest.streams import SERVICE, LogStreams
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.database import Database
from opsplane_server.storage.migrations import Migrations
from opsplane_server.storage.signals import Signals

from tests.postgres_fixtures import migrated
from tests.rpc_harness import serving

MIGRATIONS = Migrations("logingest", "opsplane_server.logingest")
ACCEPTANCE = Acceptance(retention=timedelta(days=30), future=timedelta(minutes=5))


@dataclass(frozen=True, slots=True)
class LogIngest:
    """stub: of typed messages. raw: the call of StreamLogs for messages as bytes."""

    channel: grpc.aio.Channel
    stub: logingest_pb2_grpc.LogIngestStub
    database: Database
    ingest: Ingest
    streams: LogStreams

    async def stream(
        self, messages: Sequence[bytes | logingest_pb2.StreamLogsRequest]
    ) -> Sequence[records_pb2.BatchResult]:
        """Sends all messages and returns the answers."""
        open_stream: grpc.aio.StreamStreamMultiCallable[bytes, logingest_pb2.StreamLogsResponse]
        open_stream = self.channel.stream_stream(
            f"/{SERVICE}/StreamLogs",
            request_serializer=None,
            response_deserializer=logingest_pb2.StreamLogsResponse.FromString,
        )

        async def requests() -> AsyncIterator[bytes]:
            for message in messages:
                yield message if isinstance(message, bytes) else message.SerializeToString()

        return [response.result async for response in open_stream(requests())]

    async def rows(self) -> list[asyncpg.Record]:
        """Everything that is stored, in the order of its identities."""
        async with self.database.connection() as connection:
            return await connection.fetch("SELECT * FROM logingest.records ORDER BY id")

    async def messages(self) -> list[str]:
        """The messages of all stored records, sorted."""
        return sorted(row["message"] for row in await self.rows())


@pytest.fixture
async def logs(dsn: str) -> AsyncIterator[LogIngest]:
    """A server of LogIngest's writing RPCs."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(migrated(dsn, [MIGRATIONS]))
        signals = await stack.enter_async_context(Signals(dsn))
        writers = PostgresRecordWriters(dsn, PostgresPartitions(database), connections=2)
        await stack.enter_async_context(writers)
        ingest = await stack.enter_async_context(Ingest(writers, ACCEPTANCE, signals.topic("logingest_groups")))
        streams = LogStreams(ingest, Quotas())
        served = await stack.enter_async_context(
            serving([Registration(SERVICE, lambda server: _add(server, streams))], standard(Anonymous()))
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.address))
        yield LogIngest(channel, logingest_pb2_grpc.LogIngestStub(channel), database, ingest, streams)


def batch(batch_id: str, *messages: str, **fields: Any) -> records_pb2.LogBatch:
    """A batch of good records with these messages."""
    some = [
        records_pb2.LogRecord(level=records_pb2.LEVEL_INFO, service="api", message=message, **fields)
        for message in messages
    ]
    return records_pb2.LogBatch(batch_id=batch_id, records=some)


def request(sent: records_pb2.LogBatch, **settings: Any) -> logingest_pb2.StreamLogsRequest:
    """A message of a stream."""
    head = logingest_pb2.StreamSettings(**settings) if settings else None
    return logingest_pb2.StreamLogsRequest(settings=head, batch=sent)


def _add(server: grpc.aio.Server, streams: LogStreams) -> None:
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, streams.handlers())])
