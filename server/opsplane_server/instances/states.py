"""The state of an instance that nobody changes just now, as what its provider sees says it."""

from __future__ import annotations

from opsplane_server.instances.model import InstanceSpec, InstanceState, Node, NodeState, Status


def state_of(spec: InstanceSpec, status: Status) -> tuple[InstanceState, str]:
    """The state, and why in words for people; no words for READY."""
    nodes = status.nodes
    if not nodes:
        return InstanceState.FAILED, "none of its servers is there"
    if all(node.state is NodeState.STOPPED for node in nodes):
        return InstanceState.STOPPED, "stopped on request"
    primary = next((node for node in nodes if node.id == status.primary), None)
    if primary is None or primary.state is not NodeState.READY:
        if all(node.state is NodeState.FAILED for node in nodes):
            return InstanceState.FAILED, "no server runs and none can be started"
        return InstanceState.UNAVAILABLE, f"no server takes writes: {_words(nodes)}"
    missing = [node for node in nodes if node.state is not NodeState.READY]
    if missing:
        return InstanceState.DEGRADED, _words(missing)
    if len(nodes) < spec.node_count:
        return InstanceState.DEGRADED, f"{spec.node_count - len(nodes)} of {spec.node_count} servers are not made yet"
    if status.storage_used_bytes >= spec.resources.storage_bytes:
        return InstanceState.DEGRADED, "storage is full"
    return InstanceState.READY, ""


def _words(nodes: tuple[Node, ...] | list[Node]) -> str:
    return ", ".join(f"{node.id} is {node.state}" for node in nodes)
