"""Samples of the last minutes in PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from pydantic import TypeAdapter

from opsplane_server.instances.records import InstanceSample
from opsplane_server.storage.database import Database
from opsplane_server.storage.signals import Signal

_sample: Final = TypeAdapter(InstanceSample)


class PostgresSampleStore:
    """`ports.SampleStore` on PostgreSQL."""

    def __init__(self, database: Database, changes: Signal) -> None:
        self._database = database
        self._changes = changes

    async def add(self, uid: str, sample: InstanceSample) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                """INSERT INTO instances.samples (instance_uid, sample_time, sample) VALUES ($1, $2, $3::text::jsonb)
                   ON CONFLICT DO NOTHING""",
                uid,
                sample.time,
                _sample.dump_json(sample).decode(),
            )
        self._changes.notify()

    async def latest(self, uid: str, limit: int = 1) -> list[InstanceSample]:
        """See the port."""
        async with self._database.connection() as connection:
            found = await connection.fetch(
                """SELECT sample::text AS sample FROM instances.samples WHERE instance_uid = $1
                   ORDER BY sample_time DESC LIMIT $2""",
                uid,
                limit,
            )
        return [_sample.validate_json(row["sample"]) for row in found]

    async def prune(self, age: timedelta) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM instances.samples WHERE sample_time < now() - $1::interval", age)
