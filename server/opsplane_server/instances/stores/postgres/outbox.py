"""Events on their way to webhooks, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from opsplane_server.instances.records import Event, Webhook, WebhookPost
from opsplane_server.instances.stores.postgres.events import COLUMNS, event_of
from opsplane_server.storage.database import Database
from opsplane_server.storage.secrets import SecretBox


class PostgresWebhookOutbox:
    """`ports.WebhookOutbox` on PostgreSQL."""

    def __init__(self, database: Database, secrets: SecretBox) -> None:
        self._database = database
        self._secrets = secrets

    async def add(self, event: Event, webhooks: Sequence[Webhook]) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.executemany(
                "INSERT INTO instances.webhook_posts (event_id, url, signing_key) VALUES ($1, $2, $3)",
                [(event.id, webhook.url, self._key(webhook)) for webhook in webhooks],
            )

    async def take(self, limit: int, lease: timedelta) -> Sequence[WebhookPost]:
        """See the port."""
        async with self._database.connection() as connection:
            found = await connection.fetch(
                f"""WITH taken AS (
                        UPDATE instances.webhook_posts SET due = now() + $2, attempt_count = attempt_count + 1
                        WHERE id IN (SELECT id FROM instances.webhook_posts WHERE due <= now() ORDER BY due
                                     LIMIT $1 FOR UPDATE SKIP LOCKED)
                        RETURNING id AS post_id, event_id, url, signing_key, attempt_count - 1 AS attempt_count)
                    SELECT post_id, url, signing_key, attempt_count, {COLUMNS}
                    FROM taken JOIN instances.events ON id = event_id ORDER BY post_id""",
                limit,
                lease,
            )
        return [
            WebhookPost(
                row["post_id"],
                event_of(row),
                row["url"],
                "" if row["signing_key"] is None else self._secrets.decrypt(row["signing_key"], row["url"]),
                row["attempt_count"],
            )
            for row in found
        ]

    async def done(self, post_id: int) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM instances.webhook_posts WHERE id = $1", post_id)

    async def later(self, post_id: int, delay: timedelta, error: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE instances.webhook_posts SET due = now() + $2, last_error = $3 WHERE id = $1",
                post_id,
                delay,
                error,
            )

    async def next_due(self) -> datetime | None:
        """See the port."""
        async with self._database.connection() as connection:
            due: datetime | None = await connection.fetchval("SELECT min(due) FROM instances.webhook_posts")
        return due

    def _key(self, webhook: Webhook) -> bytes | None:
        return self._secrets.encrypt(webhook.signing_key, webhook.url) if webhook.signing_key else None
