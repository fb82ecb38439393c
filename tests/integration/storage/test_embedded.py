"""The embedded PostgreSQL as it is started, killed and found again."""

# ruff: noqa: ASYNC220, ASYNC240 - the tests look at files and processes while nothing else runs

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
from opsplane_server.errors import FailedPrecondition, Unavailable
from opsplane_server.storage import embedded, postmaster
from opsplane_server.storage.binaries import wheel_binaries
from opsplane_server.storage.database import Database
from opsplane_server.storage.embedded import EmbeddedPostgres

from tests.postgres_fixtures import reachable_folder
from tests.waiting import until

pytestmark = pytest.mark.slow
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another account")

# Another owner, to be killed: it says the server's process number and then does nothing.
OWNER = """
import asyncio, pathlib, sys
from opsplane_server.storage.embedded import EmbeddedPostgres

async def own():
    server = EmbeddedPostgres(pathlib.Path(sys.argv[1]))
    print("starting", flush=True)
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(own())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_folder() as path:
        yield path / "postgres"


@asynccontextmanager
async def another_owner(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, str(folder), stdout=subprocess.PIPE)
    try:
        yield owner
    finally:
        if owner.returncode is None:
            owner.kill()
        await owner.communicate()


async def line(owner: asyncio.subprocess.Process) -> str:
    assert owner.stdout is not None
    while text := (await owner.stdout.readline()).decode().strip():
        if text == "starting" or text.isdigit():  # log lines come the same way
            return text
    raise AssertionError("the other owner has ended")


async def query(server: EmbeddedPostgres, sql: str) -> object:
    connection = await asyncpg.connect(server.dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_it_serves_by_a_private_socket_alone(folder: Path) -> None:
    folder.mkdir(mode=0o711)
    parent = folder.parent.stat()
    async with EmbeddedPostgres(folder, max_connections=33) as server:
        settings = {
            name: await query(server, f"SHOW {name}")
            for name in ("listen_addresses", "data_checksums", "fsync", "max_connections", "server_encoding")
        }
        assert settings == {
            "listen_addresses": "",
            "data_checksums": "on",
            "fsync": "on",
            "max_connections": "33",
            "server_encoding": "UTF8",
        }
        collation = "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = current_database()"
        assert await query(server, collation) == "bC.UTF-8"
        assert psutil.Process(server.pid).net_connections("inet") == []
        account = psutil.Process(server.pid).uids().real
        assert account != 0
        assert os.getsid(server.pid) == server.pid, "a signal to our terminal would reach it"
        assert private(folder / "data") == private(folder / "run") == (account, 0o700)
        assert private(folder / "password") == (os.geteuid(), 0o600)
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.dsn, password="wrong")
        environment = psutil.Process(server.pid).environ()
        assert environment["PATH"] == os.defpath
        assert "HOME" not in environment
    assert folder.stat().st_mode & 0o777 == 0o711
    assert (folder.parent.stat().st_mode, folder.parent.stat().st_uid) == (parent.st_mode, parent.st_uid)
    assert sorted(entry.name for entry in folder.iterdir()) == ["data", "lock", "password", "postgres.log", "run"]


def private(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)


async def test_data_and_password_outlive_a_stop(folder: Path) -> None:
    async with EmbeddedPostgres(folder) as server:
        await query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        before, dsn = server.pid, server.dsn
    assert not psutil.pid_exists(before)
    async with EmbeddedPostgres(folder) as server:
        assert server.pid != before
        assert server.dsn == dsn
        assert await query(server, "SELECT answer FROM kept") == 42
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.dsn
    await server.stop()  # once more does nothing


async def test_a_stop_does_not_wait_for_clients(folder: Path) -> None:
    async with EmbeddedPostgres(folder) as server, Database(server.dsn) as database:
        async with database.connection() as connection:
            await connection.execute("CREATE TABLE things (id integer)")
        await server.stop()
        with pytest.raises(Unavailable):
            async with database.connection() as connection:
                await connection.execute("SELECT 1")
        with pytest.raises(Unavailable):
            async with database.transaction() as connection:
                await connection.execute("SELECT 1")
        await server.start()
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO things VALUES (1)")


async def test_a_server_that_hangs_is_unavailable_in_bounded_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsplane_server.storage.database._ACQUIRE_SECONDS", 0.5)
    async with (
        EmbeddedPostgres(folder) as server,
        Database(server.dsn, min_size=1, max_size=2, command_timeout=0.5) as database,
    ):
        async with database.connection() as connection:
            process = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
        for stopped in (process, psutil.Process(server.pid)):
            stopped.suspend()
        try:
            for _ in range(3):
                with pytest.raises(Unavailable):
                    async with asyncio.timeout(30), database.transaction() as connection:
                        await connection.execute("SELECT 1")
        finally:
            for stopped in (process, psutil.Process(server.pid)):
                stopped.resume()
        await until(lambda: answers(database))


async def answers(database: Database) -> bool:
    try:
        async with database.connection() as connection:
            return bool(await connection.fetchval("SELECT true"))
    except Unavailable:
        return False


async def test_the_server_outlives_a_killed_owner_and_is_adopted(folder: Path) -> None:
    async with another_owner(folder) as owner:
        await line(owner)
        pid = int(await line(owner))
        with pytest.raises(FailedPrecondition, match=f"another Opsplane server uses {folder}") as refused:
            await EmbeddedPostgres(folder).start()
        assert refused.value.reason == "DATA_DIR_IN_USE"
        os.kill(owner.pid, signal.SIGKILL)
        await owner.wait()

        async with EmbeddedPostgres(folder) as server:
            assert server.pid == pid
            assert await query(server, "SELECT 1") == 1
    assert postmaster.find(folder / "data") is None


async def test_an_owner_killed_at_any_moment_of_the_first_start_leaves_no_half_made_data(folder: Path) -> None:
    for place in ("initdb-*", "initdb-*/data/global/pg_control", "data/postmaster.pid"):
        async with another_owner(folder) as owner:
            await line(owner)
            await until(lambda place=place: any(folder.glob(place)))  # type: ignore[misc]
            os.kill(owner.pid, signal.SIGKILL)
            await owner.wait()
            assert (folder / "data").exists() == place.startswith("data")
    async with EmbeddedPostgres(folder) as server:
        assert await query(server, "SELECT 1") == 1
    await until(lambda: restarted_without_leftovers(folder))


async def restarted_without_leftovers(folder: Path) -> bool:
    """The initdb of a killed owner may still have been writing when its folder was removed: a later start helps."""
    async with EmbeddedPostgres(folder):
        pass
    return not any(folder.glob("initdb-*"))


async def test_a_killed_server_is_noticed_and_started_again(folder: Path) -> None:
    async with EmbeddedPostgres(folder) as server:
        await query(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        watching = asyncio.create_task(server.watch())
        before = server.pid
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(30):
            await watching
        await server.start()
        assert server.pid != before
        assert await query(server, "SELECT answer FROM kept") == 42


async def test_a_start_waits_for_what_a_killed_server_left_running(folder: Path) -> None:
    async with EmbeddedPostgres(folder) as server, Database(server.dsn, min_size=1, max_size=1) as database:
        async with database.connection() as connection:
            left = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
        left.suspend()
        os.kill(server.pid, signal.SIGKILL)
        await server.watch()
        starting = asyncio.create_task(server.start())
        await until(lambda: "pre-existing shared memory" in (folder / "postgres.log").read_text())
        assert not starting.done()
        left.resume()
        await starting
        assert await query(server, "SELECT 1") == 1


@pytest.mark.parametrize("foreign", ["same account", "empty"])
async def test_a_stale_process_number_fools_nobody(folder: Path, foreign: str) -> None:
    async with EmbeddedPostgres(folder) as server:
        account = psutil.Process(server.pid).uids().real
        os.kill(server.pid, signal.SIGKILL)
        await server.watch()

    pid_file = folder / "data" / "postmaster.pid"
    user = {"user": account} if os.geteuid() == 0 else {}
    innocent = subprocess.Popen(["/bin/sleep", "600"], cwd="/", **user)  # type: ignore[call-overload]
    try:
        if foreign == "empty":
            pid_file.write_text("")
        else:
            lines = pid_file.read_text().splitlines()
            pid_file.write_text("\n".join([str(innocent.pid), *lines[1:]]) + "\n")
            (folder / "run" / ".s.PGSQL.5432.lock").write_text(f"{innocent.pid}\n")
        assert postmaster.find(folder / "data") is None
        async with EmbeddedPostgres(folder) as server:
            assert await query(server, "SELECT 1") == 1
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


async def test_another_server_with_that_number_is_not_adopted(folder: Path) -> None:
    with reachable_folder() as elsewhere:
        async with EmbeddedPostgres(elsewhere / "postgres") as other:
            async with EmbeddedPostgres(folder) as server:
                os.kill(server.pid, signal.SIGKILL)
                await server.watch()
            shutil.copyfile(elsewhere / "postgres/data/postmaster.pid", folder / "data/postmaster.pid")
            async with EmbeddedPostgres(folder) as server:
                assert server.pid != other.pid
                assert await query(server, "SELECT 1") == 1
            assert await query(other, "SELECT 1") == 1


async def test_a_long_path_gets_its_socket_in_a_short_private_folder(folder: Path) -> None:
    deep = folder / ("x" * 100)
    async with EmbeddedPostgres(deep) as server:
        sockets = Path(str(await query(server, "SHOW unix_socket_directories")))
        assert len(str(sockets)) < 100
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    async with EmbeddedPostgres(deep) as server:
        assert await query(server, "SHOW unix_socket_directories") == str(sockets)
    shutil.rmtree(sockets)


@as_root
async def test_a_data_folder_out_of_reach_is_named(folder: Path) -> None:
    (folder.parent / "closed").mkdir(mode=0o700)
    with pytest.raises(FailedPrecondition, match=r"may not enter .*/closed: set the data directory") as refused:
        await EmbeddedPostgres(folder.parent / "closed" / "postgres").start()
    assert refused.value.reason == "DATA_DIR_UNREACHABLE"
    assert (folder.parent / "closed").stat().st_mode & 0o777 == 0o700


@as_root
async def test_binaries_out_of_reach_are_copied_once(folder: Path) -> None:
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o700)
    package = wheel_binaries().parent
    tree = closed / package.name / "tree"
    shutil.copytree(wheel_binaries(), tree)
    shutil.copytree(package.with_name(f"{package.name}.libs"), closed / f"{package.name}.libs")
    stale = folder / "binaries-new-killed"
    stale.mkdir(parents=True)
    folder.chmod(0o711)
    async with EmbeddedPostgres(folder, binaries=tree, user="nobody") as server:
        (copy,) = folder.glob("binaries-*")
        assert Path(psutil.Process(server.pid).exe()).is_relative_to(copy)
        assert psutil.Process(server.pid).username() == "nobody"
    made = copy.stat().st_ctime_ns
    async with EmbeddedPostgres(folder, binaries=tree) as server:
        assert psutil.Process(server.pid).username() == "nobody", "existing data keeps its account"
    assert copy.stat().st_ctime_ns == made


async def test_a_server_that_can_not_start_says_why_and_frees_the_folder(folder: Path) -> None:
    async with EmbeddedPostgres(folder):
        pass
    settings = folder / "data" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(good + "\nwork_mem = nonsense\n")
    with pytest.raises(FailedPrecondition, match=r"FATAL: .*postgresql\.conf.*errors"):
        await EmbeddedPostgres(folder).start()
    settings.write_text(good)
    (folder / "password").write_text("lost")
    with pytest.raises(FailedPrecondition, match="password is not that of the database"):
        await EmbeddedPostgres(folder).start()
    assert postmaster.find(folder / "data") is None
    (folder / "password").unlink()
    with pytest.raises(FailedPrecondition, match="password"):
        await EmbeddedPostgres(folder).start()
    with pytest.raises(FailedPrecondition, match="there is no PostgreSQL in"):
        await EmbeddedPostgres(folder, binaries=folder).start()


async def test_a_start_that_takes_too_long_leaves_nothing_running(folder: Path) -> None:
    async with EmbeddedPostgres(folder):
        pass
    with pytest.raises(Unavailable, match="not ready after 0 s"):
        await EmbeddedPostgres(folder, start_timeout=0.01).start()
    assert postmaster.find(folder / "data") is None


async def test_a_cancelled_start_leaves_nothing_running(folder: Path) -> None:
    async with EmbeddedPostgres(folder):
        pass
    starting = asyncio.create_task(EmbeddedPostgres(folder).start())
    await until(lambda: postmaster.find(folder / "data") is not None)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert postmaster.find(folder / "data") is None


async def test_the_log_is_bounded_while_the_server_writes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOG_LIMIT", 1000)
    log, previous = folder / "postgres.log", folder / "postgres.log.1"
    async with EmbeddedPostgres(folder) as server:
        watching = asyncio.create_task(server.watch())
        for number in range(3):
            said = f"{number}-" + "x" * 1000
            await query(server, f"DO $$ BEGIN RAISE LOG '{said}'; END $$")
            await until(lambda said=said: previous.exists() and said in previous.read_text())  # type: ignore[misc]
            assert said not in log.read_text()
        watching.cancel()
