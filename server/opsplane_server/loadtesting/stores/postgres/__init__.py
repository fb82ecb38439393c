"""The stores on PostgreSQL, schema `loadtesting`."""

from __future__ import annotations

from opsplane_server.loadtesting.stores.postgres.compaction import PostgresWindowCompaction
from opsplane_server.loadtesting.stores.postgres.data_sets import PostgresDataSetStore
from opsplane_server.loadtesting.stores.postgres.history import PostgresCopyLedger, PostgresMetricStore
from opsplane_server.loadtesting.stores.postgres.projects import PostgresProjectStore
from opsplane_server.loadtesting.stores.postgres.runs import PostgresRunStore
from opsplane_server.loadtesting.stores.postgres.specs import PostgresSpecStore

__all__ = [
    "PostgresCopyLedger",
    "PostgresDataSetStore",
    "PostgresMetricStore",
    "PostgresProjectStore",
    "PostgresRunStore",
    "PostgresSpecStore",
    "PostgresWindowCompaction",
]
