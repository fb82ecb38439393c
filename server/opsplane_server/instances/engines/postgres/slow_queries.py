"""Slow statements: from pg_stat_statements where it is loaded, else from the server's log in JSON."""

from __future__ import annotations

import contextlib
import heapq
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import orjson

from opsplane_server.instances.engines.postgres.connecting import Connection
from opsplane_server.instances.engines.postgres.statements import statement_id, without_constants
from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER
from opsplane_server.instances.sql import SlowQueries, SlowQuery, SlowQueryOrder

_EXTENSION: Final = "pg_stat_statements"
_OWN: Final = frozenset({ADMIN_USER, REPLICATION_USER})
# Extended protocol: `execute name/portal: ...`; parse and bind are told apart and left out, since execute follows.
_MESSAGE: Final = re.compile(r"duration: ([\d.]+) ms  (?:statement|execute [^:]*): (.*)", re.DOTALL)

_COLUMNS: Final = {
    SlowQueryOrder.TOTAL_TIME: "total_exec_time",
    SlowQueryOrder.MEAN_TIME: "mean_exec_time",
    SlowQueryOrder.MAX_TIME: "max_exec_time",
    SlowQueryOrder.CALLS: "calls",
}
# Its schema is the one that it was created in; toplevel and nested calls of a statement are rows of their own there.
_STATISTICS = """
SELECT s.query, s.queryid::text AS query_id, d.datname::text AS database, r.rolname::text AS user, s.calls,
    s.total_exec_time, s.mean_exec_time, s.max_exec_time, s.rows
FROM {schema}.pg_stat_statements s
JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.userid
WHERE s.queryid IS NOT NULL AND s.query IS NOT NULL AND s.toplevel AND r.rolname <> ALL($1::name[])
ORDER BY s.{column} DESC, s.queryid LIMIT $2
"""


async def slow_queries(connection: Connection, log: Sequence[str], order: SlowQueryOrder, limit: int) -> SlowQueries:
    """See the port."""
    schema = await statistics_schema(connection)
    if schema is not None:
        return await _from_statistics(connection, schema, order, limit)
    threshold = await connection.fetchval(
        "SELECT setting::bigint FROM pg_settings WHERE name = 'log_min_duration_statement'"
    )
    return from_log(log, order, limit, threshold=timedelta(milliseconds=max(threshold, 0)))


async def statistics_schema(connection: Connection) -> str | None:
    """The schema of pg_stat_statements, quoted; made on a primary if the library is loaded. None where it is not."""
    schema: str | None = await connection.fetchval(
        "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = $1 AND $1 = ANY(string_to_array(replace("
        "current_setting('shared_preload_libraries'), ' ', ''), ','))",
        _EXTENSION,
    )
    if schema is not None:
        return schema
    can_be_made = await connection.fetchval(
        "SELECT NOT pg_is_in_recovery() AND EXISTS (SELECT FROM pg_available_extensions WHERE name = $1) "
        "AND $1 = ANY(string_to_array(replace(current_setting('shared_preload_libraries'), ' ', ''), ','))",
        _EXTENSION,
    )
    if not can_be_made:
        return None
    with contextlib.suppress(asyncpg.UniqueViolationError):  # somebody else was quicker
        await connection.execute(f"CREATE EXTENSION IF NOT EXISTS {_EXTENSION} SCHEMA public")
    return "public"


def from_log(lines: Iterable[str], order: SlowQueryOrder, limit: int, *, threshold: timedelta) -> SlowQueries:
    """What the lines tell, as PostgreSQL writes them with `log_destination = jsonlog`; others are left out."""
    found: dict[tuple[str, str, str], _Calls] = {}
    since: datetime | None = None
    for line in lines:
        entry = _entry(line)
        if entry is None:
            continue
        time = _time(entry.get("timestamp"))
        since = since or time
        message = _MESSAGE.match(str(entry.get("message", "")))
        user = str(entry.get("user", ""))
        if message is None or user in _OWN:
            continue
        statement = without_constants(message[2])
        key = (str(entry.get("dbname", "")), user, statement)
        found.setdefault(key, _Calls()).add(float(message[1]), time)
    queries = [calls.query(*key) for key, calls in found.items()]
    return SlowQueries(tuple(heapq.nlargest(limit, queries, key=_sort_key(order))), False, since, threshold)


async def _from_statistics(connection: Connection, schema: str, order: SlowQueryOrder, limit: int) -> SlowQueries:
    rows = await connection.fetch(_STATISTICS.format(schema=schema, column=_COLUMNS[order]), sorted(_OWN), limit)
    since = await connection.fetchval(f"SELECT stats_reset FROM {schema}.pg_stat_statements_info")  # noqa: S608
    queries = [
        SlowQuery(
            # Constants of utility statements stay in its texts, passwords too.
            query=without_constants(row["query"]),
            query_id=statement_id(row["database"], row["user"], row["query_id"]),
            database=row["database"],
            user=row["user"],
            calls=row["calls"],
            total_time=timedelta(milliseconds=row["total_exec_time"]),
            mean_time=timedelta(milliseconds=row["mean_exec_time"]),
            max_time=timedelta(milliseconds=row["max_exec_time"]),
            rows=row["rows"],
        )
        for row in rows
    ]
    return SlowQueries(tuple(queries), statistics=True, since_time=since)


@dataclass(slots=True)
class _Calls:
    durations: list[float] = field(default_factory=list)  # milliseconds
    last: datetime | None = None

    def add(self, duration: float, time: datetime | None) -> None:
        self.durations.append(duration)
        self.last = time or self.last

    def query(self, database: str, user: str, statement: str) -> SlowQuery:
        total = sum(self.durations)
        return SlowQuery(
            query=statement,
            query_id=statement_id(database, user, statement),
            database=database,
            user=user,
            calls=len(self.durations),
            total_time=timedelta(milliseconds=total),
            mean_time=timedelta(milliseconds=total / len(self.durations)),
            max_time=timedelta(milliseconds=max(self.durations)),
            rows=0,
            last_time=self.last,
        )


def _sort_key(order: SlowQueryOrder) -> Callable[[SlowQuery], Any]:
    name = order.value.lower()
    return lambda query: (getattr(query, name), query.query_id)


def _entry(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:  # the first line may be cut off
        return None
    return entry if isinstance(entry, dict) else None


def _time(text: object) -> datetime | None:
    """`2026-01-31 08:00:00.123 UTC`; servers made here log in UTC."""
    if not isinstance(text, str) or not text.endswith(" UTC"):
        return None
    try:
        return datetime.fromisoformat(text.removesuffix(" UTC")).replace(tzinfo=UTC)
    except ValueError:
        return None
