"""PostgreSQL's `EngineAdmin` against real servers of the newest and the oldest version that is installed."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
import psycopg
import pytest
from opsplane_server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from opsplane_server.instances.engines.postgres import PostgresAdmin, quote_identifier, scram_verifier
from opsplane_server.instances.sql import NewDatabase, NewUser, Privilege, SlowQueryOrder, UserInfo

from tests.contract.instances.engine_servers import Server, running, versions

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

ADMIN = PostgresAdmin()
FIRST = "first-password"
REFUSED = asyncpg.InsufficientPrivilegeError


@pytest.fixture(scope="module", params=versions())
def fresh(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running(request.param) as server:
        yield server


@pytest.fixture
async def server(fresh: Server) -> AsyncIterator[Server]:
    """With a first user `app`, who owns the first database `app`, as a provider makes them; nobody else."""
    async with session(fresh) as admin:
        await admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{scram_verifier(FIRST)}'")
        await admin.execute("CREATE DATABASE app OWNER app")
        yield fresh
        for (name,) in await admin.fetch("SELECT datname FROM pg_database WHERE NOT datistemplate AND oid > 16383"):
            await admin.execute(f"DROP DATABASE {quote_identifier(name)} WITH (FORCE)")
        for (name,) in await admin.fetch("SELECT rolname FROM pg_roles WHERE oid > 16383"):
            await admin.execute(f"DROP OWNED BY {quote_identifier(name)}; DROP ROLE {quote_identifier(name)}")


@asynccontextmanager
async def session(server: Server, user: str = "", database: str = "postgres") -> AsyncIterator[Connection]:
    access = server.access
    connection = await asyncpg.connect(
        host=access.host, user=user or access.user, database=database, statement_cache_size=0
    )
    try:
        yield connection
    finally:
        await connection.close()


async def users(server: Server) -> dict[str, UserInfo]:
    return {user.name: user for user in await ADMIN.list_users(server.access)}


async def test_databases_come_and_go(server: Server) -> None:
    for name in ('odd " name', "Shop-EU", "umlaut_ä"):
        await ADMIN.create_database(server.access, NewDatabase(name, "app"))
    found = await ADMIN.list_databases(server.access)
    assert [database.name for database in found] == ["Shop-EU", "app", 'odd " name', "umlaut_ä"]
    assert {(database.owner, database.charset) for database in found} == {("app", "UTF8")}
    assert all(database.size_bytes > 1_000_000 for database in found)
    with pytest.raises(AlreadyExists):
        await ADMIN.create_database(server.access, NewDatabase("Shop-EU", "app"))
    with pytest.raises(NotFound, match="nobody"):
        await ADMIN.create_database(server.access, NewDatabase("x", "nobody"))
    await ADMIN.delete_database(server.access, 'odd " name', force=False)
    with pytest.raises(NotFound):
        await ADMIN.delete_database(server.access, 'odd " name', force=True)
    with pytest.raises(FailedPrecondition):
        await ADMIN.delete_database(server.access, "postgres", force=True)


async def test_a_database_in_use_goes_by_force_alone(server: Server) -> None:
    await ADMIN.create_database(server.access, NewDatabase("busy", "app"))
    async with session(server, "app", "busy") as connection:
        with pytest.raises(FailedPrecondition) as refused:
            await ADMIN.delete_database(server.access, "busy", force=False)
        assert refused.value.reason == "DATABASE_IN_USE"
        await ADMIN.delete_database(server.access, "busy", force=True)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.execute("SELECT 1")


async def test_charsets_and_collations(server: Server) -> None:
    await ADMIN.create_database(server.access, NewDatabase("latin", "app", "latin1", "C"))
    await ADMIN.create_database(server.access, NewDatabase("posix", "app", collation="POSIX"))
    found = {database.name: database for database in await ADMIN.list_databases(server.access)}
    assert (found["latin"].charset, found["latin"].collation) == ("LATIN1", "C")
    assert found["posix"].charset == "UTF8"
    assert found["posix"].collation in ("C", "POSIX")  # two names of one thing
    # What is listed can be asked for.
    await ADMIN.create_database(
        server.access, NewDatabase("again", "app", found["app"].charset, found["app"].collation)
    )
    if int(server.version.partition(".")[0]) >= 17:
        await ADMIN.create_database(server.access, NewDatabase("builtin", "app", collation="C.UTF-8"))
        listed = {database.name: database for database in await ADMIN.list_databases(server.access)}
        assert listed["builtin"].collation == "C.UTF-8"
    with pytest.raises(InvalidArgument, match="collation"):
        await ADMIN.create_database(server.access, NewDatabase("x", "app", collation="xx_XX.nothing"))
    with pytest.raises(InvalidArgument, match="charset"):
        await ADMIN.create_database(server.access, NewDatabase("x", "app", charset="klingon"))


@pytest.mark.parametrize(
    "password",
    ["secret-password", "pa'ss\\word\"$1", "pässwörd\u00a0ﬀ", "пароль-пароль", "x" * 128, "\u0627x-mixed-bidi"],
)
async def test_passwords_of_any_characters_open_the_server(server: Server, password: str) -> None:
    await ADMIN.create_user(server.access, NewUser("bob", password))
    # The socket trusts everybody: only what the server has kept tells whether the password fits.
    async with session(server) as admin:
        kept = await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'bob'")
        assert kept.startswith("SCRAM-SHA-256$4096:")
        assert password not in kept
        await admin.execute("CREATE ROLE twin PASSWORD " + psycopg.sql.Literal(password).as_string(None))
        twin = await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'twin'")
    salt = base64.b64decode(twin.split("$")[1].partition(":")[2])
    assert scram_verifier(password, salt=salt) == twin


async def test_what_a_reader_may(server: Server) -> None:
    await ADMIN.create_user(server.access, NewUser("reader", "reader-pw", Privilege.READ_ONLY))
    assert (await users(server))["reader"] == UserInfo("reader", Privilege.READ_ONLY)
    await ADMIN.create_database(server.access, NewDatabase("later", "app"))
    for database in ("app", "later"):
        async with session(server, "app", database) as owner:
            await owner.execute("CREATE SCHEMA s; CREATE TABLE s.t (id serial, a int); INSERT INTO s.t (a) VALUES (7)")
        async with session(server, "reader", database) as reader:
            assert await reader.fetchval("SELECT a FROM s.t") == 7
            for statement in ("INSERT INTO s.t (a) VALUES (1)", "CREATE TABLE x ()", "DROP TABLE s.t"):
                with pytest.raises(REFUSED):
                    await reader.execute(statement)


async def test_what_a_writer_may(server: Server) -> None:
    await ADMIN.create_user(server.access, NewUser("writer", "writer-pw", Privilege.READ_WRITE, max_connections=1))
    assert (await users(server))["writer"] == UserInfo("writer", Privilege.READ_WRITE, max_connections=1)
    async with session(server, "app", "app") as owner:
        await owner.execute("CREATE TABLE t (id serial, a int)")
        async with session(server, "writer", "app") as writer:
            await writer.execute("INSERT INTO t (a) VALUES (1); UPDATE t SET a = 2; DELETE FROM t")
            for statement in ("CREATE TABLE x ()", "DROP TABLE t", "ALTER TABLE t ADD b int"):
                with pytest.raises(REFUSED):
                    await writer.execute(statement)
            with pytest.raises(asyncpg.TooManyConnectionsError):
                async with session(server, "writer", "app"):
                    pass


@pytest.mark.parametrize("limited", [False, True])
async def test_what_an_owner_may(server: Server, limited: bool) -> None:
    await ADMIN.create_database(server.access, NewDatabase("other", "app"))
    databases = ("app",) if limited else ()
    await ADMIN.create_user(server.access, NewUser("migrator", "migrator-pw", Privilege.OWNER, databases))
    assert (await users(server))["migrator"] == UserInfo("migrator", Privilege.OWNER, databases)
    async with session(server, "app", "app") as owner:
        await owner.execute("CREATE TABLE t (a int)")
        async with session(server, "migrator", "app") as migrator:
            await migrator.execute("ALTER TABLE t ADD b int; CREATE TABLE mine (a int); CREATE SCHEMA private")
            await migrator.execute("CREATE TABLE private.t (a int)")
        await owner.execute("ALTER TABLE mine ADD b int; DROP TABLE private.t; DROP SCHEMA private")
    if limited:
        with pytest.raises(REFUSED):
            async with session(server, "migrator", "other"):
                pass
    else:
        async with session(server, "migrator", "other") as migrator:
            await migrator.execute("CREATE TABLE t (a int)")


async def test_an_owner_of_all_gets_later_databases_too(server: Server) -> None:
    await ADMIN.create_user(server.access, NewUser("bob", "bobs-password"))
    await ADMIN.create_user(server.access, NewUser("migrator", "migrator-pw", Privilege.OWNER))
    await ADMIN.create_database(server.access, NewDatabase("bobs", "bob"))
    async with session(server, "migrator", "bobs") as migrator:
        await migrator.execute("CREATE TABLE t (a int)")
    async with session(server, "bob", "bobs") as owner:
        await owner.execute("DROP TABLE t")
    # So does the first user, who was there before.
    async with session(server, "app", "bobs") as first:
        await first.execute("CREATE TABLE t (a int)")
    assert (await users(server))["app"] == UserInfo("app", Privilege.OWNER)


async def test_a_limited_user_reaches_its_databases_alone(server: Server) -> None:
    for name in ("one", "two"):
        await ADMIN.create_database(server.access, NewDatabase(name, "app"))
    await ADMIN.create_user(server.access, NewUser("bob", "bobs-password", Privilege.READ_ONLY, ("one",)))
    await ADMIN.create_database(server.access, NewDatabase("three", "app"))
    assert (await users(server))["bob"].databases == ("one",)
    async with session(server, "bob", "one") as connection:
        await connection.execute("SELECT 1")
    for name in ("two", "three", "app"):
        with pytest.raises(REFUSED):
            async with session(server, "bob", name):
                pass
    with pytest.raises(NotFound, match="nothing"):
        await ADMIN.create_user(server.access, NewUser("eve", "eves-password", databases=("nothing",)))
    assert "eve" not in await users(server)


async def test_an_update_replaces_the_rights_and_keeps_the_password(server: Server) -> None:
    await ADMIN.create_database(server.access, NewDatabase("other", "app"))
    await ADMIN.create_user(server.access, NewUser("bob", "bobs-password", Privilege.OWNER))
    async with session(server, "app", "app") as owner, session(server) as admin:
        await owner.execute("CREATE TABLE t (a int)")
        password = await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'bob'")
        wanted = NewUser("bob", "", Privilege.READ_ONLY, ("app",), max_connections=3)
        await ADMIN.update_user(server.access, wanted)
        assert (await users(server))["bob"] == UserInfo("bob", Privilege.READ_ONLY, ("app",), 3)
        assert await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'bob'") == password
    async with session(server, "bob", "app") as connection:
        assert await connection.fetchval("SELECT current_user") == "bob"
        for statement in ("INSERT INTO t VALUES (1)", "DROP TABLE t", "SET ROLE app"):
            with pytest.raises(REFUSED):
                await connection.execute(statement)
    with pytest.raises(REFUSED):
        async with session(server, "bob", "other"):
            pass
    await ADMIN.update_user(server.access, NewUser("bob", "another-one"))
    assert (await users(server))["bob"] == UserInfo("bob", Privilege.READ_WRITE)
    async with session(server) as admin:
        assert await admin.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'bob'") != password
    with pytest.raises(NotFound):
        await ADMIN.update_user(server.access, NewUser("nobody", ""))


async def test_who_owns_a_database_keeps_its_rights(server: Server) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await ADMIN.update_user(server.access, NewUser("app", "", Privilege.READ_ONLY))
    assert refused.value.reason == "USER_OWNS_DATABASE"
    await ADMIN.create_user(server.access, NewUser("bob", "bobs-password", Privilege.OWNER))
    await ADMIN.create_database(server.access, NewDatabase("bobs", "bob"))
    # app would act as bob, who acts as app.
    await ADMIN.create_user(server.access, NewUser("eve", "eves-password", Privilege.OWNER))
    async with session(server, "app", "bobs") as connection:
        assert await connection.fetchval("SELECT current_user") == "app"
    with pytest.raises(FailedPrecondition) as refused:
        await ADMIN.update_user(server.access, NewUser("app", "", Privilege.OWNER, ("app", "bobs")))
    assert refused.value.reason == "OWNERS_OF_EACH_OTHER"


async def test_names_are_data(server: Server) -> None:
    name = 'x"; DROP ROLE app; --'
    await ADMIN.create_user(server.access, NewUser(name, "pa'ssword", Privilege.OWNER))
    await ADMIN.create_database(server.access, NewDatabase(name, name))
    assert name in await users(server)
    await ADMIN.delete_user(server.access, name, "app")
    await ADMIN.delete_database(server.access, name, force=False)
    assert set(await users(server)) == {"app"}
    for reserved in ("opsplane_x", "pg_x", "postgres", "Public"):
        with pytest.raises(InvalidArgument):
            await ADMIN.create_user(server.access, NewUser(reserved, "password-x"))


async def test_what_a_deleted_user_owned_goes_to_its_heir(server: Server) -> None:
    await ADMIN.create_user(server.access, NewUser("bob", "bobs-password", Privilege.OWNER))
    await ADMIN.create_database(server.access, NewDatabase("bobs", "bob"))
    await ADMIN.create_user(server.access, NewUser("eve", "eves-password", Privilege.OWNER, ("bobs",)))
    async with session(server, "bob", "bobs") as connection:
        await connection.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        await ADMIN.delete_user(server.access, "bob", "app")
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.execute("SELECT 1")
    assert "bob" not in await users(server)
    found = {database.name: database.owner for database in await ADMIN.list_databases(server.access)}
    assert found["bobs"] == "app"
    for user in ("app", "eve"):
        async with session(server, user, "bobs") as connection:
            assert await connection.fetchval("SELECT current_user") == "app"
            await connection.execute("ALTER TABLE t ADD COLUMN IF NOT EXISTS b int")
    for user, heir in (("bob", "app"), ("eve", "bob"), ("opsplane_admin", "app"), ("opsplane_owners", "app")):
        with pytest.raises(NotFound):
            await ADMIN.delete_user(server.access, user, heir)
    with pytest.raises(FailedPrecondition) as refused:
        await ADMIN.delete_user(server.access, "app", "app")
    assert refused.value.reason == "FIRST_USER"
    with pytest.raises(AlreadyExists):
        await ADMIN.create_user(server.access, NewUser("eve", "eves-password"))


async def test_parameters(server: Server) -> None:
    parameters = {parameter.name: parameter for parameter in await ADMIN.list_parameters(server.access)}
    assert list(parameters) == sorted(parameters)
    buffers = parameters["shared_buffers"]
    assert (buffers.unit, buffers.requires_restart, buffers.pending_value) == ("8kB", True, "")
    assert buffers.description
    assert not parameters["work_mem"].requires_restart
    assert parameters["work_mem"].default
    assert not parameters["log_min_duration_statement"].default
    async with session(server) as admin:
        await admin.execute("ALTER SYSTEM SET max_connections = 123")
        await admin.execute("SELECT pg_reload_conf()")
        try:
            async with session(server) as other:
                await other.execute("SELECT pg_sleep(0)")
            changed = {parameter.name: parameter for parameter in await ADMIN.list_parameters(server.access)}
            assert changed["max_connections"].pending_value in ("123", "")
        finally:
            await admin.execute("ALTER SYSTEM RESET max_connections")
            await admin.execute("SELECT pg_reload_conf()")


async def test_samples_count_what_users_do(server: Server) -> None:
    before = await ADMIN.sample(server.access)
    assert before.max_connections == 100
    assert before.connections == 0
    assert (before.queries is not None) is server.statistics
    async with session(server, "app", "app") as one, session(server, "app", "app"):
        await one.execute("CREATE TABLE t AS SELECT generate_series(1, 10000) AS a")
        for _ in range(50):
            await one.execute("SELECT 1")
        during = await ADMIN.sample(server.access)
        assert (during.connections, during.active_connections) == (2, 0)
        assert during.database_size_bytes > before.database_size_bytes
    after = await ADMIN.sample(server.access)  # what a session counted is told at its end at the latest
    assert before.transactions is not None
    assert after.transactions is not None
    assert after.transactions - before.transactions >= 50
    assert after.buffer_hits is not None
    assert before.buffer_hits is not None
    assert after.buffer_hits > before.buffer_hits
    assert after.deadlocks == before.deadlocks
    if server.statistics:
        assert after.queries is not None
        assert before.queries is not None
        assert after.queries - before.queries >= 50


async def test_slow_queries(server: Server) -> None:
    since = datetime.now(UTC)
    async with session(server, "app", "app") as app:
        await app.execute("CREATE TABLE people (name text, age int)")
        for number in range(3):
            await app.execute(f"INSERT INTO people VALUES ('name-{number}', {number})")
        await app.fetch("SELECT name FROM people WHERE age = $1", 1)
        await app.execute("SELECT pg_sleep(0.05) /* slowest */")
    found = await ADMIN.slow_queries(server.access, server.log(), SlowQueryOrder.MAX_TIME, 1000)
    assert found.statistics is server.statistics
    assert found.since_time is not None
    assert found.threshold == timedelta()
    mine = {query.query: query for query in found.queries if query.database == "app" and query.user == "app"}
    assert found.queries[0].query == "SELECT pg_sleep(?)"
    assert found.queries[0].max_time >= timedelta(milliseconds=50)
    inserted = mine["INSERT INTO people VALUES (?, ...)"]
    assert inserted.calls == 3
    assert inserted.total_time >= inserted.max_time >= inserted.mean_time > timedelta()
    assert mine["SELECT name FROM people WHERE age = ?"].calls == 1
    if server.statistics:
        assert inserted.rows == 3
    else:
        assert inserted.last_time is not None
        assert inserted.last_time > since - timedelta(seconds=1)
    again = await ADMIN.slow_queries(server.access, server.log(), SlowQueryOrder.CALLS, 1)
    assert len(again.queries) == 1
    assert "opsplane_admin" not in {query.user for query in found.queries}


async def test_rows_are_counted(server: Server) -> None:
    await ADMIN.create_database(server.access, NewDatabase("Odd name", "app"))
    async with session(server, "app", "app") as app:
        await app.execute(
            """
            CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 1000); DELETE FROM t WHERE a > 990;
            CREATE TABLE parted (a int) PARTITION BY RANGE (a);
            CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
            INSERT INTO parted VALUES (1), (2);
            CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); INSERT INTO child VALUES (1);
            CREATE MATERIALIZED VIEW seen AS SELECT * FROM t LIMIT 5; CREATE VIEW v AS SELECT * FROM t;
            """
        )
    async with session(server, "app", "Odd name") as app:
        await app.execute('CREATE SCHEMA "S x"; CREATE TABLE "S x"."T.y" (a int)')
    assert await ADMIN.count_rows(server.access) == {
        "app.public.t": 990,
        "app.public.part_1": 2,
        "app.public.parent": 0,
        "app.public.child": 1,
        "app.public.seen": 5,
        "Odd name.S x.T.y": 0,
    }


async def test_the_catalog_is_looked_through(server: Server) -> None:
    async with session(server, "app", "app") as app:
        await app.execute("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)")
    found = await ADMIN.check_catalog(server.access, ["app"], ["app"])
    assert "1 databases, 1 users" in found
    assert ("indexes are in order" in found) is server.statistics  # contrib modules come together
    with pytest.raises(DataLoss, match="gone"):
        await ADMIN.check_catalog(server.access, ["app", "gone"], [])
    with pytest.raises(DataLoss, match="nobody"):
        await ADMIN.check_catalog(server.access, [], ["nobody"])
    async with session(server, "opsplane_admin", "app") as admin:
        assert not await admin.fetchval("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'amcheck')")
        path = await admin.fetchval("SELECT pg_relation_filepath('t')")
    (server.data / path).unlink()
    with pytest.raises(DataLoss, match="t has no file"):
        await ADMIN.check_catalog(server.access, ["app"], ["app"])


async def test_damaged_rows_are_data_loss(server: Server) -> None:
    async with session(server, "opsplane_admin", "app") as admin:
        await admin.execute("CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 1000); CHECKPOINT")
        path = await admin.fetchval("SELECT pg_relation_filepath('t')")
    async with session(server) as admin:
        with (server.data / path).open("r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * 8192)
        # A page that is in memory is not read again, but one of a copy of the files is.
        await admin.execute("CREATE DATABASE copy TEMPLATE app STRATEGY file_copy")
    with pytest.raises(DataLoss, match="copy"):
        await ADMIN.count_rows(server.access)


async def test_a_server_out_of_reach_is_unavailable(server: Server) -> None:
    for access in (replace(server.access, host="/nowhere"), replace(server.access, host="127.0.0.1", port=1)):
        with pytest.raises(Unavailable):
            await ADMIN.sample(access)
    with pytest.raises(FailedPrecondition):
        await ADMIN.sample(replace(server.access, user="nobody"))
