"""Figures of instances as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from opsplane_server.instances.metrics import InstanceMetricsCollector
from opsplane_server.instances.model import FailoverKind, FailoverReport, InstanceState
from opsplane_server.instances.records import BackupFigures
from prometheus_client import CollectorRegistry

from tests.unit.instances.samples import NOON, instance, sample

NODE = {"instance": "orders", "engine": "postgresql", "node": "orders-1"}
WHOLE = {"instance": "orders", "engine": "postgresql"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def collector(registry: CollectorRegistry) -> Iterator[InstanceMetricsCollector]:
    with InstanceMetricsCollector(registry) as entered:
        yield entered
    assert list(registry.collect()) == []


def test_gauges_of_nodes_and_instances(registry: CollectorRegistry, collector: InstanceMetricsCollector) -> None:
    report = FailoverReport(
        FailoverKind.AUTOMATIC, "orders-2", "orders-1", "", NOON, NOON, NOON + timedelta(seconds=0.7)
    )
    shown = replace(
        instance(),
        backups=BackupFigures("backups/b", NOON, 10),
        status=replace(instance().status, last_failover=report),
    )
    collector.update(shown, sample(0, cpu=1.0, transactions=10, database_size_bytes=77))
    collector.update(shown, sample(10, cpu=2.0, transactions=30, database_size_bytes=78))

    def value(name: str, labels: dict[str, str]) -> float | None:
        return registry.get_sample_value(f"opsplane_instance_{name}", labels)

    assert value("cpu_millis", NODE) == 100
    assert value("memory_bytes", NODE) == 7
    assert value("storage_used_bytes", NODE) == 8
    assert value("connections", NODE) == 5
    assert value("transactions_per_second", NODE) == 2
    assert value("queries_per_second", NODE) is None
    assert value("replication_lag_seconds", NODE) == 0
    assert value("cpu_seconds_total", NODE) == 1
    assert value("transactions_total", NODE) == 20
    assert value("up", WHOLE) == 1
    assert value("ready_nodes", WHOLE) == 1
    assert value("database_size_bytes", WHOLE) == 78
    assert value("backup_age_seconds", WHOLE) == 10
    assert value("last_failover_seconds", WHOLE) == pytest.approx(0.7)


def test_counters_go_on_when_a_server_begins_anew(
    registry: CollectorRegistry, collector: InstanceMetricsCollector
) -> None:
    for seconds, transactions in enumerate((100, 150, 5, 15)):
        collector.update(instance(), sample(seconds, transactions=transactions))
    assert registry.get_sample_value("opsplane_instance_transactions_total", NODE) == 60


def test_without_a_sample_there_are_no_figures(
    registry: CollectorRegistry, collector: InstanceMetricsCollector
) -> None:
    collector.update(instance(), sample(0))
    collector.update(instance(state=InstanceState.STOPPED), None)
    assert registry.get_sample_value("opsplane_instance_up", WHOLE) == 0
    assert registry.get_sample_value("opsplane_instance_memory_bytes", NODE) is None


def test_what_another_process_shows_is_shown_no_more(
    registry: CollectorRegistry, collector: InstanceMetricsCollector
) -> None:
    collector.update(instance(), sample(0, transactions=1))
    collector.update(instance(), sample(1, transactions=2))
    collector.clear()
    assert registry.get_sample_value("opsplane_instance_up", WHOLE) is None
    assert registry.get_sample_value("opsplane_instance_transactions_total", NODE) == 1
    collector.update(replace(instance(), hidden=True), sample(0))
    assert registry.get_sample_value("opsplane_instance_up", WHOLE) is None
    collector.update(instance(), None)
    collector.forget("u1")
    assert registry.get_sample_value("opsplane_instance_up", WHOLE) is None
