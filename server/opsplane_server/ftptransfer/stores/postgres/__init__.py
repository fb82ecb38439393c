"""The stores on PostgreSQL, schema `ftptransfer`."""

from __future__ import annotations

from opsplane_server.ftptransfer.stores.postgres.connections import PostgresConnectionStore
from opsplane_server.ftptransfer.stores.postgres.figures import PostgresFigureStore
from opsplane_server.ftptransfer.stores.postgres.following import PostgresTransferFollowing
from opsplane_server.ftptransfer.stores.postgres.kafka import PostgresInbox, PostgresOutbox
from opsplane_server.ftptransfer.stores.postgres.queue import PostgresTransferQueue, queue_database
from opsplane_server.ftptransfer.stores.postgres.sweeps import PostgresSweeps
from opsplane_server.ftptransfer.stores.postgres.transfers import PostgresTransferStore

__all__ = [
    "PostgresConnectionStore",
    "PostgresFigureStore",
    "PostgresInbox",
    "PostgresOutbox",
    "PostgresSweeps",
    "PostgresTransferFollowing",
    "PostgresTransferQueue",
    "PostgresTransferStore",
    "queue_database",
]
