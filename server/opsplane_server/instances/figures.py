"""Metrics of an instance: made of two samples of it, since rates are averages over the time between them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from opsplane_server.instances.model import NodeRole
from opsplane_server.instances.monitoring import NodeUsage, ServerSample
from opsplane_server.instances.records import Instance, InstanceSample, NodeSample

_MILLIS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """Metrics of a node; see `NodeMetrics` in `monitoring.proto`. None is what is not known."""

    node: str
    cpu_millis: float | None = None
    memory_bytes: int | None = None
    storage_used_bytes: int | None = None
    storage_limit_bytes: int | None = None
    connections: int | None = None
    active_connections: int | None = None
    max_connections: int | None = None
    transactions_per_second: float | None = None
    queries_per_second: float | None = None
    cache_hit_ratio: float | None = None
    lag_bytes: int | None = None
    lag: timedelta | None = None
    deadlocks: int | None = None


@dataclass(frozen=True, slots=True)
class InstanceFigures:
    """Metrics of an instance at the time of the later sample. backup_age: None while there is no usable backup."""

    sample: InstanceSample
    nodes: tuple[NodeFigures, ...]
    database_size_bytes: int
    backup_age: timedelta | None


def figures(instance: Instance, earlier: InstanceSample | None, later: InstanceSample) -> InstanceFigures:
    """Metrics of two samples of an instance; without an earlier one there are no rates."""
    before = {node.node: node for node in earlier.nodes} if earlier is not None else {}
    answering = [node for node in later.nodes if node.usage is not None or node.server is not None]
    cut_time = instance.backups.cut_time
    return InstanceFigures(
        sample=later,
        nodes=tuple(
            _node(instance.spec.resources.storage_bytes, before.get(node.node, NodeSample(node.node)), node)
            for node in answering
        ),
        database_size_bytes=_database_size(instance, later),
        backup_age=max(later.time - cut_time, timedelta()) if cut_time is not None else None,
    )


def growth(before: float | None, after: float | None) -> float | None:
    """By how much a counter grew; None when it is not known, or began anew with its server."""
    if before is None or after is None or after < before:
        return None
    return after - before


def _node(storage_limit: int, before: NodeSample, after: NodeSample) -> NodeFigures:
    usage, server = after.usage, after.server
    return NodeFigures(
        node=after.node,
        cpu_millis=_cpu_millis(before.usage, usage),
        memory_bytes=usage.memory_bytes if usage is not None else None,
        storage_used_bytes=usage.storage_used_bytes if usage is not None else None,
        storage_limit_bytes=storage_limit,
        connections=server.connections if server is not None else None,
        active_connections=server.active_connections if server is not None else None,
        max_connections=server.max_connections if server is not None else None,
        transactions_per_second=_rate("transactions", before.server, server),
        queries_per_second=_rate("queries", before.server, server),
        cache_hit_ratio=_hit_ratio(before.server, server),
        lag_bytes=after.lag_bytes,
        lag=after.lag,
        deadlocks=server.deadlocks if server is not None else None,
    )


def _cpu_millis(before: NodeUsage | None, after: NodeUsage | None) -> float | None:
    if before is None or after is None:
        return None
    seconds = (after.time - before.time).total_seconds()
    used = growth(before.cpu_seconds, after.cpu_seconds)
    return used / seconds * _MILLIS if used is not None and seconds > 0 else None


def _rate(counter: str, before: ServerSample | None, after: ServerSample | None) -> float | None:
    if before is None or after is None:
        return None
    seconds = (after.time - before.time).total_seconds()
    grown = growth(getattr(before, counter), getattr(after, counter))
    return grown / seconds if grown is not None and seconds > 0 else None


def _hit_ratio(before: ServerSample | None, after: ServerSample | None) -> float | None:
    """Of the time between the samples; of all time where nothing was read meanwhile."""
    if after is None:
        return None
    hits = growth(before.buffer_hits if before is not None else None, after.buffer_hits)
    reads = growth(before.buffer_reads if before is not None else None, after.buffer_reads)
    if not (hits or reads):
        hits, reads = after.buffer_hits, after.buffer_reads
    if hits is None or reads is None or hits + reads == 0:
        return None
    return hits / (hits + reads)


def _database_size(instance: Instance, sample: InstanceSample) -> int:
    """As the primary tells it, else the first that does."""
    primary = next((node.id for node in instance.status.nodes if node.role is NodeRole.PRIMARY), "")
    nodes = sorted(sample.nodes, key=lambda node: node.node != primary)
    return next((node.server.database_size_bytes for node in nodes if node.server is not None), 0)
