"""The stores on PostgreSQL, schema `instances`."""

from __future__ import annotations

from opsplane_server.instances.stores.postgres.events import PostgresEventStore
from opsplane_server.instances.stores.postgres.instances import PostgresInstanceStore
from opsplane_server.instances.stores.postgres.outbox import PostgresWebhookOutbox
from opsplane_server.instances.stores.postgres.passwords import PostgresPendingPasswords
from opsplane_server.instances.stores.postgres.samples import PostgresSampleStore
from opsplane_server.instances.stores.postgres.usage import PostgresUsageStore

__all__ = [
    "PostgresEventStore",
    "PostgresInstanceStore",
    "PostgresPendingPasswords",
    "PostgresSampleStore",
    "PostgresUsageStore",
    "PostgresWebhookOutbox",
]
