"""Rows of ended runs in PostgreSQL, and how far they have been copied from there."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import asyncpg

from opsplane_server.errors import NotFound, OutOfRange
from opsplane_server.loadtesting import names
from opsplane_server.loadtesting.history.port import POSITION_UNKNOWN, Batch, Pending, Placed, Progress
from opsplane_server.loadtesting.metrics.packing import unpack
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.storage.database import Database
from opsplane_server.storage.followers import SETTLED, Position

_BATCH = 200


class PostgresMetricStore:
    """`history.port.MetricStore` on PostgreSQL, which has all rows.

    Rows that were joined after their run have other positions than before.
    """

    def __init__(self, database: Database, runs: RunStore) -> None:
        self._database = database
        self._runs = runs

    async def read(self, run: Run, after: Position = Position.START) -> AsyncGenerator[list[Placed], None]:
        """See the port."""
        if after != Position.START:
            await self._require(run, after)
        position = after
        while rows := await self._runs.read_windows(run.key, position, _BATCH, settled_only=False):
            position = rows[-1][0]
            yield rows

    async def _require(self, run: Run, position: Position) -> None:
        async with self._database.connection() as connection:
            found = await connection.fetchval(
                """SELECT true FROM loadtesting.windows
                   WHERE run_key = $1 AND (xid, id) = ($2::text::xid8, $3)""",
                run.key,
                str(position.xid),
                position.id,
            )
        if not found:
            raise OutOfRange(f"{run.name} has no such position", reason=POSITION_UNKNOWN)


class PostgresCopyLedger:
    """`history.port.CopyLedger` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, copy: str) -> None:
        """See the port."""
        async with self._database.transaction() as connection:
            before = await connection.fetchval("SELECT name FROM loadtesting.metric_copy")
            if before == copy:
                return
            await connection.execute(
                """INSERT INTO loadtesting.metric_copy (name) VALUES ($1)
                   ON CONFLICT (single) DO UPDATE SET name = excluded.name""",
                copy,
            )
            await connection.execute("UPDATE loadtesting.runs SET copied = false WHERE copied")
            await connection.execute("DELETE FROM loadtesting.copied_runs")

    async def pending(self, limit: int) -> list[Pending]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT r.key, r.project_id, r.id AS run_id, c.entry, c.xid::text::bigint AS xid, c.id, c.rows,
                          c.names, c.compacted, c.whole
                   FROM loadtesting.runs r LEFT JOIN loadtesting.copied_runs c ON c.run_key = r.key
                   WHERE NOT r.copied AND r.state <> 'PENDING' AND NOT EXISTS (
                       -- Of the same name: what it left in the copy is removed first.
                       SELECT FROM loadtesting.copied_runs d
                       WHERE d.run_key IS NULL AND (d.project_id, d.run_id) = (r.project_id, r.id))
                   ORDER BY r.key DESC LIMIT $1""",
                limit,
            )
        return [
            Pending(
                row["key"],
                names.run(row["project_id"], row["run_id"]),
                None if row["entry"] is None else _progress(row),
            )
            for row in rows
        ]

    async def read(self, key: int, after: Position, limit: int, *, settled_only: bool) -> Batch:
        """See the port."""
        async with self._database.connection() as connection:
            # In one statement: rows may be joined at any moment.
            rows = await connection.fetch(
                f"""SELECT w.xid::text::bigint AS xid, w.id, w.data, r.compacted
                    FROM loadtesting.windows w JOIN loadtesting.runs r ON r.key = w.run_key
                    WHERE w.run_key = $1 AND (w.xid, w.id) > ($2::text::xid8, $3) AND ({SETTLED} OR NOT $4)
                    ORDER BY w.xid, w.id LIMIT $5""",
                key,
                str(after.xid),
                after.id,
                settled_only,
                limit,
            )
        placed: list[Placed] = [(Position(row["xid"], row["id"]), unpack(row["data"])) for row in rows]
        return Batch(placed, bool(rows and rows[0]["compacted"]))

    async def save(self, pending: Pending, progress: Progress) -> None:
        """See the port."""
        project_id, run_id = names.ids(pending.name)
        async with self._database.connection() as connection:
            try:
                await connection.execute(
                    """INSERT INTO loadtesting.copied_runs
                           (run_key, project_id, run_id, xid, id, rows, names, compacted, whole)
                       VALUES ($1, $2, $3, $4::text::xid8, $5, $6, $7, $8, $9)
                       ON CONFLICT (run_key) DO UPDATE SET
                           (xid, id, rows, names, compacted, whole) = (excluded.xid, excluded.id, excluded.rows,
                               excluded.names, excluded.compacted, excluded.whole)""",
                    pending.key,
                    project_id,
                    run_id,
                    str(progress.position.xid),
                    progress.position.id,
                    progress.rows,
                    json.dumps(progress.names),
                    progress.compacted,
                    progress.whole,
                )
            except asyncpg.ForeignKeyViolationError:
                raise NotFound.resource(pending.name) from None

    async def done(self, key: int) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("UPDATE loadtesting.runs SET copied = true WHERE key = $1", key)

    async def deleted(self) -> list[tuple[int, str]]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT entry, project_id, run_id FROM loadtesting.copied_runs
                   WHERE run_key IS NULL ORDER BY entry LIMIT 100"""
            )
        return [(row["entry"], names.run(row["project_id"], row["run_id"])) for row in rows]

    async def removed(self, entry: int) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM loadtesting.copied_runs WHERE entry = $1", entry)


def _progress(row: asyncpg.Record) -> Progress:
    return Progress(
        position=Position(row["xid"], row["id"]),
        rows=row["rows"],
        names=[(scenario, name) for scenario, name in json.loads(row["names"])],
        compacted=row["compacted"],
        whole=row["whole"],
    )
