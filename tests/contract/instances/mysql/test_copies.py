"""What `Provider` promises of copies, by MariaDB and MySQL."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from opsplane_server.errors import DataLoss, FailedPrecondition, LeaseLost, NotFound
from opsplane_server.instances.engines.mysql.connecting import connected
from opsplane_server.instances.model import CopySource
from opsplane_server.instances.providers.local.bulk import storage_of
from opsplane_server.instances.sql import NewUser, Privilege
from pymysql.err import OperationalError

from tests.contract.instances.mysql.serving import ADMIN, Serving
from tests.instances_harness import silent
from tests.waiting import until

# The server's warnings are not the test's.
pytestmark = pytest.mark.filterwarnings("ignore::pymysql.err.Warning")


async def fill(server: Serving, table: str, rows: int = 2000) -> None:
    """Rows of some 500 bytes each."""
    async with server.owner() as app:
        await app.run(f"CREATE TABLE {table} (n int PRIMARY KEY, words varchar(500), KEY (words))")
        for first in range(0, rows, 1000):
            values = ", ".join(f"({n}, REPEAT('x', {400 + n % 100}))" for n in range(first, first + 1000))
            await app.run(f"INSERT INTO {table} VALUES {values}")


async def test_a_copy_is_restored_with_all_that_was_committed(server: Serving) -> None:
    await fill(server, "kept")
    await ADMIN.create_user(server.access, NewUser("reader", "a-reader's own", Privilege.READ_ONLY, ("app",)))
    told: list[tuple[str, int]] = []

    async def tell(what: str, percent: int) -> None:
        told.append((what, percent))

    before = datetime.now(UTC)
    copy = await server.provider.copy(server.spec.name, "full", "", tell)
    after = datetime.now(UTC)
    async with server.owner() as app:
        await app.run("DELETE FROM kept")
    assert (copy.location, copy.base, copy.engine, copy.engine_version) == (
        "full", "", server.spec.engine, server.spec.version,
    )  # fmt: skip
    assert (copy.method, copy.consistency, copy.node) == ("PHYSICAL", "TRANSACTION", "orders-1")
    assert (copy.databases, copy.users) == (("app",), ("app", "reader"))
    assert set(copy.tables) == {"app.kept"}
    assert before <= copy.start_time <= copy.cut_time <= copy.complete_time <= after
    assert copy.size_bytes <= storage_of(server.copy_folder("full")) <= copy.size_bytes + 16384
    assert copy.restore_size_bytes > 1_000_000
    assert [percent for _, percent in told] == sorted(percent for _, percent in told)
    assert await server.provider.copy(server.spec.name, "full", "", silent) == copy  # called again
    assert "have their checksums" in await server.provider.check_files("full", silent)

    async with server.restored("again", CopySource("full")) as name:
        access = await server.provider.access(name)
        assert await ADMIN.count_rows(access) == {"app.kept": 2000}
        assert "sound" in await ADMIN.check_catalog(access, copy.databases, copy.users)
        async with server.client("reader", "a-reader's own", name, "app") as reader:
            assert await reader.values("SELECT COUNT(*) FROM kept") == [2000]
        async with server.owner(name) as app:
            await app.run("CREATE TABLE more (n int)")
        with pytest.raises(OperationalError):
            async with server.client("app", server.secrets[server.spec.name].users["app"], name):
                pass
        with pytest.raises(FailedPrecondition):
            await server.provider.check_checksums(name, silent)  # it runs
        await server.provider.stop(name, silent)
        assert "has its checksum" in await server.provider.check_checksums(name, silent)
        await _is_found_when_damaged(server, name)
    await server.provider.delete_copy("full")
    assert not server.copy_folder("full").exists()


async def _is_found_when_damaged(server: Serving, name: str) -> None:
    file = server.machine.layout.instance(name).node("again-1").data / "app" / "kept.ibd"
    _damage(file, at=5 * 16384 + 200)
    with pytest.raises(DataLoss, match="kept"):
        await server.provider.check_checksums(name, silent)


async def test_the_cut_parts_the_commits(server: Serving) -> None:
    """Every row whose commit was acknowledged by then is in the copy, and none that was begun after it; MySQL does not
    tell the moment so exactly. With a row come all whose commit was acknowledged before it was begun.
    """
    async with server.owner() as app:
        await app.run("CREATE TABLE ticks (at datetime(6), payload text)")
    acknowledged: list[tuple[datetime, datetime]] = []
    stopped = asyncio.Event()

    async def write() -> None:
        async with server.owner() as client:
            while not stopped.is_set():
                at = datetime.now(UTC)
                await client.rows("INSERT INTO ticks VALUES (%s, REPEAT('x', 2000))", at.replace(tzinfo=None))
                acknowledged.append((at, datetime.now(UTC)))

    writers = [asyncio.create_task(write()) for _ in range(2)]
    await until(lambda: len(acknowledged) > 50)
    copy = await server.provider.copy(server.spec.name, "cut", "", silent)
    stopped.set()
    await asyncio.gather(*writers)
    async with server.restored("parted", CopySource("cut")) as name, server.owner(name) as app:
        there = {at.replace(tzinfo=UTC) for at in await app.values("SELECT at FROM ticks")}
    await server.provider.delete_copy("cut")
    assert there
    assert {at for at, done in acknowledged if done <= copy.cut_time} <= there
    assert {at for at, done in acknowledged if done <= max(there)} <= there
    if server.mariadb:
        assert max(there) <= copy.cut_time
    assert any(at not in there for at, _ in acknowledged), "nothing was written after the cut: no test"


async def test_what_a_killed_process_left_is_replaced(server: Serving) -> None:
    await fill(server, "large", 20000)
    folder = server.copy_folder("broken")
    programs = str(server.machine.settings.programs[0])
    command = [sys.executable, "-m", "tests.contract.instances.mysql.copier", str(server.folder), programs]
    process = await asyncio.create_subprocess_exec(*command, server.spec.name, "broken")
    try:
        await until(lambda: (folder / "data").exists() or process.returncode is not None)
        process.kill()
    finally:
        await process.wait()
    assert not (folder / "copy.json").exists(), "it was too quick: no test"
    with pytest.raises(NotFound):
        await server.provider.check_files("broken", silent)
    copy = await server.provider.copy(server.spec.name, "broken", "", silent)
    assert copy.tables.keys() == {"app.large"}
    assert "have their checksums" in await server.provider.check_files("broken", silent)
    await server.provider.delete_copy("broken")


async def test_a_copy_that_is_broken_off_leaves_nothing(server: Serving) -> None:
    async def lost(what: str, percent: int) -> None:
        if percent > 0:
            raise LeaseLost("another process has it")

    with pytest.raises(LeaseLost):
        await server.provider.copy(server.spec.name, "lost", "", lost)
    assert not server.copy_folder("lost").exists()
    task = asyncio.create_task(server.provider.copy(server.spec.name, "lost", "", silent))
    await until(lambda: (server.copy_folder("lost") / "data").exists())
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not server.copy_folder("lost").exists()
    async with connected(server.access) as session:
        assert not await session.exists(
            "SELECT 1 FROM information_schema.processlist WHERE info LIKE 'CLONE%' OR info LIKE 'BACKUP%'"
        )


async def test_damage_is_found_and_not_restored(server: Serving) -> None:
    await fill(server, "kept")
    await server.provider.copy(server.spec.name, "damaged", "", silent)
    copy = server.copy_folder("damaged")
    table = copy / "data" / "app" / "kept.ibd"
    for path, change in (
        (table, _damage),
        (table, _cut_off),
        (table, Path.unlink),
        (copy / "files.json", Path.unlink),
        (copy / "data" / "more", Path.touch),
    ):
        before = path.read_bytes() if path.exists() else None
        change(path)
        with pytest.raises(DataLoss):
            await server.provider.check_files("damaged", silent)
        if change is _damage:
            with pytest.raises(DataLoss):
                async with server.restored("never", CopySource("damaged")):
                    pass
            await server.provider.delete("instances/never", silent)
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
    assert "have their checksums" in await server.provider.check_files("damaged", silent)
    await server.provider.delete_copy("damaged")


async def test_tables_of_other_engines_are_copied_or_refused(server: Serving) -> None:
    async with server.owner() as app:
        await app.run("CREATE TABLE old (n int) ENGINE = MyISAM", "INSERT INTO old VALUES (1)")
    if server.mariadb:
        await server.provider.copy(server.spec.name, "old", "", silent)
        async with server.restored("older", CopySource("old")) as name, server.owner(name) as app:
            assert await app.values("SELECT n FROM old") == [1]
        await server.provider.delete_copy("old")
    else:
        with pytest.raises(FailedPrecondition, match=r"app\.old"):
            await server.provider.copy(server.spec.name, "old", "", silent)
        assert not server.copy_folder("old").exists()


async def test_a_copy_of_another_version_is_refused(server: Serving) -> None:
    await server.provider.copy(server.spec.name, "foreign", "", silent)
    record = server.copy_folder("foreign") / "copy.json"
    content = json.loads(record.read_text())
    content["copy"]["engine_version"] = "5.5.1"
    record.write_text(json.dumps(content))
    for source, reason in (
        (CopySource("foreign"), "COPY_OTHER_VERSION"),
        (CopySource("foreign", "archive", datetime.now(UTC)), "POINT_IN_TIME_NOT_SUPPORTED"),
    ):
        with pytest.raises(FailedPrecondition) as raised:
            async with server.restored("never", source):
                pass
        assert raised.value.reason == reason
        await server.provider.delete("instances/never", silent)
    await server.provider.delete_copy("foreign")


async def test_no_file_holds_a_password(server: Serving) -> None:
    await ADMIN.create_user(server.access, NewUser("careful", "a password that is long enough"))
    await server.provider.copy(server.spec.name, "secretive", "", silent)
    secrets = server.secrets[server.spec.name]
    words = [word.encode() for word in (secrets.admin, *secrets.users.values(), "a password that is long enough")]
    for path in [*server.machine.layout.copies.rglob("*"), *server.machine.layout.instances.rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in words), path
    await server.provider.delete_copy("secretive")


def _damage(path: Path, at: int = -200) -> None:
    """Turns some bytes around."""
    with path.open("r+b") as stream:
        stream.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        content = stream.read(8)
        stream.seek(-len(content), os.SEEK_CUR)
        stream.write(bytes(byte ^ 0xFF for byte in content))


def _cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)
