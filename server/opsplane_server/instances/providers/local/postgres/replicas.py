"""Highly available PostgreSQL: replicas that stream from a primary, and changes of primary."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

import psutil
import structlog

from opsplane_server.errors import FailedPrecondition, NotFound, Unavailable
from opsplane_server.instances.model import FailoverKind, FailoverReport, NodeState
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import processes, servers
from opsplane_server.instances.providers.local.endpoints import LocalEndpoints, is_direct
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest, NodeEntry
from opsplane_server.instances.providers.local.postgres import building
from opsplane_server.instances.providers.local.postgres.failovers import Failovers
from opsplane_server.instances.providers.local.postgres.fencing import fence
from opsplane_server.instances.providers.local.postgres.sessions import Standing, reacts, standing, standings

if TYPE_CHECKING:
    from opsplane_server.instances.providers.local.postgres.engine import PostgresEngine

log = structlog.get_logger(__name__)

_PARTED_SECONDS = 5.0
_REACT_SECONDS = 3.0
_POLL_SECONDS = 0.05
_PORTS = ("rw", "ro", "r", "any")
_ACTIVE = (Desired.CREATING, Desired.RUNNING)


class _Way(Enum):
    """How a replica is brought back, from the cheapest to what always works."""

    START = 0
    REWIND = 1
    COPY = 2


class _NotNow(Exception):
    """The instance is to be something else by now, and this node no replica of it."""


async def _silent(stage: str, percent: int) -> None:
    """Progress that nobody asked for."""


class PostgresReplicas:
    """See `Replicas`. Every method takes the instance's lock by itself and keeps it for moments only: a failover must
    not wait for the copying of a replica. So none of them may be called with the lock held.
    """

    def __init__(self, machine: Machine, engine: PostgresEngine) -> None:
        self._machine = machine
        self._engine = engine
        self._endpoints = LocalEndpoints(machine)
        self._failovers = Failovers(machine, engine, self._endpoints)

    async def apply(self, name: str, progress: Progress) -> None:
        """See Replicas."""
        async with self._machine.locked(name) as manifest:
            if manifest.spec.node_count == 1 and is_direct(manifest):
                return
            manifest = await self._with_ports(manifest)
            manifest = await self._with_entries(manifest)
        await self._endpoints.start()
        await self.refresh(name)
        wanted = [entry.id for entry in manifest.nodes if entry.id != manifest.primary]
        mended = await asyncio.gather(
            *(self.mend(name, node_id, progress) for node_id in wanted), return_exceptions=True
        )
        for error in mended:
            if error is not None:
                raise error
        await self._remove_surplus(name)
        await self._arrange(name)
        await self.refresh(name)

    async def fail_over(
        self, name: str, target: str, kind: FailoverKind, reason: str, progress: Progress
    ) -> FailoverReport:
        """See Replicas."""
        start_time = datetime.now(UTC)
        async with self._machine.locked(name) as manifest:
            if target:
                manifest.entry(target)
            finished = await self._finish_broken_off(manifest, kind)
            if finished is not None and target in ("", finished.new_primary):
                return finished  # called again after it was broken off
            manifest = self._machine.manifests.load(name)
            if len(manifest.nodes) < 2:
                raise FailedPrecondition(f"{name} has no replicas", reason="NOT_HIGHLY_AVAILABLE")
            if manifest.desired is not Desired.RUNNING:
                raise FailedPrecondition(f"{name} is stopped", reason="INSTANCE_STOPPED")
            if target == manifest.primary:
                last = manifest.last_failover
                if last is not None and last.new_primary == target and last.kind is kind:
                    return last  # called again after it was broken off
                raise FailedPrecondition(
                    f"{target} is the primary already", reason="NO_CANDIDATE", metadata={"node": target}
                )
            if kind is FailoverKind.SWITCHOVER:
                report = await self._failovers.in_good_order(manifest, target, reason, progress)
            else:
                report = await self._at_once(manifest, target, kind, reason, progress, start_time)
        if kind is FailoverKind.SWITCHOVER:
            await self.mend(name, report.old_primary, progress)
            await self.refresh(name)
        return report

    # What the supervisor does.

    async def primary_lost(self, name: str, primary: str, reason: str, since: datetime) -> FailoverReport | None:
        """The process of this primary is gone, or hangs: another one takes over, or if none can, it is started again,
        and then None comes back; likewise when it is not the primary any more, or answers by now.

        since: when it was last known to work.
        """
        async with self._machine.locked(name) as manifest:
            if manifest.desired is not Desired.RUNNING or manifest.primary != primary:
                return None
            node = self._machine.node(manifest, primary)
            if self._engine.find(node) is not None and await self.is_alive(node):
                return None
            availability = manifest.spec.high_availability
            if availability is None or not availability.automatic_failover:
                await fence(node)
                await self._failovers.revive(manifest)
                return None
            try:
                return await self._at_once(manifest, "", FailoverKind.AUTOMATIC, reason, _silent, since)
            except FailedPrecondition as error:
                log.warning("no failover", instance=name, reason=error.reason, error=error.message)
                return None

    async def finish(self, name: str) -> None:
        """Promotes a primary that runs as a replica because a change was broken off. Harmless when there is none."""
        manifest = self._machine.manifests.load(name)
        primary = self._machine.node(manifest, manifest.primary)
        if building.is_replica(primary) or manifest.begun_failover is not None:
            async with self._machine.locked(name) as manifest:
                await self._finish_broken_off(manifest, FailoverKind.AUTOMATIC)

    async def observe(self, manifest: LocalManifest) -> dict[str, Standing]:
        """How far the nodes are that answer."""
        return await standings(node for node in self._machine.nodes(manifest) if self._engine.find(node) is not None)

    async def refresh(self, name: str) -> Sequence[str]:
        """Makes the routes what the nodes are now; returns the replicas that do not follow though they could."""
        try:
            seen = self._machine.manifests.load(name)
            found = await self.observe(seen)
            async with self._machine.locked(name) as manifest:
                if (manifest.primary, manifest.desired) == (seen.primary, seen.desired) and seen.desired in _ACTIVE:
                    return await self._route(manifest, found)
        except NotFound:
            pass
        return ()

    async def _route(self, manifest: LocalManifest, found: Mapping[str, Standing]) -> Sequence[str]:
        serving = manifest.primary in found and not found[manifest.primary].recovering
        # While there is no primary nobody can stream: that makes no replica unhealthy.
        healthy = [node for node, one in found.items() if one.recovering and (one.streaming or not serving)]
        await self._endpoints.publish(
            manifest, primary=manifest.primary if serving else "", replicas=healthy, answering=list(found)
        )
        return [node for node in found if serving and node != manifest.primary and node not in healthy]

    async def is_alive(self, node: LocalNode) -> bool:
        """Whether the main process reacts, were it only to say that it is still recovering."""
        return await reacts(node, _REACT_SECONDS)

    async def mend(self, name: str, node_id: str, progress: Progress = _silent) -> None:
        """Brings a node to where it receives what the primary writes, however it is now. Returns when it does, or when
        it is not to be a replica any more. FailedPrecondition, Unavailable.
        """
        async with self._building(name, node_id):
            try:
                for way in _Way:
                    if await self._bring_back(name, node_id, way, progress):
                        await self._settle(name, node_id)
                        return
                    log.warning("replica does not follow", node=node_id, way=way.name)
            except (NotFound, _NotNow):
                return
        raise Unavailable(f"{node_id} does not follow the primary", reason="REPLICA_BROKEN")

    # Bringing back.

    @asynccontextmanager
    async def _building(self, name: str, node_id: str) -> AsyncIterator[None]:
        """One at a time works on the data of a node, be it an operation or the supervisor."""
        try:
            async with locked(self._machine.layout.instance(name).path / f"{node_id}.lock"):
                yield
        except FileNotFoundError:
            if self._machine.layout.instance(name).path.exists():
                raise

    async def _bring_back(self, name: str, node_id: str, way: _Way, progress: Progress) -> bool:
        """Whether it follows the primary now. A way that its data do not allow is the next one."""
        async with self._replica(name, node_id) as (manifest, node):
            process = self._engine.find(node)
            if way is _Way.START and not building.is_replica(node):
                way = _Way.REWIND if node.folder.data.exists() else _Way.COPY
            if way is not _Way.START:
                await self._engine.stop(node, at_once=True)
                if node.entry.condition is not NodeState.STARTING:
                    await self._set_condition(manifest, node_id, NodeState.REJOINING)
                await self._engine.configure(node)
            elif process is None:
                process = await self._launch(node)
            primary = self._machine.node(manifest, manifest.primary)
        if way is not _Way.START:
            await self._until_it_serves(name, node_id)
            await self._build(node, primary, way, progress)
            async with self._replica(name, node_id) as (_, node):
                process = await self._launch(node)
        assert process is not None
        return await self._until_it_streams(name, node_id, process)

    async def _build(self, node: LocalNode, primary: LocalNode, way: _Way, progress: Progress) -> None:
        installation = await asyncio.to_thread(self._engine.installations.reachable, node.version, node.account)
        if way is _Way.REWIND:
            await progress(f"winding {node.id} back", 0)
            if await building.rewind(node, primary, installation):
                return
        await progress(f"copying data to {node.id}", 0)
        await building.copy_primary(node, primary, installation, progress)

    async def _launch(self, node: LocalNode) -> psutil.Process:
        await self._engine.clear(node)
        await self._engine.configure(node)
        return await asyncio.to_thread(self._engine.launch, node)

    async def _until_it_serves(self, name: str, node_id: str) -> None:
        """Waits for the primary: it may be recovering, or being promoted."""
        deadline = asyncio.get_running_loop().time() + self._machine.settings.start_timeout
        while True:
            manifest = self._machine.manifests.load(name)
            self._check(manifest, node_id)
            try:
                if not (await standing(self._machine.node(manifest, manifest.primary))).recovering:
                    return
            except Unavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_POLL_SECONDS)

    async def _until_it_streams(self, name: str, node_id: str, process: psutil.Process) -> bool:
        """False when it ended, or gets nowhere though the primary serves: then it went another way than that one."""
        last, since = -1, asyncio.get_running_loop().time()
        while True:
            manifest = self._machine.manifests.load(name)
            self._check(manifest, node_id)
            node = self._machine.node(manifest, node_id)
            if not processes.alive(process):
                log.warning("replica ended", node=node_id, failure=self._engine.failure(node))
                return False
            now = asyncio.get_running_loop().time()
            found = await standings([node, self._machine.node(manifest, manifest.primary)])
            own, primary = found.get(node_id), found.get(manifest.primary)
            if own is not None and own.streaming:
                return True
            if own is None or own.position != last or primary is None or primary.recovering:
                # It replays what it has, or there is nobody to receive from.
                last, since = own.position if own is not None else last, now
            elif now - since > _PARTED_SECONDS:
                return False
            await asyncio.sleep(_POLL_SECONDS)

    async def _settle(self, name: str, node_id: str) -> None:
        async with self._replica(name, node_id) as (manifest, node):
            if node.entry.condition is None:
                return
            joins = node.entry.condition is NodeState.STARTING
            manifest = await self._set_condition(manifest, node_id, None)
            if joins:
                await self._configure_all(manifest)
        log.info("replica follows", node=node_id)
        await self.refresh(name)

    @asynccontextmanager
    async def _replica(self, name: str, node_id: str) -> AsyncIterator[tuple[LocalManifest, LocalNode]]:
        """Holds the instance's lock while this node is to be a running replica; else raises _NotNow."""
        async with self._machine.locked(name) as manifest:
            self._check(manifest, node_id)
            yield manifest, self._machine.node(manifest, node_id)

    def _check(self, manifest: LocalManifest, node_id: str) -> None:
        known = any(entry.id == node_id for entry in manifest.nodes)
        if manifest.desired not in _ACTIVE or not known or manifest.primary in ("", node_id):
            raise _NotNow

    # Nodes and ports.

    async def _with_ports(self, manifest: LocalManifest) -> LocalManifest:
        """Gives it the ports of its endpoints. A server that listened on the stable one moves to a port of its own."""
        missing = [endpoint for endpoint in _PORTS if endpoint not in manifest.ports]
        moving = is_direct(manifest)
        if not missing and not moving:
            return manifest
        async with self._machine.choosing_ports() as choice:
            manifest = manifest.replace(ports={**manifest.ports, **{endpoint: choice.next() for endpoint in missing}})
            if moving:
                (entry,) = manifest.nodes
                old = self._machine.node(manifest, entry.id)
                await self._engine.stop(old)
                manifest = manifest.with_entry(dataclasses.replace(entry, port=choice.next()))
            await self._save(manifest)
        if moving:
            timeout = self._machine.settings.start_timeout
            await servers.start(self._engine, self._machine.node(manifest, manifest.primary), timeout)
        return manifest

    async def _with_entries(self, manifest: LocalManifest) -> LocalManifest:
        missing = manifest.spec.node_count - len(manifest.nodes)
        if missing <= 0:
            return manifest
        version = manifest.entry(manifest.primary).version
        async with self._machine.choosing_ports() as choice:
            for _ in range(missing):
                entry = NodeEntry(manifest.next_node_id(), choice.next(), version, NodeState.STARTING)
                manifest = manifest.replace(nodes=(*manifest.nodes, entry))
            await self._save(manifest)
        return manifest

    async def _remove_surplus(self, name: str) -> None:
        """Takes away what is too many, the newest first."""
        async with self._machine.locked(name) as manifest:
            replicas = [entry.id for entry in manifest.nodes if entry.id != manifest.primary]
            surplus = replicas[manifest.spec.node_count - 1 :]
            if not surplus:
                return
            fewer = manifest.replace(nodes=tuple(entry for entry in manifest.nodes if entry.id not in surplus))
            # First the primary no longer counts on them, and the others have all that it was told is safe.
            await self._configure_all(fewer)
            await self._until_level(fewer)
            removed = [self._machine.node(manifest, node_id) for node_id in surplus]
            await self._save(fewer)
            for node in removed:
                await self._endpoints.cut(manifest, node.id)
                await self._engine.stop(node)
                await asyncio.to_thread(building.remove, node)
                log.info("replica removed", node=node.id)

    async def _until_level(self, manifest: LocalManifest) -> None:
        end = (await standing(self._machine.node(manifest, manifest.primary))).position
        replicas = [node for node in self._machine.nodes(manifest) if not node.is_primary]
        async with asyncio.timeout(_PARTED_SECONDS * 6):
            while True:
                found = await standings(replicas)
                if all(one.position >= end for one in found.values()):
                    return
                await asyncio.sleep(_POLL_SECONDS)

    async def _arrange(self, name: str) -> None:
        """The settings of all nodes, after the numbers of replicas were changed."""
        async with self._machine.locked(name) as manifest:
            await self._configure_all(manifest)

    async def _configure_all(self, manifest: LocalManifest) -> None:
        for node in self._machine.nodes(manifest):
            if self._engine.find(node) is not None:
                await self._engine.configure(node)
                await self._failovers.reload(node)

    # Changes of primary.

    async def _at_once(
        self,
        manifest: LocalManifest,
        target: str,
        kind: FailoverKind,
        reason: str,
        progress: Progress,
        start_time: datetime,
    ) -> FailoverReport:
        """With the old primary started again where no other can take over."""
        try:
            return await self._failovers.at_once(manifest, target, kind, reason, progress, start_time=start_time)
        except FailedPrecondition:
            if self._machine.manifests.load(manifest.name).primary == manifest.primary:
                await self._failovers.revive(manifest)
            raise

    async def _finish_broken_off(self, manifest: LocalManifest, kind: FailoverKind) -> FailoverReport | None:
        """Has the manifest's primary be one, where the change to it is not complete."""
        node = self._machine.node(manifest, manifest.primary)
        if manifest.desired is not Desired.RUNNING or self._engine.find(node) is None:
            return None
        if building.is_replica(node) or manifest.begun_failover is not None:
            return await self._failovers.finish(manifest, kind)
        return None

    async def _set_condition(self, manifest: LocalManifest, node_id: str, condition: NodeState | None) -> LocalManifest:
        entry = manifest.entry(node_id)
        if entry.condition is not condition:
            manifest = manifest.with_entry(dataclasses.replace(entry, condition=condition))
            await self._save(manifest)
        return manifest

    async def _save(self, manifest: LocalManifest) -> None:
        await asyncio.to_thread(self._machine.manifests.save, manifest)
