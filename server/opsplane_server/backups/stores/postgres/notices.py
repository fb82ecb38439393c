"""Events that wait to be told, and who leads, in PostgreSQL."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Final

from opsplane_server.backups.model import Notice
from opsplane_server.backups.stores.postgres.webhooks import seal_webhooks, unseal_webhooks
from opsplane_server.storage.database import Database
from opsplane_server.storage.secrets import SecretBox

_EVENT: Final = ("kind", "severity", "instance", "instance_uid", "resource", "operation", "message")


class PostgresNoticeStore:
    """`ports.NoticeStore` on PostgreSQL."""

    def __init__(self, database: Database, secrets: SecretBox) -> None:
        self._database = database
        self._secrets = secrets

    async def add(self, notice: Notice) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO backups.notices (event, key_text, webhooks) VALUES ($1, $2, $3)",
                json.dumps({name: getattr(notice, name) for name in _EVENT}),
                notice.key_text,
                seal_webhooks(self._secrets, notice.webhooks, notice.key_text),
            )

    async def waiting(self, limit: int) -> list[Notice]:
        """See the port."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT * FROM backups.notices WHERE next_time <= now() ORDER BY key LIMIT $1", limit
            )
        return [
            replace(
                Notice(**json.loads(row["event"]), key_text=row["key_text"]),
                webhooks=unseal_webhooks(self._secrets, row["webhooks"], row["key_text"]),
                key=row["key"],
                attempts=row["attempts"],
                create_time=row["create_time"],
            )
            for row in rows
        ]

    async def told(self, notice: Notice) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM backups.notices WHERE key = $1", notice.key)

    async def put_off(self, notice: Notice, wait: timedelta) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE backups.notices SET attempts = attempts + 1, next_time = now() + $2 WHERE key = $1",
                notice.key,
                wait,
            )


class PostgresLead:
    """`ports.Lead` on PostgreSQL, by its clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, owner: str, duration: timedelta) -> bool:
        """See the port."""
        async with self._database.connection() as connection:
            taken = await connection.fetchval(
                """UPDATE backups.lead SET owner = $1, until = now() + $2 WHERE owner = $1 OR until < now()
                   RETURNING true""",
                owner,
                duration,
            )
        return bool(taken)

    async def give(self, owner: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("UPDATE backups.lead SET until = '-infinity' WHERE owner = $1", owner)
