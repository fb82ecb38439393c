"""Traces: in the log, and at a collector."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.integration.server.calls import list_operations, open_channel
from tests.server_process import running_server
from tests.waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = grpc.aio.Metadata(("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"))


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes traces."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []

    async def Export(  # noqa: N802
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: grpc.aio.ServicerContext[
            trace_service_pb2.ExportTraceServiceRequest, trace_service_pb2.ExportTraceServiceResponse
        ],
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    servicer, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    await server.stop(None)


async def test_a_log_line_of_a_call_carries_the_trace_of_its_caller() -> None:
    with running_server("--log-level=DEBUG") as server:
        async with open_channel(server.address) as channel:
            await list_operations(channel, metadata=TRACEPARENT)

        def found() -> list[dict[str, Any]]:
            """Of this call: the server's own services call each other as well."""
            return [record for record in server.logs() if str(record.get("method", "")).endswith("/ListOperations")]

        await until(lambda: bool(found()))
        assert [record["trace_id"] for record in found()] == [TRACE]


async def test_spans_reach_the_collector_at_the_latest_when_the_server_ends(
    collector: tuple[Collector, str],
) -> None:
    taken, endpoint = collector
    with running_server(environment={"OPSPLANE_TELEMETRY__OTLP_ENDPOINT": endpoint}) as server:
        async with open_channel(server.address) as channel:
            await list_operations(channel, metadata=TRACEPARENT)
        assert await asyncio.to_thread(server.stop) == 0
    [span] = [span for span in taken.spans if span.trace_id.hex() == TRACE]
    assert span.name == "google.longrunning.Operations/ListOperations"
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"


async def test_a_collector_that_is_away_holds_nobody_up() -> None:
    with running_server(environment={"OPSPLANE_TELEMETRY__OTLP_ENDPOINT": "http://127.0.0.1:9"}) as server:
        async with open_channel(server.address) as channel:
            await list_operations(channel, metadata=TRACEPARENT)
        assert server.stop() == 0
        assert server.find_log("workers do not end and are killed") is None
