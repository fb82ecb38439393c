"""Indexes of partitions: summaries close behind what is written, and those for text and metadata when a day is over."""

from __future__ import annotations

import contextlib
from datetime import date
from typing import Final

import asyncpg
import structlog

from opsplane_server.logingest.stores.postgres.partitions import day_of
from opsplane_server.storage.database import Connection, Database

log = structlog.get_logger(__name__)

_RANGE_PAGES: Final = 64
# Pages at the end that COPYs are still filling; a row that goes where a summary is has to change it.
_MARGIN_PAGES: Final = {"place": 512, "bloom": 1024}
_RANGES_AT_ONCE: Final = 64
_BUILD_SECONDS: Final = 6 * 3600.0
# Nothing here is in a hurry: one core, and pauses where PostgreSQL knows how.
_GENTLE: Final = """
    SET maintenance_work_mem = '128MB'; SET max_parallel_maintenance_workers = 0; SET vacuum_cost_delay = 2
"""
# In this order: a day with the last of them has all.
_PAST_INDEXES: Final = {
    "metadata": "(metadata jsonb_path_ops)",
    "words": "(logingest.words(message, error_type, stack_trace))",
}

INDEXED_DAYS: Final = """
    SELECT coalesce(array_agg(left(relname, -length('_words'))), '{}')
    FROM pg_class JOIN pg_index ON indexrelid = oid
    WHERE relnamespace = 'logingest'::regnamespace AND relname ~ '^records_[0-9]{8}_words$' AND indisvalid
"""
"""The names of the partitions whose text and metadata are indexed."""


class PostgresIndexes:
    """`ports.Indexes` on PostgreSQL. It remembers what it has summarised; what others did is found done."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._summarized: dict[str, int] = {}

    async def summarize(self, limit: int) -> int:
        """See the port."""
        return await self._summarize("place", limit)

    async def summarize_filters(self, limit: int) -> int:
        """See the port."""
        return await self._summarize("bloom", limit)

    async def index_next(self, before: date) -> date | None:
        """See the port."""
        async with self._database.connection() as connection:
            indexed = set(await connection.fetchval(INDEXED_DAYS))
            names = [name for name, _ in await _partitions(connection)]
            waiting = [name for name in names if name not in indexed and day_of(name) < before]
            if not waiting:
                return None
            name = max(waiting)
            await connection.execute(_GENTLE)
            await connection.execute(f"VACUUM (FREEZE, ANALYZE) logingest.{name}", timeout=_BUILD_SECONDS)
            for kind in _MARGIN_PAGES:
                summarize = "SELECT brin_summarize_new_values($1::regclass)"
                await connection.fetchval(summarize, f"logingest.{name}_{kind}", timeout=_BUILD_SECONDS)
            for kind, definition in _PAST_INDEXES.items():
                await _build(connection, name, kind, definition)
            # What is known of the words in an index decides whether it is used.
            await connection.execute(f"ANALYZE logingest.{name}", timeout=_BUILD_SECONDS)
        return day_of(name)

    async def _summarize(self, kind: str, limit: int) -> int:
        new = 0
        async with self._database.connection() as connection:
            # What vacuums or indexes a partition, for minutes, keeps others from summarising it.
            await connection.execute("SET lock_timeout = '100ms'")
            for name, pages in await _partitions(connection):
                end = (pages - _MARGIN_PAGES[kind]) // _RANGE_PAGES * _RANGE_PAGES
                with contextlib.suppress(asyncpg.LockNotAvailableError):
                    new += await self._summarize_to(connection, f"logingest.{name}_{kind}", end, limit - new)
        return new

    async def _summarize_to(self, connection: Connection, index: str, end: int, limit: int) -> int:
        new = 0
        start = self._summarized.get(index, 0)
        while start < end and new < limit:
            past = min(end, start + min(limit - new, _RANGES_AT_ONCE) * _RANGE_PAGES)
            new += await connection.fetchval(
                """SELECT sum(brin_summarize_range($1::regclass, page))
                   FROM generate_series($2::bigint, $3::bigint - 1, $4::bigint) AS page""",
                index,
                start,
                past,
                _RANGE_PAGES,
            )
            start = self._summarized[index] = past
        return new


async def _partitions(connection: Connection) -> list[tuple[str, int]]:
    """The partitions and how many pages they have, newest first."""
    rows = await connection.fetch(
        """SELECT relname, pg_relation_size(oid) / current_setting('block_size')::integer AS pages
           FROM pg_inherits JOIN pg_class ON oid = inhrelid
           WHERE inhparent = 'logingest.records'::regclass AND NOT inhdetachpending ORDER BY relname DESC"""
    )
    return [(row["relname"], row["pages"] or 0) for row in rows]


async def _build(connection: Connection, name: str, kind: str, definition: str) -> None:
    index = f"{name}_{kind}"
    valid = await connection.fetchval(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", f"logingest.{index}"
    )
    if valid:
        return
    if valid is not None:  # an earlier attempt was cut off
        await connection.execute(f"DROP INDEX CONCURRENTLY logingest.{index}", timeout=_BUILD_SECONDS)
    await connection.execute(
        f"CREATE INDEX CONCURRENTLY {index} ON logingest.{name} USING gin {definition}", timeout=_BUILD_SECONDS
    )
    log.info("index built", index=index)
