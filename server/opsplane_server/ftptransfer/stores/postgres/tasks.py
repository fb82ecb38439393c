"""Tasks and their outcomes, as rows of the queue."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg

from opsplane_server.ftptransfer import model
from opsplane_server.ftptransfer.failures import ErrorReason, Failure, TransferFailure
from opsplane_server.ftptransfer.model import (
    Child,
    Connection,
    End,
    ExistingFile,
    FtpServer,
    LocalFolder,
    Outcome,
    Selection,
    Task,
)
from opsplane_server.ftptransfer.stores.postgres.endings import MOST_CRASHES
from opsplane_server.ftptransfer.stores.postgres.rows import failure_from_json, failure_to_json

# Much cheaper than calling the enumerations, and there are thousands of tasks a second.
_SELECTIONS: Final = {selection.value: selection for selection in Selection}
_EXISTING: Final = {existing.value: existing for existing in ExistingFile}

_NOWHERE: Final = FtpServer("")


def to_task(row: asyncpg.Record, connections: Mapping[str, Connection]) -> Task:
    """The task; with a failure when there is to be no attempt any more."""
    source = connections.get(row["source_connection"])
    destination = connections.get(row["destination_connection"])
    failure = _failure(row, source, destination)
    if source is None or destination is None or source.is_local == destination.is_local:
        # What is to be removed is at the destination.
        destination = destination or Connection(row["destination_connection"], LocalFolder(Path()))
        source = Connection(row["source_connection"], _NOWHERE if destination.is_local else LocalFolder(Path()))
    return Task(
        id=row["id"],
        key=row["key"],
        generation=row["generation"],
        source=End(source, row["source_path"]),
        destination=End(destination, row["destination_path"]),
        selection=_SELECTIONS[row["selection"]],
        existing_file=_EXISTING[row["existing_file"]],
        sha256=row["sha256"],
        attempt=row["attempt_count"],
        retry_count=row["retry_count"],
        max_attempts=row["max_attempts"],
        size=row["size_bytes"],
        modify_time=row["source_modify_time"],
        cancelled=row["cancelled"],
        failure=_final_failure(row, failure),
    )


def may_have_left(task: Task, connections: Mapping[str, Connection]) -> bool:
    """Whether earlier attempts may have left something, in a place that is known."""
    return task.generation > 1 and task.destination.connection.id in connections


def _final_failure(row: asyncpg.Record, failure: TransferFailure | None) -> Failure | None:
    if row["cancelled"]:
        return failure_from_json(row["failure"]) if row["failed"] else None
    return failure.failure if failure is not None else None


def _failure(row: asyncpg.Record, source: Connection | None, destination: Connection | None) -> TransferFailure | None:
    if source is None or destination is None:
        gone = row["source_connection"] if source is None else row["destination_connection"]
        return TransferFailure(ErrorReason.NO_CONNECTION, f"there is no connection {gone!r}")
    if source.is_local == destination.is_local:
        return TransferFailure(ErrorReason.ENDS, "exactly one end must be a local folder")
    if row["crashes"] >= MOST_CRASHES:
        message = f"the process that did it died {row['crashes']} times"
        return TransferFailure(ErrorReason.UNSPECIFIED, message, retryable=True)
    return None


def child_key(parent: int, child: Child) -> str:
    """The same for the same file of the same parent, however often the parent is expanded."""
    digest = hashlib.sha256(child.source_path.encode(errors="surrogatepass")).hexdigest()[:32]
    return f"\x1f{parent}/{digest}"


def settlement(outcomes: Sequence[tuple[Task, Outcome]]) -> list[list[Any]]:
    """The outcomes as arrays.

    They are key, generation, kind, failure, delay, size, resumed, skipped, modify_time, duration, sent. The kinds of a
    glob or tree that ends here are HALTED, ABANDONED and EXPANDED: it waits for its files. LEFT is a task that is to be
    cleaned up after, RETURNED one that was to be before, and was not.
    """
    rows = [_row(task, outcome) for task, outcome in outcomes]
    return [list(column) for column in zip(*rows, strict=True)]


def _row(task: Task, outcome: Outcome) -> tuple[object, ...]:
    is_file = task.selection is Selection.FILE
    details: tuple[object, ...]
    match outcome:
        case model.Succeeded(size, sent, resumed, skipped, modify_time, duration):
            details = ("SUCCEEDED", None, None, size, resumed, skipped, modify_time, _span(duration), sent)
        case model.Failed(failure, sent, duration):
            kind = "FAILED" if is_file else "HALTED"
            details = (kind, failure_to_json(failure), None, None, 0, False, None, _span(duration), sent)
        case model.Retry(failure, delay, sent, duration, size, modify_time):
            why, wait = failure_to_json(failure), _span(delay)
            details = ("RETRY", why, wait, size, 0, False, modify_time, _span(duration), sent)
        case model.Cancelled(sent, duration):
            kind = "CANCELLED" if is_file else "ABANDONED"
            details = (kind, None, None, None, 0, False, None, _span(duration), sent)
        case model.Released(sent, size, modify_time):
            kind = "RETURNED" if task.cancelled else "RELEASED"
            details = (kind, None, None, size, 0, False, modify_time, None, sent)
        case model.LeftOver(failure, sent, duration):
            kind = "RETURNED" if task.cancelled else "LEFT"
            details = (kind, failure_to_json(failure), None, None, 0, False, None, _span(duration), sent)
        case model.Expanded():
            details = ("EXPANDED", None, None, None, 0, False, None, None, 0)
    return (task.key, task.generation, *details)


def _span(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
