"""`EngineAdmin` of MariaDB and MySQL against real servers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from opsplane_server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from opsplane_server.instances.engines.mysql.connecting import connected
from opsplane_server.instances.engines.mysql.parameters import apply
from opsplane_server.instances.sql import NewDatabase, NewUser, Privilege, SlowQueryOrder, UserInfo
from pymysql.err import OperationalError

from tests.contract.instances.mysql.serving import ADMIN, Client, Serving
from tests.waiting import until

# The server's warnings are not the test's.
pytestmark = pytest.mark.filterwarnings("ignore::pymysql.err.Warning")

PASSWORD = "a-password"
DENIED = {1044, 1045, 1142, 1143, 1227, 1370}


async def denied(client: Client, *statements: str) -> None:
    for statement in statements:
        with pytest.raises(OperationalError) as raised:
            await client.rows(statement)
        assert raised.value.args[0] in DENIED, statement


async def users(server: Serving) -> dict[str, UserInfo]:
    return {user.name: user for user in await ADMIN.list_users(server.access)}


async def add(server: Serving, name: str, privilege: Privilege, *databases: str) -> None:
    await ADMIN.create_user(server.access, NewUser(name, PASSWORD, privilege, databases))


async def test_databases_come_and_go(server: Serving) -> None:
    for name in ("odd ` name", "Shop-EU", "umlaut_ä"):
        await ADMIN.create_database(server.access, NewDatabase(name, "app"))
    async with server.owner() as app:
        await app.run("CREATE TABLE `Shop-EU`.t (n int PRIMARY KEY)", "INSERT INTO `Shop-EU`.t VALUES (1)")
    found = {database.name: database for database in await ADMIN.list_databases(server.access)}
    assert sorted(found) == ["Shop-EU", "app", "odd ` name", "umlaut_ä"]
    assert {(database.owner, database.charset) for database in found.values()} == {("app", "utf8mb4")}
    assert found["Shop-EU"].size_bytes > 0 == found["umlaut_ä"].size_bytes
    with pytest.raises(AlreadyExists):
        await ADMIN.create_database(server.access, NewDatabase("Shop-EU", "app"))
    with pytest.raises(NotFound):
        await ADMIN.create_database(server.access, NewDatabase("other", "nobody"))
    for name in ("other", "mysql"):
        with pytest.raises(NotFound):
            await ADMIN.delete_database(server.access, name, force=True)
    for name in ("odd ` name", "Shop-EU", "umlaut_ä"):
        await ADMIN.delete_database(server.access, name, force=False)
    assert [database.name for database in await ADMIN.list_databases(server.access)] == ["app"]


async def test_a_database_in_use_goes_by_force_alone(server: Serving) -> None:
    await ADMIN.create_database(server.access, NewDatabase("busy", "app"))
    async with server.owner() as app:
        await app.run("USE busy")
        with pytest.raises(FailedPrecondition) as raised:
            await ADMIN.delete_database(server.access, "busy", force=False)
        assert raised.value.reason == "DATABASE_IN_USE"
        await ADMIN.delete_database(server.access, "busy", force=True)
        with pytest.raises(OperationalError):
            await app.rows("SELECT 1")


async def test_rights_in_a_database_go_with_it(server: Serving) -> None:
    await ADMIN.create_database(server.access, NewDatabase("first", ""))
    await add(server, "reader", Privilege.READ_ONLY, "first")
    await ADMIN.delete_database(server.access, "first", force=False)
    await ADMIN.create_database(server.access, NewDatabase("first", ""))
    async with server.client("reader", PASSWORD) as reader:
        await denied(reader, "USE first")


async def test_charsets_and_collations(server: Serving) -> None:
    await ADMIN.create_database(server.access, NewDatabase("old", "app", "latin1", "latin1_bin"))
    found = {database.name: database for database in await ADMIN.list_databases(server.access)}["old"]
    assert (found.charset, found.collation) == ("latin1", "latin1_bin")
    for charset, collation, field in (
        ("klingon", "", "charset"),
        ("", "klingon_bin", "collation"),
        ("latin1", "utf8mb4_bin", "collation"),
    ):
        with pytest.raises(InvalidArgument) as raised:
            await ADMIN.create_database(server.access, NewDatabase("new", "app", charset, collation))
        assert [violation.field for violation in raised.value.violations] == [field]


@pytest.mark.parametrize("password", ["simple-one", "q\"uo'te\\s`%s", "umläut €uro 漢字", "x" * 128])
async def test_passwords_of_any_characters_open_the_server(server: Serving, password: str) -> None:
    await ADMIN.create_user(server.access, NewUser("someone", password))
    async with server.client("someone", password) as someone:
        assert await someone.values("SELECT USER()") == ["someone@127.0.0.1"]
    with pytest.raises(OperationalError):
        async with server.client("someone", password + "x"):
            pass
    await ADMIN.update_user(server.access, NewUser("someone", PASSWORD))
    async with server.client("someone", PASSWORD):
        pass


async def test_what_each_may_in_its_databases(server: Serving) -> None:
    # Of these names one would match the other, were it a pattern.
    for name in ("my_shop", "my-shop"):
        await ADMIN.create_database(server.access, NewDatabase(name, "app"))
    async with server.owner() as app:
        await app.run("CREATE TABLE my_shop.t (n int PRIMARY KEY)", "CREATE TABLE `my-shop`.t (n int)")
    for name, privilege in (
        ("reader", Privilege.READ_ONLY),
        ("writer", Privilege.READ_WRITE),
        ("boss", Privilege.OWNER),
    ):
        await add(server, name, privilege, "my_shop")
    write, create = "INSERT INTO my_shop.t VALUES (1)", "CREATE TABLE my_shop.u (n int)"
    async with server.client("reader", PASSWORD) as reader:
        await reader.rows("SELECT n FROM my_shop.t")
        await denied(reader, write, create)
    async with server.client("writer", PASSWORD) as writer:
        await writer.run(write, "UPDATE my_shop.t SET n = 2", "DELETE FROM my_shop.t")
        await denied(writer, create, "DROP TABLE my_shop.t")
    async with server.client("boss", PASSWORD) as boss:
        await boss.run(create, write, "ALTER TABLE my_shop.u ADD m int", "DROP TABLE my_shop.u")
        await denied(boss, "SELECT n FROM `my-shop`.t", "CREATE DATABASE more", "GRANT SELECT ON my_shop.* TO reader")
    found = await users(server)
    assert {name: (user.privilege, user.databases) for name, user in found.items()} == {
        "app": (Privilege.OWNER, ()),
        "reader": (Privilege.READ_ONLY, ("my_shop",)),
        "writer": (Privilege.READ_WRITE, ("my_shop",)),
        "boss": (Privilege.OWNER, ("my_shop",)),
    }


@pytest.mark.parametrize("privilege", list(Privilege))
async def test_who_has_all_databases_has_none_of_the_servers_own(server: Serving, privilege: Privilege) -> None:
    await add(server, "all", privilege)
    await ADMIN.create_database(server.access, NewDatabase("later", ""))
    async with connected(server.access) as admin:
        await admin.execute("CREATE TABLE later.t (n int)")
    async with server.client("all", PASSWORD) as everywhere:
        assert await everywhere.rows("SELECT n FROM later.t") == []
        await denied(
            everywhere,
            "SELECT * FROM mysql.user",
            "SELECT * FROM mysql.db",
            "LOCK TABLES mysql.db READ",
            "UPDATE mysql.db SET Db = '%'",
            "DROP DATABASE mysql",
            "CREATE TABLE sys.mine (n int)",
            "DROP VIEW sys.version",
            "CREATE USER other IDENTIFIED BY 'other'",
            "GRANT ALL ON *.* TO `all`",
            "SET GLOBAL max_connections = 10",
            "SELECT 1 INTO OUTFILE '/tmp/never'",
        )
    assert (await users(server))["all"].databases == ()


async def test_an_update_replaces_the_rights_and_keeps_the_password(server: Serving) -> None:
    for name in ("one", "two"):
        await ADMIN.create_database(server.access, NewDatabase(name, "app"))
    await add(server, "someone", Privilege.OWNER, "one", "two")
    for wanted in (
        UserInfo("someone", Privilege.READ_ONLY, ("one",), 3),
        UserInfo("someone", Privilege.READ_WRITE, (), 0),
        UserInfo("someone", Privilege.READ_ONLY, (), 0),
        UserInfo("someone", Privilege.OWNER, ("two",), 0),
    ):
        change = NewUser("someone", "", wanted.privilege, wanted.databases, wanted.max_connections)
        await ADMIN.update_user(server.access, change)
        assert (await users(server))["someone"] == wanted
        async with server.client("someone", PASSWORD) as someone:
            databases = set(await someone.values("SHOW DATABASES"))
            assert set(wanted.databases or ("one", "two", "app")) <= databases
            assert bool(wanted.databases) == ("app" not in databases)
    with pytest.raises(NotFound):
        await ADMIN.update_user(server.access, NewUser("nobody", ""))
    with pytest.raises(NotFound):
        await ADMIN.update_user(server.access, NewUser("someone", "", databases=("nowhere",)))


async def test_connections_of_a_user_are_limited(server: Serving) -> None:
    await ADMIN.create_user(server.access, NewUser("few", PASSWORD, max_connections=1))
    async with server.client("few", PASSWORD):
        with pytest.raises(OperationalError) as raised:
            async with server.client("few", PASSWORD):
                pass
        assert raised.value.args[0] in (1203, 1226)


async def test_names_are_data(server: Serving) -> None:
    await ADMIN.create_database(server.access, NewDatabase("x`; DROP DATABASE app; --", "app"))
    await ADMIN.create_user(server.access, NewUser("y'; DROP USER app; --", PASSWORD))
    assert "app" in await users(server)
    assert "y'; DROP USER app; --" in await users(server)
    await ADMIN.delete_user(server.access, "y'; DROP USER app; --", "app")
    for name in ("root", "opsplane_admin", "opsplane_replication"):
        with pytest.raises(InvalidArgument):
            await ADMIN.create_user(server.access, NewUser(name, PASSWORD))
        with pytest.raises(NotFound):
            await ADMIN.delete_user(server.access, name, "app")
    await add(server, "twice", Privilege.READ_ONLY)
    with pytest.raises(AlreadyExists):
        await add(server, "twice", Privilege.READ_ONLY)
    with pytest.raises(NotFound):
        await add(server, "astray", Privilege.READ_ONLY, "nowhere")
    assert "astray" not in await users(server)


async def test_what_a_deleted_user_owned_goes_to_its_heir(server: Serving) -> None:
    await ADMIN.create_database(server.access, NewDatabase("left", ""))
    await add(server, "parent", Privilege.OWNER, "left")
    await add(server, "child", Privilege.READ_ONLY, "left")
    async with server.client("parent", PASSWORD, database="left") as parent:
        await parent.run(
            "CREATE TABLE t (n int, words text)",
            "INSERT INTO t VALUES (1, 'x')",
            "CREATE VIEW `odd view` AS SELECT n FROM t WHERE words <> 'DEFINER=`parent`@`%`'",
            "CREATE EVENT yearly ON SCHEDULE EVERY 1 YEAR DO SELECT 1",
            "CREATE PROCEDURE nothing() SELECT 1",
        )
        with pytest.raises(FailedPrecondition) as raised:
            await ADMIN.delete_user(server.access, "parent", "child")
        assert raised.value.reason == "USER_OWNS_OBJECTS"
        assert "left.nothing" in raised.value.message
        await parent.run("DROP PROCEDURE nothing")
        await ADMIN.delete_user(server.access, "parent", "child")
        with pytest.raises(OperationalError):  # its connections have ended
            await parent.rows("SELECT 1")
    async with server.client("child", PASSWORD, database="left") as child:
        assert await child.values("SELECT n FROM `odd view`") == [1]
        assert await child.values("SELECT definer FROM information_schema.events") == ["child@%"]
        await child.run("DROP TABLE t")
    assert {database.name: database.owner for database in await ADMIN.list_databases(server.access)}["left"] == "child"
    with pytest.raises(NotFound):
        await ADMIN.delete_user(server.access, "parent", "child")


async def test_parameters(server: Serving) -> None:
    found = {parameter.name: parameter for parameter in await ADMIN.list_parameters(server.access)}
    assert list(found) == sorted(found)
    assert found["port"].requires_restart
    assert not found["port"].default
    assert found["port"].value == str(server.ports[server.spec.name])
    assert not found["max_connections"].requires_restart
    assert found["max_connections"].description
    assert found["autocommit"].value in ("ON", "1")
    assert len(found) > 300


async def test_a_parameter_of_the_running_server(server: Serving) -> None:
    async with connected(server.access) as session:
        before = str(await session.value("SELECT @@GLOBAL.max_allowed_packet"))
        for value, shown in (("1M", 1 << 20), ("2097152", 1 << 21), (before, int(before))):
            assert await apply(session, "max_allowed_packet", value)
            assert await session.value("SELECT @@GLOBAL.max_allowed_packet") == shown
        assert await apply(session, "long_query_time", "0.25")
        assert await apply(session, "sql_mode", "ANSI_QUOTES")
        assert await apply(session, "sql_mode", None)
        assert await apply(session, "local_infile", "ON")
        assert await apply(session, "local_infile", "OFF")
        for name in ("port", "skip_name_resolve", "no_such_thing"):
            assert not await apply(session, name, "1")
        for name, value in (("max_connections", "many"), ("sql_mode", "KLINGON")):
            with pytest.raises(InvalidArgument):
                await apply(session, name, value)


async def test_samples_count_what_users_do(server: Serving) -> None:
    async with server.owner() as app:
        await app.run("CREATE TABLE counted (n int PRIMARY KEY)")
        before = await ADMIN.sample(server.access)
        for number in range(20):
            await app.rows("INSERT INTO counted VALUES (%s)", number)
        after = await ADMIN.sample(server.access)
        sleeping = asyncio.create_task(app.rows("SELECT SLEEP(20)"))
        try:
            await until(lambda: _is_active(server))
        finally:
            sleeping.cancel()
            await asyncio.gather(sleeping, return_exceptions=True)
    assert before.connections == after.connections == 1
    assert after.queries is not None
    assert before.queries is not None
    assert 20 <= after.queries - before.queries < 60
    assert after.transactions is not None
    assert before.transactions is not None
    assert after.transactions - before.transactions >= 20
    assert after.buffer_hits is not None
    assert before.buffer_hits is not None
    assert after.buffer_hits > before.buffer_hits
    assert after.deadlocks == before.deadlocks
    assert after.max_connections == 100
    assert after.database_size_bytes > 0


async def _is_active(server: Serving) -> bool:
    return (await ADMIN.sample(server.access)).active_connections == 1


async def test_slow_queries(server: Serving) -> None:
    started = datetime.now(UTC)
    async with server.owner() as app:
        await app.run("SET SESSION long_query_time = 0.01", "CREATE TABLE slow (words text)")
        for number in range(3):
            await app.run(f"INSERT INTO slow SELECT 'secret-{number}' FROM (SELECT SLEEP(0.05)) AS s")
        await app.run("SELECT SLEEP(0.2) /* once */")
    log = await server.provider.slow_log(server.spec.name)
    for order in SlowQueryOrder:
        found = await ADMIN.slow_queries(server.access, log, order, 1000)
        assert found.statistics != server.mariadb  # too little memory for its statistics
        assert "secret-" not in str(found.queries)
        texts = {query.query.lower().replace("`", ""): query for query in found.queries}
        (inserted,) = [query for text, query in texts.items() if text.startswith("insert into slow ")]
        (slept,) = [query for text, query in texts.items() if text.startswith("select sleep")]
        assert (inserted.calls, slept.calls) == (3, 1)
        assert inserted.rows >= 3
        assert inserted.database == "app"
        assert 0.15 <= inserted.total_time.total_seconds() < 60
        assert inserted.max_time >= inserted.mean_time
        assert inserted.last_time is not None
        assert inserted.last_time.timestamp() >= int(started.timestamp())
    longest = await ADMIN.slow_queries(server.access, log, SlowQueryOrder.MAX_TIME, 1)
    assert len(longest.queries) == 1


async def test_rows_are_counted_and_the_catalog_is_looked_through(server: Serving) -> None:
    async with server.owner() as app:
        await app.run(
            "CREATE TABLE many (n int PRIMARY KEY)",
            "INSERT INTO many VALUES (1), (2), (3)",
            "CREATE TABLE `odd ``table` (n int)",
            "CREATE VIEW seen AS SELECT n FROM many",
        )
    assert await ADMIN.count_rows(server.access) == {"app.many": 3, "app.odd `table": 0}
    words = await ADMIN.check_catalog(server.access, ["app"], ["app"])
    assert "2 tables of users are sound" in words
    for databases, names in ((["app", "lost"], ["app"]), (["app"], ["app", "lost"])):
        with pytest.raises(DataLoss, match="lost"):
            await ADMIN.check_catalog(server.access, databases, names)


async def test_a_server_out_of_reach_is_unavailable(server: Serving) -> None:
    for access in (
        replace(server.access, host=str(server.folder)),
        replace(server.access, host="127.0.0.1", port=1),
    ):
        with pytest.raises(Unavailable):
            await ADMIN.sample(access)
    with pytest.raises(FailedPrecondition) as raised:
        await ADMIN.sample(replace(server.access, password="wrong"))
    assert raised.value.reason == "ADMIN_REFUSED"
    # Our own account is for this machine's unix socket alone.
    with pytest.raises(FailedPrecondition):
        await ADMIN.sample(replace(server.access, host="127.0.0.1", port=server.ports[server.spec.name]))
