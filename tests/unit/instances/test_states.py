"""The state of an instance, from what its provider sees."""

from __future__ import annotations

from dataclasses import replace

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
from opsplane_server.instances.states import state_of

SPEC = InstanceSpec(
    name="instances/orders",
    uid="u1",
    engine=Engine.POSTGRESQL,
    version="18.1",
    provider=ProviderKind.LOCAL,
    machine="here",
    database="app",
    username="app",
    resources=Resources(2**30, 2**29, 500, 2**29, 500),
    high_availability=HighAvailability(3),
)


def status(*states: NodeState, primary: str = "orders-1", used: int = 0) -> Status:
    nodes = tuple(
        Node(f"orders-{number}", NodeRole.PRIMARY if number == 1 else NodeRole.REPLICA, state, "127.0.0.1", 1)
        for number, state in enumerate(states, start=1)
    )
    return Status(nodes=nodes, primary=primary, storage_used_bytes=used)


READY, STOPPED, FAILED = NodeState.READY, NodeState.STOPPED, NodeState.FAILED


def test_all_nodes_serve() -> None:
    assert state_of(SPEC, status(READY, READY, READY)) == (InstanceState.READY, "")


def test_a_replica_that_is_away_is_named() -> None:
    state, message = state_of(SPEC, status(READY, READY, NodeState.REJOINING))
    assert state is InstanceState.DEGRADED
    assert message == "orders-3 is REJOINING"


def test_a_replica_that_is_not_made_yet() -> None:
    assert state_of(SPEC, status(READY, READY))[0] is InstanceState.DEGRADED
    assert state_of(replace(SPEC, high_availability=None), status(READY))[0] is InstanceState.READY


def test_full_storage() -> None:
    assert state_of(SPEC, status(READY, READY, READY, used=2**30))[0] is InstanceState.DEGRADED


def test_without_a_primary_that_serves() -> None:
    assert state_of(SPEC, status(FAILED, READY, READY))[0] is InstanceState.UNAVAILABLE
    assert state_of(SPEC, status(READY, READY, READY, primary=""))[0] is InstanceState.UNAVAILABLE
    assert state_of(SPEC, status(FAILED, FAILED, FAILED))[0] is InstanceState.FAILED
    assert state_of(SPEC, Status())[0] is InstanceState.FAILED


def test_stopped_on_request() -> None:
    assert state_of(SPEC, status(STOPPED, STOPPED, STOPPED))[0] is InstanceState.STOPPED
