"""Log records put into the database as the write path does it, and the reading side over a real channel, for tests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from opsplane.logingest.v1 import logingest_pb2_grpc
from opsplane_server.logingest.queries import StoredRecord
from opsplane_server.logingest.search import Searcher
from opsplane_server.logingest.servicer import LogIngestServicer
from opsplane_server.logingest.stores.postgres import (
    PostgresGroupReader,
    PostgresPartitions,
    PostgresRecordSearch,
    PostgresRollups,
)
from opsplane_server.logingest.tail import LogTail
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.storage.database import Database
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.signals import Signals

from tests.rpc_harness import registration, serving

MIGRATIONS = Migrations("logingest", "opsplane_server.logingest")
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)

_FIELDS = [name for name in StoredRecord._fields if name != "id"]
_GROUP = """INSERT INTO logingest.groups
    (id, received_at, record_count, first_time, last_time, minutes, services, levels, counts)
    VALUES ($1, now(), $2, $3, $4, $5, $6, $7, $8)"""


def record(message: str = "hello", **fields: Any) -> dict[str, Any]:
    """A record as `store` takes it; metadata may be an object."""
    values: dict[str, Any] = dict.fromkeys(_FIELDS) | {
        "received_at": NOON,
        "timestamp": NOON,
        "level": 3,
        "service": "orders",
        "message": message,
    }
    values.update(fields)
    if values["metadata"] is not None and not isinstance(values["metadata"], str):
        values["metadata"] = json.dumps(values["metadata"])
    return values


async def store(connection: asyncpg.Connection[Any] | Any, records: Sequence[Mapping[str, Any]]) -> int:
    """Stores a group in the transaction that is open, else in one of its own; returns its id."""
    async with connection.transaction():
        group: int = await connection.fetchval("SELECT nextval('logingest.group_ids')")
        counts = Counter((int(r["timestamp"].timestamp() // 60), r["service"], r["level"]) for r in records)
        times = [r["timestamp"] for r in records]
        keys = list(counts)
        await connection.execute(
            _GROUP, group, len(records), min(times), max(times),
            [key[0] for key in keys], [key[1] for key in keys], [key[2] for key in keys], list(counts.values()),
        )  # fmt: skip
        await connection.copy_records_to_table(
            "records",
            schema_name="logingest",
            columns=("id", *_FIELDS),
            records=[(group + place, *(r[name] for name in _FIELDS)) for place, r in enumerate(records)],
        )
    return group


@dataclass(frozen=True, slots=True)
class Reading:
    """One process that reads, and its parts."""

    dsn: str
    stub: logingest_pb2_grpc.LogIngestStub
    database: Database
    signals: Signals
    partitions: PostgresPartitions
    search: PostgresRecordSearch
    rollups: PostgresRollups
    groups: PostgresGroupReader
    tail: LogTail

    async def store(self, *records: Mapping[str, Any]) -> int:
        """Stores a group, with the partitions that it needs, and tells followers."""
        await self.partitions.ensure_days({r["timestamp"].astimezone(UTC).date() for r in records})
        async with self.database.connection() as connection:
            group = await store(connection, records)
        self.signals.topic("logingest_groups").notify()
        return group

    async def value(self, statement: str, *args: object) -> Any:
        """The first value of a statement."""
        async with self.database.connection() as connection:
            return await connection.fetchval(statement, *args)


@asynccontextmanager
async def reading(
    dsn: str, *, budget: timedelta = timedelta(seconds=30), max_followers: int = 32, interval: float = 15.0
) -> AsyncIterator[Reading]:
    """A process that reads a database, which is migrated before."""
    await migrate(dsn, [MIGRATIONS])
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(dsn))
        signals = await stack.enter_async_context(Signals(dsn))
        groups = PostgresGroupReader(database)
        search, rollups = PostgresRecordSearch(database), PostgresRollups(database, size_seconds=0)
        tail = await stack.enter_async_context(
            LogTail(
                groups,
                signals.topic("logingest_groups"),
                max_followers=max_followers,
                interval=timedelta(seconds=interval),
            )
        )
        servicer = LogIngestServicer(Searcher(search, budget=budget), tail, rollups)  # type: ignore[abstract]
        served = await stack.enter_async_context(
            serving([registration(logingest_pb2_grpc.add_LogIngestServicer_to_server, servicer)], standard(Anonymous()))
        )
        channel = await stack.enter_async_context(served.channel())
        yield Reading(
            dsn=dsn,
            stub=logingest_pb2_grpc.LogIngestStub(channel),
            database=database,
            signals=signals,
            partitions=PostgresPartitions(database),
            search=search,
            rollups=rollups,
            groups=groups,
            tail=tail,
        )
