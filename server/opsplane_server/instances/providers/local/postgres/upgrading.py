"""Changes of PostgreSQL's version. A minor one is a restart with other programs; a major one makes new data.

    NODE/data             the old data, then the new ones
        /data.new         new data while pg_upgrade makes them
        /data-16.14       the old data from then on: what pg_upgrade copies, and afterwards the way back

The old data are moved away first, so that nobody takes the server that pg_upgrade starts on them for the node's own.
Replicas are removed and made anew from the primary.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from opsplane_server.errors import FailedPrecondition, InvalidArgument, LeaseLost, OpsplaneError, Unavailable
from opsplane_server.instances.model import InstanceSpec, NodeState
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import servers
from opsplane_server.instances.providers.local.bulk import require_space, size_of
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired, KeptUpgrade, LocalManifest
from opsplane_server.instances.providers.local.postgres import archiving
from opsplane_server.instances.providers.local.postgres.pg_upgrade import PgUpgrade, collect_statistics
from opsplane_server.storage.accounts import sync_folder

if TYPE_CHECKING:
    from opsplane_server.instances.providers.local.postgres.engine import PostgresEngine

log = structlog.get_logger(__name__)


class PostgresUpgrades:
    """The port `Upgrades` of the engine."""

    def __init__(self, machine: Machine, engine: PostgresEngine) -> None:
        self._machine = machine
        self._engine = engine

    async def upgrade(self, name: str, spec: InstanceSpec, progress: Progress) -> None:
        """See the port. Replicas are left without data and marked STARTING: `Replicas.apply` makes them."""
        manifest = self._machine.manifests.load(name)
        present = manifest.entry(manifest.primary).version
        self._engine.installations.of(spec.version)
        if _major(spec.version) < _major(present):
            raise InvalidArgument.of("version", f"{spec.version} is older than {present}")
        kept = manifest.kept_upgrade
        if _major(spec.version) == _major(present) and not manifest.upgrade:
            await self._restart(manifest, spec, progress)
            return
        if kept is None or not manifest.upgrade:
            manifest = await self._forgotten(manifest)
            manifest = self._save(manifest.replace(upgrade=spec.version))
            manifest = await self._convert(manifest, spec, progress)
        try:
            await self._run(manifest, progress)
        except LeaseLost:
            raise
        except OpsplaneError as error:
            log.warning("upgraded server not usable", instance=name, error=error.message)
            await progress("going back to the old version", 95)
            await self._go_back(manifest, dataclasses.replace(manifest.spec, version=_kept(manifest).from_version))
            raise FailedPrecondition(
                f"PostgreSQL {spec.version} did not start on the new data, {_kept(manifest).from_version} runs again: "
                f"{error.message}",
                reason="UPGRADE_FAILED",
            ) from error
        self._save(manifest.replace(upgrade=""))
        log.info("instance upgraded", instance=name, version=spec.version)

    async def roll_back(self, name: str, spec: InstanceSpec, progress: Progress) -> None:
        """See the port; the same holds for replicas."""
        manifest = self._machine.manifests.load(name)
        if manifest.kept_upgrade is None:
            if manifest.entry(manifest.primary).version == spec.version and manifest.spec == spec:
                return  # called again after it was done
            raise FailedPrecondition(f"{name} has no upgrade to undo", reason="ROLLBACK_EXPIRED")
        await progress("stopping the server", 10)
        await self._go_back(manifest, spec)
        log.info("upgrade undone", instance=name, version=spec.version)

    async def forget(self, name: str) -> None:
        """See the port."""
        await self._forgotten(self._machine.manifests.load(name))

    # Steps. Each may be repeated.

    async def _restart(self, manifest: LocalManifest, spec: InstanceSpec, progress: Progress) -> None:
        entries = tuple(dataclasses.replace(entry, version=spec.version) for entry in manifest.nodes)
        manifest = self._save(manifest.replace(spec=spec, nodes=entries))
        if manifest.desired is not Desired.RUNNING:
            return
        nodes = sorted(self._machine.nodes(manifest), key=lambda node: node.is_primary)
        for number, node in enumerate(nodes):
            await progress(f"restarting {node.id}", 90 * number // len(nodes))
            if await self._runs(node, spec.version) or (not node.is_primary and self._engine.find(node) is None):
                continue
            await self._engine.stop(node)
            await servers.start(self._engine, node, self._machine.settings.start_timeout)

    async def _runs(self, node: LocalNode, version: str) -> bool:
        try:
            return (await self._engine.inspect(node)).version == version
        except Unavailable:
            return False

    async def _convert(self, manifest: LocalManifest, spec: InstanceSpec, progress: Progress) -> LocalManifest:
        """Replaces the data of the primary by upgraded ones, and gives the manifest that says so."""
        old = self._machine.node(manifest, manifest.primary)
        entries = tuple(dataclasses.replace(entry, version=spec.version) for entry in manifest.nodes)
        new = self._machine.node(manifest.replace(spec=spec, nodes=entries), old.id)
        kept = old.folder.path / f"data-{old.version}"
        tool = PgUpgrade(self._engine.installations, old, new, kept)
        # What is there tells how far an attempt got that was broken off.
        if archiving.major_version(old.folder.data) != _major(spec.version):
            try:
                if old.folder.data.exists():
                    await self._put_away(manifest, old, new, tool, progress)
                else:
                    await tool.end_leftovers()
                await progress("upgrading the data", 35)
                await self._engine.create_data(new, new.folder.scratch)
                await tool.run()
                await asyncio.to_thread(new.folder.scratch.rename, old.folder.data)
                await asyncio.to_thread(sync_folder, old.folder.path)
            except LeaseLost:
                raise
            except OpsplaneError:
                await self._put_back(manifest, old, new, kept)
                raise
            finally:
                await tool.clean()
        for node in self._machine.nodes(manifest):
            if not node.is_primary:
                await asyncio.to_thread(shutil.rmtree, node.folder.data, ignore_errors=True)
        kept_upgrade = KeptUpgrade(old.version, spec.version, kept.name, datetime.now(UTC))
        return self._save(_with_new_replicas(manifest, spec.version).replace(spec=spec, kept_upgrade=kept_upgrade))

    async def _put_away(
        self, manifest: LocalManifest, old: LocalNode, new: LocalNode, tool: PgUpgrade, progress: Progress
    ) -> None:
        """Checks while the server goes on, then stops all servers and moves the old data away."""
        require_space(old.folder.path, await asyncio.to_thread(size_of, old.folder.data), "the upgraded data")
        await progress("initialising the new data directory", 5)
        await self._engine.create_data(new, new.folder.scratch)
        await progress("checking whether the data can be upgraded", 15)
        await tool.check(live=self._engine.find(old) is not None)
        await progress("stopping the server", 30)
        await self._engine.stop(old)
        for node in self._machine.nodes(manifest):
            await self._engine.stop(node, at_once=True)
        await asyncio.to_thread(old.folder.data.rename, tool.source)
        await asyncio.to_thread(sync_folder, old.folder.path)

    async def _put_back(self, manifest: LocalManifest, old: LocalNode, new: LocalNode, kept: Path) -> None:
        """The old server runs again."""
        await asyncio.to_thread(shutil.rmtree, new.folder.scratch, ignore_errors=True)
        if not old.folder.data.exists():
            await asyncio.to_thread(kept.rename, old.folder.data)
        self._save(manifest.replace(upgrade=""))
        if manifest.desired is Desired.RUNNING:
            await servers.start(self._engine, old, self._machine.settings.start_timeout)

    async def _run(self, manifest: LocalManifest, progress: Progress) -> None:
        """Starts the upgraded primary, and gives the planner what pg_upgrade can not take along."""
        if manifest.desired is not Desired.RUNNING:
            return
        node = self._machine.node(manifest, manifest.primary)
        await progress("starting the new version", 80)
        await servers.start(self._engine, node, self._machine.settings.start_timeout)
        await self._engine.prepare(node)
        await progress("collecting statistics", 90)
        with contextlib.suppress(FailedPrecondition):  # told by `programs`; the server collects them too, but later
            await collect_statistics(self._engine.installations, node)

    async def _go_back(self, manifest: LocalManifest, spec: InstanceSpec) -> None:
        """Puts the kept data back in their place, on the node that has them, and starts it."""
        kept = _kept(manifest)
        node = next((node for node in self._machine.nodes(manifest) if _has(node, kept)), None)
        if node is None:
            raise FailedPrecondition(f"the old data of {manifest.name} are gone", reason="ROLLBACK_EXPIRED")
        for each in self._machine.nodes(manifest):
            await self._engine.stop(each)
        old, discarded = node.folder.path / kept.folder, node.folder.path / "data.discarded"
        if old.exists():
            await asyncio.to_thread(shutil.rmtree, discarded, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # moved away by an attempt that was broken off
                await asyncio.to_thread(node.folder.data.rename, discarded)
            await asyncio.to_thread(old.rename, node.folder.data)
            await asyncio.to_thread(sync_folder, node.folder.path)
        for each in self._machine.nodes(manifest):
            if each.id != node.id:
                await asyncio.to_thread(shutil.rmtree, each.folder.data, ignore_errors=True)
        manifest = manifest.replace(primary=node.id, spec=spec, upgrade="")
        manifest = self._save(_with_new_replicas(manifest, kept.from_version))
        if manifest.desired is Desired.RUNNING:
            primary = self._machine.node(manifest, node.id)
            await servers.start(self._engine, primary, self._machine.settings.start_timeout)
            await self._engine.prepare(primary)  # passwords may have changed since
        await asyncio.to_thread(shutil.rmtree, discarded, ignore_errors=True)
        # Last, so that an attempt that was broken off before is gone on with.
        self._save(manifest.replace(kept_upgrade=None))

    async def _forgotten(self, manifest: LocalManifest) -> LocalManifest:
        if manifest.kept_upgrade is None:
            return manifest
        for node in self._machine.nodes(manifest):
            await asyncio.to_thread(shutil.rmtree, node.folder.path / manifest.kept_upgrade.folder, ignore_errors=True)
        return self._save(manifest.replace(kept_upgrade=None))

    def _save(self, manifest: LocalManifest) -> LocalManifest:
        self._machine.manifests.save(manifest)
        return manifest


def _with_new_replicas(manifest: LocalManifest, version: str) -> LocalManifest:
    """All nodes of this version, and every replica still to be made."""
    return manifest.replace(
        nodes=tuple(
            dataclasses.replace(
                entry, version=version, condition=None if entry.id == manifest.primary else NodeState.STARTING
            )
            for entry in manifest.nodes
        )
    )


def _kept(manifest: LocalManifest) -> KeptUpgrade:
    assert manifest.kept_upgrade is not None
    return manifest.kept_upgrade


def _has(node: LocalNode, kept: KeptUpgrade) -> bool:
    """Whether the kept data are this node's: beside its own, or put back already by a broken off attempt."""
    if (node.folder.path / kept.folder).exists():
        return True
    return archiving.major_version(node.folder.data) == _major(kept.from_version)


def _major(version: str) -> int:
    return int(version.partition(".")[0])
