"""proto <-> domain: queries, records that are found, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.logingest.v1 import logingest_pb2, queries_pb2, records_pb2

from opsplane_server.logingest.queries import (
    EARLIEST_US,
    FILTER_FIELDS,
    LATEST_US,
    LogQuery,
    ServiceCount,
    Stats,
    StoredRecord,
    parse_text,
)
from opsplane_server.rpc.filters import parse

_LEVELS: Final = frozenset(records_pb2.Level.values()) - {records_pb2.LEVEL_UNSPECIFIED}
_TEXT_FIELDS: Final = (
    "service_version", "environment", "host", "logger", "thread", "trace_id", "span_id", "request_id", "user_id",
    "session_id", "http_method", "http_path", "error_type", "stack_trace",
)  # fmt: skip


def query_from_proto(message: queries_pb2.LogQuery) -> LogQuery:
    """What to look for. Raises InvalidArgument on `query.text` and `filter`."""
    levels = frozenset(message.levels) or None
    if message.min_level:
        levels = (levels or _LEVELS) & {level for level in _LEVELS if level >= message.min_level}
    return LogQuery(
        levels=levels,
        services=tuple(message.services),
        trace_id=message.trace_id,
        user_id=message.user_id,
        terms=parse_text(message.text),
        metadata=tuple(sorted(message.metadata.items())),
        conditions=tuple(parse(message.filter, FILTER_FIELDS)),
    )


def time_from_proto(message: Timestamp) -> int:
    """Microseconds since 1970, rounded up as records have no finer times; within those that records can have."""
    exact_us = message.seconds * 1_000_000 + -(-message.nanos // 1000)
    return min(max(exact_us, EARLIEST_US), LATEST_US)


def time_to_proto(time_us: int | None) -> Timestamp | None:
    """Microseconds since 1970 as a Timestamp; None stays None, which leaves a field unset."""
    if time_us is None:
        return None
    seconds, rest = divmod(time_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def entry_to_proto(record: StoredRecord) -> queries_pb2.LogEntry:
    """A stored record as callers see it."""
    entry = queries_pb2.LogEntry(entry_id=str(record.id))
    entry.receive_time.FromDatetime(record.received_at)
    message = entry.record
    message.timestamp.FromDatetime(record.timestamp)
    message.level = records_pb2.Level.ValueType(record.level)
    message.service = record.service
    message.message = record.message
    for name in _TEXT_FIELDS:
        if text := getattr(record, name):
            setattr(message, name, text)
    if record.http_status is not None:
        message.http_status = record.http_status
    if record.duration_ms is not None:
        message.duration_ms = record.duration_ms
    if record.metadata is not None:
        flat = _flat(record.metadata)
        if flat is None:
            message.metadata_json = record.metadata
        else:
            message.metadata.update(flat)
    return entry


def stats_to_proto(stats: Stats, max_services: int) -> logingest_pb2.GetStatsResponse:
    """Figures, with those of the first services."""
    levels: dict[int, int] = {}
    for service in stats.services:
        for level, count in service.levels.items():
            levels[level] = levels.get(level, 0) + count
    return logingest_pb2.GetStatsResponse(
        total_count=sum(levels.values()),
        levels=_levels(levels),
        services=[_service(service) for service in stats.services[:max_services]],
        service_count=len(stats.services),
        last_24h_count=stats.last_24h_count,
        oldest_time=_moment(stats.oldest),
        newest_time=_moment(stats.newest),
        stored_bytes=stats.stored_bytes,
        as_of_time=_moment(stats.as_of),
    )


def _flat(metadata: str) -> Mapping[str, str] | None:
    """The metadata if every value of it is a string."""
    # Numbers may have more digits than Python converts; here it is enough that they are none.
    values: dict[str, object] = json.loads(metadata, parse_int=_number, parse_float=_number)
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    return texts if len(texts) == len(values) else None


def _number(digits: str) -> int:
    return 0


def _service(service: ServiceCount) -> queries_pb2.ServiceStats:
    return queries_pb2.ServiceStats(service=service.service, count=service.count, levels=_levels(service.levels))


def _levels(counts: Mapping[int, int]) -> list[queries_pb2.LevelCount]:
    return [
        queries_pb2.LevelCount(level=records_pb2.Level.ValueType(level), count=count)
        for level, count in sorted(counts.items())
        if count
    ]


def _moment(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    result = Timestamp()
    result.FromDatetime(moment)
    return result
