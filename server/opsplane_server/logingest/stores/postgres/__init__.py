"""The stores on PostgreSQL, schema `logingest`."""

from __future__ import annotations

from opsplane_server.logingest.stores.postgres.counting import PostgresRollups
from opsplane_server.logingest.stores.postgres.expiry import PostgresDays
from opsplane_server.logingest.stores.postgres.indexing import PostgresIndexes
from opsplane_server.logingest.stores.postgres.partitions import PostgresPartitions
from opsplane_server.logingest.stores.postgres.pruning import PostgresPruning
from opsplane_server.logingest.stores.postgres.searching import PostgresRecordSearch
from opsplane_server.logingest.stores.postgres.tailing import PostgresGroupReader
from opsplane_server.logingest.stores.postgres.writing import PostgresRecordWriters

__all__ = [
    "PostgresDays",
    "PostgresGroupReader",
    "PostgresIndexes",
    "PostgresPartitions",
    "PostgresPruning",
    "PostgresRecordSearch",
    "PostgresRecordWriters",
    "PostgresRollups",
]
