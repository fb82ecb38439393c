"""Numbered SQL files, applied once each, in order."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
import structlog

from opsplane_server.errors import FailedPrecondition
from opsplane_server.storage.database import translate, translated

log = structlog.get_logger(__name__)

_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_LOCK_KEY = int.from_bytes(hashlib.sha256(b"opsplane.migrations").digest()[:8], signed=True)


@dataclass(frozen=True)
class _File:
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True)
class Migrations:
    """The migrations of one room: its PostgreSQL schema, and the package whose folder `migrations` has the files.

    Files are named `NNNN_what.sql`, counted from 0001 without a gap. Each runs in a transaction of its own with the
    schema first on the search path.
    """

    schema: str
    package: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.schema):
            raise ValueError(f"not a schema name: {self.schema!r}")

    def files(self) -> list[_File]:
        """All files in order; ValueError when one is misnamed or missing."""
        folder = importlib.resources.files(self.package) / "migrations"
        files: list[_File] = []
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if not entry.name.endswith(".sql"):
                continue
            match = _FILE_NAME.fullmatch(entry.name)
            if match is None or int(match[1]) != len(files) + 1:
                raise ValueError(f"{self.package}: {entry.name} is not migration number {len(files) + 1:04d}")
            files.append(_File(int(match[1]), entry.name, entry.read_text(encoding="utf-8")))
        return files


async def migrate(dsn: str, sources: Sequence[Migrations]) -> None:
    """Brings every schema of `sources` up to date; safe to run by several processes at once.

    Raises FailedPrecondition, before anything is changed, if the database has migrations that this build does not
    know (it is newer) or others than this build's; also when a file fails: its changes are undone, those of the
    files before it stay. Unavailable if the database can not be reached.
    """
    files = {source.schema: source.files() for source in sources}
    with translated():
        connection = await asyncpg.connect(dsn, server_settings={"application_name": "opsplane migrate"})
        try:
            await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)  # held until the connection ends
            pending = [
                (schema, file)
                for schema in files
                for file in _pending(schema, files[schema], await _applied(connection, schema))
            ]
            for schema in files:
                await _prepare(connection, schema)
            for schema, file in pending:
                await _apply(connection, schema, file)
        finally:
            await connection.close()


async def _applied(connection: asyncpg.Connection, schema: str) -> list[asyncpg.Record]:
    if await connection.fetchval("SELECT to_regclass($1)", f"{schema}.schema_migrations") is None:
        return []
    query = f'SELECT number, name, checksum FROM "{schema}".schema_migrations ORDER BY number'  # noqa: S608
    return await connection.fetch(query)


def _pending(schema: str, files: Sequence[_File], applied: Sequence[asyncpg.Record]) -> Sequence[_File]:
    if len(applied) > len(files):
        raise FailedPrecondition(
            f"the database has the migration {schema}/{applied[-1]['name']}, which this version does not know; "
            "run the version that made it, or a later one",
            reason="DATABASE_NEWER",
        )
    for row, file in zip(applied, files, strict=False):
        if (row["number"], row["checksum"]) != (file.number, file.checksum):
            raise FailedPrecondition(
                f"the migration {schema}/{row['name']} in the database is not the {file.name} of this version",
                reason="DATABASE_DIFFERS",
            )
    return files[len(applied) :]


async def _prepare(connection: asyncpg.Connection, schema: str) -> None:
    await connection.execute(
        f"""
        CREATE SCHEMA IF NOT EXISTS "{schema}";
        CREATE TABLE IF NOT EXISTS "{schema}".schema_migrations (
            number integer PRIMARY KEY,
            name text NOT NULL,
            checksum text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        );
        """
    )


async def _apply(connection: asyncpg.Connection, schema: str, file: _File) -> None:
    try:
        async with connection.transaction():
            await connection.execute(f'SET LOCAL search_path TO "{schema}", public')
            await connection.execute(file.sql)
            record = f'INSERT INTO "{schema}".schema_migrations (number, name, checksum) VALUES ($1, $2, $3)'  # noqa: S608
            await connection.execute(record, file.number, file.name, file.checksum)
    except asyncpg.PostgresError as error:
        if translate(error) is not None:
            raise
        raise FailedPrecondition(
            f"the migration {schema}/{file.name} failed: {error}", reason="MIGRATION_FAILED"
        ) from error
    log.info("migration applied", schema=schema, file=file.name)
