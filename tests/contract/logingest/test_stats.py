"""GetStats over a real database, and the counts that it reads: each group once, whatever dies."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from opsplane.logingest.v1 import logingest_pb2
from opsplane_server.errors import Aborted, Unavailable
from opsplane_server.logingest.rollups import pieces
from opsplane_server.logingest.stores.postgres import PostgresRollups

from tests import logingest_reading
from tests.logingest_reading import NOON, Reading, reading, record
from tests.waiting import until

Record = dict[str, Any]


@pytest.fixture
async def reader(dsn: str) -> AsyncIterator[Reading]:
    async with reading(dsn) as opened:
        yield opened


def timestamp(moment: datetime) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def random_records(chance: random.Random, count: int) -> list[Record]:
    return [
        record(
            service=f"service-{chance.randint(0, 9)}",
            level=chance.randint(1, 6),
            timestamp=NOON - timedelta(seconds=chance.randint(-7000, 4 * 86_400)),
        )
        for _ in range(count)
    ]


def figures(stats: logingest_pb2.GetStatsResponse) -> dict[tuple[str, int], int]:
    return {(s.service, level.level): level.count for s in stats.services for level in s.levels}


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_pieces_cover_each_minute_once(first: int, past: int) -> None:
    found = pieces(first, past)
    assert [m for piece in found for m in range(piece.first, piece.past)] == list(range(first, past))
    assert all(piece.first % piece.width == piece.past % piece.width == 0 for piece in found)
    assert sum((piece.past - piece.first) // piece.width for piece in found) <= 2 * 59 + 2 * 23 + 7


async def test_counts_what_is_stored(reader: Reading) -> None:
    chance = random.Random(5)  # noqa: S311
    records = random_records(chance, 500)
    for part in (records[:200], records[200:400], records[400:]):
        await reader.rollups.fold(10)
        await reader.store(*part)
    for _ in range(40):
        start = NOON - timedelta(seconds=chance.randint(-8000, 5 * 86_400))
        end = start + timedelta(seconds=chance.randint(1, 3 * 86_400))
        services = chance.choice([[], ["service-1", "service-2", "other"]])
        request = logingest_pb2.GetStatsRequest(
            services=services, start_time=timestamp(start), end_time=timestamp(end), max_services=1000
        )
        stats = await reader.stub.GetStats(request)
        first = start.replace(second=0)
        past = end if end.second == 0 else end.replace(second=0) + timedelta(minutes=1)
        asked = [r for r in records if not services or r["service"] in services]
        inside = [r for r in asked if first <= r["timestamp"] < past]
        assert figures(stats) == Counter((r["service"], r["level"]) for r in inside)
        assert stats.total_count == len(inside)
        assert {level.level: level.count for level in stats.levels} == Counter(r["level"] for r in inside)
        assert stats.service_count == len({r["service"] for r in inside})
        assert [s.count for s in stats.services] == sorted((s.count for s in stats.services), reverse=True)
        assert stats.oldest_time == timestamp(min(r["timestamp"] for r in asked).replace(second=0))
        assert stats.newest_time == timestamp(max(r["timestamp"] for r in asked).replace(second=0))


async def test_tells_of_all_without_being_asked_for_anything(reader: Reading) -> None:
    empty = await reader.stub.GetStats(logingest_pb2.GetStatsRequest())
    assert empty.total_count == 0
    assert not empty.HasField("oldest_time")
    now = datetime.now(UTC)
    await reader.store(
        *(record(timestamp=now - timedelta(hours=hours), service=f"s{hours}") for hours in (0, 1, 23, 25, 100))
    )
    stats = await reader.stub.GetStats(logingest_pb2.GetStatsRequest(max_services=2))
    assert stats.total_count == 5
    assert stats.last_24h_count == 3
    assert len(stats.services) == 2
    assert stats.service_count == 5
    assert stats.stored_bytes > 5 * 8192
    assert now - timedelta(minutes=1) < stats.as_of_time.ToDatetime(UTC) <= datetime.now(UTC)


async def test_folds_each_group_once_whoever_dies(reader: Reading) -> None:
    chance = random.Random(6)  # noqa: S311
    days = {(NOON - timedelta(days=back)).date() for back in range(-1, 6)}
    await reader.partitions.ensure_days(days)
    written: list[Record] = []
    done = asyncio.Event()

    async def write(seed: int) -> None:
        own = random.Random(seed)  # noqa: S311
        connection = await asyncpg.connect(reader.dsn)
        for _ in range(40):
            records = random_records(own, own.randint(1, 20))
            transaction = connection.transaction()
            await transaction.start()
            await logingest_reading.store(connection, records)
            await asyncio.sleep(own.random() * 0.02)
            await transaction.commit()
            written.extend(records)
        await connection.close()

    async def fold() -> None:
        while not done.is_set():
            try:
                await PostgresRollups(reader.database).fold(3)
            except (Unavailable, Aborted):
                continue
            except asyncpg.PostgresError as error:  # of a connection that was cut while it took up the next statement
                assert "terminat" in str(error)  # noqa: PT017

    async def kill() -> None:
        connection = await asyncpg.connect(reader.dsn, server_settings={"application_name": "killer"})
        while not done.is_set():
            await connection.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'opsplane'
                     AND query LIKE '%INSERT INTO logingest.rollups%' ORDER BY random() LIMIT 1"""
            )
            await asyncio.sleep(chance.random() * 0.05)
        await connection.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(fold())
        tasks.create_task(kill())
        await asyncio.gather(*(write(seed) for seed in range(4)))
        done.set()

    async def folded() -> bool:
        try:
            return await reader.rollups.fold(1000) == 0
        except Unavailable:
            return False

    await until(folded)
    for width in (1, 60, 1440):
        rows = await fetch(reader, "SELECT * FROM logingest.rollups WHERE width = $1", width)
        minutes = Counter(
            (int(r["timestamp"].timestamp()) // 60 // width * width, r["service"], r["level"]) for r in written
        )
        assert {(row["start"], row["service"], row["level"]): row["count"] for row in rows} == minutes


async def test_groups_that_may_be_preceded_are_not_folded_but_counted(reader: Reading) -> None:
    await reader.store(record())
    holder = await asyncpg.connect(reader.dsn)
    transaction = holder.transaction()
    await transaction.start()
    await logingest_reading.store(holder, [record()])
    await reader.store(record())
    assert await reader.rollups.fold(10) == 1
    assert (await reader.stub.GetStats(logingest_pb2.GetStatsRequest())).total_count == 2
    await transaction.commit()
    assert (await reader.stub.GetStats(logingest_pb2.GetStatsRequest())).total_count == 3
    assert await reader.rollups.fold(10) == 2
    assert (await reader.stub.GetStats(logingest_pb2.GetStatsRequest())).total_count == 3
    await holder.close()


async def fetch(reader: Reading, statement: str, *args: object) -> list[asyncpg.Record]:
    while True:
        try:
            async with reader.database.connection() as connection:
                return await connection.fetch(statement, *args)
        except Unavailable:
            continue
