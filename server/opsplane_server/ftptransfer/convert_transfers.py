"""proto <-> domain: transfers, their counts, and the figures of the service."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from opsplane.ftptransfer.v1 import errors_pb2, ftptransfer_pb2, transfers_pb2

from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.convert import duration, failure_to_proto
from opsplane_server.ftptransfer.failures import ErrorCode
from opsplane_server.ftptransfer.model import (
    Counts,
    ExistingFile,
    Location,
    NewTransfer,
    Origin,
    PoolFigures,
    Priority,
    Selection,
    ServiceFigures,
    Transfer,
    TransferState,
)
from opsplane_server.rpc.times import timestamp

_SELECTIONS: Final = {
    transfers_pb2.SELECTION_FILE: Selection.FILE,
    transfers_pb2.SELECTION_GLOB: Selection.GLOB,
    transfers_pb2.SELECTION_TREE: Selection.TREE,
}
_SELECTION_NUMBERS: Final = {selection: number for number, selection in _SELECTIONS.items()}
_PRIORITIES: Final = {
    transfers_pb2.PRIORITY_LOW: Priority.LOW,
    transfers_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    transfers_pb2.PRIORITY_HIGH: Priority.HIGH,
}
_PRIORITY_NUMBERS: Final = {priority: number for number, priority in _PRIORITIES.items()}
_EXISTING: Final = {
    transfers_pb2.EXISTING_FILE_REPLACE: ExistingFile.REPLACE,
    transfers_pb2.EXISTING_FILE_SKIP_SAME: ExistingFile.SKIP_SAME,
    transfers_pb2.EXISTING_FILE_SKIP: ExistingFile.SKIP,
    transfers_pb2.EXISTING_FILE_FAIL: ExistingFile.FAIL,
}
_EXISTING_NUMBERS: Final = {existing: number for number, existing in _EXISTING.items()}
_STATE_NUMBERS: Final = {
    TransferState.PENDING: transfers_pb2.TRANSFER_STATE_PENDING,
    TransferState.RUNNING: transfers_pb2.TRANSFER_STATE_RUNNING,
    TransferState.WAITING: transfers_pb2.TRANSFER_STATE_WAITING,
    TransferState.SUCCEEDED: transfers_pb2.TRANSFER_STATE_SUCCEEDED,
    TransferState.FAILED: transfers_pb2.TRANSFER_STATE_FAILED,
    TransferState.CANCELLED: transfers_pb2.TRANSFER_STATE_CANCELLED,
}


def transfer_from_proto(message: transfers_pb2.Transfer, transfer_id: str, submitter: str) -> NewTransfer:
    """What the caller may set of a transfer."""
    return NewTransfer(
        id=transfer_id,
        source=_location(message.source),
        destination=_location(message.destination),
        origin=Origin("rpc", submitter),
        selection=_SELECTIONS.get(message.selection, Selection.FILE),
        priority=_PRIORITIES.get(message.priority, Priority.NORMAL),
        existing_file=_EXISTING.get(message.existing_file, ExistingFile.REPLACE),
        max_attempts=message.max_attempts,
        retry_count=message.retry_count,
        task_id=message.task_id,
        task_key=message.task_id,
        group=message.group,
        metadata=json_format.MessageToDict(message.metadata) if message.HasField("metadata") else None,
        sha256=message.sha256.lower(),
    )


def transfer_to_proto(transfer: Transfer) -> transfers_pb2.Transfer:
    """The whole transfer."""
    origin = transfer.origin
    return transfers_pb2.Transfer(
        name=names.transfer(transfer.id),
        source=_location_to_proto(transfer.source),
        destination=_location_to_proto(transfer.destination),
        selection=_SELECTION_NUMBERS[transfer.selection],
        priority=_PRIORITY_NUMBERS[transfer.priority],
        existing_file=_EXISTING_NUMBERS[transfer.existing_file],
        max_attempts=transfer.max_attempts,
        retry_count=transfer.retry_count,
        task_id=transfer.task_id,
        group=transfer.group,
        metadata=_struct(transfer.metadata),
        sha256=transfer.sha256,
        state=_STATE_NUMBERS[transfer.state],
        error=failure_to_proto(transfer.failure),
        attempt_count=transfer.attempt_count,
        next_attempt_time=timestamp(transfer.next_attempt_time),
        size_bytes=transfer.size_bytes,
        bytes_transferred=transfer.bytes_transferred,
        resumed_bytes=transfer.resumed_bytes,
        bytes_per_second=transfer.bytes_per_second,
        skipped=transfer.skipped,
        source_modify_time=timestamp(transfer.source_modify_time),
        create_time=timestamp(transfer.create_time),
        start_time=timestamp(transfer.start_time),
        end_time=timestamp(transfer.end_time),
        update_time=timestamp(transfer.update_time),
        duration=duration(transfer.duration),
        parent=names.transfer(transfer.parent) if transfer.parent else "",
        children=counts_to_proto(transfer.children),
        origin=transfers_pb2.TransferOrigin(
            kind=origin.kind, submitter=origin.submitter, partition=origin.partition, offset=origin.offset
        ),
    )


def counts_to_proto(counts: Counts | None) -> transfers_pb2.TransferCounts | None:
    """Counts; None stays None, which leaves a field unset."""
    if counts is None:
        return None
    return transfers_pb2.TransferCounts(
        pending=counts.pending,
        running=counts.running,
        waiting=counts.waiting,
        succeeded=counts.succeeded,
        failed=counts.failed,
        cancelled=counts.cancelled,
        skipped=counts.skipped,
        size_bytes=counts.size_bytes,
        bytes_transferred=counts.bytes_transferred,
        bytes_per_second=counts.bytes_per_second,
    )


def figures_to_proto(
    figures: ServiceFigures, *, queue: str, max_sessions_per_pod: int, max_sessions_per_connection: int
) -> ftptransfer_pb2.GetStatsResponse:
    """The figures of all processes together."""
    pools: dict[str, ftptransfer_pb2.ConnectionPool] = {}
    latest: dict[str, datetime] = {}
    for worker in figures.workers:
        for name, pool in worker.pools.items():
            _add_pool(pools.setdefault(name, ftptransfer_pb2.ConnectionPool()), pool, latest, name)
    workers = [
        ftptransfer_pb2.WorkerStats(
            worker=worker.worker,
            version=worker.version,
            start_time=timestamp(worker.start_time),
            tasks_in_progress=worker.tasks_in_progress,
            sessions=sum(pool.sessions for pool in worker.pools.values()),
            draining=worker.draining,
        )
        for worker in figures.workers
    ]
    return ftptransfer_pb2.GetStatsResponse(
        running=figures.running,
        pool=ftptransfer_pb2.PoolStats(
            max_sessions_per_pod=max_sessions_per_pod,
            max_sessions_per_connection=max_sessions_per_connection,
            total_sessions=sum(pool.sessions for pool in pools.values()),
            pools=pools,
        ),
        consumer=ftptransfer_pb2.ConsumerStats(
            queue=queue,
            # What was received has ended or has not: so no counter of its own can differ from the others.
            tasks_received=figures.ended + figures.active,
            backlog=figures.backlog,
            malformed=figures.malformed,
            oldest_age=duration(figures.oldest_age),
        ),
        transfer=ftptransfer_pb2.TransferStats(
            tasks_in_progress=sum(worker.tasks_in_progress for worker in figures.workers),
            tasks_total=figures.ended,
            tasks_success_total=figures.succeeded,
            tasks_failed_total=sum(figures.failed.values()),
            bytes_transferred_total=figures.bytes_transferred,
            bytes_per_second=sum(worker.bytes_per_second for worker in figures.workers),
            files_per_second=sum(worker.files_per_second for worker in figures.workers),
            errors=[
                ftptransfer_pb2.ErrorCount(code=code_to_proto(code), count=count)
                for code, count in figures.failed.items()
                if count
            ],
            since_time=timestamp(figures.since_time),
        ),
        workers=workers,
    )


def code_to_proto(code: ErrorCode) -> errors_pb2.ErrorCode.ValueType:
    """A class of failures."""
    return errors_pb2.ErrorCode.Value(f"ERROR_CODE_{code}")


def _add_pool(total: ftptransfer_pb2.ConnectionPool, pool: PoolFigures, latest: dict[str, datetime], name: str) -> None:
    """Adds the sessions of one process; of what is the pod's, the most that any process says."""
    total.sessions += pool.sessions
    total.busy += pool.busy
    total.waiting += pool.waiting
    total.session_limit = max(total.session_limit, pool.limit)
    if pool.circuit_open:
        total.circuit_open = True
        if pool.retry_time is not None:
            total.retry_time.FromDatetime(pool.retry_time)
    failure = pool.last_failure
    if failure is not None and (failure.time is None or name not in latest or failure.time > latest[name]):
        if failure.time is not None:
            latest[name] = failure.time
        total.last_error.CopyFrom(failure_to_proto(failure) or errors_pb2.TransferError())


def _location(message: transfers_pb2.Location) -> Location:
    return Location(names.connection_id(message.connection), message.path)


def _location_to_proto(location: Location) -> transfers_pb2.Location:
    return transfers_pb2.Location(connection=names.connection(location.connection), path=location.path)


def _struct(metadata: Mapping[str, Any] | None) -> Struct | None:
    """A JSON object as a Struct, whose numbers are all floating-point."""
    if metadata is None:
        return None
    return json_format.ParseDict(_floats(dict(metadata)), Struct())


def _floats(value: Any) -> Any:
    """Numbers that no double can hold, such as 10**400, as text."""
    if isinstance(value, dict):
        return {name: _floats(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_floats(one) for one in value]
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            float(value)
        except OverflowError:
            return str(value)
    return value
