"""A real PostgreSQL for the tests: one server a session, an empty database a test."""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest
from opsplane_server.storage.database import Database
from opsplane_server.storage.embedded import EmbeddedPostgres
from opsplane_server.storage.migrations import Migrations, migrate


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder for one test that PostgreSQL's account may pass; pytest's `tmp_path` is closed to it under root."""
    folder = Path(tempfile.mkdtemp(prefix="opsplane-"))
    try:
        if os.geteuid() == 0:
            folder.chmod(0o711)
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def migrated(dsn: str, sources: Sequence[Migrations]) -> AsyncIterator[Database]:
    """The database at `dsn`, open, with the migrations of `sources` applied."""
    await migrate(dsn, sources)
    async with Database(dsn) as database:
        yield database


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The session's server."""
    with reachable_folder() as folder:
        server = EmbeddedPostgres(folder / "postgres")
        asyncio.run(server.start())
        try:
            yield server
        finally:
            asyncio.run(server.stop())


@pytest.fixture
async def dsn(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """The address of a new empty database, dropped after the test together with its connections."""
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres.dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield postgres.dsn.replace("/opsplane?", f"/{name}?")
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """The test's empty database, open."""
    async with Database(dsn) as opened:
        yield opened
