"""The figures of transfers as Prometheus metrics: six of them under the FTP Pooler's names.

They are read when they are asked for, so that counting costs no lock. The parent adds them up over the workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import accumulate
from types import TracebackType
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from opsplane_server.ftptransfer.figures import DURATION_BOUNDS, TransferFigures

_BOUNDS = [*map(floatToGoString, DURATION_BOUNDS), "+Inf"]


class TransferMetrics(Collector, AbstractContextManager["TransferMetrics"]):
    """Shows `figures` in a registry for as long as it is entered."""

    def __init__(self, figures: TransferFigures, registry: CollectorRegistry = REGISTRY) -> None:
        self._figures = figures
        self._registry = registry

    def __enter__(self) -> Self:
        self._registry.register(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registry.unregister(self)

    def collect(self) -> Iterator[Metric]:
        """What `/metrics` and `/stats` are made of."""
        figures = self._figures
        yield CounterMetricFamily("ftp_pooler_tasks", "Tasks that ended.", figures.tasks_total)
        yield CounterMetricFamily("ftp_pooler_tasks_success", "Tasks that are done.", figures.tasks_succeeded)
        yield CounterMetricFamily("ftp_pooler_tasks_failed", "Tasks that were given up.", figures.tasks_failed)
        yield CounterMetricFamily("ftp_pooler_bytes_transferred", "Bytes sent and received.", figures.bytes_transferred)
        yield HistogramMetricFamily(
            "ftp_pooler_transfer_duration_seconds",
            "How long the last attempt of a task took.",
            buckets=list(zip(_BOUNDS, map(float, accumulate(figures.durations)), strict=True)),
            sum_value=figures.duration_seconds,
        )
        yield GaugeMetricFamily("ftp_pooler_active_sessions", "Open FTP sessions.", figures.sessions.total())
        yield CounterMetricFamily(
            "opsplane_ftp_tasks_received", "Tasks that were put into the queue.", figures.tasks_received
        )
        yield CounterMetricFamily(
            "opsplane_ftp_malformed_messages", "Messages of the queue that were no tasks.", figures.malformed
        )
        yield CounterMetricFamily(
            "opsplane_ftp_results_published", "Results that were written to Kafka.", figures.results_published
        )
        yield GaugeMetricFamily(
            "opsplane_ftp_queue_connected", "Worker processes that read from Kafka.", figures.queue_connected
        )
        yield GaugeMetricFamily("opsplane_ftp_tasks_in_progress", "Tasks under way.", figures.tasks_in_progress)
        errors = CounterMetricFamily("opsplane_ftp_failures", "Tasks that were given up, by error.", labels=["code"])
        for code, count in figures.failures.items():
            errors.add_metric([code.value], count)
        yield errors
        sessions = GaugeMetricFamily(
            "opsplane_ftp_sessions", "Open FTP sessions of a connection.", labels=["connection"]
        )
        for connection, count in figures.sessions.items():
            sessions.add_metric([connection], count)
        yield sessions
