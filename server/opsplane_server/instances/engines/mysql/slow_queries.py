"""The statements that took most time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from opsplane_server.instances.engines.mysql import slow_log
from opsplane_server.instances.engines.mysql.connecting import Session
from opsplane_server.instances.engines.mysql.names import SYSTEM_DATABASE_LIST, SYSTEM_USERS
from opsplane_server.instances.sql import SlowQueries, SlowQuery, SlowQueryOrder

_LONGEST_QUERY: Final = 4096
_PICOSECONDS_IN_MICROSECOND: Final = 1_000_000
_COLUMNS: Final = {
    SlowQueryOrder.TOTAL_TIME: "sum_timer_wait",
    SlowQueryOrder.MEAN_TIME: "avg_timer_wait",
    SlowQueryOrder.MAX_TIME: "max_timer_wait",
    SlowQueryOrder.CALLS: "count_star",
}
_KEYS: Final[dict[SlowQueryOrder, Callable[[SlowQuery], timedelta | int]]] = {
    SlowQueryOrder.TOTAL_TIME: lambda query: query.total_time,
    SlowQueryOrder.MEAN_TIME: lambda query: query.mean_time,
    SlowQueryOrder.MAX_TIME: lambda query: query.max_time,
    SlowQueryOrder.CALLS: lambda query: query.calls,
}


async def slow_queries(session: Session, log: Sequence[str], order: SlowQueryOrder, limit: int) -> SlowQueries:
    """From the performance schema where it is on, else from the log."""
    if await session.value("SELECT @@GLOBAL.performance_schema") == 1:
        return await _from_statistics(session, order, limit)
    threshold = timedelta(seconds=float(await session.value("SELECT @@GLOBAL.long_query_time")))
    found, since = slow_log.summarise(log, _LONGEST_QUERY)
    queries = [query for query in found if query.user not in SYSTEM_USERS]
    queries.sort(key=lambda query: _KEYS[order](query), reverse=True)
    return SlowQueries(tuple(queries[:limit]), statistics=False, since_time=since, threshold=threshold)


async def _from_statistics(session: Session, order: SlowQueryOrder, limit: int) -> SlowQueries:
    rows = await session.rows(
        "SELECT LEFT(digest_text, %s), digest, COALESCE(schema_name, ''), count_star, sum_timer_wait, avg_timer_wait,"  # noqa: S608
        " max_timer_wait, sum_rows_sent + sum_rows_affected, last_seen"
        " FROM performance_schema.events_statements_summary_by_digest"
        " WHERE digest IS NOT NULL AND FIND_IN_SET(COALESCE(schema_name, '-'), %s) = 0"
        f" ORDER BY {_COLUMNS[order]} DESC, digest LIMIT %s",
        (_LONGEST_QUERY, SYSTEM_DATABASE_LIST, limit),
    )
    since = await session.value("SELECT MIN(first_seen) FROM performance_schema.events_statements_summary_by_digest")
    queries = tuple(
        SlowQuery(
            query=text,
            query_id=digest,
            database=database,
            user="",
            calls=int(calls),
            total_time=_duration(total),
            mean_time=_duration(mean),
            max_time=_duration(longest),
            rows=int(count),
            last_time=_utc(last),
        )
        for text, digest, database, calls, total, mean, longest, count, last in rows
    )
    return SlowQueries(queries, statistics=True, since_time=_utc(since))


def _duration(picoseconds: int) -> timedelta:
    return timedelta(microseconds=int(picoseconds) / _PICOSECONDS_IN_MICROSECOND)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None else None
