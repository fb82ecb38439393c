"""Figures of instances as Prometheus metrics, of the process that samples them: the parent adds up its workers'.

Counters are what this process saw grow, so that their sum over the processes which sample one after another is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from opsplane_server.instances.figures import InstanceFigures, NodeFigures, figures, growth
from opsplane_server.instances.model import InstanceState, NodeState
from opsplane_server.instances.records import Instance, InstanceSample, NodeSample

_NODE_LABELS: Final = ("instance", "engine", "node")
_LABELS: Final = ("instance", "engine")

_NODE_GAUGES: Final[tuple[tuple[str, str, Callable[[NodeFigures], float | None]], ...]] = (
    ("cpu_millis", "Processor time in use, thousandths of a core.", lambda node: node.cpu_millis),
    ("memory_bytes", "Memory in use.", lambda node: node.memory_bytes),
    ("storage_used_bytes", "Storage in use, logs included.", lambda node: node.storage_used_bytes),
    ("storage_limit_bytes", "Storage that may be used.", lambda node: node.storage_limit_bytes),
    ("connections", "Open client connections.", lambda node: node.connections),
    ("active_connections", "Connections that run a statement.", lambda node: node.active_connections),
    ("max_connections", "Most connections allowed.", lambda node: node.max_connections),
    ("transactions_per_second", "Transactions ended a second.", lambda node: node.transactions_per_second),
    ("queries_per_second", "Statements a second.", lambda node: node.queries_per_second),
    ("cache_hit_ratio", "Share of page reads found in the buffers.", lambda node: node.cache_hit_ratio),
    ("replication_lag_bytes", "Bytes of log that are not replayed yet.", lambda node: node.lag_bytes),
    (
        "replication_lag_seconds",
        "Age of the newest change replayed, while it is behind.",
        lambda node: node.lag.total_seconds() if node.lag is not None else None,
    ),
)
_COUNTERS: Final[tuple[tuple[str, str, Callable[[NodeSample], float | None]], ...]] = (
    ("cpu_seconds", "Processor time used.", lambda node: node.usage.cpu_seconds if node.usage else None),
    ("transactions", "Transactions that ended.", lambda node: node.server.transactions if node.server else None),
    ("queries", "Statements.", lambda node: node.server.queries if node.server else None),
    ("buffer_hits", "Page reads found in the buffers.", lambda node: node.server.buffer_hits if node.server else None),
    ("buffer_reads", "Page reads from outside.", lambda node: node.server.buffer_reads if node.server else None),
    ("deadlocks", "Deadlocks.", lambda node: node.server.deadlocks if node.server else None),
)
_UP: Final = frozenset({InstanceState.READY, InstanceState.DEGRADED, InstanceState.UPDATING})


@dataclass(frozen=True, slots=True)
class _Shown:
    instance: Instance
    figures: InstanceFigures | None


class InstanceMetricsCollector(Collector, AbstractContextManager["InstanceMetricsCollector"]):
    """Shows what it was given last, in a registry, for as long as it is entered."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._shown: dict[str, _Shown] = {}
        self._counts: dict[tuple[str, ...], dict[str, float]] = {}  # by labels, then by counter

    def __enter__(self) -> Self:
        self._registry.register(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registry.unregister(self)

    def update(self, instance: Instance, sample: InstanceSample | None) -> None:
        """Shows an instance as it is, with the figures of a new sample if there is one. Scratch ones are not shown."""
        if instance.hidden:
            return
        shown = self._shown.get(instance.uid)
        earlier = shown.figures.sample if shown is not None and shown.figures is not None else None
        made = figures(instance, earlier, sample) if sample is not None else None
        self._shown[instance.uid] = _Shown(instance, made)
        if earlier is not None and sample is not None:
            self._count(instance, earlier, sample)

    def forget(self, uid: str) -> None:
        """Shows an instance no more; what was counted of it here stays counted."""
        self._shown.pop(uid, None)

    def clear(self) -> None:
        """The same for all: another process shows them."""
        self._shown.clear()

    def collect(self) -> Iterator[Metric]:
        """What `/metrics` is made of."""
        shown = [(_labels(one.instance), one) for one in list(self._shown.values())]
        for name, words, value in _NODE_GAUGES:
            gauge = GaugeMetricFamily(f"opsplane_instance_{name}", words, labels=_NODE_LABELS)
            for labels, one in shown:
                for node in one.figures.nodes if one.figures is not None else ():
                    if (known := value(node)) is not None:
                        gauge.add_metric([*labels, node.node], known)
            yield gauge
        for name, words, _ in _COUNTERS:
            counter = CounterMetricFamily(f"opsplane_instance_{name}", words, labels=_NODE_LABELS)
            for place, counts in self._counts.items():
                if name in counts:
                    counter.add_metric(place, counts[name])
            yield counter
        yield from _of_instances(shown)

    def _count(self, instance: Instance, earlier: InstanceSample, later: InstanceSample) -> None:
        before = {node.node: node for node in earlier.nodes}
        for node in later.nodes:
            if node.node not in before:
                continue
            counts = self._counts.setdefault((*_labels(instance), node.node), {})
            for name, _, value in _COUNTERS:
                grown = growth(value(before[node.node]), value(node))
                if grown is not None:
                    counts[name] = counts.get(name, 0.0) + grown


def _of_instances(shown: list[tuple[list[str], _Shown]]) -> Iterator[Metric]:
    def gauge(name: str, words: str, value: Callable[[_Shown], float | None]) -> Metric:
        family = GaugeMetricFamily(f"opsplane_instance_{name}", words, labels=_LABELS)
        for labels, one in shown:
            if (known := value(one)) is not None:
                family.add_metric(labels, known)
        return family

    yield gauge("up", "1 while the instance serves.", lambda one: float(one.instance.state in _UP))
    yield gauge("nodes", "Servers of the instance.", lambda one: len(one.instance.status.nodes))
    yield gauge(
        "ready_nodes",
        "Servers that serve.",
        lambda one: sum(node.state is NodeState.READY for node in one.instance.status.nodes),
    )
    yield gauge(
        "database_size_bytes",
        "Bytes of all databases together.",
        lambda one: one.figures.database_size_bytes if one.figures is not None else None,
    )
    yield gauge(
        "backup_age_seconds",
        "Time since the newest usable backup was cut.",
        lambda one: one.figures.backup_age.total_seconds() if one.figures and one.figures.backup_age else None,
    )
    yield gauge("last_failover_timestamp_seconds", "When the primary last changed.", _failover_time)
    yield gauge("last_failover_seconds", "How long no write was taken then, at most.", _failover_seconds)


def _failover_time(one: _Shown) -> float | None:
    report = one.instance.status.last_failover
    return report.complete_time.timestamp() if report is not None else None


def _failover_seconds(one: _Shown) -> float | None:
    report = one.instance.status.last_failover
    return (report.complete_time - report.start_time).total_seconds() if report is not None else None


def _labels(instance: Instance) -> list[str]:
    return [instance.spec.id, instance.spec.engine.value.lower()]
