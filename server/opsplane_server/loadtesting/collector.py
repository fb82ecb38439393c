"""OTLP metrics from load generators: each export becomes stored rows of the run whose token it carries."""

from __future__ import annotations

from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from opsplane_server.errors import FailedPrecondition, PermissionDenied
from opsplane_server.loadtesting.metrics.otlp import decode
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.loadtesting.tokens import PREFIX
from opsplane_server.rpc.calls import current_call
from opsplane_server.storage.signals import Signal

METRICS_SERVICE = metrics_service_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class MetricsCollector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """`opentelemetry.proto.collector.metrics.v1.MetricsService`, for callers with the token of a run."""

    def __init__(self, store: RunStore, windows: Signal) -> None:
        self._store = store
        self._windows = windows

    async def Export(  # noqa: N802
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: Context
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        """Stores the figures before it answers: what k6 was told has arrived is there for good."""
        principal = current_call().principal.name
        if not principal.startswith(PREFIX):
            raise PermissionDenied("metrics are taken from load generators of runs only", reason="NOT_A_RUN")
        rows = decode(request)
        if rows:
            try:
                stored = await self._store.append_windows(principal.removeprefix(PREFIX), rows)
            except FailedPrecondition as error:
                # k6 would try an ended run's figures again and again if this looked like a passing fault.
                raise PermissionDenied(error.message, reason=error.reason) from error
            if stored:
                self._windows.notify()
        return metrics_service_pb2.ExportMetricsServiceResponse()
