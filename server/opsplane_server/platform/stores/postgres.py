"""The platform's stores in PostgreSQL. Leases live by the database's clock alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

import asyncpg
from google.protobuf import any_pb2
from google.rpc import status_pb2

from opsplane_server.errors import FailedPrecondition, LeaseLost, NotFound
from opsplane_server.platform.model import (
    AuditEvent,
    Checkpoint,
    Lease,
    NewOperation,
    Operation,
    OperationState,
    Outcome,
    RecordedRequest,
    RequestKey,
)
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.database import Database
from opsplane_server.storage.filters import where

# `data` goes through text, so that the store does not depend on the JSON codec of the connection.
_OPERATION = """
    id, name, kind, verb, target, principal, request_type, request, request_id, node, hidden, state, step,
    data::text AS data, stage, progress_percent, cancel_requested, generation, attempt, crashes,
    response_type, response, error_code, error_message, error_details,
    revision, create_time, update_time, end_time"""

_CHANGED = "revision = revision + 1, update_time = clock_timestamp()"

# Who may write: the holder of the lease, and only under the generation that it was given.
_FENCE = "name = $1 AND lease_owner = $2 AND generation = $3 AND end_time IS NULL"

_OPERATION_COLUMNS: Mapping[str, str] = {
    "verb": "verb",
    "target": "target",
    "state": "state",
    "done": "(end_time IS NOT NULL)",
    "create_time": "create_time",
}

_AUDIT_COLUMNS: Mapping[str, str] = {
    "principal": "principal",
    "method": "method",
    "resource": "resource",
    "event_time": "event_time",
}


class PostgresOperationStore:
    """Operations in `platform.operations`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, operation: NewOperation) -> Operation:
        """See OperationStore."""
        request = operation.request
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"""INSERT INTO platform.operations
                        (name, kind, verb, target, principal, request_type, request, request_id, node, hidden)
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING {_OPERATION}""",
                operation.name,
                operation.kind,
                operation.verb,
                operation.target,
                operation.principal,
                request.type_url if request is not None else None,
                request.value if request is not None else None,
                operation.request_id,
                operation.node,
                operation.hidden,
            )
        assert row is not None
        return _operation(row)

    async def get(self, name: str) -> Operation:
        """See OperationStore."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(f"SELECT {_OPERATION} FROM platform.operations WHERE name = $1", name)
        return _operation(_found(row, name))

    async def list_operations(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Operation]:
        """See OperationStore."""
        args: list[object] = [*(page.key or [None]), page.size + 1]
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""SELECT {_OPERATION} FROM platform.operations
                    WHERE NOT hidden AND ($1::bigint IS NULL OR id < $1)
                      AND {where(conditions, _OPERATION_COLUMNS, args)}
                    ORDER BY id DESC LIMIT $2""",
                *args,
            )
        return [_operation(row) for row in rows]

    async def request_cancel(self, name: str) -> Operation:
        """See OperationStore."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"""UPDATE platform.operations SET cancel_requested = true, {_CHANGED}
                    WHERE name = $1 AND end_time IS NULL AND NOT cancel_requested RETURNING {_OPERATION}""",
                name,
            )
        return _operation(row) if row is not None else await self.get(name)

    async def delete(self, name: str) -> None:
        """See OperationStore."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "DELETE FROM platform.operations WHERE name = $1 AND end_time IS NOT NULL RETURNING id", name
            )
        if row is None:
            await self.get(name)
            raise FailedPrecondition(f"{name} is not done; cancel it first", reason="OPERATION_NOT_DONE")

    async def acquire(
        self, kinds: Collection[str], *, owner: str, node: str, lease: timedelta, limit: int, busy: Collection[str]
    ) -> list[Operation]:
        """See OperationStore."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""WITH due AS (
                        SELECT id AS due_id FROM platform.operations
                        WHERE end_time IS NULL AND kind = ANY($1::text[]) AND (node IS NULL OR node = $2)
                          AND (lease_until IS NULL OR lease_until <= clock_timestamp()) AND name <> ALL($3::text[])
                        ORDER BY id LIMIT $4 FOR UPDATE SKIP LOCKED)
                    UPDATE platform.operations
                    SET state = 'RUNNING', lease_owner = $5, lease_until = clock_timestamp() + $6::interval,
                        generation = generation + 1, attempt = attempt + 1,
                        crashes = crashes + (lease_owner IS NOT NULL)::integer, {_CHANGED}
                    FROM due WHERE id = due_id RETURNING {_OPERATION}""",
                list(kinds),
                node,
                list(busy),
                limit,
                owner,
                lease,
            )
        return sorted((_operation(row) for row in rows), key=lambda operation: operation.id)

    async def renew(self, lease: Lease, duration: timedelta) -> Operation:
        """See OperationStore."""
        return await self._write(lease, "lease_until = clock_timestamp() + $4::interval", duration)

    async def lock(self, lease: Lease, idle: timedelta) -> None:
        """See OperationStore."""
        # A stopped process would keep the row locked for ever, and SKIP LOCKED would pass the operation by: the
        # database ends its transaction when it stays silent.
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"""SELECT set_config('idle_in_transaction_session_timeout', $4, true)
                    FROM platform.operations WHERE {_FENCE} FOR UPDATE""",
                *_fence(lease),
                str(int(idle.total_seconds() * 1000)),
            )
        _held(row, lease)

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> Operation:
        """See OperationStore."""
        return await self._write(
            lease,
            f"""step = $4, data = coalesce($5::text::jsonb, data), stage = coalesce(nullif($6, ''), stage),
                progress_percent = least(100, greatest(progress_percent, $7::integer)), {_CHANGED}""",
            checkpoint.step,
            json.dumps(checkpoint.data) if checkpoint.data is not None else None,
            checkpoint.stage,
            checkpoint.progress_percent,
        )

    async def finish(self, lease: Lease, outcome: Outcome) -> Operation:
        """See OperationStore."""
        response, error = outcome.response, outcome.error
        return await self._write(
            lease,
            f"""state = $4, response_type = $5, response = $6,
                error_code = $7, error_message = $8, error_details = $9,
                progress_percent = CASE WHEN $4 = 'SUCCEEDED' THEN 100 ELSE progress_percent END,
                lease_owner = NULL, lease_until = NULL, end_time = clock_timestamp(), {_CHANGED}""",
            outcome.state.value,
            response.type_url if response is not None else None,
            response.value if response is not None else None,
            error.code if error is not None else None,
            # PostgreSQL keeps no NUL, and what a failing program says may hold one.
            error.message.replace("\0", "") if error is not None else None,
            [detail.SerializeToString() for detail in error.details] if error is not None else None,
        )

    async def release(self, owner: str, name: str | None = None) -> None:
        """See OperationStore."""
        async with self._database.connection() as connection:
            await connection.execute(
                """UPDATE platform.operations SET lease_owner = NULL, lease_until = clock_timestamp()
                   WHERE lease_owner = $1 AND ($2::text IS NULL OR name = $2) AND end_time IS NULL""",
                owner,
                name,
            )

    async def cancel_requests(self, owner: str) -> set[str]:
        """See OperationStore."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT name FROM platform.operations
                   WHERE lease_owner = $1 AND end_time IS NULL AND cancel_requested""",
                owner,
            )
        return {row["name"] for row in rows}

    async def purge(self, older_than: timedelta, limit: int) -> int:
        """See OperationStore."""
        return await _purge(self._database, "operations", "end_time", older_than, limit)

    async def _write(self, lease: Lease, assignments: str, *args: object) -> Operation:
        """Updates the operation under its fence; `args` are $4 and on."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"UPDATE platform.operations SET {assignments} WHERE {_FENCE} RETURNING {_OPERATION}",
                *_fence(lease),
                *args,
            )
        return _operation(_held(row, lease))


class PostgresRequestStore:
    """Answered requests in `platform.requests`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, key: RequestKey, body_hash: bytes) -> RecordedRequest | None:
        """See RequestStore."""
        identity = (key.principal, key.method, key.request_id)
        async with self._database.connection() as connection:
            while True:
                # The unique index makes a twin wait here until the first one commits or rolls back.
                if await connection.fetchrow(
                    """INSERT INTO platform.requests (principal, method, request_id, body_hash)
                       VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING request_id""",
                    *identity,
                    body_hash,
                ):
                    return None
                # Retention may have removed the row between the two statements: then it is free again.
                if (recorded := await self.find(key)) is not None:
                    return recorded

    async def find(self, key: RequestKey) -> RecordedRequest | None:
        """See RequestStore."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """SELECT body_hash, response FROM platform.requests
                   WHERE principal = $1 AND method = $2 AND request_id = $3""",
                key.principal,
                key.method,
                key.request_id,
            )
        return None if row is None else RecordedRequest(row["body_hash"], row["response"])

    async def answer(self, key: RequestKey, response: bytes) -> None:
        """See RequestStore."""
        async with self._database.connection() as connection:
            await connection.execute(
                """UPDATE platform.requests SET response = $4
                   WHERE principal = $1 AND method = $2 AND request_id = $3""",
                key.principal,
                key.method,
                key.request_id,
                response,
            )

    async def purge(self, older_than: timedelta, limit: int) -> int:
        """See RequestStore."""
        return await _purge(self._database, "requests", "create_time", older_than, limit)


class PostgresAuditStore:
    """The audit in `platform.audit_events`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, event: AuditEvent) -> None:
        """See AuditStore."""
        async with self._database.connection() as connection:
            await connection.execute(
                """INSERT INTO platform.audit_events (principal, method, resource, request_id, peer, trace_id)
                   VALUES ($1, $2, $3, $4, $5, $6)""",
                event.principal,
                event.method,
                event.resource,
                event.request_id,
                event.peer,
                event.trace_id,
            )

    async def list_events(self, page: PageRequest, conditions: Sequence[Condition]) -> list[AuditEvent]:
        """See AuditStore."""
        args: list[object] = [*(page.key or [None]), page.size + 1]
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""SELECT id, event_time, principal, method, resource, request_id, peer, trace_id
                    FROM platform.audit_events
                    WHERE ($1::bigint IS NULL OR id < $1) AND {where(conditions, _AUDIT_COLUMNS, args)}
                    ORDER BY id DESC LIMIT $2""",
                *args,
            )
        return [AuditEvent(**dict(row)) for row in rows]


async def _purge(database: Database, table: str, column: str, older_than: timedelta, limit: int) -> int:
    """Removes a batch; rows that another process is removing are left to it."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            f"""DELETE FROM platform.{table} WHERE ctid = ANY(ARRAY(
                    SELECT ctid FROM platform.{table} WHERE {column} < clock_timestamp() - $1::interval
                    ORDER BY {column} LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING 1""",
            older_than,
            limit,
        )
    return len(rows)


def _fence(lease: Lease) -> tuple[str, str, int]:
    return lease.name, lease.owner, lease.generation


def _held(row: asyncpg.Record | None, lease: Lease) -> asyncpg.Record:
    if row is None:
        raise LeaseLost(f"{lease.name} is no longer held under generation {lease.generation}")
    return row


def _found(row: asyncpg.Record | None, name: str) -> asyncpg.Record:
    if row is None:
        raise NotFound.resource(name)
    return row


def _operation(row: asyncpg.Record) -> Operation:
    return Operation(
        id=row["id"],
        name=row["name"],
        kind=row["kind"],
        verb=row["verb"],
        target=row["target"],
        principal=row["principal"],
        request=_any(row["request_type"], row["request"]),
        request_id=row["request_id"],
        node=row["node"],
        hidden=row["hidden"],
        state=OperationState(row["state"]),
        step=row["step"],
        data=json.loads(row["data"]),
        stage=row["stage"],
        progress_percent=row["progress_percent"],
        cancel_requested=row["cancel_requested"],
        generation=row["generation"],
        attempt=row["attempt"],
        crashes=row["crashes"],
        response=_any(row["response_type"], row["response"]),
        error=_status(row),
        revision=row["revision"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        end_time=row["end_time"],
    )


def _any(type_url: str | None, value: bytes | None) -> any_pb2.Any | None:
    return any_pb2.Any(type_url=type_url, value=value) if type_url is not None and value is not None else None


def _status(row: asyncpg.Record) -> status_pb2.Status | None:
    if row["error_code"] is None:
        return None
    details = [any_pb2.Any.FromString(detail) for detail in row["error_details"]]
    return status_pb2.Status(code=row["error_code"], message=row["error_message"], details=details)
