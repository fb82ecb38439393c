"""The counters of a server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from opsplane_server.instances.engines.mysql.connecting import Session
from opsplane_server.instances.engines.mysql.databases import sizes_by_database
from opsplane_server.instances.monitoring import ServerSample

_COUNTERS: Final = (
    "handler_commit",
    "handler_rollback",
    "innodb_buffer_pool_read_requests",
    "innodb_buffer_pool_reads",
    "innodb_deadlocks",
    "questions",
    "threads_connected",
    "threads_running",
)


async def sample(session: Session) -> ServerSample:
    """Without the connection that asks. Transactions are the commits and rollbacks of storage engines, for a statement
    that commits by itself is in no other counter.
    """
    rows = await session.rows(
        "SHOW GLOBAL STATUS WHERE FIND_IN_SET(LOWER(variable_name), %s) > 0", (",".join(_COUNTERS),)
    )
    counters = {name.lower(): int(value) for name, value in rows}
    reads = counters["innodb_buffer_pool_reads"]
    return ServerSample(
        time=datetime.now(UTC),
        connections=max(0, counters["threads_connected"] - 1),
        active_connections=max(0, await _active(session)),
        max_connections=int(await session.value("SELECT @@GLOBAL.max_connections")),
        transactions=counters["handler_commit"] + counters["handler_rollback"],
        queries=counters["questions"],
        buffer_hits=max(0, counters["innodb_buffer_pool_read_requests"] - reads),
        buffer_reads=reads,
        deadlocks=await _deadlocks(session, counters),
        database_size_bytes=sum((await sizes_by_database(session)).values()),
    )


async def _active(session: Session) -> int:
    """Those at work for clients: the counter of running threads has those of the server too."""
    return int(
        await session.value(
            "SELECT COUNT(*) FROM information_schema.processlist"
            " WHERE command NOT IN ('Sleep', 'Daemon', 'Binlog Dump', 'Binlog Dump GTID', 'Connect')"
            " AND user <> 'system user' AND id <> CONNECTION_ID()"
        )
    )


async def _deadlocks(session: Session, counters: dict[str, int]) -> int | None:
    if session.mariadb:
        return counters.get("innodb_deadlocks")
    count = await session.value(
        "SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks' AND status = 'enabled'"
    )
    return int(count) if count is not None else None
