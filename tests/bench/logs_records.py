"""The records of the logs benchmark, and what each way of storing them is sent: made once, before anything is timed.

They are varied, for compression, caches and the database see the difference: some 400 bytes of protobuf each, four keys
of metadata, a stack trace in one of 50. Every way of storing them gets the same records.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from opsplane.logingest.v1 import logingest_pb2, records_pb2

T = TypeVar("T")

POOL = 16_000  # records; larger than the caches next to a core
ID_LENGTH = 32

_POSTGRES_EPOCH = 946_684_800  # 2000-01-01
_TEXTS = (
    "service", "message", "service_version", "environment", "host", "logger", "thread", "trace_id", "span_id",
    "request_id", "user_id", "session_id", "http_method", "http_path",
)  # fmt: skip
# As in logingest.records, and in LogRecord but for the first two.
COLUMNS = (
    "id", "received_at", "timestamp", "level", *_TEXTS, "http_status", "duration_ms", "error_type", "stack_trace",
    "metadata",
)  # fmt: skip
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
_COPY_TAIL = struct.pack("!h", -1)
_NULL = struct.pack("!i", -1)

_SERVICES = ("orders", "payments", "catalog", "search", "identity", "shipping", "gateway", "mail")
_WORDS = (
    "accepted", "address", "after", "answer", "basket", "because", "cache", "cancelled", "card", "checkout", "closed",
    "connection", "customer", "delivery", "discount", "expired", "failed", "found", "index", "invoice", "item", "limit",
    "loaded", "missing", "order", "page", "partner", "payment", "price", "queue", "refused", "request", "retry", "row",
    "saved", "session", "shipment", "slow", "stock", "timeout", "token", "updated", "user", "waiting", "warehouse",
)  # fmt: skip
_LEVELS = (1, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4, 5)


def make_records(count: int = POOL, seed: int = 5) -> list[records_pb2.LogRecord]:
    """The same records for the same seed, but for their times: those of the minute before now, all of one UTC day."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    now = datetime.now(UTC)
    second = now.hour * 3600 + now.minute * 60 + now.second
    first = int(now.timestamp()) - min(60, second)
    return [_record(chance, first) for _ in range(count)]


def _record(chance: random.Random, first: int) -> records_pb2.LogRecord:
    service = chance.choice(_SERVICES)
    level = chance.choice(_LEVELS)
    record = records_pb2.LogRecord(
        level=records_pb2.Level.ValueType(level),
        service=service,
        message=" ".join(chance.choices(_WORDS, k=chance.randint(9, 17))) + f" {chance.randrange(10**6)}",
        service_version=f"1.{chance.randrange(20)}.{chance.randrange(10)}",
        environment="production",
        host=f"{service}-{chance.randrange(40)}.eu-1",
        logger=f"{service}.{chance.choice(_WORDS)}",
        thread=f"worker-{chance.randrange(16)}",
        trace_id=f"{chance.getrandbits(128):032x}",
        span_id=f"{chance.getrandbits(64):016x}",
        request_id=f"req-{chance.getrandbits(48):012x}",
        user_id=f"user_{chance.randrange(100_000)}",
        http_method=chance.choice(("GET", "GET", "POST", "PUT")),
        http_path=f"/{service}/{chance.choice(_WORDS)}/{chance.randrange(10**5)}",
        http_status=chance.choice((200, 200, 200, 201, 304, 404, 500)),
        duration_ms=round(chance.expovariate(1 / 40), 3),
        metadata={
            "region": chance.choice(("eu-1", "eu-2", "us-1")),
            "order": str(chance.randrange(10**8)),
            "cache": chance.choice(("hit", "miss")),
            "pod": f"{chance.getrandbits(40):010x}",
        },
    )
    record.timestamp.FromMicroseconds(first * 1_000_000 + chance.randrange(60_000_000))
    if chance.randrange(50) == 0:
        record.error_type = "TimeoutError"
        record.stack_trace = "\n".join(f"  at {chance.choice(_WORDS)}.py:{chance.randrange(900)}" for _ in range(12))
    return record


def batches(records: Sequence[records_pb2.LogRecord], size: int) -> list[tuple[bytes, bytes]]:
    """StreamLogsRequests of `size` records each, in two parts: between them goes a batch id of ID_LENGTH."""
    made = []
    for part in _parts(records, size):
        body = records_pb2.LogBatch(batch_id="0" * ID_LENGTH, records=part)
        request = logingest_pb2.StreamLogsRequest(batch=body).SerializeToString()
        head, tail = request.split(b"0" * ID_LENGTH, 1)
        made.append((head, tail))
    return made


def copies(records: Sequence[records_pb2.LogRecord], size: int) -> list[bytes]:
    """The data of binary COPYs of `size` rows each."""
    rows = [_row(number, record) for number, record in enumerate(records)]
    return [_COPY_HEAD + b"".join(part) + _COPY_TAIL for part in _parts(rows, size)]


def bodies(records: Sequence[records_pb2.LogRecord], size: int) -> list[bytes]:
    """Bodies of POST /logs with `size` records each, JSON compressed with gzip."""
    rows = [_as_json(record) for record in records]
    return [gzip.compress(json.dumps({"logs": part}).encode(), 6) for part in _parts(rows, size)]


def _parts(values: Sequence[T], size: int) -> list[Sequence[T]]:
    """All values in parts of one size; where they do not go in evenly, the last ones overlap."""
    starts = range(0, len(values) - size + 1, size)
    rest = [len(values) - size] if len(values) % size else []
    return [values[start : start + size] for start in [*starts, *rest]]


def _row(number: int, record: records_pb2.LogRecord) -> bytes:
    time = record.timestamp.ToMicroseconds() - _POSTGRES_EPOCH * 1_000_000
    metadata = json.dumps(dict(record.metadata)).encode()
    fields = [
        struct.pack("!iq", 8, number),
        struct.pack("!iq", 8, time),
        struct.pack("!iq", 8, time),
        struct.pack("!ih", 2, record.level),
        *(_text(getattr(record, name)) for name in _TEXTS),
        struct.pack("!ih", 2, record.http_status),
        struct.pack("!id", 8, record.duration_ms),
        _text(record.error_type),
        _text(record.stack_trace),
        struct.pack("!ib", len(metadata) + 1, 1) + metadata,
    ]
    assert len(fields) == len(COLUMNS)
    return struct.pack("!h", len(fields)) + b"".join(fields)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("!i", len(data)) + data if data else _NULL


def _as_json(record: records_pb2.LogRecord) -> dict[str, object]:
    names = (*_TEXTS, "http_status", "duration_ms", "error_type", "stack_trace")
    values = {name: value for name in names if (value := getattr(record, name)) != ""}
    level = records_pb2.Level.Name(record.level).removeprefix("LEVEL_")
    time = record.timestamp.ToDatetime(UTC).isoformat()
    return {"timestamp": time, "level": level, **values, "metadata": dict(record.metadata)}
