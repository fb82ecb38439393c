"""Exports over a real channel, stored by a writer in memory that knows the rules of the API."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opsplane.logingest.v1 import records_pb2
from opsplane_server.errors import InvalidArgument, OpsplaneError, ResourceExhausted, Unavailable
from opsplane_server.logingest import otlp
from opsplane_server.logingest.model import Durability
from opsplane_server.logingest.otlp import LOGS_SERVICE, LogsCollector, store
from opsplane_server.logingest.quotas import Quotas
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.interceptors.validation import field_path
from opsplane_server.rpc.server import Registration
from protovalidate import Validator

from tests.rpc_harness import require_status, serving

Export = Callable[[bytes], Awaitable[logs_service_pb2.ExportLogsServiceResponse]]
BAD_UTF8 = b"\xff\xfe"


class MemoryWriter:
    """Keeps batches by id, as the database does; `refuse` is raised instead of the first of its writes."""

    def __init__(self, *refuse: Exception) -> None:
        self.refuse = list(refuse)
        self.records: list[records_pb2.LogRecord] = []
        self.answers: dict[tuple[str, str], records_pb2.BatchResult] = {}
        self.sizes: list[int] = []
        self.together: asyncio.Barrier | None = None
        self._validator = Validator()

    async def wait_for_room(self, size: int) -> None:
        await asyncio.sleep(0)

    async def write(self, sender: str, batch: bytes, durability: Durability) -> records_pb2.BatchResult:
        assert durability is Durability.DURABLE
        if self.together is not None:
            await self.together.wait()
        if self.refuse:
            raise self.refuse.pop(0)
        return self._store(sender, records_pb2.LogBatch.FromString(batch))

    def _store(self, sender: str, batch: records_pb2.LogBatch) -> records_pb2.BatchResult:
        key = (sender, batch.batch_id)
        if batch.batch_id and key in self.answers:
            return self.answers[key]
        self.sizes.append(len(batch.records))
        result = records_pb2.BatchResult(batch_id=batch.batch_id)
        for index, record in enumerate(batch.records):
            violations = self._validator.collect_violations(record)
            if violations:
                result.rejected_records.add(index=index, field=field_path(violations[0]), message="breaks a rule")
            else:
                if record.metadata_json:
                    orjson.loads(record.metadata_json)
                self.records.append(record)
                result.stored_count += 1
        self.answers[key] = result
        return result

    @property
    def messages(self) -> list[str]:
        return sorted(record.message for record in self.records)


@asynccontextmanager
async def collecting(writer: MemoryWriter, quotas: Quotas | None = None) -> AsyncIterator[Export]:
    """Serves a collector; what comes is called with the bytes of a request."""
    handlers = LogsCollector(writer, quotas or Quotas()).handlers()
    registration = Registration(
        LOGS_SERVICE, lambda server: server.add_registered_method_handlers(LOGS_SERVICE, handlers)
    )
    async with serving([registration], standard(Anonymous())) as served, served.channel() as channel:
        export: Any = channel.unary_unary(
            f"/{LOGS_SERVICE}/Export", response_deserializer=logs_service_pb2.ExportLogsServiceResponse.FromString
        )
        yield export


def request(*messages: str, service: str = "orders", timed: bool = True) -> logs_service_pb2.ExportLogsServiceRequest:
    """An export of records with these bodies."""
    result = logs_service_pb2.ExportLogsServiceRequest()
    resource_logs = result.resource_logs.add()
    resource_logs.resource.attributes.add(key="service.name").value.string_value = service
    records = resource_logs.scope_logs.add().log_records
    for number, message in enumerate(messages):
        record = records.add(severity_number=9, time_unix_nano=10**18 + number if timed else 0)
        record.body.string_value = message
    return result


async def test_a_generated_stub_gets_an_empty_answer_when_all_is_stored() -> None:
    writer = MemoryWriter()
    handlers = LogsCollector(writer, Quotas()).handlers()
    registration = Registration(
        LOGS_SERVICE, lambda server: server.add_registered_method_handlers(LOGS_SERVICE, handlers)
    )
    async with serving([registration], standard(Anonymous())) as served, served.channel() as channel:
        answer = await logs_service_pb2_grpc.LogsServiceStub(channel).Export(
            request("one", "two"), compression=grpc.Compression.Gzip
        )
        assert not (await logs_service_pb2_grpc.LogsServiceStub(channel).Export(request())).HasField("partial_success")
    assert not answer.HasField("partial_success")
    assert writer.messages == ["one", "two"]
    assert {record.service for record in writer.records} == {"orders"}


async def test_rejected_records_are_counted_with_the_first_reasons() -> None:
    writer = MemoryWriter()
    messages = ["NUL \0" if number % 100 == 1 else f"message {number}" for number in range(2500)]
    async with collecting(writer) as export:
        answer = await export(request(*messages).SerializeToString())
    assert answer.partial_success.rejected_log_records == 25
    assert answer.partial_success.error_message == "; ".join(
        [*(f"record {number}: message breaks a rule" for number in (1, 101, 201, 301, 401)), "and 20 more"]
    )
    assert writer.messages == sorted(message for message in messages if "\0" not in message)
    assert sorted(writer.sizes) == [500, 1000, 1000]


async def test_batches_are_stored_side_by_side() -> None:
    writer = MemoryWriter()
    writer.together = asyncio.Barrier(3)
    async with asyncio.timeout(30):
        await store(writer, "sender", request(*map(str, range(2500))).SerializeToString())
    assert len(writer.records) == 2500


async def test_a_repeated_request_is_stored_once() -> None:
    writer = MemoryWriter()
    first = request(*(f"{number}" for number in range(1500)), "\0").SerializeToString()
    async with collecting(writer) as export:
        answers = [await export(first) for _ in range(2)]
        await export(request("0").SerializeToString())
    assert len(writer.records) == 1501
    assert answers[0] == answers[1]
    assert answers[0].partial_success.rejected_log_records == 1


async def test_records_without_any_time_can_not_be_told_from_others() -> None:
    writer = MemoryWriter()
    async with collecting(writer) as export:
        for _ in range(2):
            await export(request("tick", timed=False).SerializeToString())
    assert writer.messages == ["tick", "tick"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("the database is away", retry_after=timedelta(seconds=3)), grpc.StatusCode.UNAVAILABLE),
        (ResourceExhausted("too much", retry_after=timedelta(seconds=3)), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_passes_is_to_be_sent_again_and_then_stored_once(
    error: OpsplaneError, code: grpc.StatusCode
) -> None:
    writer = MemoryWriter(error, error)
    raw = request(*(f"{number}" for number in range(3000))).SerializeToString()
    async with collecting(writer) as export:
        with require_status(code, error.reason) as refusal:
            await export(raw)
        assert refusal.details is not None
        assert refusal.details.retry is not None
        assert refusal.details.retry.retry_delay.seconds == 3
        writer.refuse.clear()
        assert not (await export(raw)).HasField("partial_success")
    assert len(writer.records) == 3000


async def test_a_quota_is_told_with_the_time_to_come_back() -> None:
    async with collecting(MemoryWriter(), Quotas(default=1)) as export:
        await export(request("one").SerializeToString())
        with require_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED") as refusal:
            await export(request("two").SerializeToString())
    assert refusal.details is not None
    assert refusal.details.retry is not None


@pytest.mark.parametrize(
    "raw", [b"\xff", b"\x0a\x05\x12", b"\x0a\x04\x12\x02\x12\x09", request("x").SerializeToString()[:-1]]
)
async def test_what_is_no_request_is_refused_for_good(raw: bytes) -> None:
    writer = MemoryWriter()
    async with collecting(writer) as export:
        with require_status(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
            await export(raw)
    assert refusal.message.startswith("the bytes are no ExportLogsServiceRequest: ")
    assert writer.records == []


async def test_a_bad_text_costs_its_record_alone() -> None:
    raw = request("good", "BAD", "fine").SerializeToString().replace(b"BAD", BAD_UTF8 + b"!")
    other = request("of another resource", service="XY").SerializeToString().replace(b"XY", BAD_UTF8)
    writer = MemoryWriter()
    async with collecting(writer) as export:
        answer = await export(raw + other)
    assert answer.partial_success.rejected_log_records == 2
    assert answer.partial_success.error_message == (
        "record 1: can not be read, or has text that is not UTF-8; "
        "record 3: its resource or scope can not be read, or has text that is not UTF-8"
    )
    assert writer.messages == ["fine", "good"]


async def test_a_resource_that_is_repeated_with_each_record_makes_batches_of_bounded_size() -> None:
    large = request(*map(str, range(100)))
    large.resource_logs[0].resource.attributes.add(key="notes").value.string_value = "n" * 200_000
    writer = MemoryWriter()
    rejections = await store(writer, "sender", large.SerializeToString())
    assert rejections.count == 0
    assert len(writer.records) == 100
    assert max(writer.sizes) <= 11


async def test_more_records_than_memory_is_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_MAX_REQUEST_RECORDS", 10)
    writer = MemoryWriter()
    with pytest.raises(InvalidArgument, match="more than 10 records"):
        await store(writer, "sender", request(*map(str, range(11))).SerializeToString())
    assert (await store(writer, "sender", request(*map(str, range(10))).SerializeToString())).count == 0


MESSAGES = st.lists(st.text() | st.just("x\0"), max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(MESSAGES, max_size=3), st.data())
def test_every_record_is_stored_or_rejected(scopes: list[list[str]], data: st.DataObject) -> None:
    whole = logs_service_pb2.ExportLogsServiceRequest()
    for messages in scopes:
        whole.MergeFrom(request(*messages))
    writer = MemoryWriter()
    rejections = asyncio.run(store(writer, "sender", whole.SerializeToString()))
    assert len(writer.records) + rejections.count == sum(map(len, scopes))
    assert rejections.count == sum("\0" in message for messages in scopes for message in messages)


@settings(deadline=None)
@given(st.binary(max_size=60) | st.integers(0, 200).map(lambda cut: request("one", "two").SerializeToString()[:cut]))
def test_any_bytes_are_stored_or_refused(raw: bytes) -> None:
    writer = MemoryWriter()
    try:
        rejections = asyncio.run(store(writer, "sender", raw))
    except InvalidArgument:
        return
    try:
        whole = logs_service_pb2.ExportLogsServiceRequest.FromString(raw)
    except DecodeError:
        return
    count = sum(len(scope.log_records) for resource in whole.resource_logs for scope in resource.scope_logs)
    assert len(writer.records) + rejections.count == count


@given(st.integers(0, 300), st.binary(min_size=1, max_size=4))
def test_damage_anywhere_costs_records_but_never_the_server(place: int, damage: bytes) -> None:
    raw = bytearray(request("one", "two", "three").SerializeToString())
    raw[place % len(raw) : place % len(raw) + len(damage)] = damage
    with suppress(InvalidArgument):
        asyncio.run(store(MemoryWriter(), "sender", bytes(raw)))


def test_a_record_of_the_largest_numbers() -> None:
    record = LogRecord(time_unix_nano=2**64 - 1, severity_number=SeverityNumber.SEVERITY_NUMBER_FATAL4)
    whole = request("x")
    whole.resource_logs[0].scope_logs[0].log_records.append(record)
    writer = MemoryWriter()
    rejections = asyncio.run(store(writer, "sender", whole.SerializeToString()))
    assert (len(writer.records), rejections.count) == (1, 1)
