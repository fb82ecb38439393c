"""Traces and metrics of a worker, by the OpenTelemetry SDK.

Traces go to a collector if one is configured. Metrics wait to be asked for: the worker tells them as text to whoever
connects to its unix socket, which is the parent.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    REGISTRY,
    disable_created_metrics,
    generate_latest,
)

from opsplane_server.config import TelemetrySettings
from opsplane_server.telemetry.logs import SERVICE
from opsplane_server.version import server_version

_FLUSH_SECONDS: Final = 5.0


class Instruments:
    """The providers of traces and metrics. `install` makes them those of the process."""

    def __init__(self, settings: TelemetrySettings, *, instance: str, metrics_socket: Path) -> None:
        self._settings = settings
        self._metrics_socket = metrics_socket
        resource = Resource.create(
            {SERVICE_NAME: SERVICE, SERVICE_VERSION: server_version(), SERVICE_INSTANCE_ID: instance}
        )
        # Without a collector spans are only names for log lines, and cost next to nothing when not sampled.
        sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio)) if settings.otlp_endpoint else ALWAYS_OFF
        self.tracer_provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        # Into the same registry as metrics that are made with prometheus_client. All workers together look like one
        # process, so nothing there may tell them apart.
        reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False)
        self.meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._stack = AsyncExitStack()

    def install(self) -> None:
        """Makes them the providers of all code in this process."""
        trace.set_tracer_provider(self.tracer_provider)
        metrics.set_meter_provider(self.meter_provider)
        # Times of creation and start, versions and the like make no sense as a sum over processes.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            REGISTRY.unregister(collector)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._settings.otlp_endpoint is not None:
                # Here, because it takes memory of every worker that has no collector to send to.
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter(
                    endpoint=self._settings.otlp_endpoint,
                    insecure=self._settings.otlp_endpoint.startswith("http://"),
                    timeout=_FLUSH_SECONDS,
                )
                self.tracer_provider.add_span_processor(BatchSpanProcessor(exporter))
            stack.push_async_callback(self._flush)
            server = await asyncio.start_unix_server(self._tell, self._metrics_socket)
            stack.callback(server.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(REGISTRY)

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self.render())
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _flush(self) -> None:
        """Sends the last spans, unless the collector does not answer."""
        flushed = asyncio.to_thread(self.tracer_provider.shutdown)
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await flushed
        except TimeoutError:
            pass
        self.meter_provider.shutdown()
