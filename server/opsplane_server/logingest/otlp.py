"""OTLP log records from any exporter: OpenTelemetry's libraries and Collector, Fluent Bit, Vector.

`opentelemetry.proto.collector.logs.v1.LogsService/Export` answers after the synchronous commit of all records. What
became of a request is told as OTLP asks for it:

- every record stored: an empty answer,
- some records broken: `partial_success` with their number and the first reasons; the exporter does not send them again,
- no OTLP at all: INVALID_ARGUMENT, which is not sent again either,
- the database away, too much under way, or a quota used up: UNAVAILABLE or RESOURCE_EXHAUSTED with RetryInfo, which
  makes the exporter send the same bytes again.

A retry after an answer that was lost is stored once: batches get ids that are made of the request's bytes. That needs a
time of its own or of observation in every record, which all known exporters write: without one the same bytes could
well be another event, so such a batch gets no id.

The request arrives undecoded. A decoder refuses it as a whole for one text that is not UTF-8, so it is split by its
framing, and each record is decoded for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opsplane.logingest.v1 import records_pb2

from opsplane_server.errors import InvalidArgument, OpsplaneError
from opsplane_server.logingest import framing
from opsplane_server.logingest.model import MAX_RECORDS, Durability, sender_of
from opsplane_server.logingest.otlp_records import Source, convert, source_of, time_of
from opsplane_server.logingest.quotas import Quotas
from opsplane_server.logingest.wire import Malformed
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.interceptors.chain import Context

LOGS_SERVICE: Final = logs_service_pb2.DESCRIPTOR.services_by_name["LogsService"].full_name

# What the ids of batches are told apart by, beside the token: exporters have no name of their own.
CLIENT_ID: Final = "otlp"

_PARALLEL_BATCHES: Final = 4
# Attributes of a resource are stored with each of its records: a small request can become large batches.
_MAX_BATCH_BYTES: Final = 2 * 1024 * 1024
# No exporter sends so many; tiny messages in a large request would take ever more memory.
_MAX_REQUEST_RECORDS: Final = 1_000_000
# Other calls get their turn after so much work, a few milliseconds.
_RECORDS_PER_TURN: Final = 250
_BYTES_PER_TURN: Final = 1024 * 1024
_TOLD_REASONS: Final = 5


class Writer(Protocol):
    """What stores batches."""

    async def write(self, sender: str, batch: bytes, durability: Durability) -> records_pb2.BatchResult:
        """Stores a serialized `LogBatch` and returns after its commit; ResourceExhausted without room for it."""
        ...

    async def wait_for_room(self, size: int) -> None:
        """Returns when there is room for so many bytes."""
        ...


class LogsCollector:
    """`opentelemetry.proto.collector.logs.v1.LogsService`."""

    def __init__(self, ingest: Writer, quotas: Quotas) -> None:
        self._ingest = ingest
        self._quotas = quotas

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The handlers by name of the RPC; requests arrive as bytes."""
        serialize = logs_service_pb2.ExportLogsServiceResponse.SerializeToString
        return {"Export": grpc.unary_unary_rpc_method_handler(self.export, response_serializer=serialize)}

    async def export(self, request: bytes, context: Context) -> logs_service_pb2.ExportLogsServiceResponse:
        """Stores the records of a serialized `ExportLogsServiceRequest`."""
        principal = current_call().principal.name
        self._quotas.take(principal, len(request))
        rejections = await store(self._ingest, sender_of(principal, CLIENT_ID), request)
        response = logs_service_pb2.ExportLogsServiceResponse()
        if rejections.count:
            response.partial_success.rejected_log_records = rejections.count
            response.partial_success.error_message = rejections.message()
        return response


@dataclass(slots=True)
class Rejections:
    """The records that were not stored: how many, and why the first of them."""

    count: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)

    def add(self, index: int, reason: str) -> None:
        """`index` is the place of the record in the request, counting from 0."""
        self.count += 1
        if len(self.reasons) < _TOLD_REASONS * _PARALLEL_BATCHES:  # batches end in any order
            self.reasons.append((index, reason))

    def message(self) -> str:
        """One line for the log of the exporter."""
        told = sorted(self.reasons)[:_TOLD_REASONS]
        more = f"; and {self.count - len(told)} more" if self.count > len(told) else ""
        return "; ".join(f"record {index}: {reason}" for index, reason in told) + more


@dataclass(slots=True)
class _Scope:
    """The undecoded records of a scope, with the undecoded messages that tell about the scope and its resource."""

    resource: bytes
    scope: bytes
    records: list[bytes]

    def source(self) -> Source | None:
        """Where the records come from; None when that can not be decoded."""
        try:
            resource: Resource = Resource.FromString(self.resource)
            return source_of(resource, InstrumentationScope.FromString(self.scope))
        except DecodeError:
            return None


@dataclass(slots=True)
class _Part:
    """Serialized records of a batch and their places in the request. `timed` tells that each has a time of its own."""

    records: list[bytes] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    size: int = 0
    timed: bool = True

    def add(self, index: int, record: bytes, *, timed: bool) -> None:
        self.records.append(record)
        self.indexes.append(index)
        self.size += len(record)
        self.timed = self.timed and timed

    @property
    def full(self) -> bool:
        return len(self.records) == MAX_RECORDS or self.size >= _MAX_BATCH_BYTES


async def store(ingest: Writer, sender: str, request: bytes) -> Rejections:
    """Stores every record of a serialized request, or says why not; returns after all commits.

    Raises InvalidArgument for bytes that are no request, and what the writer raises. Some batches may be stored then.
    """
    rejections = Rejections()
    room = asyncio.Semaphore(_PARALLEL_BATCHES)
    digest = blake2b(request, digest_size=16).hexdigest()
    scopes = await asyncio.to_thread(_split, request) if len(request) > _BYTES_PER_TURN else _split(request)

    async def write(number: int, part: _Part) -> None:
        try:
            batch_id = f"{digest}-{number}".encode() if part.timed else b""
            batch = framing.join_batch(batch_id, part.records)
            if number:  # a request that was begun is carried through
                await ingest.wait_for_room(len(batch))
            result = await ingest.write(sender, batch, Durability.DURABLE)
        finally:
            room.release()
        if result.HasField("refusal"):
            for index in part.indexes:
                rejections.add(index, result.refusal.message)
        for rejected in result.rejected_records:
            rejections.add(part.indexes[rejected.index], f"{rejected.field} {rejected.message}".strip())

    try:
        async with asyncio.TaskGroup() as batches:
            number = 0
            async for part in _parts(scopes, rejections):
                await room.acquire()
                batches.create_task(write(number, part))
                number += 1
    except ExceptionGroup as failed:
        # Several batches mostly fail for the same reason. A fault of ours goes before what passes by itself.
        faults = [error for error in failed.exceptions if not isinstance(error, OpsplaneError)]
        raise (faults or failed.exceptions)[0] from None
    return rejections


def _split(request: bytes) -> list[_Scope]:
    """The records of a request, scope by scope; InvalidArgument when its framing is broken."""
    scopes = []
    count = 0
    try:
        for resource_logs in _submessages(request, 1):
            resource = b"".join(_submessages(resource_logs, 1))
            for scope_logs in _submessages(resource_logs, 2):
                scope = _Scope(resource, b"", [])
                for number, content in framing.fields(scope_logs):
                    if number == 1:
                        scope.scope += content
                    elif number == 2:
                        scope.records.append(content)
                    count += 1
                    if count > _MAX_REQUEST_RECORDS:
                        raise InvalidArgument.of("resource_logs", f"has more than {_MAX_REQUEST_RECORDS} records")
                scopes.append(scope)
    except Malformed as error:
        raise InvalidArgument(f"the bytes are no ExportLogsServiceRequest: {error}") from None
    return scopes


def _submessages(message: bytes, wanted: int) -> Iterator[bytes]:
    return (content for number, content in framing.fields(message) if number == wanted)


async def _parts(scopes: list[_Scope], rejections: Rejections) -> AsyncIterator[_Part]:
    """The records that can be decoded, by batches; the others are rejected."""
    part = _Part()
    index = -1
    for scope in scopes:
        source = scope.source()
        for raw in scope.records:
            index += 1
            if index % _RECORDS_PER_TURN == _RECORDS_PER_TURN - 1:
                await asyncio.sleep(0)
            if source is None:
                rejections.add(index, "its resource or scope can not be read, or has text that is not UTF-8")
                continue
            try:
                record: LogRecord = LogRecord.FromString(raw)
            except DecodeError:
                rejections.add(index, "can not be read, or has text that is not UTF-8")
                continue
            part.add(index, convert(record, source).SerializeToString(), timed=time_of(record) > 0)
            if part.full:
                yield part
                part = _Part()
    if part.records:
        yield part
