"""The stores on PostgreSQL, schema `backups`."""

from __future__ import annotations

from opsplane_server.backups.stores.postgres.backups import PostgresBackupStore
from opsplane_server.backups.stores.postgres.notices import PostgresLead, PostgresNoticeStore
from opsplane_server.backups.stores.postgres.schedules import PostgresScheduleStore

__all__ = ["PostgresBackupStore", "PostgresLead", "PostgresNoticeStore", "PostgresScheduleStore"]
