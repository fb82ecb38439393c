"""A k6 that is real, an API for it to call, and a receiver for its metrics."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opsplane_server.loadtesting.metrics.otlp import decode
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.runners.local import LocalRunner


@dataclass
class Api:
    """An HTTP API: `/bad` answers 500, all else 200."""

    url: str = ""
    calls: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.calls += 1
                status = b"500 Bad" if b"/bad" in head.split(b" ", 2)[1] else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()


@dataclass
class Receiver(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Takes exports as the server does, and keeps their rows."""

    address: str = ""
    rows: list[ExportRow] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    async def Export(  # noqa: N802
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: Any
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        metadata = dict(context.invocation_metadata() or ())
        self.authorizations.add(str(metadata.get("authorization", "")))
        for resource in request.resource_metrics:
            self.names |= {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
        self.rows += decode(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    @property
    def requests(self) -> int:
        return sum(series.requests for row in self.rows for series in row.series)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield api
    server.close()


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = grpc.aio.server()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(receiver, server)
    receiver.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.add_insecure_port(f"unix:{tmp_path}/otlp.sock")
    await server.start()
    yield receiver
    await server.stop(None)


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[LocalRunner]:
    folder = tmp_path / "generators"
    runner = LocalRunner(folder)
    yield runner
    for path in folder.glob("*"):
        await runner.clean_up(path.name)
