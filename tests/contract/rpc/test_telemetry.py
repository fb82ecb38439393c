from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id
from opsplane_server import errors
from opsplane_server.rpc.identity import Anonymous
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.interceptors.chain import Interceptor
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from tests.contract.rpc.echo import SERVICE, EchoServicer, EchoStub, Request
from tests.rpc_harness import require_status
from tests.waiting import until

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
def grpc_interceptors(exporter: Spans) -> Sequence[Interceptor]:
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    return standard(Anonymous(), tracer_provider=tracers)


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
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/Say",
        "rpc.response.status_code": "OK",
    }
    assert echo.calls[0].trace_id == TRACE_ID


@pytest.mark.parametrize(
    "metadata", [(), (("traceparent", "nonsense"),), (("tracestate", "a=b"),)], ids=["none", "nonsense", "state"]
)
async def test_calls_without_a_trace_begin_one_each(
    echo: EchoServicer, grpc_stub: EchoStub, spans: Spans, metadata: Any
) -> None:
    await grpc_stub.Say(Request(), metadata=metadata)
    await grpc_stub.Say(Request(), metadata=metadata)
    first, second = await spans.take(2)
    assert first.parent is None
    assert second.parent is None
    assert first.context.trace_id != second.context.trace_id


async def test_trace_state_goes_on(echo: EchoServicer, grpc_stub: EchoStub, spans: Spans) -> None:
    await grpc_stub.Say(Request(), metadata=(*TRACE, ("tracestate", "vendor=value")))
    [span] = await spans.take(1)
    assert span.parent is not None
    assert format_span_id(span.parent.span_id) == SPAN_ID
    assert span.context.trace_state.get("vendor") == "value"


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


async def test_metrics_count_calls_by_service_method_and_code(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    before = {code: counted(code) for code in ("OK", "NOT_FOUND")}
    await grpc_stub.Say(Request())
    echo.error = errors.NotFound("gone")
    with require_status(StatusCode.NOT_FOUND):
        await grpc_stub.Say(Request())
    expected = {code: (requests + 1, durations + 1) for code, (requests, durations) in before.items()}
    # A call is counted when it has ended, which its caller may see first.
    await until(lambda: {code: counted(code) for code in before} == expected)


def counted(code: str) -> tuple[float, float]:
    """How many calls of Echo.Say the counter and the histogram have seen end with a code."""
    labels = {"rpc_service": SERVICE, "rpc_method": "Say", "rpc_response_status_code": code}
    requests, durations = (
        REGISTRY.get_sample_value(name, labels) or 0
        for name in ("rpc_server_requests_total", "rpc_server_call_duration_seconds_count")
    )
    return requests, durations


async def test_one_log_line_a_call(echo: EchoServicer, grpc_stub: EchoStub) -> None:
    with capture_logs() as logs:
        await grpc_stub.Say(Request())
        echo.error = errors.FailedPrecondition("no", reason="RUN_ENDED")
        with require_status(StatusCode.FAILED_PRECONDITION):
            await grpc_stub.Say(Request())
        echo.error = errors.Unavailable("no")
        with require_status(StatusCode.UNAVAILABLE):
            await grpc_stub.Say(Request())
        await until(lambda: len(logs) >= 3)
    assert [(line["log_level"], line["code"], line["reason"]) for line in logs] == [
        ("debug", "OK", ""),
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
        await until(lambda: bool(logs))
    assert [line["method"] for line in logs] == [f"/{SERVICE}/Say"]
    assert [span.name for span in await spans.take(1)] == [f"{SERVICE}/Say"]
