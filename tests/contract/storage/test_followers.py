import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import asyncpg
import pytest
from opsplane_server.storage.database import Connection, Database
from opsplane_server.storage.followers import SETTLED, Follower, Position
from opsplane_server.storage.signals import Signal, Signals

from tests.waiting import until

LONG = 60.0
Rows = Sequence[tuple[Position, str]]


class Undone(Exception):
    pass


@dataclass
class Table:
    database: Database
    signal: Signal

    async def fetch(self, after: Position, limit: int) -> list[tuple[Position, str]]:
        query = f"""
            SELECT xid, id, text FROM followed
            WHERE (xid, id) > ($1, $2) AND {SETTLED} ORDER BY xid, id LIMIT $3
        """
        async with self.database.connection() as connection:
            rows = await connection.fetch(query, after.xid, after.id, limit)
        return [(Position(row["xid"], row["id"]), row["text"]) for row in rows]

    async def append(self, connection: Connection, *texts: str) -> None:
        await connection.executemany("INSERT INTO followed (text) VALUES ($1)", [(text,) for text in texts])

    async def write(self, *texts: str) -> None:
        async with self.database.transaction() as connection:
            await self.append(connection, *texts)
        self.signal.notify()

    async def all(self) -> list[tuple[Position, str]]:
        async with self.database.connection() as connection:
            rows = await connection.fetch("SELECT xid, id, text FROM followed ORDER BY xid, id")
        return [(Position(row["xid"], row["id"]), row["text"]) for row in rows]

    def follow(self, after: Position = Position.START, *, batch: int = 500) -> aclosing[AsyncGenerator[Rows, None]]:
        return aclosing(Follower(self.fetch, self.signal, batch=batch).follow(after))


@pytest.fixture
async def table(dsn: str) -> AsyncIterator[Table]:
    async with Database(dsn, max_size=24) as database, Signals(dsn) as signals:
        async with database.connection() as connection:
            await connection.execute(
                """
                CREATE TABLE followed (
                    id bigint GENERATED ALWAYS AS IDENTITY,
                    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
                    text text NOT NULL,
                    PRIMARY KEY (xid, id)
                )
                """
            )
        yield Table(database, signals.topic("followed"))


@asynccontextmanager
async def open_transaction(table: Table, dsn: str, *texts: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction of another process that has written and stays open within the block; then it commits."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.executemany("INSERT INTO followed (text) VALUES ($1)", [(text,) for text in texts])
            yield connection
    finally:
        await connection.close()


async def take(batches: AsyncIterator[Rows], count: int) -> list[tuple[Position, str]]:
    rows: list[tuple[Position, str]] = []
    async with asyncio.timeout(LONG):
        async for batch in batches:
            rows += batch
            if len(rows) >= count:
                break
    return rows


async def test_what_is_stored_comes_first_then_what_is_added(table: Table) -> None:
    await table.write("a", "b")
    async with table.follow() as batches:
        assert [text for _, text in await take(batches, 2)] == ["a", "b"]
        await table.write("c")
        assert [text for _, text in await take(batches, 1)] == ["c"]


async def test_a_late_commit_is_not_skipped(table: Table, dsn: str) -> None:
    async with table.follow() as batches:
        async with open_transaction(table, dsn, "early"):
            await table.write("late")
            assert await table.fetch(Position.START, 10) == [], "a row was read that another could still precede"
        rows = await take(batches, 2)
    assert [text for _, text in rows] == ["early", "late"]
    assert rows == await table.all()


async def test_an_undone_transaction_holds_nothing_back(table: Table, dsn: str) -> None:
    async with table.follow() as batches:
        with pytest.raises(Undone):  # noqa: PT012
            async with open_transaction(table, dsn, "undone"):
                await table.write("kept")
                raise Undone
        assert [text for _, text in await take(batches, 1)] == ["kept"]


async def test_readers_that_stay_open_hold_nothing_back(table: Table, dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.fetch("SELECT * FROM followed")
            await table.write("a")
            assert [text for _, text in await table.fetch(Position.START, 10)] == ["a"]
    finally:
        await connection.close()


async def test_rows_of_savepoints_keep_their_place(table: Table, dsn: str) -> None:
    async with open_transaction(table, dsn, "one") as connection:
        async with connection.transaction():
            await connection.execute("INSERT INTO followed (text) VALUES ('two')")
        await table.write("three")
        assert await table.fetch(Position.START, 10) == []
    assert [text for _, text in await table.fetch(Position.START, 10)] == ["one", "two", "three"]


async def test_batches_cut_transactions_anywhere(table: Table) -> None:
    await table.write(*(str(number) for number in range(10)))
    async with table.follow(batch=3) as batches:
        sizes = [len(batch) async for batch in limited(batches, 4)]
    assert sizes == [3, 3, 3, 1]


async def limited(batches: AsyncIterator[Rows], count: int) -> AsyncIterator[Rows]:
    for _ in range(count):
        yield await anext(batches)


async def test_each_row_once_and_in_order_under_concurrent_writers(table: Table, dsn: str) -> None:
    """Twenty writers commit and roll back in random order while a transaction stays open for half of the time.

    One follower reads through; another one is started anew after every batch, from the encoded position.
    """
    writers, turns = 20, 15

    async def write(writer: int) -> None:
        dice = random.Random(writer)  # noqa: S311
        for turn in range(turns):
            rollback = dice.random() < 0.2
            transaction_end = dice.choice([0, 0, 0.001, 0.005, 0.03])
            try:
                async with table.database.transaction() as connection:
                    await table.append(connection, *(f"{writer}.{turn}.{n}" for n in range(dice.randint(1, 4))))
                    await asyncio.sleep(transaction_end)
                    if dice.random() < 0.5:
                        await table.append(connection, f"{writer}.{turn}.last")
                    if rollback:
                        raise Undone
            except Undone:
                continue
            table.signal.notify()

    through: list[tuple[Position, str]] = []
    restarted: list[tuple[Position, str]] = []
    half_written = asyncio.Event()

    async def follow_through() -> None:
        async with table.follow(batch=7) as batches:
            async for batch in batches:
                through.extend(batch)

    async def follow_restarted() -> None:
        position = Position.START.encode()
        while True:
            async with table.follow(Position.decode(position), batch=5) as batches:
                restarted.extend(await anext(batches))
            position = restarted[-1][0].encode()

    async def hold() -> None:
        async with open_transaction(table, dsn, "held") as connection:
            held_by = await connection.fetchval("SELECT pg_current_xact_id()")
            half_written.set()
            await until(half_done)
            assert all(position.xid < held_by for position, _ in through + restarted)

    async def half_done() -> bool:
        async with table.database.connection() as connection:
            count = await connection.fetchval("SELECT count(DISTINCT xid) FROM followed")
        return int(count) >= writers * turns / 2

    async with asyncio.TaskGroup() as group:
        followers = [group.create_task(follow_through()), group.create_task(follow_restarted())]
        async with asyncio.TaskGroup() as writing:
            writing.create_task(hold())
            await half_written.wait()
            for writer in range(writers):
                writing.create_task(write(writer))
        expected = await table.all()
        await until(lambda: len(through) >= len(expected) and len(restarted) >= len(expected))
        for follower in followers:
            follower.cancel()

    assert len(expected) > writers * turns
    assert [position.id for position, _ in expected] != sorted(position.id for position, _ in expected), (
        "no commit was late, so this run has proven nothing"
    )
    assert through == expected
    assert restarted == expected
