"""domain -> proto: metrics."""

from __future__ import annotations

from opsplane.instances.v1 import monitoring_pb2

from opsplane_server.instances.figures import InstanceFigures, NodeFigures
from opsplane_server.rpc.times import duration, timestamp


def metrics_message(figures: InstanceFigures) -> monitoring_pb2.InstanceMetrics:
    """Metrics of all nodes at one moment."""
    return monitoring_pb2.InstanceMetrics(
        sample_time=timestamp(figures.sample.time),
        nodes=[_node_message(node) for node in figures.nodes],
        database_size_bytes=figures.database_size_bytes,
        backup_age=duration(figures.backup_age),
    )


def _node_message(node: NodeFigures) -> monitoring_pb2.NodeMetrics:
    return monitoring_pb2.NodeMetrics(
        node=node.node,
        cpu_millis=node.cpu_millis,
        memory_bytes=node.memory_bytes,
        storage_used_bytes=node.storage_used_bytes,
        storage_limit_bytes=node.storage_limit_bytes,
        connections=node.connections,
        active_connections=node.active_connections,
        max_connections=node.max_connections,
        transactions_per_second=node.transactions_per_second,
        queries_per_second=node.queries_per_second,
        cache_hit_ratio=node.cache_hit_ratio,
        lag_bytes=node.lag_bytes,
        lag=duration(node.lag),
        deadlocks=node.deadlocks,
    )
