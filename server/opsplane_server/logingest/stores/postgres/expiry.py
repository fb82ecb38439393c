"""Removing days: out of the table first, then into a file if wanted, then dropped."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Final

import asyncpg
import structlog

from opsplane_server.errors import Aborted
from opsplane_server.logingest.archive import ArchiveFile
from opsplane_server.logingest.ports import Archived
from opsplane_server.logingest.stores.postgres.partitions import (
    PostgresPartitions,
    day_of,
    expired_name,
)
from opsplane_server.storage.database import Connection, Database

log = structlog.get_logger(__name__)

_DETACH_SECONDS: Final = 300.0
_ARCHIVE_SECONDS: Final = 12 * 3600.0
_LOCK_TIMEOUT: Final = "SET lock_timeout = '5s'"

_ATTACHED: Final = """
    SELECT relname, inhdetachpending FROM pg_inherits JOIN pg_class ON oid = inhrelid
    WHERE inhparent = 'logingest.records'::regclass ORDER BY relname
"""
_LOOSE: Final = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'logingest'::regnamespace AND relkind = 'r' AND NOT relispartition AND relname ~ $1
    ORDER BY relname
"""


class PostgresDays:
    """`ports.DayStore` on PostgreSQL."""

    def __init__(self, database: Database, partitions: PostgresPartitions) -> None:
        self._database = database
        self._partitions = partitions

    async def ensure_days(self, days: Collection[date]) -> None:
        """See the port."""
        await self._partitions.ensure_days(days)

    async def expire_before(self, day: date) -> list[date]:
        """See the port."""
        async with _not_kept_waiting(), self._database.connection() as connection:
            for row in await connection.fetch(_ATTACHED):
                if row["inhdetachpending"] or day_of(row["relname"]) < day:
                    await _detach(connection, row["relname"], pending=row["inhdetachpending"])
            await connection.execute(_LOCK_TIMEOUT)
            for row in await connection.fetch(_LOOSE, "^records_[0-9]{8}$"):
                # Who still knows its name must not put records into it.
                expired = expired_name(day_of(row["relname"]))
                await connection.execute(f"ALTER TABLE logingest.{row['relname']} RENAME TO {expired}")
            return [day_of(row["relname"]) for row in await connection.fetch(_LOOSE, "^expired_[0-9]{8}$")]

    async def remove(self, day: date, archive: Path | None) -> Archived | None:
        """See the port."""
        name = f"logingest.{expired_name(day)}"
        async with _not_kept_waiting(), self._database.transaction() as connection:
            # Reading the file again may take longer than a transaction may else be idle.
            await connection.execute(
                f"{_LOCK_TIMEOUT}; SET idle_in_transaction_session_timeout = 0; SET timezone = 'UTC'"
            )
            # One process at a time, and nothing is added. It is held without a transaction number until the table is
            # dropped: one would keep all followers waiting.
            await connection.execute(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
            archived = None if archive is None else await _archive(connection, name, day, archive)
            await connection.execute(f"DROP TABLE {name}")
        return archived


@asynccontextmanager
async def _not_kept_waiting() -> AsyncIterator[None]:
    try:
        yield
    except asyncpg.LockNotAvailableError as error:
        raise Aborted("a day that is to go is in use; it goes later", reason="DAY_IN_USE") from error


async def _detach(connection: Connection, name: str, *, pending: bool) -> None:
    # It waits for statements that are under way, and no new one waits for it.
    how = "FINALIZE" if pending else "CONCURRENTLY"
    await connection.execute(
        f"ALTER TABLE logingest.records DETACH PARTITION logingest.{name} {how}", timeout=_DETACH_SECONDS
    )
    log.info("day expired", partition=name)


async def _archive(connection: Connection, name: str, day: date, folder: Path) -> Archived:
    # The table's number keeps a day that was made anew from replacing the file of the first one.
    number = await connection.fetchval("SELECT $1::regclass::oid", name)
    async with ArchiveFile(folder / f"logs-{day:%Y-%m-%d}-{number}.jsonl.gz") as file:
        status = await connection.copy_from_query(
            f"SELECT to_json(record) FROM {name} AS record",
            output=file.write,
            timeout=_ARCHIVE_SECONDS,
            # JSON has no control characters but in escapes: with these for quote and delimiter CSV leaves it alone.
            format="csv",
            quote="\x01",
            delimiter="\x02",
            encoding="UTF8",
        )
        count = int(status.split()[-1])
        await file.finish(count)
    return Archived(file.path, count)
