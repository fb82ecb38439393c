"""Compaction of windows in PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

from opsplane_server.loadtesting import names
from opsplane_server.loadtesting.metrics.compaction import compact, joined_seconds
from opsplane_server.loadtesting.metrics.packing import pack, unpack
from opsplane_server.storage.database import Database


class PostgresWindowCompaction:
    """`ports.WindowCompaction` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def compact_next(self, age: timedelta) -> str:
        """See the port."""
        async with self._database.transaction() as connection:
            run = await connection.fetchrow(
                """SELECT key, project_id, id FROM loadtesting.runs
                   WHERE end_time < now() - $1::interval AND NOT compacted
                   ORDER BY end_time LIMIT 1 FOR UPDATE SKIP LOCKED""",
                age,
            )
            if run is None:
                return ""
            rows = await connection.fetch(
                "DELETE FROM loadtesting.windows WHERE run_key = $1 RETURNING data", run["key"]
            )
            unpacked = [unpack(row["data"]) for row in rows]
            joined = compact(unpacked, joined_seconds(unpacked))
            await connection.executemany(
                "INSERT INTO loadtesting.windows (run_key, instance, time_nano, data) VALUES ($1, $2, $3, $4)",
                [(run["key"], row.instance, row.time_unix_nano, pack(row)) for row in joined],
            )
            await connection.execute("UPDATE loadtesting.runs SET compacted = true WHERE key = $1", run["key"])
        return names.run(run["project_id"], run["id"])
