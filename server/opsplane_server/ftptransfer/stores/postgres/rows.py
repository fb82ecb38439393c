"""How a transfer is read: as it was submitted, its row of the queue or its end, and the counts of a tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import asyncpg

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, Failure
from opsplane_server.ftptransfer.model import (
    Counts,
    ExistingFile,
    Location,
    Origin,
    Priority,
    Selection,
    Transfer,
    TransferState,
)
from opsplane_server.storage.database import Connection

RANKS: Final[Mapping[Priority, int]] = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}

FROM: Final = """
FROM ftptransfer.transfers t LEFT JOIN ftptransfer.queue q ON q.key = t.key
LEFT JOIN ftptransfer.endings e ON e.key = t.key
LEFT JOIN ftptransfer.families f ON f.key = t.key LEFT JOIN ftptransfer.transfers p ON p.key = t.parent_key
"""

SELECT: Final = f"""
SELECT t.key, t.id, t.task_id, t.group_name, p.id AS parent, t.source_connection, t.source_path,
       t.destination_connection, t.destination_path, t.selection, t.priority, t.existing_file, t.max_attempts,
       t.retry_count, t.sha256, t.metadata, t.origin_kind, t.submitter, t.topic_partition, t.topic_offset,
       t.create_time, COALESCE(e.resumed_bytes, 0) AS resumed_bytes, COALESCE(e.skipped, false) AS skipped,
       e.source_modify_time, e.end_time, e.duration,
       COALESCE(q.state, e.state) AS state, COALESCE(q.start_time, e.start_time) AS start_time,
       COALESCE(q.update_time, e.end_time) AS update_time,
       COALESCE(q.failure, e.failure)::text AS failure, COALESCE(q.attempt_count, e.attempt_count) AS attempt_count,
       COALESCE(q.size_bytes, e.size_bytes) AS size_bytes,
       COALESCE(q.bytes_transferred, e.bytes_transferred) AS bytes_transferred,
       CASE WHEN q.state = 'RUNNING' THEN q.bytes_per_second ELSE 0 END AS bytes_per_second,
       CASE WHEN q.state = 'WAITING' THEN q.due END AS next_attempt_time,
       f.key AS family, f.total, f.succeeded, f.failed AS failed_count, f.cancelled AS cancelled_count,
       f.skipped AS skipped_count, f.size_bytes AS family_size, f.bytes_transferred AS family_bytes
{FROM}"""

_AT_WORK: Final = """
SELECT parent_key, count(*) FILTER (WHERE worker IS NOT NULL) AS running,
       count(*) FILTER (WHERE state = 'WAITING') AS waiting,
       COALESCE(sum(bytes_transferred) FILTER (WHERE worker IS NOT NULL), 0)::bigint AS bytes_transferred,
       COALESCE(sum(bytes_per_second) FILTER (WHERE worker IS NOT NULL), 0) AS bytes_per_second
FROM ftptransfer.queue WHERE parent_key = ANY($1::bigint[]) GROUP BY parent_key
"""

_NOTHING: Final = {"running": 0, "waiting": 0, "bytes_transferred": 0, "bytes_per_second": 0.0}


async def read(connection: Connection, query: str, *args: object) -> list[Transfer]:
    """The transfers of a query that begins with `SELECT`."""
    rows = await connection.fetch(query, *args)
    parents = [row["key"] for row in rows if row["family"] is not None and not _has_ended(row)]
    at_work: dict[int, dict[str, Any]] = {}
    if parents:
        at_work = {row["parent_key"]: dict(row) for row in await connection.fetch(_AT_WORK, parents)}
    return [_transfer(row, at_work.get(row["key"], _NOTHING)) for row in rows]


def plain(text: str) -> str:
    """What PostgreSQL can keep: text without NUL and without halves of characters."""
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def failure_to_json(failure: Failure | None) -> str | None:
    """A failure as its column keeps it; its time is set by the database."""
    if failure is None:
        return None
    return json.dumps(
        {
            "code": failure.code,
            "reason": failure.reason,
            "message": plain(failure.message),
            "ftp_code": failure.ftp_code,
            "retryable": failure.retryable,
        },
        ensure_ascii=False,
    )


def failure_from_json(text: str | None) -> Failure | None:
    """The opposite of `failure_to_json`, with its time."""
    if text is None:
        return None
    found = json.loads(text)
    return Failure(
        ErrorCode(found["code"]),
        ErrorReason(found["reason"]),
        found["message"],
        found["ftp_code"],
        found["retryable"],
        datetime.fromisoformat(found["time"]) if "time" in found else None,
    )


def _has_ended(row: asyncpg.Record) -> bool:
    return TransferState(row["state"]).ended


def _transfer(row: asyncpg.Record, at_work: Mapping[str, Any]) -> Transfer:
    transferred: int = row["bytes_transferred"]
    size: int | None = row["size_bytes"]
    rate: float = row["bytes_per_second"]
    children: Counts | None = None
    if row["family"] is not None:
        children = _counts(row, at_work)
        transferred, size, rate = children.bytes_transferred, children.size_bytes, children.bytes_per_second
    duration = row["duration"]
    return Transfer(
        id=row["id"],
        key=row["key"],
        source=Location(row["source_connection"], row["source_path"]),
        destination=Location(row["destination_connection"], row["destination_path"]),
        origin=Origin(row["origin_kind"], row["submitter"], row["topic_partition"], row["topic_offset"]),
        selection=Selection(row["selection"]),
        priority=Priority(row["priority"]),
        existing_file=ExistingFile(row["existing_file"]),
        max_attempts=row["max_attempts"],
        retry_count=row["retry_count"],
        task_id=row["task_id"],
        group=row["group_name"],
        metadata=json.loads(row["metadata"]) if row["metadata"] is not None else None,
        sha256=row["sha256"],
        state=TransferState(row["state"]),
        create_time=row["create_time"],
        update_time=row["update_time"],
        failure=failure_from_json(row["failure"]),
        attempt_count=row["attempt_count"],
        next_attempt_time=row["next_attempt_time"],
        size_bytes=size,
        bytes_transferred=transferred,
        resumed_bytes=row["resumed_bytes"],
        bytes_per_second=rate,
        skipped=row["skipped"],
        source_modify_time=row["source_modify_time"],
        start_time=row["start_time"],
        end_time=row["end_time"],
        duration=duration.total_seconds() if duration is not None else None,
        parent=row["parent"] or "",
        children=children,
    )


def _counts(row: asyncpg.Record, at_work: Mapping[str, Any]) -> Counts:
    succeeded, failed, cancelled = row["succeeded"], row["failed_count"], row["cancelled_count"]
    running, waiting = at_work["running"], at_work["waiting"]
    # The counts are kept by one statement and read by another; what is at work may have ended in between.
    pending = max(0, row["total"] - succeeded - failed - cancelled - running - waiting)
    return Counts(
        pending=pending,
        running=running,
        waiting=waiting,
        succeeded=succeeded,
        failed=failed,
        cancelled=cancelled,
        skipped=row["skipped_count"],
        size_bytes=row["family_size"],
        bytes_transferred=row["family_bytes"] + at_work["bytes_transferred"],
        bytes_per_second=at_work["bytes_per_second"],
    )
