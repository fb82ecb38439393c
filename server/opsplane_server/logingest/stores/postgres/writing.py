"""Groups of records into PostgreSQL: the answers, a COPY and the counts in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import date
from types import TracebackType
from typing import Any, Final, Self

import asyncpg

from opsplane_server.errors import Unavailable
from opsplane_server.logingest.encoding import COLUMNS, Encoded
from opsplane_server.logingest.model import Durability
from opsplane_server.logingest.stores.postgres.partitions import PostgresPartitions, partition_name
from opsplane_server.logingest.write_ports import Answer, BatchKey, RecordsRefused
from opsplane_server.storage.database import Connection, Database, transaction_on

_RESERVE: Final = "SELECT nextval('logingest.group_ids')"

# Keys in order: two groups that share some wait for each other instead of locking each other out.
_ANSWERS: Final = """
    INSERT INTO logingest.batches (sender, batch_id, record_count, result, received_at)
    SELECT sender, batch_id, record_count, result, now()
    FROM unnest($1::text[], $2::text[], $3::integer[], $4::bytea[]) AS new (sender, batch_id, record_count, result)
    ON CONFLICT DO NOTHING
    RETURNING sender, batch_id
"""
_GROUP: Final = """
    INSERT INTO logingest.groups
        (id, received_at, record_count, first_time, last_time, minutes, services, levels, counts)
    VALUES ($1, now(), $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (id) DO NOTHING
    RETURNING nextval('logingest.group_ids')
"""
_KNOWN: Final = """
    SELECT sender, batch_id, record_count, result
    FROM logingest.batches JOIN unnest($1::text[], $2::text[]) AS asked (sender, batch_id) USING (sender, batch_id)
"""


_REFUSED: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)


def _partition_gone(error: asyncpg.PostgresError) -> bool:
    """Whether the day was dropped after it was looked for: no table of its name, or no partition for a row.

    The latter counts as a broken check, but one without a name.
    """
    missing = isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None
    return missing or isinstance(error, asyncpg.UndefinedTableError)


class _Undone(Exception):
    """Ends a transaction without its changes."""


class PostgresRecordWriters:
    """Connections of their own, so that no other work of the process waits for a COPY, nor a COPY for it."""

    def __init__(self, dsn: str, partitions: PostgresPartitions, *, connections: int) -> None:
        self._database = Database(dsn, min_size=1, max_size=connections)
        self._partitions = _Partitions(partitions)

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[PostgresRecordWriter]:
        """Holds a connection: taking one of the pool for each group would cost two more round trips."""
        async with self._database.connection() as connection:
            yield PostgresRecordWriter(connection, self._partitions)


class _Partitions:
    """Makes sure of the partitions of days, once a day and process."""

    def __init__(self, partitions: PostgresPartitions) -> None:
        self._partitions = partitions
        self._known: set[date] = set()

    async def ensure(self, days: Collection[date]) -> None:
        """Create what is missing."""
        missing = [day for day in days if day not in self._known]
        if missing:
            await self._partitions.ensure_days(missing)
            self._known.update(missing)

    def forget(self) -> None:
        """Look again: one of them is gone."""
        self._known.clear()


class PostgresRecordWriter:
    """Stores groups over one connection."""

    def __init__(self, connection: Connection, partitions: _Partitions) -> None:
        self._connection = connection
        self._partitions = partitions
        self._next_id: int | None = None

    async def reserve(self) -> int:
        """Take the next identity of a group; mostly it came with the answer to the last one."""
        identity, self._next_id = self._next_id, None
        if identity is None:
            identity = await self._connection.fetchval(_RESERVE)
            assert identity is not None
        return identity

    async def store(
        self, group_id: int, encoded: Encoded | None, answers: Mapping[BatchKey, Answer], durability: Durability
    ) -> Mapping[BatchKey, Answer]:
        """Store the group, once however often it is asked for."""
        if encoded is not None:
            await self._partitions.ensure(encoded.days)
        known: Mapping[BatchKey, Answer] = {}
        try:
            async with transaction_on(self._connection):
                if durability is not Durability.DURABLE:
                    await self._connection.execute(f"SET LOCAL synchronous_commit = {durability.value}")
                if encoded is not None and not await self._insert_group(group_id, encoded):
                    raise _Undone
                if answers and (known := await self._insert_answers(answers)):
                    raise _Undone
                if encoded is not None:
                    await self._copy(encoded)
        except _Undone:
            return known
        except (*_REFUSED, asyncpg.UndefinedTableError) as error:
            if _partition_gone(error):
                self._partitions.forget()
                raise Unavailable("a partition was removed meanwhile", reason="DAY_EXPIRED") from error
            raise RecordsRefused(str(error)) from error
        return {}

    async def accepts(self, encoded: Encoded) -> bool:
        """Try the COPY and undo it."""
        try:
            async with transaction_on(self._connection):
                await self._copy(encoded)
                raise _Undone
        except _Undone:
            return True
        except _REFUSED:
            return False

    async def _insert_group(self, group_id: int, encoded: Encoded) -> bool:
        counts = encoded.counts
        self._next_id = await self._connection.fetchval(
            _GROUP,
            group_id,
            encoded.record_count,
            encoded.first_time,
            encoded.last_time,
            counts.minutes,
            counts.services,
            counts.levels,
            counts.counts,
        )
        return self._next_id is not None

    async def _insert_answers(self, answers: Mapping[BatchKey, Answer]) -> Mapping[BatchKey, Answer]:
        """Insert the answers; return those known already, with which nothing may be stored."""
        keys = sorted(answers)
        senders, ids = [key.sender for key in keys], [key.batch_id for key in keys]
        inserted = await self._connection.fetch(
            _ANSWERS, senders, ids, [answers[key].record_count for key in keys], [answers[key].result for key in keys]
        )
        if len(inserted) == len(keys):
            return {}
        rows = await self._connection.fetch(_KNOWN, senders, ids)
        new = {BatchKey(row["sender"], row["batch_id"]) for row in inserted}
        stored = {BatchKey(row["sender"], row["batch_id"]): Answer(row["record_count"], row["result"]) for row in rows}
        return {key: answer for key, answer in stored.items() if key not in new}

    async def _copy(self, encoded: Encoded) -> None:
        # Straight into the partition where there is only one: PostgreSQL need not look for it row by row.
        table = partition_name(encoded.days[0]) if len(encoded.days) == 1 else "records"
        await self._connection.copy_to_table(
            table, schema_name="logingest", source=_pieces(encoded), columns=COLUMNS, format="binary"
        )


async def _pieces(encoded: Encoded) -> AsyncIterator[Any]:
    for piece in encoded.copy:
        yield piece
