from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id
from opsplane_server import errors
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.interceptors.chain import Interceptor
from structlog.testing import capture_logs

from tests.contract.rpc.echo import SERVICE, EchoServicer, EchoStub, Request
from tests.rpc_harness import require_status

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACE = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"),)


class Spans(SpanExporter):
    """Hands out spans as they end: a handler may end a moment after its caller."""

    def __init__(self) -> None:
        self._ended: asyncio.Queue[ReadableSpan] = asyncio.Queue()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            self._ended.put_nowait(span)
        return SpanExportResult.SUCCESS

    def clear(self) -> None:
        while not self._ended.empty():
            self._ended.get_nowait()

    async def take(self, count: int) -> list[ReadableSpan]:
        async with asyncio.timeout(10):
            return [await self._ended.get() for _ in range(count)]


@pytest.fixture(scope="module")
def exporter() -> Spans:
    return Spans()


@pytest.fixture(scope="module")
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture(scope="module")
def grpc_interceptors(exporter: Spans, reader: InMemoryMetricReader) -> Sequence[Interceptor]:
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    return standard(Anonymous(), tracer_provider=tracers, meter_provider=MeterProvider([reader]))


@pytest.fixture
def spans(exporter: Spans) -> Spans:
    exporter.clear()
    return exporter


async def test_span_continues_the_callers_trace(echo: EchoServicer, grpc_stub: EchoStub, spans: Spans) -> None:
    await grpc_stub.Say(Request(), metadata=TRACE)
    [span] = await spans.take(1)
    assert span.name == f"{SERVICE}/Say"
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert format_trace_id(span.parent.trace_id) == TRACE_ID
    assert format_span_id(span.parent.span_id) == SPAN_ID
    attributes = dict(span.attributes or {})
    assert isinstance(attributes.pop("network.peer.port"), int)
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/Say",
        "rpc.response.status_code": "OK",
        "network.peer.address": "127.0.0.1",
    }
    assert echo.calls[0].trace_id == TRACE_ID


@pytest.mark.parametrize("metadata", [(), (("traceparent", "nonsense"),)], ids=["none", "nonsense"])
async def test_calls_without_a_trace_begin_one_each(
    echo: EchoServicer, grpc_stub: EchoStub, spans: Spans, metadata: Any
) -> None:
    await grpc_stub.Say(Request(), metadata=metadata)
    await grpc_stub.Say(Request(), metadata=metadata)
    first, second = await spans.take(2)
    assert first.parent is None
    assert second.parent is None
    assert first.context.trace_id != second.context.trace_id


async def test_server_fault_marks_the_span_and_client_fault_does_not(
    echo: EchoServicer, grpc_stub: EchoStub, spans: Spans
) -> None:
    echo.error = errors.NotFound("gone")
    with require_status(StatusCode.NOT_FOUND):
        await grpc_stub.Say(Request())
    echo.error = RuntimeError("broken")
    with require_status(StatusCode.INTERNAL) as refusal:
        await grpc_stub.Say(Request())
    client_fault, server_fault = await spans.take(2)
    assert client_fault.status.is_unset
    assert not server_fault.status.is_ok
    assert dict(server_fault.attributes or {})["error.type"] == "INTERNAL"
    assert [event.name for event in server_fault.events] == ["exception"]
    assert format_trace_id(server_fault.context.trace_id) in refusal.message


async def test_streams_are_observed_to_their_end(echo: EchoServicer, grpc_stub: EchoStub, spans: Spans) -> None:
    for method in (grpc_stub.Repeat, grpc_stub.RepeatByWriting):
        assert len([reply async for reply in method(Request(count=3))]) == 3
    call = grpc_stub.Repeat(Request(count=1_000_000))
    await call.read()
    call.cancel()
    codes = [dict(span.attributes or {})["rpc.response.status_code"] for span in await spans.take(3)]
    assert codes == ["OK", "OK", "CANCELLED"]


async def test_deadline_is_told_from_cancellation(echo: EchoServicer, grpc_stub: EchoStub, spans: Spans) -> None:
    with require_status(StatusCode.DEADLINE_EXCEEDED):
        await grpc_stub.Say(Request(text="sleep"), timeout=0.2)
    [span] = await spans.take(1)
    assert dict(span.attributes or {})["rpc.response.status_code"] == "DEADLINE_EXCEEDED"


async def test_abort_by_hand_is_seen(echo: EchoServicer, grpc_stub: EchoStub, spans: Spans) -> None:
    with require_status(StatusCode.OUT_OF_RANGE):
        await grpc_stub.Say(Request(text="abort"))
    [span] = await spans.take(1)
    assert dict(span.attributes or {})["rpc.response.status_code"] == "OUT_OF_RANGE"


async def test_metrics_have_constant_labels(
    echo: EchoServicer, grpc_stub: EchoStub, reader: InMemoryMetricReader
) -> None:
    reader.get_metrics_data()
    before = totals(reader)
    await grpc_stub.Say(Request())
    echo.error = errors.NotFound("gone")
    with require_status(StatusCode.NOT_FOUND):
        await grpc_stub.Say(Request())
    after = totals(reader)
    for metric in ("rpc.server.call.duration", "rpc.server.requests"):
        for code in ("OK", "NOT_FOUND"):
            labels = frozenset({"rpc.service": SERVICE, "rpc.method": "Say", "rpc.response.status_code": code}.items())
            assert after[metric, labels] == before.get((metric, labels), 0) + 1


def totals(reader: InMemoryMetricReader) -> dict[tuple[str, frozenset[Any]], int]:
    """Counts a metric and set of labels."""
    data = reader.get_metrics_data()
    found: dict[tuple[str, frozenset[Any]], int] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    count: Any = getattr(point, "count", None)
                    value = getattr(point, "value", 0) if count is None else count
                    found[metric.name, frozenset((point.attributes or {}).items())] = value
    return found


async def test_one_log_line_a_call(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    with capture_logs() as logs:
        await grpc_stub.Say(Request())
        echo.error = errors.FailedPrecondition("no", reason="RUN_ENDED")
        with require_status(StatusCode.FAILED_PRECONDITION):
            await grpc_stub.Say(Request())
        echo.error = errors.Unavailable("no")
        with require_status(StatusCode.UNAVAILABLE):
            await grpc_stub.Say(Request())
    assert [(line["log_level"], line["code"], line["reason"]) for line in logs] == [
        ("info", "OK", ""),
        ("info", "FAILED_PRECONDITION", "RUN_ENDED"),
        ("error", "UNAVAILABLE", "UNAVAILABLE"),
    ]
    for line in logs:
        assert line["event"] == "rpc finished"
        assert line["method"] == f"/{SERVICE}/Say"
        assert line["principal"] == "anonymous"
        assert line["peer"].startswith("ipv4:127.0.0.1:")
        assert line["duration_ms"] >= 0


async def test_health_checks_are_left_out(
    echo: EchoServicer, grpc_channel: grpc.aio.Channel, grpc_stub: EchoStub, spans: Spans
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(grpc_channel)
    with capture_logs() as logs:
        await stub.Check(health_pb2.HealthCheckRequest())
        await grpc_stub.Say(Request())
    assert [line["method"] for line in logs] == [f"/{SERVICE}/Say"]
    assert [span.name for span in await spans.take(1)] == [f"{SERVICE}/Say"]
