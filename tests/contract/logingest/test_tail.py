"""TailLogs over a real database: the table in the order of its commits, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import pytest
from opsplane.logingest.v1 import logingest_pb2, queries_pb2, records_pb2
from opsplane_server.logingest import tail as tail_module
from opsplane_server.logingest.stores.postgres import PostgresPruning

from tests import logingest_reading
from tests.logingest_reading import NOON, Reading, reading, record
from tests.rpc_harness import require_status
from tests.waiting import until

Call = grpc.aio.UnaryStreamCall[logingest_pb2.TailLogsRequest, logingest_pb2.TailLogsResponse]


@pytest.fixture
async def reader(dsn: str) -> AsyncIterator[Reading]:
    async with reading(dsn) as opened:
        yield opened


async def following(reader: Reading, query: queries_pb2.LogQuery | None = None, **fields: Any) -> Call:
    """A follower that is at work: what is stored from here on reaches it."""
    call = reader.stub.TailLogs(logingest_pb2.TailLogsRequest(query=query, **fields))
    count = len(reader.tail._buffers)
    await until(lambda: len(reader.tail._buffers) > count and all(b.cursor.xid for b in reader.tail._buffers))
    return call


async def next_message(call: Call) -> logingest_pb2.TailLogsResponse:
    """The next message, which there must be."""
    message = await call.read()
    assert isinstance(message, logingest_pb2.TailLogsResponse)
    return message


async def take(call: Call, count: int) -> list[logingest_pb2.TailLogsResponse]:
    """Messages until they have `count` records."""
    messages: list[logingest_pb2.TailLogsResponse] = []
    async with asyncio.timeout(60):
        while sum(len(message.entries) for message in messages) < count:
            messages.append(await next_message(call))
    return messages


def texts(messages: list[logingest_pb2.TailLogsResponse]) -> list[str]:
    return [entry.record.message for message in messages for entry in message.entries]


async def test_delivers_what_is_stored_from_now_on(reader: Reading) -> None:
    await reader.store(record("before"))
    call = await following(reader)
    await reader.store(record("a"), record("b", timestamp=NOON - timedelta(days=1)))
    await reader.store(record("c"))
    assert texts(await take(call, 3)) == ["a", "b", "c"]


async def test_delivers_only_what_matches(reader: Reading) -> None:
    call = await following(reader, queries_pb2.LogQuery(min_level=records_pb2.LEVEL_ERROR, text="no*"))
    await reader.store(record("no", level=3), record("yes", level=5))
    await reader.store(record("nothing", level=5), record("now", level=6))
    assert texts(await take(call, 2)) == ["nothing", "now"]


async def test_begins_with_the_newest_that_match(reader: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_READ_RECORDS", 5)
    monkeypatch.setattr(tail_module, "_BACKLOG_GROUPS", 2)
    for group in range(7):
        await reader.store(*(record(f"{group}.{place}", level=3 + place % 2) for place in range(4)))
    call = await following(reader, queries_pb2.LogQuery(levels=[records_pb2.LEVEL_WARN]), backlog=5)
    assert texts(await take(call, 5)) == ["4.3", "5.1", "5.3", "6.1", "6.3"]
    await reader.store(record("new", level=4))
    assert texts(await take(call, 1)) == ["new"]
    call = await following(reader, queries_pb2.LogQuery(services=["other"]), backlog=1000)
    await reader.store(record("first", service="other"))
    assert texts(await take(call, 1)) == ["first"]


async def test_goes_on_after_a_cursor(reader: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_CHUNK_RECORDS", 3)  # several messages a group
    call = await following(reader)
    for group in range(5):
        await reader.store(*(record(f"{group}.{place}") for place in range(10)))
    messages = await take(call, 50)
    whole = texts(messages)
    assert whole == [f"{group}.{place}" for group in range(5) for place in range(10)]
    for index, message in enumerate(messages):
        rest = texts(messages[index + 1 :])
        again = reader.stub.TailLogs(logingest_pb2.TailLogsRequest(cursor=message.cursor))
        assert texts(await take(again, len(rest))) == rest


async def write_groups(dsn: str, writer: int, chance: random.Random, groups: int) -> list[tuple[int, list[str]]]:
    """Stores groups whose commits come late and out of order; returns xid and messages of those committed."""
    stored = []
    connection = await asyncpg.connect(dsn)
    try:
        for number in range(groups):
            transaction = connection.transaction()
            await transaction.start()
            messages = [f"{writer}.{number}.{place}" for place in range(chance.randint(1, 30))]
            moment = NOON - timedelta(seconds=chance.randint(0, 100_000))
            await logingest_reading.store(connection, [record(text, timestamp=moment) for text in messages])
            await asyncio.sleep(chance.random() * 0.05)
            if chance.random() < 0.1:
                await transaction.rollback()
                continue
            xid = await connection.fetchval("SELECT pg_current_xact_id()")
            await transaction.commit()
            stored.append((xid, messages))
    finally:
        await connection.close()
    return stored


async def test_many_writers_are_followed_without_gap_or_double(reader: Reading) -> None:
    await reader.partitions.ensure_days({(NOON - timedelta(days=back)).date() for back in range(3)})
    calls = [await following(reader) for _ in range(3)]
    # Held open while others commit, so that all have to wait for it.
    late = await asyncpg.connect(reader.dsn)
    transaction = late.transaction()
    await transaction.start()
    await logingest_reading.store(late, [record("late")])
    late_xid = await late.fetchval("SELECT pg_current_xact_id()")
    chances = [random.Random(seed) for seed in range(8)]  # noqa: S311
    writers = [asyncio.create_task(write_groups(reader.dsn, n, chance, 25)) for n, chance in enumerate(chances)]
    await asyncio.wait(writers[:1])
    await transaction.commit()
    await late.close()
    stored = [group for groups in await asyncio.gather(*writers) for group in groups] + [(late_xid, ["late"])]
    expected = [text for _, messages in sorted(stored) for text in messages]
    assert len(expected) == await reader.value("SELECT count(*) FROM logingest.records")
    for call in calls:
        assert texts(await take(call, len(expected))) == expected
    backlog = await following(reader, backlog=100)
    assert texts(await take(backlog, 100)) == expected[-100:]


async def test_says_that_it_lives_and_where_to_go_on(dsn: str) -> None:
    async with reading(dsn, interval=0.05) as reader:
        call = await following(reader, queries_pb2.LogQuery(services=["other"]))
        first = await next_message(call)
        await reader.store(record("unasked"))

        async def passed() -> bool:
            message = await next_message(call)
            assert not message.entries
            return message.cursor != first.cursor

        await until(passed)


async def test_a_caller_who_does_not_read_is_told_what_it_missed(
    reader: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "_BUFFER_BYTES", 1 << 20)
    call = await following(reader)
    text = "x" * 100_000
    total = 0

    async def more() -> bool:
        nonlocal total
        await reader.store(*(record(f"{total + place} {text}") for place in range(20)))
        total += 20
        [buffer] = reader.tail._buffers
        assert buffer._bytes < 3 << 20
        return buffer._dropped > 100

    await until(more)  # gRPC's own buffers and ours are full, and nothing is read
    received: list[int] = []
    dropped = 0
    while len(received) + dropped < total:
        message = await next_message(call)
        dropped += message.dropped_count
        numbers = [int(entry.record.message.split()[0]) for entry in message.entries]
        if numbers:
            assert numbers[0] == len(received) + dropped, "what was left out stood just before"
        received += numbers
    assert dropped > 100


async def test_a_caller_who_resumes_is_waited_for(reader: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_CHUNK_RECORDS", 5)
    monkeypatch.setattr(tail_module, "_BUFFER_RECORDS", 10)
    start = (await reader.groups.now()).encode()
    for group in range(30):
        await reader.store(*(record(f"{group}.{place}") for place in range(10)))
    call = await following(reader, cursor=start)
    messages = await take(call, 300)
    assert [message.dropped_count for message in messages] == [0] * 60


async def test_a_cursor_whose_records_are_forgotten_is_out_of_range(reader: Reading) -> None:
    call = await following(reader)
    for name in ("a", "b", "c"):
        await reader.store(record(name))
    cursors = [message.cursor for message in await take(call, 3)]
    assert len(cursors) >= 1
    pruning = PostgresPruning(reader.database)
    assert await pruning.prune_groups(timedelta(0), 100) == 0, "what is not counted yet is kept"
    await reader.rollups.fold(2)
    assert await pruning.prune_groups(timedelta(hours=1), 100) == 0
    assert await pruning.prune_groups(timedelta(0), 100) == 2
    with require_status(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"):
        await reader.stub.TailLogs(logingest_pb2.TailLogsRequest(cursor="0-0")).read()
    await reader.store(record("d"))
    assert texts(await take(call, 1)) == ["d"]
    assert texts(await take(await following(reader, backlog=5), 2)) == ["c", "d"]


async def test_refuses_cursors_of_others_and_too_many_followers(dsn: str) -> None:
    async with reading(dsn, max_followers=1) as reader:
        for cursor in ("nonsense", "ffffffffff-1"):
            with require_status(grpc.StatusCode.INVALID_ARGUMENT):
                await reader.stub.TailLogs(logingest_pb2.TailLogsRequest(cursor=cursor)).read()
        first = await following(reader)
        with require_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_FOLLOWERS"):
            await reader.stub.TailLogs(logingest_pb2.TailLogsRequest()).read()
        first.cancel()
        await until(lambda: not reader.tail._buffers)
        await following(reader)


async def test_ends_when_the_process_shuts_down(reader: Reading) -> None:
    call = await following(reader)
    reader.tail.close()
    with require_status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
        await call.read()
    with require_status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
        await reader.stub.TailLogs(logingest_pb2.TailLogsRequest()).read()
