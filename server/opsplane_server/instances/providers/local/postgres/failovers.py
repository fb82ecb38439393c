"""Changes of primary.

The order of steps is what makes them safe: new clients wait at the proxy; the old primary is ended for certain, or
stopped in good order; the replica that has everything is found; the manifest names it, durably; then it is promoted.
Whoever dies in between leaves a manifest whose primary is a replica, or does not run: the supervisor promotes or
starts that one, and no other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from opsplane_server.errors import FailedPrecondition, OpsplaneError, Unavailable
from opsplane_server.instances.model import FailoverKind, FailoverReport, NodeState
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import processes
from opsplane_server.instances.providers.local.endpoints import LocalEndpoints
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import LocalManifest
from opsplane_server.instances.providers.local.postgres import promoting, replication, timelines
from opsplane_server.instances.providers.local.postgres.building import is_replica
from opsplane_server.instances.providers.local.postgres.fencing import fence
from opsplane_server.instances.providers.local.postgres.sessions import (
    Standing,
    reacts,
    session,
    standing,
    standings,
)

if TYPE_CHECKING:
    from opsplane_server.instances.providers.local.postgres.engine import PostgresEngine

log = structlog.get_logger(__name__)

_CATCH_UP_SECONDS = 30.0
_LAST_RECORD_SECONDS = 10.0
_CHECKPOINT_SECONDS = 300.0
_REACT_SECONDS = 10.0
_POLL_SECONDS = 0.01


class Failovers:
    """Makes another node the primary. The instance's lock is held by whoever calls."""

    def __init__(self, machine: Machine, engine: PostgresEngine, endpoints: LocalEndpoints) -> None:
        self._machine = machine
        self._engine = engine
        self._endpoints = endpoints

    async def at_once(
        self,
        manifest: LocalManifest,
        target: str,
        kind: FailoverKind,
        reason: str,
        progress: Progress,
        *,
        start_time: datetime,
    ) -> FailoverReport:
        """Ends the primary for certain and promotes a replica.

        FailedPrecondition (NO_CANDIDATE) when there is none, or in synchronous mode too few to be sure that one of
        them has every acknowledged write: then the old primary is as it was, or is down.
        """
        old = self._machine.node(manifest, manifest.primary)
        candidates = self._candidates(manifest)
        if kind is not FailoverKind.AUTOMATIC:  # it may still serve: not to be ended for nothing
            self._require(manifest, await standings(candidates), target)
        await progress("cutting off the primary", 10)
        await self._endpoints.cut(manifest, old.id)
        await fence(old)
        needed = replication.quorum(manifest, old.id)
        found = await promoting.received(candidates, needed)
        self._require(manifest, found, target)
        chosen = promoting.best(found)
        if target and found[target].position < found[chosen].position:
            # What it lacks is on the other one's disk.
            await self._follow(manifest, target, chosen)
            if await self._reaches(self._machine.node(manifest, target), found[chosen].position, _CATCH_UP_SECONDS):
                chosen = target
            else:
                log.warning("node does not catch up, the best one is promoted", node=target, promoted=chosen)
        elif target:
            chosen = target
        detect_time = datetime.now(UTC)
        if not needed.count:
            await self._hand_over(old, self._machine.node(manifest, chosen), found[chosen])
        await progress(f"promoting {chosen}", 50)
        begun = FailoverReport(kind, old.id, chosen, reason, start_time, detect_time, detect_time)
        manifest, complete_time = await self._promote(manifest, chosen, found, NodeState.FENCED, begun)
        report = FailoverReport(
            kind=kind,
            old_primary=old.id,
            new_primary=chosen,
            reason=reason,
            start_time=start_time,
            detect_time=detect_time,
            complete_time=complete_time,
            lost_bytes=await self._lost(old, self._machine.node(manifest, chosen)),
        )
        await self._save(manifest.replace(last_failover=report, begun_failover=None))
        return report

    async def in_good_order(
        self, manifest: LocalManifest, target: str, reason: str, progress: Progress
    ) -> FailoverReport:
        """Stops the primary and promotes a replica that has everything.

        FailedPrecondition (NO_CANDIDATE, REPLICA_BEHIND) when there is none, or it does not catch up: then the old
        primary serves again.
        """
        old = self._machine.node(manifest, manifest.primary)
        candidates = self._candidates(manifest)
        found = {node: one for node, one in (await standings(candidates)).items() if one.streaming}
        self._require(manifest, found, target)
        chosen = target or promoting.best(found)
        new = self._machine.node(manifest, chosen)
        await progress(f"waiting until {chosen} is level", 10)
        if not await self._reaches(new, (await standing(old)).position, _CATCH_UP_SECONDS):
            raise FailedPrecondition(
                f"{chosen} is too far behind {old.id}", reason="REPLICA_BEHIND", metadata={"node": chosen}
            )
        async with session(old, timeout=_CHECKPOINT_SECONDS) as connection:
            await connection.execute("CHECKPOINT")  # else it would be made while nobody can write
        await progress(f"stopping {old.id}", 30)
        start_time = datetime.now(UTC)
        try:
            await self._endpoints.cut(manifest, old.id)
            await self._engine.stop(old)
            facts = await asyncio.to_thread(self._engine.control_data, old, old.folder.data)
            last = promoting.shutdown_checkpoint(old, facts)
            if not await self._reaches(new, last + 1, _LAST_RECORD_SECONDS):
                raise FailedPrecondition(
                    f"{chosen} has not received the end of the log of {old.id}",
                    reason="REPLICA_BEHIND",
                    metadata={"node": chosen},
                )
        except BaseException:
            await asyncio.shield(self.revive(manifest))
            raise
        detect_time = datetime.now(UTC)
        await progress(f"promoting {chosen}", 50)
        begun = FailoverReport(FailoverKind.SWITCHOVER, old.id, chosen, reason, start_time, detect_time, detect_time, 0)
        manifest, complete_time = await self._promote(manifest, chosen, found, NodeState.REJOINING, begun)
        report = FailoverReport(
            kind=FailoverKind.SWITCHOVER,
            old_primary=old.id,
            new_primary=chosen,
            reason=reason,
            start_time=start_time,
            detect_time=detect_time,
            complete_time=complete_time,
            lost_bytes=0,
        )
        await self._save(manifest.replace(last_failover=report, begun_failover=None))
        return report

    async def revive(self, manifest: LocalManifest) -> None:
        """Starts the primary again, with all its data. Returns when it reacts: it may have much to recover yet."""
        node = self._machine.node(manifest, manifest.primary)
        if self._engine.find(node) is not None:
            return
        await self._engine.clear(node)
        await self._engine.configure(node)
        process = await asyncio.to_thread(self._engine.launch, node)
        log.info("primary started again", node=node.id)
        # Until then nobody else could see that it runs.
        deadline = asyncio.get_running_loop().time() + _REACT_SECONDS
        while processes.alive(process) and not await reacts(node, _REACT_SECONDS):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def finish(self, manifest: LocalManifest, kind: FailoverKind) -> FailoverReport:
        """Completes a change to the manifest's primary that was broken off: promotes it where it is a replica yet."""
        now, begun = datetime.now(UTC), manifest.begun_failover
        found = await standings(self._machine.nodes(manifest))
        manifest, complete_time = await self._promote(manifest, manifest.primary, found, None, None)
        if begun is None:
            left = (entry.id for entry in manifest.nodes if entry.condition in (NodeState.FENCED, NodeState.REJOINING))
            reason = "a change of primary was broken off"
            begun = FailoverReport(kind, next(left, ""), manifest.primary, reason, now, now, now)
        report = dataclasses.replace(begun, complete_time=complete_time)
        await self._save(manifest.replace(last_failover=report, begun_failover=None))
        return report

    async def reload(self, node: LocalNode) -> None:
        """Has a server take its configuration anew, at once or as soon as it can."""
        try:
            await self._engine.reload(node)
        except Unavailable:
            process = self._engine.find(node)
            if process is not None:  # it does not talk yet, but listens to this
                processes.send(process, signal.SIGHUP)

    def _candidates(self, manifest: LocalManifest) -> list[LocalNode]:
        return [
            node
            for node in self._machine.nodes(manifest)
            if not node.is_primary and node.entry.condition is None and is_replica(node)
        ]

    def _require(self, manifest: LocalManifest, found: Mapping[str, Standing], target: str) -> None:
        if target and target not in found:
            raise FailedPrecondition(
                f"{target} can not become the primary: it does not follow the present one",
                reason="NO_CANDIDATE",
                metadata={"node": target},
            )
        needed = replication.quorum(manifest, manifest.primary)
        if not found or not needed.is_safe(len(found)):
            raise FailedPrecondition(
                f"{manifest.name} has no replica that is sure to have every write"
                if found
                else f"{manifest.name} has no replica that could become the primary",
                reason="NO_CANDIDATE",
            )

    async def _reaches(self, node: LocalNode, position: int, seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            try:
                if (await standing(node)).position >= position:
                    return True
            except Unavailable as error:
                log.warning("replica does not answer", node=node.id, error=error.message)
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)

    async def _promote(
        self,
        manifest: LocalManifest,
        chosen: str,
        found: Mapping[str, Standing],
        condition: NodeState | None,
        begun: FailoverReport | None,
    ) -> tuple[LocalManifest, datetime]:
        """The manifest as it is saved, and when clients could write again. condition: that of the old primary now."""
        if manifest.primary != chosen:
            old = manifest.entry(manifest.primary)
            manifest = manifest.replace(primary=chosen, begun_failover=begun).with_entry(
                dataclasses.replace(old, condition=condition)
            )
            await self._save(manifest)
        new = self._machine.node(manifest, chosen)
        others = [self._machine.node(manifest, node) for node in found if node != chosen]
        await asyncio.gather(promoting.promote(new), *(self._engine.configure(node) for node in others))
        await self._endpoints.publish(
            manifest, primary=chosen, replicas=[node.id for node in others], answering=list(found)
        )
        # Afterwards: one that connects to a replica is thrown out again when that is promoted.
        await asyncio.gather(*(self.reload(node) for node in others))
        await promoting.take_write(new)
        complete_time = datetime.now(UTC)
        await self._engine.configure(new)
        await self.reload(new)
        return manifest, complete_time

    async def _hand_over(self, old: LocalNode, new: LocalNode, standing: Standing) -> None:
        """Gives the next primary what the dead one wrote and could not send any more: its files are here.

        Only where commits do not wait for replicas, for else nothing that counts is missing, and it takes a moment.
        """
        try:
            installation = await asyncio.to_thread(self._engine.installations.reachable, old.version, old.account)
            timeline = await asyncio.to_thread(timelines.newest, old)
            end = await promoting.end_of_log(old, installation, timeline, standing.replayed)
            if end is not None and end > standing.position:
                await asyncio.to_thread(promoting.copy_log, old, new, timeline, standing.position, end)
                log.info("log handed over", old=old.id, new=new.id, size=end - standing.position)
        except (OSError, OpsplaneError) as error:
            # What this misses shows in `lost_bytes`.
            log.warning("log not handed over", old=old.id, new=new.id, error=str(error))

    async def _follow(self, manifest: LocalManifest, node_id: str, source: str) -> None:
        """Has one replica receive from another. Not kept: `configure` points it to the manifest's primary again."""
        node = self._machine.node(manifest.replace(primary=source), node_id)
        await self._engine.configure(node)
        await self.reload(node)

    async def _lost(self, old: LocalNode, new: LocalNode) -> int | None:
        """What the dead primary had in its log beyond the place where the new one took over."""
        try:
            parted = await asyncio.to_thread(timelines.parting, new, await timelines.timeline(new))
        except Unavailable:
            return None
        if parted is None:
            return None
        timeline, position = parted
        installation = await asyncio.to_thread(self._engine.installations.reachable, old.version, old.account)
        end = await promoting.end_of_log(old, installation, timeline, position)
        return None if end is None else max(0, end - position)

    async def _save(self, manifest: LocalManifest) -> None:
        await asyncio.to_thread(self._machine.manifests.save, manifest)
