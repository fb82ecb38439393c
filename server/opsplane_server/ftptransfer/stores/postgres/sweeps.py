"""What nobody but time does: taking back what dead workers held, ending what is complete, forgetting what is old."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from opsplane_server.ftptransfer.stores.postgres.endings import (
    CHUNK,
    END,
    LOGGED,
    MOST_CRASHES,
    NOTHING_SENT,
    UNDONE,
    end_cancelled,
    end_families,
)
from opsplane_server.storage.database import Database

_END_CRASHED: Final = f"""
WITH ended AS (
    DELETE FROM ftptransfer.queue q
    WHERE q.key IN (SELECT key FROM ftptransfer.queue WHERE crashes > $2 AND state = 'PENDING' AND key = ANY($3)
                    ORDER BY key FOR UPDATE SKIP LOCKED)
    RETURNING q.key, q.parent_key, q.to_tell, q.attempt_count, q.start_time, q.size_bytes AS expected,
              CASE WHEN q.cancelled AND NOT q.failed THEN 'CANCELLED' ELSE 'FAILED' END AS state,
              CASE WHEN q.failed THEN q.failure ELSE jsonb_build_object(
                  'code', 'UNKNOWN_ERROR', 'reason', 'UNSPECIFIED', 'message',
                  'the process that did it died ' || q.crashes || ' times', 'ftp_code', 0, 'retryable', true,
                  'time', now()) END AS failure, {UNDONE}
), {NOTHING_SENT}, {END} {LOGGED} SELECT count(*) FROM ended"""

_SPREAD: Final = """
WITH theirs AS (
    SELECT c.key FROM ftptransfer.queue p JOIN ftptransfer.queue c ON c.parent_key = p.key
    WHERE p.cancelled AND p.parent_key IS NULL AND NOT c.cancelled LIMIT $1 FOR UPDATE OF c SKIP LOCKED
), marked AS (
    UPDATE ftptransfer.queue q SET cancelled = true, due = now(), update_time = now()
    FROM theirs WHERE q.key = theirs.key RETURNING 1
) SELECT count(*) FROM marked"""

_ORPHANS: Final = """
WITH orphans AS (
    SELECT key FROM ftptransfer.queue q
    WHERE q.worker IS NOT NULL AND NOT EXISTS (
        SELECT FROM ftptransfer.workers w WHERE w.worker = q.worker AND w.lease_until > now())
    FOR UPDATE SKIP LOCKED
), freed AS (
    UPDATE ftptransfer.queue q
    SET state = 'PENDING', worker = NULL, crashes = crashes + 1, bytes_per_second = 0, update_time = now(),
        due = CASE WHEN cancelled THEN now() ELSE due END
    FROM orphans WHERE q.key = orphans.key RETURNING q.key
), logged AS (
    INSERT INTO ftptransfer.changes (keys) SELECT array_agg(key) FROM freed HAVING count(*) > 0
) SELECT key FROM freed"""

_FORGET_WORKERS: Final = """
WITH gone AS (
    DELETE FROM ftptransfer.workers
    WHERE seen_time < now() - $1::interval AND (lease_until IS NULL OR lease_until < now()) RETURNING worker
), theirs AS (
    DELETE FROM ftptransfer.totals WHERE worker IN (SELECT worker FROM gone) RETURNING *
) UPDATE ftptransfer.totals o
SET succeeded = o.succeeded + s.succeeded, cancelled = o.cancelled + s.cancelled, bytes = o.bytes + s.bytes,
    invalid_config = o.invalid_config + s.invalid_config, file_not_found = o.file_not_found + s.file_not_found,
    connection_error = o.connection_error + s.connection_error, io_error = o.io_error + s.io_error,
    unknown_error = o.unknown_error + s.unknown_error, malformed = o.malformed + s.malformed
FROM (SELECT sum(succeeded)::bigint AS succeeded, sum(cancelled)::bigint AS cancelled, sum(bytes)::bigint AS bytes,
             sum(invalid_config)::bigint AS invalid_config, sum(file_not_found)::bigint AS file_not_found,
             sum(connection_error)::bigint AS connection_error, sum(io_error)::bigint AS io_error,
             sum(unknown_error)::bigint AS unknown_error, sum(malformed)::bigint AS malformed
      FROM theirs HAVING count(*) > 0) s
WHERE o.worker = ''"""

_FORGET_TRANSFERS: Final = """
WITH page AS (
    SELECT t.key, t.create_time, e.end_time
    FROM ftptransfer.transfers t LEFT JOIN ftptransfer.endings e ON e.key = t.key
    WHERE t.key > $1 ORDER BY t.key LIMIT $2
), old AS (
    SELECT key FROM page WHERE end_time < now() - $3::interval
), gone AS (
    DELETE FROM ftptransfer.transfers WHERE key IN (SELECT key FROM old)
), ends AS (
    DELETE FROM ftptransfer.endings WHERE key IN (SELECT key FROM old)
), trees AS (
    DELETE FROM ftptransfer.families WHERE key IN (SELECT key FROM old)
) SELECT max(key) AS last, (SELECT count(*) FROM old) AS deleted,
         count(*) = $2 AND max(create_time) < now() - $3::interval AS more FROM page"""

_FORGET_CHANGES: Final = """
WITH gone AS (
    DELETE FROM ftptransfer.changes WHERE (xid, id) IN (
        SELECT xid, id FROM ftptransfer.changes ORDER BY xid, id LIMIT $1) AND time < now() - $2::interval RETURNING 1
) SELECT count(*) FROM gone"""

_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended('opsplane.ftptransfer.sweep', 0))"

_WORKERS_KEPT: Final = timedelta(minutes=5)
_CHANGES_KEPT: Final = timedelta(minutes=5)


class PostgresSweeps:
    """`ports.Sweeps` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sweep(self) -> bool:
        """See the port."""
        async with self._database.transaction() as connection:
            if not await connection.fetchval(_LOCK):
                return False
            freed = [row["key"] for row in await connection.fetch(_ORPHANS)]
            if freed:
                await connection.execute(_END_CRASHED, "", MOST_CRASHES, freed)
            spread: int = await connection.fetchval(_SPREAD, CHUNK)
            cancelled = await end_cancelled(connection)
            ended = await end_families(connection)
        return bool(freed) or CHUNK in (spread, cancelled, ended) or spread + cancelled > 0

    async def forget(self, age: timedelta) -> int:
        """See the port."""
        async with self._database.transaction() as connection:
            if not await connection.fetchval(_LOCK):
                return 0
            await connection.execute(_FORGET_WORKERS, _WORKERS_KEPT)
            while await connection.fetchval(_FORGET_CHANGES, CHUNK, _CHANGES_KEPT) == CHUNK:
                pass
        deleted, last, more = 0, 0, True
        while more:
            async with self._database.connection() as connection:
                row = await connection.fetchrow(_FORGET_TRANSFERS, last, CHUNK, age)
            assert row is not None
            deleted, last, more = deleted + row["deleted"], row["last"], row["more"]
        return deleted
