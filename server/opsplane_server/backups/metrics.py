"""The figures of backups as Prometheus metrics, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from opsplane_server.backups.figures import BackupFigures, Overview
from opsplane_server.backups.model import BackupState


class BackupMetrics(Collector, AbstractContextManager["BackupMetrics"]):
    """Shows `figures` in a registry for as long as it is entered."""

    def __init__(self, figures: BackupFigures, registry: CollectorRegistry = REGISTRY) -> None:
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
        """What `/metrics` is made of. What only the leader knows is told by it alone: processes are added up."""
        figures = self._figures
        made = CounterMetricFamily("opsplane_backups_made", "Backups that ended.", labels=["type", "outcome"])
        for (kind, outcome), count in figures.made_total.items():
            made.add_metric([kind.lower(), outcome], count)
        yield made
        yield CounterMetricFamily("opsplane_backup_bytes", "Bytes of backups that were made.", figures.bytes_total)
        yield CounterMetricFamily(
            "opsplane_backup_seconds", "Seconds for which backups were made.", figures.seconds_total
        )
        verified = CounterMetricFamily("opsplane_backups_verified", "Verifications that ended.", labels=["outcome"])
        for outcome, count in figures.verified_total.items():
            verified.add_metric([outcome], count)
        yield verified
        if figures.overview is not None:
            yield from _overview(figures.overview)


def _overview(overview: Overview) -> Iterator[Metric]:
    states = GaugeMetricFamily("opsplane_backups", "Backups that there are, by state.", labels=["state"])
    for state in BackupState:
        states.add_metric([state.value.lower()], overview.states.get(state.value, 0))
    yield states
    overdue = GaugeMetricFamily(
        "opsplane_backup_overdue", "1 when a scheduled backup is overdue.", labels=["schedule", "instance"]
    )
    for schedule in overview.schedules:
        for status in schedule.statuses:
            overdue.add_metric([schedule.name, status.instance], schedule.is_overdue(status, overview.time))
    yield overdue
    good = GaugeMetricFamily(
        "opsplane_backup_last_good_timestamp_seconds",
        "Moment of the data of the newest usable backup of an instance that exists.",
        labels=["instance"],
    )
    for instance, moment in overview.good_times.items():
        good.add_metric([instance], moment.timestamp())
    yield good
