"""The queue of tasks in PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final
from urllib.parse import urlencode

from opsplane_server.errors import Aborted, LeaseLost
from opsplane_server.ftptransfer import model
from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import Child, Outcome, Progress, Task
from opsplane_server.ftptransfer.ports import ConnectionSource
from opsplane_server.ftptransfer.stores.postgres.endings import END, end_cancelled, end_families
from opsplane_server.ftptransfer.stores.postgres.tasks import child_key, may_have_left, settlement, to_task
from opsplane_server.rpc.ids import new_id
from opsplane_server.storage.database import Database
from opsplane_server.storage.signals import Signal

# Twice as many candidates as wanted: another worker may be taking some of them.
_TAKE: Final = """
WITH RECURSIVE remotes AS (
    (SELECT remote FROM ftptransfer.queue WHERE state <> 'RUNNING' AND NOT cancelled ORDER BY remote LIMIT 1)
    UNION ALL
    SELECT (SELECT q.remote FROM ftptransfer.queue q
            WHERE q.state <> 'RUNNING' AND NOT q.cancelled AND q.remote > r.remote ORDER BY q.remote LIMIT 1)
    FROM remotes r WHERE r.remote IS NOT NULL
), candidates AS (
    SELECT c.* FROM remotes r CROSS JOIN LATERAL (
        (SELECT key, rank, due, cancelled FROM ftptransfer.queue
         WHERE state <> 'RUNNING' AND NOT cancelled AND remote = r.remote AND rank = 0 AND due <= now()
         ORDER BY due, key LIMIT $2 * 2)
        UNION ALL
        (SELECT key, rank, due, cancelled FROM ftptransfer.queue
         WHERE state <> 'RUNNING' AND NOT cancelled AND remote = r.remote AND rank = 1 AND due <= now()
         ORDER BY due, key LIMIT $2 * 2)
        UNION ALL
        (SELECT key, rank, due, cancelled FROM ftptransfer.queue
         WHERE state <> 'RUNNING' AND NOT cancelled AND remote = r.remote AND rank = 2 AND due <= now()
         ORDER BY due, key LIMIT $2 * 2)
    ) c
    WHERE r.remote <> ALL ($3::text[]) ORDER BY c.rank, c.due, c.key LIMIT $2 * 2
), left_over AS (
    SELECT key, remote, -1 AS rank, due, cancelled FROM ftptransfer.queue
    WHERE cancelled AND generation > 0 AND state <> 'RUNNING' ORDER BY due, key LIMIT 1000
), locked AS (
    SELECT q.key, c.rank, c.due
    FROM (SELECT key, rank, due, cancelled FROM candidates
          UNION ALL
          SELECT key, rank, due, cancelled FROM left_over o
          WHERE remote <> ALL ($3::text[])
             OR remote <> (SELECT destination_connection FROM ftptransfer.transfers t WHERE t.key = o.key)) c
    JOIN ftptransfer.queue q ON q.key = c.key
    WHERE q.state <> 'RUNNING' AND q.cancelled = c.cancelled
      AND EXISTS (SELECT FROM ftptransfer.workers w WHERE w.worker = $1 AND w.lease_until > now())
    ORDER BY c.rank, c.due, c.key LIMIT $2 FOR UPDATE OF q SKIP LOCKED
), taken AS (
    UPDATE ftptransfer.queue q
    SET state = 'RUNNING', worker = $1, generation = q.generation + 1,
        attempt_count = q.attempt_count + (NOT q.cancelled)::integer,
        start_time = COALESCE(q.start_time, now()), update_time = now()
    FROM locked l WHERE q.key = l.key
    RETURNING q.key, q.generation, q.attempt_count, q.crashes, q.cancelled, q.failed, q.failure, q.size_bytes,
              q.source_modify_time, l.rank, l.due
)
SELECT n.key, n.generation, n.attempt_count, n.crashes, n.cancelled, n.failed, n.failure, n.size_bytes,
       n.source_modify_time, t.id, t.source_connection, t.source_path, t.destination_connection, t.destination_path,
       t.selection, t.existing_file, t.sha256, t.retry_count, t.max_attempts
FROM taken n JOIN ftptransfer.transfers t ON t.key = n.key ORDER BY n.rank, n.due, n.key
"""

_SETTLE: Final = f"""
WITH given AS MATERIALIZED (
    SELECT key, generation, kind, failure::jsonb || jsonb_build_object('time', now()) AS failure, delay, size,
           resumed, skipped, modify_time, duration, sent
    FROM unnest($2::bigint[], $3::integer[], $4::text[], $5::text[], $6::interval[], $7::bigint[], $8::bigint[],
                $9::boolean[], $10::timestamptz[], $11::interval[], $12::bigint[])
         AS g (key, generation, kind, failure, delay, size, resumed, skipped, modify_time, duration, sent)
), ended AS (
    DELETE FROM ftptransfer.queue q USING given g
    WHERE q.key = g.key AND q.worker = $1 AND q.generation = g.generation
      AND g.kind IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
    RETURNING q.key, q.parent_key, q.to_tell, q.attempt_count, q.start_time, q.size_bytes AS expected,
              CASE WHEN q.cancelled AND NOT q.failed AND g.kind = 'FAILED' THEN 'CANCELLED' ELSE g.kind END AS state,
              CASE g.kind WHEN 'CANCELLED' THEN q.failure ELSE g.failure END AS failure,
              COALESCE(g.size, q.size_bytes) AS size, CASE WHEN g.kind = 'SUCCEEDED' THEN g.size ELSE 0 END
                  AS transferred, g.resumed, g.skipped, g.modify_time, g.duration, g.sent
), back AS (
    UPDATE ftptransfer.queue q
    SET state = CASE WHEN g.kind = 'RETRY' THEN 'WAITING' WHEN g.kind IN ('RELEASED', 'RETURNED', 'LEFT') THEN 'PENDING'
                     ELSE 'RUNNING' END,
        worker = NULL, due = CASE WHEN g.kind = 'LEFT' OR q.cancelled AND g.kind <> 'RETURNED' THEN now()
                                  WHEN g.kind = 'RETRY' THEN now() + g.delay ELSE q.due END,
        attempt_count = q.attempt_count - (g.kind = 'RELEASED')::integer,
        failure = CASE WHEN g.kind IN ('RELEASED', 'RETURNED') THEN q.failure
                       WHEN g.kind = 'LEFT' THEN COALESCE(g.failure, q.failure) ELSE g.failure END,
        failed = q.failed OR (g.kind = 'LEFT' AND g.failure IS NOT NULL AND NOT q.cancelled),
        size_bytes = COALESCE(g.size, q.size_bytes), source_modify_time = g.modify_time,
        cancelled = q.cancelled OR g.kind IN ('ABANDONED', 'LEFT'), bytes_per_second = 0, update_time = now()
    FROM given g
    WHERE q.key = g.key AND q.worker = $1 AND q.generation = g.generation
      AND g.kind NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
    RETURNING q.key, q.cancelled OR q.state = 'RUNNING' AS unfinished, g.sent
), sent AS (
    SELECT COALESCE(sum(sent), 0)::bigint AS bytes
    FROM (SELECT sent FROM ended UNION ALL SELECT sent FROM back) both_sent
), {END}, logged AS (
    INSERT INTO ftptransfer.changes (keys)
    SELECT array_agg(key) FROM (SELECT key FROM ended UNION ALL SELECT key FROM back) changed HAVING count(*) > 0
)
SELECT COALESCE((SELECT bool_or(unfinished) FROM back), false)
    OR COALESCE((SELECT bool_or(complete) FROM grown), false)
"""

_RENEW: Final = """
WITH lease AS (
    INSERT INTO ftptransfer.workers AS w (worker, lease_until) VALUES ($1, now() + $2::interval)
    ON CONFLICT (worker) DO UPDATE SET lease_until = excluded.lease_until, seen_time = now()
), totals AS (
    INSERT INTO ftptransfer.totals (worker) VALUES ($1) ON CONFLICT DO NOTHING
), given AS MATERIALIZED (
    SELECT * FROM unnest($3::bigint[], $4::integer[], $5::bigint[], $6::bigint[], $7::double precision[],
                         $8::timestamptz[])
        AS g (key, generation, transferred, size, rate, modify_time)
), moved AS (
    UPDATE ftptransfer.queue q
    SET bytes_transferred = g.transferred, size_bytes = COALESCE(g.size, q.size_bytes), bytes_per_second = g.rate,
        source_modify_time = g.modify_time, update_time = now()
    FROM given g
    WHERE q.key = g.key AND q.worker = $1 AND q.generation = g.generation
      AND (q.bytes_transferred, q.bytes_per_second, q.source_modify_time)
          IS DISTINCT FROM (g.transferred, g.rate, g.modify_time)
)
SELECT q.key FROM ftptransfer.queue q JOIN given g ON q.key = g.key
WHERE q.worker = $1 AND q.generation = g.generation AND NOT q.cancelled
"""

_LEAVE: Final = """
WITH left_by AS (
    UPDATE ftptransfer.workers SET lease_until = NULL WHERE worker = $1
), freed AS (
    UPDATE ftptransfer.queue SET state = 'PENDING', worker = NULL, bytes_per_second = 0, update_time = now()
    WHERE worker = $1 RETURNING key
) INSERT INTO ftptransfer.changes (keys) SELECT array_agg(key) FROM freed HAVING count(*) > 0
"""

_PARENT: Final = """
SELECT submitter FROM ftptransfer.queue q JOIN ftptransfer.transfers t ON t.key = q.key
WHERE q.key = $1 AND q.worker IS NOT NULL AND q.generation = $2 FOR UPDATE OF q
"""

_EXPAND: Final = """
WITH given AS (
    SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[]) WITH ORDINALITY
        AS g (id, task_key, source_path, destination_path, size, place)
), new AS (
    INSERT INTO ftptransfer.transfers (
        id, task_id, task_key, group_name, parent_key, source_connection, source_path, destination_connection,
        destination_path, remote, selection, priority, existing_file, max_attempts, retry_count, sha256, metadata,
        origin_kind, submitter, topic_partition, topic_offset)
    SELECT g.id, '', g.task_key, p.group_name, p.key, p.source_connection, g.source_path, p.destination_connection,
           g.destination_path, p.remote, 'FILE', p.priority, p.existing_file, p.max_attempts, 0, '', p.metadata,
           lower(p.selection), p.submitter, 0, 0
    FROM given g CROSS JOIN ftptransfer.transfers p WHERE p.key = $1 ORDER BY g.place
    ON CONFLICT (task_key) WHERE task_key IS NOT NULL DO NOTHING
    RETURNING key, id, parent_key, remote, priority
), queued AS (
    INSERT INTO ftptransfer.queue (key, remote, parent_key, rank, due, state, size_bytes)
    SELECT n.key, n.remote, n.parent_key, CASE n.priority WHEN 'HIGH' THEN 0 WHEN 'LOW' THEN 2 ELSE 1 END, now(),
           'PENDING', g.size
    FROM new n JOIN given g ON g.id = n.id ORDER BY n.key
    RETURNING size_bytes
), logged AS (
    INSERT INTO ftptransfer.changes (keys) SELECT array_agg(key) FROM new HAVING count(*) > 0
)
UPDATE ftptransfer.families f SET total = f.total + n.count, size_bytes = f.size_bytes + n.size
FROM (SELECT count(*) AS count, COALESCE(sum(size_bytes), 0)::bigint AS size FROM queued) n
WHERE f.key = $1
"""

_SETTLE_TRIES: Final = 3


def queue_database(dsn: str, *, max_size: int = 3) -> Database:
    """Connections for the queue alone.

    The queue may be empty now and have a million rows a second later, long before statistics say so: whatever
    PostgreSQL believes, reading it all is never right. Nor is compiling statements that take a millisecond.
    """
    settings = urlencode({"enable_seqscan": "off", "jit": "off"})
    return Database(f"{dsn}{'&' if '?' in dsn else '?'}{settings}", min_size=1, max_size=max_size, stateless=True)


class PostgresTransferQueue:
    """`ports.TransferQueue` on the connections of `queue_database`.

    Hints go to `work` when there is something to take, and to `changes` when a transfer changed its state.
    """

    def __init__(
        self,
        database: Database,
        connections: ConnectionSource,
        *,
        work: Signal,
        changes: Signal,
        lease_seconds: float = 15.0,
    ) -> None:
        self._database = database
        self._connections = connections
        self._work = work
        self._changes = changes
        self._lease_seconds = lease_seconds
        self._renewed: dict[str, float] = {}

    async def take(self, worker: str, limit: int, *, without: Collection[str]) -> Sequence[Task]:
        """See the port."""
        if time.monotonic() - self._renewed.get(worker, float("-inf")) > self._lease_seconds / 2:
            await self._renew(worker, ())
        async with self._database.connection() as connection:
            rows = await connection.fetch(_TAKE, worker, limit, list(without))
        if not rows:
            return []
        self._changes.notify()
        ends = {row[name] for row in rows for name in ("source_connection", "destination_connection")}
        connections = await self._connections.resolve(ends)
        tasks: list[Task] = []
        hopeless: list[tuple[Task, Outcome]] = []
        for row in rows:
            task = to_task(row, connections)
            if not task.is_over or may_have_left(task, connections):
                tasks.append(task)
            else:
                ended = model.Cancelled() if task.failure is None else model.Failed(task.failure)
                hopeless.append((task, ended))
        if hopeless:
            await self.settle(worker, hopeless)
        return tasks

    async def settle(self, worker: str, outcomes: Sequence[tuple[Task, Outcome]]) -> None:
        """See the port."""
        if not outcomes:
            return
        columns = settlement(outcomes)
        unfinished = False
        for last in (False,) * (_SETTLE_TRIES - 1) + (True,):
            try:
                async with self._database.connection() as connection:
                    unfinished = await connection.fetchval(_SETTLE, worker, *columns)
                break
            except Aborted:  # a deadlock over the counts of trees
                if last:
                    raise
        if unfinished:
            # What a crash leaves undone here, the next sweep does.
            async with self._database.transaction() as connection:
                await end_cancelled(connection)
                await end_families(connection)
        self._changes.notify()
        if any(isinstance(outcome, model.Released | model.Retry | model.LeftOver) for _, outcome in outcomes):
            self._work.notify()

    async def renew(self, worker: str, progress: Sequence[Progress]) -> Collection[str]:
        """See the port."""
        held = await self._renew(worker, progress)
        return {entry.task.id for entry in progress if entry.task.key not in held}

    async def expand(self, task: Task, children: Sequence[Child]) -> None:
        """See the port."""
        unique = {child_key(task.key, child): child for child in children}
        try:
            for child in children:
                child.source_path.encode()
                child.destination_path.encode()
        except UnicodeEncodeError as error:
            raise TransferFailure(
                ErrorReason.PATH, f"{error.object!r} is not a name in the encoding of the connection"
            ) from None
        async with self._database.transaction() as connection:
            if await connection.fetchrow(_PARENT, task.key, task.generation) is None:
                raise LeaseLost(f"the lease of transfer {task.id} was lost")
            await connection.execute(
                _EXPAND,
                task.key,
                [new_id() for _ in unique],
                list(unique),
                [child.source_path for child in unique.values()],
                [child.destination_path for child in unique.values()],
                [child.size for child in unique.values()],
            )
        self._work.notify()
        self._changes.notify()

    async def leave(self, worker: str) -> None:
        """See the port."""
        self._renewed.pop(worker, None)
        async with self._database.connection() as connection:
            await connection.execute(_LEAVE, worker)
        self._work.notify()

    async def _renew(self, worker: str, progress: Sequence[Progress]) -> set[int]:
        """Keys of the tasks that the worker still has, and that are not cancelled."""
        began = time.monotonic()
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _RENEW,
                worker,
                timedelta(seconds=self._lease_seconds),
                [entry.task.key for entry in progress],
                [entry.task.generation for entry in progress],
                [entry.transferred for entry in progress],
                [entry.size for entry in progress],
                [entry.bytes_per_second for entry in progress],
                [entry.modify_time for entry in progress],
            )
        self._renewed[worker] = began
        return {row["key"] for row in rows}
