"""Partitions of `logingest.records`, one a day (UTC) of the records' own time, named `records_YYYYMMDD`."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime, timedelta

from opsplane_server.errors import Unavailable
from opsplane_server.storage.database import Connection, Database

# Whoever creates or removes a partition holds this lock to the end of its transaction.
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('logingest.partitions', 0))"

# All the indexes of a partition that still grows. COPY pays next to nothing for them, because the pages that it fills
# have no summary yet; upkeep makes the summaries behind it. The bloom filters fill a page of the index each, and are
# apart so that a search by time alone need not read them.
_INDEXES = {
    "place": "(timestamp, id) WITH (pages_per_range = 64)",
    "bloom": """(
        trace_id text_bloom_ops (n_distinct_per_range = 2100),
        user_id text_bloom_ops (n_distinct_per_range = 2100),
        request_id text_bloom_ops (n_distinct_per_range = 2100)
    ) WITH (pages_per_range = 64)""",
}


def partition_name(day: date) -> str:
    """The name of a day's partition, without the schema."""
    return f"records_{day:%Y%m%d}"


def expired_name(day: date) -> str:
    """The name of what was a day's partition and waits for its removal."""
    return f"expired_{day:%Y%m%d}"


def day_of(name: str) -> date:
    """The day of a partition, or of what was one, by its name."""
    return datetime.strptime(name[-8:], "%Y%m%d").date()


class PostgresPartitions:
    """Creates partitions. Call it outside of transactions: what it locks stays locked until its transaction ends."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ensure_days(self, days: Collection[date]) -> None:
        """Creates the partitions of `days` that are missing, each with its indexes, by any number of processes at once.

        Neither COPYs nor readers wait for it. Raises Unavailable, also when a day's records are just being removed.
        """
        wanted = {partition_name(day): day for day in sorted(days)}
        async with self._database.connection() as connection:
            missing = await _missing(connection, wanted)
        for name in missing:
            async with self._database.transaction() as connection:
                await connection.execute(LOCK)
                if await _missing(connection, [name]):
                    await _create(connection, name, wanted[name])


async def _missing(connection: Connection, names: Collection[str]) -> list[str]:
    rows = await connection.fetch(
        """SELECT name FROM unnest($1::text[]) AS name WHERE NOT EXISTS (
               SELECT FROM pg_inherits JOIN pg_class ON oid = inhrelid
               WHERE inhparent = 'logingest.records'::regclass AND relname = name AND NOT inhdetachpending)""",
        list(names),
    )
    return [row["name"] for row in rows]


async def _create(connection: Connection, name: str, day: date) -> None:
    left = [f"logingest.{name}", f"logingest.{expired_name(day)}"]
    if await connection.fetchval("SELECT bool_or(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS name", left):
        raise Unavailable(f"the records of {day} are being removed", reason="DAY_EXPIRED")
    # PARTITION OF would lock the parent against all readers and writers; ATTACH of an empty table does not.
    await connection.execute(
        # Vacuum would read and write all rows again while COPY is at work; it runs when the day is over.
        f"""CREATE TABLE logingest.{name} (LIKE logingest.records)
            WITH (autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_insert_threshold = -1)"""
    )
    for kind, definition in _INDEXES.items():
        await connection.execute(f"CREATE INDEX {name}_{kind} ON logingest.{name} USING brin {definition}")
        # An index of an empty table begins with a summary of its first pages, which each of their rows would change.
        await connection.execute("SELECT brin_desummarize_range($1::regclass, 0)", f"logingest.{name}_{kind}")
    await connection.execute(
        f"""ALTER TABLE logingest.records ATTACH PARTITION logingest.{name}
            FOR VALUES FROM ('{day:%Y-%m-%d} 00:00+00') TO ('{day + timedelta(days=1):%Y-%m-%d} 00:00+00')"""
    )
