# ruff: noqa: PT012 - what is tested is which error leaves a block of several statements

import asyncio
from pathlib import Path

import asyncpg
import psutil
import pytest
from opsplane_server.errors import Aborted, FailedPrecondition, Unavailable
from opsplane_server.storage.database import Connection, Database


@pytest.fixture
async def things(database: Database) -> Database:
    async with database.connection() as connection:
        await connection.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    return database


async def insert(database: Database, number: int) -> None:
    """As a store does it: in the transaction of its caller, if there is one."""
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO things VALUES ($1)", number)


async def stored(database: Database) -> list[int]:
    async with database.connection() as connection:
        return [row["id"] for row in await connection.fetch("SELECT id FROM things ORDER BY id")]


async def backend(connection: Connection) -> int:
    number: int = await connection.fetchval("SELECT pg_backend_pid()")
    return number


class Expected(Exception):
    pass


class TestTransactions:
    async def test_blocks_of_one_task_are_one_transaction(self, things: Database) -> None:
        async with things.transaction() as outer:
            await insert(things, 1)
            async with things.transaction() as inner, things.connection() as plain:
                assert await backend(outer) == await backend(inner) == await backend(plain)
                assert await plain.fetchval("SELECT count(*) FROM things") == 1
            # Seen from outside, nothing is there before the outermost block ends.
            assert await asyncio.create_task(stored(things)) == []
        assert await stored(things) == [1]

    async def test_an_error_undoes_all_of_it(self, things: Database) -> None:
        with pytest.raises(Expected):
            async with things.transaction():
                await insert(things, 1)
                raise Expected
        assert await stored(things) == []

    async def test_an_error_of_a_joined_block_can_not_be_committed_away(self, things: Database) -> None:
        with pytest.raises(RuntimeError, match="joined block"):
            async with things.transaction():
                await insert(things, 1)
                with pytest.raises(Expected):
                    async with things.transaction():
                        await insert(things, 2)
                        raise Expected
        assert await stored(things) == []

    async def test_a_swallowed_statement_error_is_no_success(self, things: Database) -> None:
        with pytest.raises(asyncpg.InFailedSQLTransactionError, match="nothing was committed"):
            async with things.transaction() as connection:
                await connection.execute("INSERT INTO things VALUES (1)")
                with pytest.raises(asyncpg.UniqueViolationError):
                    await connection.execute("INSERT INTO things VALUES (1)")
        assert await stored(things) == []

    async def test_a_savepoint_survives_the_error_of_a_statement(self, things: Database) -> None:
        async with things.transaction() as connection:
            await insert(things, 1)
            with pytest.raises(asyncpg.UniqueViolationError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO things VALUES (1)")
            await insert(things, 2)
        assert await stored(things) == [1, 2]

    async def test_child_tasks_never_join(self, things: Database) -> None:
        with pytest.raises(Expected):
            async with things.transaction():
                await insert(things, 1)
                async with asyncio.TaskGroup() as group:
                    for number in (2, 3):
                        group.create_task(insert(things, number))
                raise Expected
        assert await stored(things) == [2, 3]

    async def test_tasks_side_by_side_have_a_transaction_each(self, things: Database) -> None:
        inside = asyncio.Barrier(3)

        async def one(number: int) -> None:
            async with things.transaction():
                await insert(things, number)
                await inside.wait()
                if number == 1:
                    raise Expected

        results = await asyncio.gather(*(one(number) for number in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), Expected, type(None)]
        assert await stored(things) == [0, 2]

    async def test_a_cancelled_transaction_is_undone_and_its_connection_usable(self, dsn: str) -> None:
        async with Database(dsn, min_size=1, max_size=1) as database:
            async with database.connection() as connection:
                await connection.execute("CREATE TABLE things (id integer PRIMARY KEY)")
            inserted = asyncio.Event()

            async def hang() -> None:
                async with database.transaction() as connection:
                    await insert(database, 1)
                    inserted.set()
                    await connection.execute("SELECT pg_sleep(60)")

            task = asyncio.create_task(hang())
            await inserted.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await insert(database, 2)
            assert await stored(database) == [2]

    @pytest.mark.slow
    async def test_a_cancellation_that_the_server_does_not_hear_ends_in_bounded_time(self, dsn: str) -> None:
        """It comes before the statement that it is meant for, as on a busy machine, and is lost."""
        async with Database(dsn, min_size=1, max_size=1) as database:
            waiting = asyncio.Event()
            stopped: list[psutil.Process] = []

            async def hang() -> None:
                async with database.transaction() as connection:
                    await connection.execute("CREATE TABLE things (id integer PRIMARY KEY)")
                    stopped.append(psutil.Process(await backend(connection)))
                    stopped[0].suspend()
                    waiting.set()
                    await connection.execute("SELECT pg_sleep(1000)")

            task = asyncio.create_task(hang())
            await waiting.wait()
            task.cancel()
            await asyncio.wait([task], timeout=0.5)
            stopped[0].resume()
            async with asyncio.timeout(30):
                with pytest.raises(asyncio.CancelledError):
                    await task
                async with database.transaction() as connection:
                    await connection.execute("CREATE TABLE things (id integer PRIMARY KEY)")

    async def test_two_databases_in_one_task_do_not_mix(self, things: Database, dsn: str) -> None:
        async with Database(dsn) as other, things.transaction():
            await insert(things, 1)
            assert await stored(other) == []


class TestErrors:
    async def test_errors_of_statements_are_the_stores_to_catch(self, things: Database) -> None:
        await insert(things, 1)
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert(things, 1)
        with pytest.raises(asyncpg.UndefinedTableError):
            async with things.connection() as connection:
                await connection.fetch("SELECT * FROM nothing")
        with pytest.raises(asyncpg.InterfaceError, match="expects 1 argument"):
            async with things.connection() as connection:
                await connection.fetchval("SELECT $1::int")

    async def test_errors_of_the_callers_own_code_pass(self, things: Database) -> None:
        for error in (TimeoutError, ConnectionResetError, FileNotFoundError):
            with pytest.raises(error):
                async with things.transaction():
                    raise error

    async def test_a_killed_connection_is_unavailable_and_replaced(self, things: Database, dsn: str) -> None:
        with pytest.raises(Unavailable) as lost:
            async with things.transaction() as connection:
                await insert(things, 1)
                await kill(dsn, await backend(connection))
                await connection.fetchval("SELECT 1")
        assert lost.value.retry_after.total_seconds() > 0
        await insert(things, 2)
        assert await stored(things) == [2]

    async def test_a_cancellation_stays_one_when_the_connection_is_lost_too(self, things: Database, dsn: str) -> None:
        async def lose() -> None:
            async with things.transaction() as connection:
                await kill(dsn, await backend(connection))
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await lose()

    async def test_a_connection_killed_while_a_statement_runs(self, things: Database, dsn: str) -> None:
        for statement in ("execute", "fetch", "fetchrow", "fetchval"):
            with pytest.raises(Unavailable):
                async with things.connection() as connection, asyncio.TaskGroup() as group:
                    group.create_task(kill(dsn, await backend(connection)))
                    try:
                        await getattr(connection, statement)("SELECT pg_sleep(60)")
                    except Unavailable as error:
                        lost = error
                raise lost
        assert await stored(things) == []

    async def test_killed_idle_connections_do_not_stay_in_the_pool(self, dsn: str) -> None:
        async with Database(dsn, min_size=1, max_size=1) as database:
            async with database.connection() as connection:
                number = await backend(connection)
            await kill(dsn, number)
            async with asyncio.timeout(30):
                while True:
                    try:
                        async with database.connection() as connection:
                            assert await backend(connection) != number
                            return
                    except Unavailable:
                        continue

    async def test_a_statement_beyond_its_time_is_unavailable(self, dsn: str) -> None:
        async with Database(dsn, min_size=1, max_size=1, command_timeout=0.2) as database:
            with pytest.raises(Unavailable):
                async with database.transaction() as connection:
                    await connection.execute("SELECT pg_sleep(60)")
            async with database.connection() as connection:
                assert await connection.fetchval("SELECT 1") == 1

    async def test_the_callers_own_deadline_is_a_timeout(self, database: Database) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), database.connection() as connection:
                await connection.execute("SELECT pg_sleep(60)")

    async def test_a_deadlock_aborts_one_of_both(self, things: Database) -> None:
        await insert(things, 1)
        await insert(things, 2)
        both_locked = asyncio.Barrier(2)

        async def lock(first: int, second: int) -> None:
            async with things.transaction() as connection:
                await connection.execute("SELECT FROM things WHERE id = $1 FOR UPDATE", first)
                await both_locked.wait()
                await connection.execute("SELECT FROM things WHERE id = $1 FOR UPDATE", second)

        results = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Aborted", "NoneType"]

    async def test_a_serialization_failure_is_aborted(self, things: Database, dsn: str) -> None:
        await insert(things, 1)
        with pytest.raises(Aborted):
            async with things.connection() as connection, connection.transaction(isolation="repeatable_read"):
                await connection.fetch("SELECT * FROM things")
                await asyncio.create_task(delete_all(dsn))
                await connection.execute("DELETE FROM things")

    async def test_no_server_is_unavailable(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable):
            async with Database(f"postgresql://u@/d?host={tmp_path}"):
                pass

    async def test_a_server_that_refuses_us_is_a_matter_of_configuration(self, dsn: str) -> None:
        for wrong in (dsn.replace("opsplane:", "opsplane:x"), dsn.replace("/test_", "/no_"), "mysql://u@h/d"):
            with pytest.raises(FailedPrecondition) as refused:
                async with Database(wrong):
                    pass
            assert refused.value.reason == "DATABASE_REFUSED"

    async def test_a_closed_or_unopened_database_is_a_mistake_of_ours(self, dsn: str) -> None:
        with pytest.raises(RuntimeError, match="not open"):
            async with Database(dsn).connection():
                pass


async def kill(dsn: str, number: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SELECT pg_terminate_backend($1, 10000)", number)
    finally:
        await connection.close()


async def delete_all(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("DELETE FROM things")
    finally:
        await connection.close()
