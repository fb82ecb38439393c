"""Records and samples, as tests of figures need them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from opsplane_server.instances.model import (
    Engine,
    HighAvailability,
    InstanceSpec,
    InstanceState,
    Node,
    NodeRole,
    NodeState,
    ProviderKind,
    Resources,
    Status,
)
from opsplane_server.instances.monitoring import NodeUsage, ServerSample
from opsplane_server.instances.records import Instance, InstanceSample, NodeSample

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
GIB = 1024**3


def instance(*, nodes: int = 1, state: InstanceState = InstanceState.READY, storage_bytes: int = GIB) -> Instance:
    """One with 2 GiB of memory and half a core on each node."""
    spec = InstanceSpec(
        name="instances/orders",
        uid="u1",
        engine=Engine.POSTGRESQL,
        version="18.1",
        provider=ProviderKind.LOCAL,
        machine="here",
        database="app",
        username="app",
        resources=Resources(storage_bytes, 2 * GIB, 500, 2 * GIB, 500),
        high_availability=HighAvailability(nodes) if nodes > 1 else None,
    )
    standing = Status(
        nodes=tuple(
            Node(
                f"orders-{number}",
                NodeRole.PRIMARY if number == 1 else NodeRole.REPLICA,
                NodeState.READY,
                "127.0.0.1",
                41000 + number,
            )
            for number in range(1, nodes + 1)
        ),
        primary="orders-1",
    )
    return Instance(spec=spec, version="18", state=state, status=standing, create_time=NOON)


def sample(seconds: float, *, node: str = "orders-1", cpu: float = 0.0, **counters: int) -> InstanceSample:
    """A sample of one node, so many seconds after noon."""
    time = NOON + timedelta(seconds=seconds)
    usage = NodeUsage(node, time, cpu_seconds=cpu, memory_bytes=7, storage_used_bytes=8)
    server = ServerSample(time, connections=5, active_connections=2, max_connections=100, **counters)
    return InstanceSample(time, (NodeSample(node, usage, server, lag_bytes=0, lag=timedelta()),))
