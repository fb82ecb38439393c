"""The figures of all processes in PostgreSQL."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import asyncpg

from opsplane_server.ftptransfer.failures import ErrorCode
from opsplane_server.ftptransfer.model import PoolFigures, ServiceFigures, WorkerFigures
from opsplane_server.ftptransfer.stores.postgres.rows import failure_from_json, failure_to_json
from opsplane_server.storage.database import Database

_BEAT: Final = """
INSERT INTO ftptransfer.workers AS w (
    worker, version, start_time, draining, tasks_in_progress, bytes_per_second, files_per_second, pools)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb)
ON CONFLICT (worker) DO UPDATE
SET version = excluded.version, start_time = excluded.start_time, draining = excluded.draining,
    tasks_in_progress = excluded.tasks_in_progress, bytes_per_second = excluded.bytes_per_second,
    files_per_second = excluded.files_per_second, pools = excluded.pools, seen_time = now()
"""

_TOTALS: Final = """
SELECT sum(succeeded)::bigint AS succeeded, sum(cancelled)::bigint AS cancelled, sum(malformed)::bigint AS malformed,
       sum(bytes)::bigint AS bytes, sum(invalid_config)::bigint AS invalid_config,
       sum(file_not_found)::bigint AS file_not_found, sum(connection_error)::bigint AS connection_error,
       sum(io_error)::bigint AS io_error, sum(unknown_error)::bigint AS unknown_error,
       min(create_time) FILTER (WHERE worker = '') AS since_time,
       (SELECT count(*) FROM ftptransfer.queue) AS active,
       (SELECT count(*) FROM ftptransfer.queue WHERE state = 'PENDING') AS backlog,
       extract(epoch FROM now() - (SELECT min(due) FROM ftptransfer.queue WHERE state = 'PENDING'))::double precision
           AS oldest_age
FROM ftptransfer.totals
"""

# What is not heard of for so long has died; a process says so itself each second.
_LATELY: Final = """
SELECT worker, version, start_time, draining, tasks_in_progress, bytes_per_second, files_per_second,
       pools::text AS pools, COALESCE(lease_until > now(), false) AS takes
FROM ftptransfer.workers WHERE seen_time > now() - interval '10 seconds' AND version <> '' ORDER BY worker
"""


class PostgresFigureStore:
    """`ports.FigureStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def beat(self, worker: WorkerFigures) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                _BEAT,
                worker.worker,
                worker.version,
                worker.start_time,
                worker.draining,
                worker.tasks_in_progress,
                worker.bytes_per_second,
                worker.files_per_second,
                json.dumps({name: _pool_to_json(pool) for name, pool in worker.pools.items()}),
            )

    async def leave(self, worker: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                """UPDATE ftptransfer.workers SET seen_time = seen_time - interval '10 seconds', tasks_in_progress = 0
                   WHERE worker = $1""",
                worker,
            )

    async def read(self) -> ServiceFigures:
        """See the port."""
        async with self._database.connection() as connection:
            totals = await connection.fetchrow(_TOTALS)
            workers = await connection.fetch(_LATELY)
        assert totals is not None
        return ServiceFigures(
            running=any(row["takes"] and not row["draining"] for row in workers),
            workers=tuple(_worker(row) for row in workers),
            active=totals["active"],
            backlog=totals["backlog"],
            oldest_age=max(0.0, totals["oldest_age"]) if totals["oldest_age"] is not None else None,
            succeeded=totals["succeeded"],
            cancelled=totals["cancelled"],
            failed={code: totals[code.value.lower()] for code in ErrorCode},
            malformed=totals["malformed"],
            bytes_transferred=totals["bytes"],
            since_time=totals["since_time"],
        )


def _worker(row: asyncpg.Record) -> WorkerFigures:
    return WorkerFigures(
        worker=row["worker"],
        version=row["version"],
        start_time=row["start_time"],
        draining=row["draining"],
        tasks_in_progress=row["tasks_in_progress"],
        bytes_per_second=row["bytes_per_second"],
        files_per_second=row["files_per_second"],
        pools={name: _pool_from_json(pool) for name, pool in json.loads(row["pools"]).items()},
    )


def _pool_to_json(pool: PoolFigures) -> dict[str, Any]:
    failure = pool.last_failure
    kept = failure_to_json(failure)
    return asdict(pool) | {
        "retry_time": pool.retry_time.isoformat() if pool.retry_time is not None else None,
        "last_failure": json.loads(kept) if kept is not None else None,
        "last_time": failure.time.isoformat() if failure is not None and failure.time is not None else None,
    }


def _pool_from_json(pool: dict[str, Any]) -> PoolFigures:
    last_time, failure, retry_time = pool.pop("last_time"), pool.pop("last_failure"), pool.pop("retry_time")
    if failure is not None and last_time is not None:
        failure["time"] = last_time
    return PoolFigures(
        **pool,
        retry_time=datetime.fromisoformat(retry_time) if retry_time is not None else None,
        last_failure=failure_from_json(json.dumps(failure)) if failure is not None else None,
    )
