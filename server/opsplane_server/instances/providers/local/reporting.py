"""How an instance stands, seen from its processes, its servers' own words and its files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psutil

from opsplane_server.errors import Unavailable
from opsplane_server.instances.model import (
    Endpoint,
    Endpoints,
    Node,
    NodeRole,
    NodeState,
    Notice,
    Status,
)
from opsplane_server.instances.providers.local import certificates, processes
from opsplane_server.instances.providers.local.bulk import storage_of
from opsplane_server.instances.providers.local.engine import LocalEngine, LocalNode, NodeView
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest


@dataclass(frozen=True, slots=True)
class _Seen:
    node: LocalNode
    process: psutil.Process | None
    view: NodeView | None


async def status(machine: Machine, engine: LocalEngine, manifest: LocalManifest, notices: Sequence[Notice]) -> Status:
    """See `Provider.status`."""
    seen = await asyncio.gather(*(_look(engine, node) for node in machine.nodes(manifest)))
    primary = next((each for each in seen if _is_primary(each)), None)
    first = machine.node(manifest, manifest.primary)
    nodes = [_node(machine, manifest, each, primary.view if primary is not None else None) for each in seen]
    tls = await asyncio.to_thread(engine.tls, first)
    start, until = await _archived(engine, manifest)
    return Status(
        nodes=tuple(sorted(nodes, key=lambda node: node.id != manifest.primary)),
        primary=manifest.primary if primary is not None else "",
        endpoints=endpoints(machine, manifest),
        running_version=primary.view.version if primary is not None and primary.view is not None else "",
        pending_restart=tuple(sorted({name for each in seen if each.view for name in each.view.pending_restart})),
        storage_used_bytes=await asyncio.to_thread(storage_of, first.folder.data),
        tls=tls,
        ca_certificate=certificates.authority(first.instance_folder) if tls else "",
        notices=tuple(notices),
        last_failover=manifest.last_failover,
        archive_from=start,
        archive_until=until,
        sample_time=datetime.now(UTC),
    )


def endpoints(machine: Machine, manifest: LocalManifest) -> Endpoints:
    """The stable addresses."""
    host = machine.endpoint_host
    rw = Endpoint(host, manifest.ports["rw"])

    def of(endpoint: str) -> Endpoint:
        return Endpoint(host, manifest.ports[endpoint]) if endpoint in manifest.ports else rw

    return Endpoints(rw=rw, r=of("r"), any=of("any"), ro=of("ro") if "ro" in manifest.ports else None)


async def _look(engine: LocalEngine, node: LocalNode) -> _Seen:
    process = engine.find(node)
    if process is None:
        return _Seen(node, None, None)
    try:
        return _Seen(node, process, await engine.inspect(node))
    except Unavailable:
        return _Seen(node, process, None)


def _is_primary(seen: _Seen) -> bool:
    return seen.node.is_primary and seen.view is not None and seen.view.role is NodeRole.PRIMARY


async def _archived(engine: LocalEngine, manifest: LocalManifest) -> tuple[datetime | None, datetime | None]:
    if engine.copies is None or manifest.spec.point_in_time_recovery is None:
        return None, None
    return await asyncio.to_thread(engine.copies.archived, manifest)


def _node(machine: Machine, manifest: LocalManifest, seen: _Seen, primary: NodeView | None) -> Node:
    view, replica = seen.view, seen.view is not None and seen.view.role is NodeRole.REPLICA
    lag_bytes = max(0, primary.position - view.position) if replica and view is not None and primary is not None else 0
    return Node(
        id=seen.node.id,
        role=view.role if view is not None else NodeRole.UNKNOWN,
        state=_state(machine, manifest, seen),
        host=machine.endpoint_host,
        port=seen.node.port,
        synchronous=primary is not None and seen.node.id in primary.synchronous,
        lag_bytes=lag_bytes,
        lag=view.lag if view is not None and lag_bytes else timedelta(),
        start_time=processes.start_time(seen.process) if seen.process is not None else None,
    )


def _state(machine: Machine, manifest: LocalManifest, seen: _Seen) -> NodeState:
    if seen.node.entry.condition is not None:
        return seen.node.entry.condition
    if seen.view is not None:
        # A server that takes writes, but not as the manifest has it, is one that was the primary.
        strays = seen.view.role is NodeRole.PRIMARY and not seen.node.is_primary
        return NodeState.REJOINING if strays else NodeState.READY
    if seen.process is None:
        return NodeState.STOPPED if manifest.desired is Desired.STOPPED else NodeState.UNREACHABLE
    started = processes.start_time(seen.process)
    young = started is not None and (datetime.now(UTC) - started).total_seconds() < machine.settings.start_timeout
    return NodeState.STARTING if young else NodeState.UNREACHABLE
