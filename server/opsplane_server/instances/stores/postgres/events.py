"""Events in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from opsplane_server.errors import NotFound
from opsplane_server.instances import names
from opsplane_server.instances.records import Event, EventKind, Severity
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.filters import where
from opsplane_server.storage.followers import SETTLED, Position
from opsplane_server.storage.signals import Signal

COLUMNS: Final = (
    "id, event_time, kind, severity, instance, instance_uid, node, resource, operation, message, principal, trace_id"
)
_FILTERS: Final = {
    name: name for name in ("kind", "severity", "instance_uid", "node", "resource", "operation", "event_time")
}
_ALL: Final = 2**63 - 1


def event_of(row: asyncpg.Record) -> Event:
    """The event of a row that has COLUMNS."""
    return Event(
        kind=EventKind(row["kind"]),
        severity=Severity(row["severity"]),
        instance=row["instance"],
        instance_uid=row["instance_uid"],
        message=row["message"],
        node=row["node"],
        resource=row["resource"],
        operation=row["operation"],
        principal=row["principal"],
        trace_id=row["trace_id"],
        id=row["id"],
        time=row["event_time"],
    )


class PostgresEventStore:
    """`ports.EventStore` on PostgreSQL."""

    def __init__(self, database: Database, changes: Signal) -> None:
        self._database = database
        self._changes = changes

    async def append(self, event: Event, *, deduplication_key: str = "") -> Event | None:
        """See the port."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"""INSERT INTO instances.events (kind, severity, instance, instance_uid, node, resource, operation,
                        message, principal, trace_id, deduplication_key)
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
                    ON CONFLICT (deduplication_key) DO NOTHING RETURNING {COLUMNS}""",
                event.kind.value,
                event.severity.value,
                event.instance,
                event.instance_uid,
                event.node,
                event.resource,
                event.operation,
                event.message,
                event.principal,
                event.trace_id,
                deduplication_key or None,
            )
        if row is None:
            return None
        self._changes.notify()
        return event_of(row)

    async def list_events(self, instance: str, page: PageRequest, conditions: Sequence[Condition]) -> list[Event]:
        """See the port."""
        args: list[object] = [page.key[0] if page.key else _ALL, page.size + 1]
        matching = where(conditions, _FILTERS, args)
        if instance != names.WILDCARD:
            args.append(instance)
            matching = f"instance = ${len(args)} AND {matching}"
        async with self._database.connection() as connection:
            found = await connection.fetch(
                f"SELECT {COLUMNS} FROM instances.events WHERE id < $1 AND {matching} ORDER BY id DESC LIMIT $2", *args
            )
            if not found and instance != names.WILDCARD:
                known = await connection.fetchval(
                    """SELECT EXISTS (SELECT FROM instances.events WHERE instance = $1)
                           OR EXISTS (SELECT FROM instances.instances WHERE name = $1 AND NOT hidden)""",
                    instance,
                )
                if not known:
                    raise NotFound.resource(instance)
        return [event_of(row) for row in found]

    async def end(self) -> Position:
        """See the port."""
        async with self._database.connection() as connection:
            oldest: int = await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
        return Position(oldest - 1, _ALL)

    async def after(self, uid: str, position: Position, limit: int) -> Sequence[tuple[Position, Event]]:
        """See the port."""
        async with self._database.connection() as connection:
            found = await connection.fetch(
                f"""SELECT xid::text::bigint AS xid, {COLUMNS} FROM instances.events
                    WHERE instance_uid = $1 AND (xid, id) > ($2::text::xid8, $3) AND {SETTLED}
                    ORDER BY xid, id LIMIT $4""",
                uid,
                str(position.xid),
                position.id,
                limit,
            )
        return [(Position(row["xid"], row["id"]), event_of(row)) for row in found]
