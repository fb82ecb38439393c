"""Usage by hour in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import asyncpg

from opsplane_server.errors import NotFound
from opsplane_server.instances import names
from opsplane_server.instances.records import Granularity, UsageAmounts, UsageSpan
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database

_AMOUNTS: Final = ("cpu_core_hours", "memory_gib_hours", "storage_gib_hours", "backup_gib_hours", "cost_micros")
_SUMS: Final = ", ".join(f"COALESCE(sum({name}), 0) AS {name}" for name in _AMOUNTS)


class PostgresUsageStore:
    """`ports.UsageStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def metered_until(self, uid: str) -> datetime | None:
        """See the port."""
        async with self._database.connection() as connection:
            # The row is made first, so that there is always one to hold.
            await connection.execute(
                "INSERT INTO instances.metering (instance_uid) VALUES ($1) ON CONFLICT DO NOTHING", uid
            )
            until: datetime | None = await connection.fetchval(
                "SELECT until FROM instances.metering WHERE instance_uid = $1 FOR UPDATE", uid
            )
        return until

    async def add(
        self, instance: str, uid: str, until: datetime, hours: Sequence[tuple[datetime, UsageAmounts]]
    ) -> None:
        """See the port."""
        places = ", ".join(f"${number}" for number in range(4, 4 + len(_AMOUNTS)))
        sums = ", ".join(f"{name} = usage.{name} + EXCLUDED.{name}" for name in _AMOUNTS)
        async with self._database.transaction() as connection:
            await connection.executemany(
                f"""INSERT INTO instances.usage AS usage (instance, instance_uid, hour, {", ".join(_AMOUNTS)})
                    VALUES ($1, $2, $3, {places}) ON CONFLICT (hour, instance_uid) DO UPDATE SET {sums}""",
                [(instance, uid, hour, *(getattr(used, name) for name in _AMOUNTS)) for hour, used in hours],
            )
            await connection.execute(
                """INSERT INTO instances.metering (instance_uid, until) VALUES ($1, $2)
                   ON CONFLICT (instance_uid) DO UPDATE SET until = EXCLUDED.until""",
                uid,
                until,
            )

    async def list_usage(
        self, instance: str, start: datetime, end: datetime, granularity: Granularity, page: PageRequest
    ) -> list[UsageSpan]:
        """See the port."""
        after_time, after_uid = page.key if page.key is not None else (None, None)
        unit = granularity.value.lower()
        async with self._database.connection() as connection:
            found = await connection.fetch(
                f"""SELECT instance, instance_uid, start_time,
                           (start_time AT TIME ZONE 'UTC' + $4::text::interval) AT TIME ZONE 'UTC' AS end_time,
                           {", ".join(_AMOUNTS)}
                    FROM (SELECT instance, instance_uid, date_trunc($3::text, hour, 'UTC') AS start_time, {_SUMS}
                          FROM instances.usage
                          WHERE hour >= $1 AND hour < $2 AND ($5::text IS NULL OR instance = $5)
                          GROUP BY instance, instance_uid, start_time) AS spans
                    WHERE $6::bigint IS NULL OR (start_time, instance_uid) > (to_timestamp($6::bigint), $7::text)
                    ORDER BY start_time, instance_uid LIMIT $8""",
                start,
                end,
                unit,
                f"1 {unit}",
                None if instance == names.WILDCARD else instance,
                after_time,
                after_uid,
                page.size + 1,
            )
        return [
            UsageSpan(row["instance"], row["instance_uid"], row["start_time"], row["end_time"], _amounts(row))
            for row in found
        ]

    async def total(self, instance: str, start: datetime, end: datetime) -> UsageAmounts:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"""SELECT {_SUMS}, $3::text IS NULL
                           OR EXISTS (SELECT FROM instances.instances WHERE name = $3 AND NOT hidden)
                           OR EXISTS (SELECT FROM instances.usage WHERE instance = $3)
                           OR EXISTS (SELECT FROM instances.events WHERE instance = $3) AS known
                    FROM instances.usage
                    WHERE hour >= $1 AND hour < $2 AND ($3::text IS NULL OR instance = $3)""",
                start,
                end,
                None if instance == names.WILDCARD else instance,
            )
        assert row is not None
        if not row["known"]:
            raise NotFound.resource(instance)
        return _amounts(row)


def _amounts(row: asyncpg.Record) -> UsageAmounts:
    return UsageAmounts(**{name: row[name] for name in _AMOUNTS})
