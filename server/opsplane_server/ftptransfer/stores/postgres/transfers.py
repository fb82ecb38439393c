"""Transfers in PostgreSQL: how they come into the queue, are read, cancelled and begun anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg

from opsplane_server.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason
from opsplane_server.ftptransfer.model import Admission, NewTransfer, Transfer
from opsplane_server.ftptransfer.stores.postgres import rows
from opsplane_server.ftptransfer.stores.postgres.endings import end_cancelled
from opsplane_server.ftptransfer.stores.postgres.listing import matching
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Connection, Database

_INSERT: Final = """
WITH given AS (
    SELECT * FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
        $10::text[], $11::text[], $12::text[], $13::smallint[], $14::smallint[], $15::text[], $16::text[], $17::text[],
        $18::text[], $19::integer[], $20::bigint[], $21::text[], $22::text[]) WITH ORDINALITY
        AS g (id, task_id, task_key, group_name, source_connection, source_path, destination_connection,
              destination_path, remote, selection, priority, existing_file, max_attempts, retry_count, sha256, metadata,
              origin_kind, submitter, topic_partition, topic_offset, message, failure, place)
), new AS (
    INSERT INTO ftptransfer.transfers (
        id, task_id, task_key, group_name, source_connection, source_path, destination_connection, destination_path,
        remote, selection, priority, existing_file, max_attempts, retry_count, sha256, metadata, origin_kind, submitter,
        topic_partition, topic_offset, message)
    SELECT id, task_id, nullif(task_key, ''), group_name, source_connection, source_path, destination_connection,
           destination_path, remote, selection, priority, existing_file, max_attempts, retry_count, sha256, metadata,
           origin_kind, submitter, topic_partition, topic_offset, nullif(message, '')::jsonb
    FROM given ORDER BY place
    ON CONFLICT (task_key) WHERE task_key IS NOT NULL DO NOTHING
    RETURNING key, id, remote, priority, selection, message
), queued AS (
    INSERT INTO ftptransfer.queue (key, remote, to_tell, rank, due, state)
    SELECT key, remote, message IS NOT NULL, CASE priority WHEN 'HIGH' THEN 0 WHEN 'LOW' THEN 2 ELSE 1 END, now(),
           'PENDING'
    FROM new WHERE remote <> '' ORDER BY key
), trees AS (
    INSERT INTO ftptransfer.families (key) SELECT key FROM new WHERE selection <> 'FILE'
), failed AS (
    INSERT INTO ftptransfer.endings (key, state, failure)
    SELECT n.key, 'FAILED', g.failure::jsonb || jsonb_build_object('time', now())
    FROM new n JOIN given g ON g.id = n.id WHERE n.remote = '' RETURNING key, failure
), told AS (
    INSERT INTO ftptransfer.outbox (status, message, error_code, error_message)
    SELECT 'failed', n.message, f.failure ->> 'code', f.failure ->> 'message'
    FROM failed f JOIN new n ON n.key = f.key WHERE n.message IS NOT NULL ORDER BY n.key
), logged AS (
    INSERT INTO ftptransfer.changes (keys) SELECT array_agg(key) FROM new HAVING count(*) > 0
)
SELECT n.id, f.failure ->> 'code' AS code FROM new n LEFT JOIN failed f ON f.key = n.key
"""

_KNOWN: Final = """
SELECT id, task_key, source_connection, source_path, destination_connection, destination_path
FROM ftptransfer.transfers WHERE task_key = ANY ($1::text[])
"""

_CANCEL: Final = """
UPDATE ftptransfer.queue q SET cancelled = true, due = now(), update_time = now()
FROM ftptransfer.transfers t WHERE t.id = $1 AND q.key = t.key AND NOT q.cancelled RETURNING q.key
"""

_NEEDS: Final = """
FROM ftptransfer.transfers t
WHERE q.key = t.key AND (q.remote = $1 OR t.source_connection = $1 OR t.destination_connection = $1)
"""

# The tree first, then what was made of it: as it is done when a tree ends.
_LOCK_FAMILY: Final = """
SELECT f.key FROM ftptransfer.families f JOIN ftptransfer.transfers t ON f.key = COALESCE(t.parent_key, t.key)
WHERE t.id = $1 FOR UPDATE OF f
"""

_REVIVE: Final = """
WITH old AS (
    SELECT t.key, t.parent_key, t.remote, t.priority, t.message IS NOT NULL AS to_tell, e.state, e.size_bytes
    FROM ftptransfer.transfers t JOIN ftptransfer.endings e ON e.key = t.key
    WHERE {which} AND e.state IN ('FAILED', 'CANCELLED') ORDER BY t.key FOR UPDATE OF e
), gone AS (
    DELETE FROM ftptransfer.endings WHERE key IN (SELECT key FROM old)
), fresh AS (
    -- All attempts are to be had again: those made elsewhere count no more.
    UPDATE ftptransfer.transfers t SET retry_count = 0, remote = COALESCE($2, t.remote) FROM old
    WHERE t.key = old.key AND (t.retry_count <> 0 OR t.remote <> $2)
), queued AS (
    INSERT INTO ftptransfer.queue (key, parent_key, remote, to_tell, rank, due, state, size_bytes)
    SELECT key, parent_key, COALESCE($2, remote), to_tell,
           CASE priority WHEN 'HIGH' THEN 0 WHEN 'LOW' THEN 2 ELSE 1 END, now(), {state}, size_bytes
    FROM old ORDER BY key
), counted AS (
    UPDATE ftptransfer.families f SET failed = f.failed - c.failed, cancelled = f.cancelled - c.cancelled
    FROM (SELECT parent_key, count(*) FILTER (WHERE state = 'FAILED') AS failed,
                 count(*) FILTER (WHERE state = 'CANCELLED') AS cancelled
          FROM old WHERE parent_key IS NOT NULL GROUP BY parent_key) c
    WHERE f.key = c.parent_key
), logged AS (
    INSERT INTO ftptransfer.changes (keys) SELECT array_agg(key) FROM old HAVING count(*) > 0
)
SELECT key, parent_key FROM old
"""

_REVIVE_ONE: Final = _REVIVE.format(which="t.id = $1", state="'PENDING'")
_REVIVE_CHILDREN: Final = _REVIVE.format(which="t.parent_key = $1::bigint", state="'PENDING'")
# A tree whose files are all in the queue has nothing to do but wait for them.
_REVIVE_PARENT: Final = _REVIVE.format(which="t.key = $1::bigint", state="'RUNNING'")


class PostgresTransferStore:
    """`ports.TransferStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, transfers: Sequence[tuple[NewTransfer, str]]) -> list[tuple[Admission, str]]:
        """See the port."""
        if not transfers:
            return []
        async with self._database.transaction() as connection:
            try:
                new = await connection.fetch(_INSERT, *_columns(transfers))
            except asyncpg.UniqueViolationError:
                raise AlreadyExists.resource(names.transfer(transfers[0][0].id)) from None
            await _count_failed(connection, [row["code"] for row in new if row["code"] is not None])
            taken = {row["id"] for row in new}
            keys = [transfer.task_key for transfer, _ in transfers if transfer.id not in taken]
            known = {row["task_key"]: row for row in await connection.fetch(_KNOWN, keys)} if keys else {}
        return [_admission(transfer, taken, known) for transfer, _ in transfers]

    async def get(self, transfer_id: str) -> Transfer:
        """See the port."""
        async with self._database.connection() as connection:
            found = await rows.read(connection, f"{rows.SELECT} WHERE t.id = $1", transfer_id)
        if not found:
            raise NotFound.resource(names.transfer(transfer_id))
        return found[0]

    async def list_transfers(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Transfer]:
        """See the port."""
        args: list[object] = [page.key[0] if page.key else None, page.size + 1]
        condition = matching(conditions, args)
        async with self._database.connection() as connection:
            return await rows.read(
                connection,
                f"""{rows.SELECT} WHERE ($1::bigint IS NULL OR t.key < $1) AND {condition}
                    ORDER BY t.key DESC LIMIT $2""",
                *args,
            )

    async def cancel(self, transfer_id: str) -> None:
        """See the port."""
        async with self._database.transaction() as connection:
            key = await connection.fetchval(_CANCEL, transfer_id)
            if key is not None:
                await end_cancelled(connection, key)

    async def retry(self, transfer_id: str, remote: str) -> None:
        """See the port."""
        async with self._database.transaction() as connection:
            await connection.fetchval(_LOCK_FAMILY, transfer_id)
            transfer = await self.get(transfer_id)
            if not transfer.state.ended:
                raise FailedPrecondition(f"{names.transfer(transfer_id)} has not ended", reason="TRANSFER_NOT_ENDED")
            if transfer.children is None:
                revived = await connection.fetch(_REVIVE_ONE, transfer_id, remote)
                parent = revived[0]["parent_key"] if revived else None
                if parent is not None:
                    await connection.fetch(_REVIVE_PARENT, parent, None)
            else:
                revived = await self._retry_tree(connection, transfer)
            if not revived:
                raise FailedPrecondition(f"{names.transfer(transfer_id)} has succeeded", reason="TRANSFER_SUCCEEDED")

    async def count_active(self, connection_id: str) -> int:
        """See the port."""
        async with self._database.connection() as connection:
            count: int = await connection.fetchval(
                f"SELECT count(*) FROM ftptransfer.queue q WHERE EXISTS (SELECT {_NEEDS})", connection_id
            )
        return count

    async def cancel_all(self, connection_id: str) -> None:
        """See the port."""
        async with self._database.connection() as connection:
            await connection.execute(
                f"""UPDATE ftptransfer.queue q SET cancelled = true, due = now(), update_time = now()
                    {_NEEDS} AND NOT q.cancelled""",
                connection_id,
            )

    async def backlog(self) -> int:
        """See the port."""
        async with self._database.connection() as connection:
            count: int = await connection.fetchval("SELECT count(*) FROM ftptransfer.queue")
        return count

    async def _retry_tree(self, connection: Connection, transfer: Transfer) -> list[Any]:
        """The children that did not succeed; the tree itself is gone through anew only where that was not completed."""
        failure = transfer.failure
        whole = failure is not None and failure.reason is ErrorReason.CHILDREN_FAILED
        own = await connection.fetch(
            _REVIVE_PARENT if whole else _REVIVE_ONE, transfer.key if whole else transfer.id, None
        )
        if own:
            await connection.fetch(_REVIVE_CHILDREN, transfer.key, None)
        return own


async def _count_failed(connection: Connection, codes: Sequence[str]) -> None:
    """Adds up transfers that were wrong from the start."""
    for code in set(codes):
        column = _TOTALS[ErrorCode(code)]
        await connection.execute(
            f"UPDATE ftptransfer.totals SET {column} = {column} + $1 WHERE worker = ''", codes.count(code)
        )


_TOTALS: Final[Mapping[ErrorCode, str]] = {code: code.value.lower() for code in ErrorCode}


def _admission(transfer: NewTransfer, taken: set[str], known: Mapping[str, asyncpg.Record]) -> tuple[Admission, str]:
    if transfer.id in taken:
        return Admission.NEW, transfer.id
    row = known.get(transfer.task_key)
    if row is None:  # forgotten between the two statements
        raise Aborted("another change got in between, try again", reason="DATABASE_CONFLICT")
    ends = (
        transfer.source.connection,
        transfer.source.path,
        transfer.destination.connection,
        transfer.destination.path,
    )
    there = ("source_connection", "source_path", "destination_connection", "destination_path")
    same = ends == tuple(row[name] for name in there)
    return Admission.KNOWN if same else Admission.CONFLICT, row["id"]


def _columns(transfers: Sequence[tuple[NewTransfer, str]]) -> list[list[object]]:
    """The transfers as the arrays of `_INSERT`."""
    given = [
        (
            new.id,
            new.task_id,
            new.task_key,
            new.group,
            new.source.connection,
            new.source.path,
            new.destination.connection,
            new.destination.path,
            "" if new.failure is not None else remote,
            new.selection.value,
            new.priority.value,
            new.existing_file.value,
            new.max_attempts,
            new.retry_count,
            new.sha256,
            json.dumps(new.metadata, ensure_ascii=True) if new.metadata is not None else None,
            new.origin.kind,
            new.origin.submitter,
            new.origin.partition,
            new.origin.offset,
            new.message,
            rows.failure_to_json(new.failure),
        )
        for new, remote in transfers
    ]
    return [list(column) for column in zip(*given, strict=True)]
