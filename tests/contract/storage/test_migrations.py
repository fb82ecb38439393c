import asyncio
import sys
from pathlib import Path

import pytest
from opsplane_server.errors import FailedPrecondition, Unavailable
from opsplane_server.storage.database import Database
from opsplane_server.storage.migrations import Migrations, migrate

from tests.postgres_fixtures import migrated

FIRST = "CREATE TABLE things (id integer);"
SECOND = "ALTER TABLE things ADD COLUMN name text; INSERT INTO room.things VALUES (1, 'one');"


class Package:
    """An importable package with migrations, written by the test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.files = folder / name / "migrations"
        self.files.mkdir(parents=True)
        (folder / name / "__init__.py").touch()

    def write(self, name: str, sql: str) -> None:
        (self.files / name).write_text(sql)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    name = f"package_{abs(hash(tmp_path))}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return Package(tmp_path, name)


async def applied(database: Database) -> list[str]:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT name FROM room.schema_migrations ORDER BY number")
    return [row["name"] for row in rows]


async def test_files_are_applied_once_each_as_they_come(dsn: str, package: Package) -> None:
    source = Migrations("room", package.name)
    package.write("0001_things.sql", FIRST)
    (package.files / "README").touch()
    async with migrated(dsn, [source]) as database:
        assert await applied(database) == ["0001_things.sql"]
        package.write("0002_names.sql", SECOND)
        await migrate(dsn, [source])
        await migrate(dsn, [source])
        assert await applied(database) == ["0001_things.sql", "0002_names.sql"]
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM room.things") == 1


async def test_processes_that_start_together_apply_each_file_once(dsn: str, package: Package) -> None:
    package.write("0001_things.sql", FIRST)
    package.write("0002_names.sql", SECOND)
    source = Migrations("room", package.name)
    await asyncio.gather(*(migrate(dsn, [source]) for _ in range(6)))
    async with Database(dsn) as database, database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM room.things") == 1


async def test_a_changed_file_is_refused(dsn: str, package: Package) -> None:
    source = Migrations("room", package.name)
    package.write("0001_things.sql", FIRST)
    await migrate(dsn, [source])
    package.write("0001_things.sql", FIRST + "\n-- later thought")
    package.write("0002_names.sql", SECOND)
    with pytest.raises(FailedPrecondition, match=r"room/0001_things\.sql") as refused:
        await migrate(dsn, [source])
    assert refused.value.reason == "DATABASE_DIFFERS"
    async with Database(dsn) as database:
        assert await applied(database) == ["0001_things.sql"]


async def test_a_newer_database_is_refused_before_anything_changes(dsn: str, package: Package, tmp_path: Path) -> None:
    source = Migrations("room", package.name)
    package.write("0001_things.sql", FIRST)
    package.write("0002_names.sql", SECOND)
    await migrate(dsn, [source])
    (package.files / "0002_names.sql").unlink()
    other = Package(tmp_path, f"{package.name}_other")
    other.write("0001_more.sql", FIRST)
    with pytest.raises(FailedPrecondition, match=r"room/0002_names\.sql") as refused:
        await migrate(dsn, [Migrations("other", other.name), source])
    assert refused.value.reason == "DATABASE_NEWER"
    async with Database(dsn) as database, database.connection() as connection:
        assert await connection.fetchval("SELECT to_regnamespace('other')") is None


async def test_a_failing_file_leaves_nothing_behind(dsn: str, package: Package) -> None:
    source = Migrations("room", package.name)
    package.write("0001_things.sql", FIRST)
    package.write("0002_names.sql", "CREATE TABLE half (id integer); SELECT 1 / 0;")
    with pytest.raises(FailedPrecondition, match=r"room/0002_names\.sql failed: division by zero"):
        await migrate(dsn, [source])
    async with Database(dsn) as database:
        assert await applied(database) == ["0001_things.sql"]
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT to_regclass('room.half')") is None


@pytest.mark.parametrize("name", ["0002_gap.sql", "1_short.sql", "0001-dash.sql", "0001_Upper.sql"])
def test_a_misnamed_file_is_noticed(package: Package, name: str) -> None:
    package.write(name, FIRST)
    with pytest.raises(ValueError, match="0001"):
        Migrations("room", package.name).files()


def test_a_schema_is_an_identifier() -> None:
    with pytest.raises(ValueError, match="schema"):
        Migrations('room"; DROP', "opsplane_server")


async def test_no_server_is_unavailable(tmp_path: Path, package: Package) -> None:
    with pytest.raises(Unavailable):
        await migrate(f"postgresql://u@/d?host={tmp_path}", [Migrations("room", package.name)])
