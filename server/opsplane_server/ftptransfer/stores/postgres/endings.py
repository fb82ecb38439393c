"""How transfers end: the same for those that a worker has done and for those that never reach one.

`END` follows a common table expression `ended` which has deleted the rows of the queue, with the columns key,
parent_key, to_tell, attempt_count, start_time, expected (the size that its tree has counted), state, failure, size,
transferred, resumed, skipped, modify_time and duration. `$1` is the worker whose totals count them. `LOGGED` tells
followers, `UNDONE` are the columns of those that are not at work. Before it stands also
`sent`, with the bytes to count.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from opsplane_server.storage.database import Connection

log = structlog.get_logger(__name__)

END: Final = """
done AS (
    INSERT INTO ftptransfer.endings (
        key, state, failure, attempt_count, size_bytes, bytes_transferred, resumed_bytes, skipped, source_modify_time,
        start_time, duration)
    SELECT key, state, failure, attempt_count, size, transferred, resumed, skipped, modify_time, start_time, duration
    FROM ended
), told AS (
    INSERT INTO ftptransfer.outbox (status, message, bytes_transferred, duration, error_code, error_message)
    SELECT CASE e.state WHEN 'SUCCEEDED' THEN 'success' ELSE lower(e.state) END, t.message, e.transferred,
           COALESCE(e.duration, '0'), e.failure ->> 'code', e.failure ->> 'message'
    FROM ended e JOIN ftptransfer.transfers t ON t.key = e.key WHERE e.to_tell
), counted AS (
    UPDATE ftptransfer.totals o
    SET succeeded = o.succeeded + c.succeeded, cancelled = o.cancelled + c.cancelled, bytes = o.bytes + c.sent,
        invalid_config = o.invalid_config + c.invalid_config, file_not_found = o.file_not_found + c.file_not_found,
        connection_error = o.connection_error + c.connection_error, io_error = o.io_error + c.io_error,
        unknown_error = o.unknown_error + c.unknown_error
    FROM (SELECT count(*) FILTER (WHERE state = 'SUCCEEDED') AS succeeded,
                 count(*) FILTER (WHERE state = 'CANCELLED') AS cancelled,
                 count(*) FILTER (WHERE state = 'FAILED' AND failure ->> 'code' = 'INVALID_CONFIG') AS invalid_config,
                 count(*) FILTER (WHERE state = 'FAILED' AND failure ->> 'code' = 'FILE_NOT_FOUND') AS file_not_found,
                 count(*) FILTER (WHERE state = 'FAILED' AND failure ->> 'code' = 'CONNECTION_ERROR')
                     AS connection_error,
                 count(*) FILTER (WHERE state = 'FAILED' AND failure ->> 'code' = 'IO_ERROR') AS io_error,
                 count(*) FILTER (WHERE state = 'FAILED' AND failure ->> 'code' = 'UNKNOWN_ERROR') AS unknown_error,
                 (SELECT bytes FROM sent) AS sent
          FROM ended) c
    WHERE o.worker = $1
), grown AS (
    UPDATE ftptransfer.families f
    SET succeeded = f.succeeded + c.succeeded, failed = f.failed + c.failed, cancelled = f.cancelled + c.cancelled,
        skipped = f.skipped + c.skipped, size_bytes = f.size_bytes + c.size, bytes_transferred
            = f.bytes_transferred + c.transferred
    FROM (SELECT parent_key, count(*) FILTER (WHERE state = 'SUCCEEDED') AS succeeded,
                 count(*) FILTER (WHERE state = 'FAILED') AS failed,
                 count(*) FILTER (WHERE state = 'CANCELLED') AS cancelled, count(*) FILTER (WHERE skipped) AS skipped,
                 sum(COALESCE(size, 0) - COALESCE(expected, 0)) AS size, sum(transferred) AS transferred
          FROM ended WHERE parent_key IS NOT NULL GROUP BY parent_key) c
    WHERE f.key = c.parent_key
    RETURNING f.succeeded + f.failed + f.cancelled >= f.total AS complete
)
"""

LOGGED: Final = """, logged AS (
    INSERT INTO ftptransfer.changes (keys) SELECT array_agg(key) FROM ended HAVING count(*) > 0
)"""

UNDONE: Final = """q.size_bytes AS size, 0::bigint AS transferred, 0::bigint AS resumed, false AS skipped,
    NULL::timestamptz AS modify_time, NULL::interval AS duration"""

NOTHING_SENT: Final = "sent AS (SELECT 0::bigint AS bytes)"

_END_CANCELLED: Final = f"""
WITH ended AS (
    DELETE FROM ftptransfer.queue q
    WHERE q.key IN (SELECT key FROM ftptransfer.queue
                    WHERE cancelled AND state <> 'RUNNING' AND ($2::bigint IS NULL OR key = $2)
                      AND (generation = 0 OR due < now() - $4::interval)
                    ORDER BY key LIMIT $3 FOR UPDATE SKIP LOCKED)
    RETURNING q.key, q.parent_key, q.to_tell, q.attempt_count, q.start_time, q.size_bytes AS expected,
              CASE WHEN q.failed THEN 'FAILED' ELSE 'CANCELLED' END AS state, q.failure, q.generation, {UNDONE}
), {NOTHING_SENT}, {END} {LOGGED}
SELECT (SELECT count(*) FROM ended) AS count,
       (SELECT array_agg(t.id) FROM ended e JOIN ftptransfer.transfers t ON t.key = e.key WHERE e.generation > 0)
           AS left_by
"""

_END_FAMILIES: Final = f"""
WITH complete AS (
    -- Locked, so that a child that is begun anew at the same time is seen, or finds its parent gone.
    SELECT f.* FROM ftptransfer.families f JOIN ftptransfer.queue q ON q.key = f.key
    WHERE q.state = 'RUNNING' AND q.worker IS NULL AND f.succeeded + f.failed + f.cancelled >= f.total
    ORDER BY f.key LIMIT $2 FOR UPDATE OF f
), ended AS (
    DELETE FROM ftptransfer.queue q USING complete f WHERE q.key = f.key
    RETURNING q.key, q.parent_key, q.to_tell, q.attempt_count, q.start_time, NULL::bigint AS expected,
              CASE WHEN q.cancelled THEN 'CANCELLED'
                   WHEN q.failure IS NOT NULL OR f.failed > 0 THEN 'FAILED'
                   WHEN f.cancelled > 0 THEN 'CANCELLED' ELSE 'SUCCEEDED' END AS state,
              CASE WHEN q.failure IS NOT NULL OR f.failed = 0 OR q.cancelled THEN q.failure
                   ELSE jsonb_build_object('code', 'UNKNOWN_ERROR', 'reason', 'CHILDREN_FAILED', 'message',
                       f.failed || ' of ' || f.total || ' transfers failed', 'ftp_code', 0, 'retryable', false,
                       'time', now()) END AS failure,
              f.size_bytes AS size, f.bytes_transferred AS transferred, 0::bigint AS resumed, false AS skipped,
              NULL::timestamptz AS modify_time, now() - q.start_time AS duration
), {NOTHING_SENT}, {END} {LOGGED} SELECT count(*) FROM ended"""

CHUNK: Final = 2000

MOST_CRASHES: Final = 20
"""A transfer is given up when so many workers have died that had it. One more may try to remove what they left."""

_CLEAN_UP: Final = timedelta(seconds=60)
"""A transfer that is over, but had been begun, waits so long for a worker that can remove what is left of it."""


async def end_cancelled(connection: Connection, key: int | None = None) -> int:
    """Ends transfers that are cancelled and that no worker has, all or one; returns how many, at most a chunk.

    Those of which something may be left, failed ones too, only when no worker could remove it.
    """
    row = await connection.fetchrow(_END_CANCELLED, "", key, CHUNK, _CLEAN_UP)
    assert row is not None
    if row["left_by"]:
        log.warning("temporary files may be left", transfers=row["left_by"])
    count: int = row["count"]
    return count


async def end_families(connection: Connection) -> int:
    """Ends globs and trees whose files have all ended; returns how many, at most a chunk."""
    count: int = await connection.fetchval(_END_FAMILIES, "", CHUNK)
    return count
