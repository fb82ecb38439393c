"""Instances on this machine: the adapter of the port `Provider`.

A thin dispatch: what is particular to an engine is in `LocalEngine`, what keeps instances running in `supervisor`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn

import psutil

from opsplane_server.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from opsplane_server.instances.model import (
    Access,
    Copy,
    CopySource,
    Engine,
    FailoverKind,
    FailoverReport,
    InstanceSpec,
    Manifest,
    Notice,
    ProviderKind,
    Secrets,
    Status,
)
from opsplane_server.instances.monitoring import NodeUsage
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import archives, changing, copies, creating, removing, reporting, usage
from opsplane_server.instances.providers.local.engine import Copies, LocalEngine, Replicas, Upgrades
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired
from opsplane_server.instances.providers.local.notices import notices
from opsplane_server.instances.providers.local.supervisor import Supervisor


class LocalProvider:
    """See `Provider`. Its methods can be called from any process of the machine."""

    kind = ProviderKind.LOCAL

    def __init__(self, machine: Machine, engines: Mapping[Engine, LocalEngine]) -> None:
        self._machine = machine
        self._engines = engines

    # What there is.

    def versions(self, engine: Engine) -> Sequence[str]:
        """See Provider."""
        return self._engines[engine].versions(engine)

    def notices(self, spec: InstanceSpec) -> Sequence[Notice]:
        """See Provider."""
        return [*notices(spec), *self._engines[spec.engine].notices(spec)]

    def settable(self, spec: InstanceSpec, parameters: Collection[str]) -> Collection[str]:
        """See Provider."""
        return self._engines[spec.engine].settable(spec, parameters)

    def check(self, spec: InstanceSpec) -> None:
        """See Provider."""
        engine = self._engines[spec.engine]
        if spec.high_availability is not None and engine.replicas is None:
            raise FailedPrecondition(
                f"this provider runs {spec.engine} as single servers only", reason="HIGH_AVAILABILITY_NOT_SUPPORTED"
            )
        if spec.point_in_time_recovery is not None and spec.engine is not Engine.POSTGRESQL:
            raise InvalidArgument.of("instance.point_in_time_recovery", "only PostgreSQL has it")
        present = psutil.virtual_memory().total
        if spec.resources.memory_bytes > present:
            raise ResourceExhausted(
                f"{spec.resources.memory_bytes:,} bytes of memory are asked for, this machine has {present:,}",
                reason="NO_MEMORY",
                metadata={"memory_bytes": str(present)},
            )
        engine.check(spec)

    async def find(self, name: str, *, namespace: str = "") -> Manifest:
        """See Provider."""
        manifest = self._machine.manifests.load(name)
        if manifest.desired in (Desired.CREATING, Desired.DELETING):
            raise FailedPrecondition(
                f"what is left of {name} is incomplete: it was being made or deleted", reason="INSTANCE_INCOMPLETE"
            )
        return Manifest(manifest.spec, manifest.secrets, stopped=manifest.desired is Desired.STOPPED)

    # Changing it.

    async def create(
        self, spec: InstanceSpec, secrets: Secrets, source: CopySource | None, progress: Progress
    ) -> Status:
        """See Provider."""
        await creating.create(self._machine, self._engines[spec.engine], spec, secrets, source, progress)
        return await self.status(spec.name)

    async def start(self, name: str, progress: Progress) -> Status:
        """See Provider."""
        await changing.start(self._machine, self._engine(name), name, progress)
        return await self.status(name)

    async def stop(self, name: str, progress: Progress) -> Status:
        """See Provider."""
        await changing.stop(self._machine, self._engine(name), name, progress)
        return await self.status(name)

    async def restart(self, name: str, node: str, progress: Progress) -> Status:
        """See Provider."""
        await changing.restart(self._machine, self._engine(name), name, node, progress)
        return await self.status(name)

    async def update(self, spec: InstanceSpec, progress: Progress) -> Status:
        """See Provider."""
        await changing.update(self._machine, self._engine(spec.name), spec, progress)
        return await self.status(spec.name)

    async def delete(self, name: str, progress: Progress) -> None:
        """See Provider."""
        await progress("ending the servers", 10)
        await removing.delete(self._machine, self._engines.__getitem__, name)

    async def failover(
        self, name: str, target: str, kind: FailoverKind, reason: str, progress: Progress
    ) -> FailoverReport:
        """See Provider."""
        return await self._replicas(name).fail_over(name, target, kind, reason, progress)

    async def upgrade(self, spec: InstanceSpec, progress: Progress) -> Status:
        """See Provider."""
        upgrades = self._upgrades(spec.name)
        async with self._machine.locked(spec.name):
            await upgrades.upgrade(spec.name, spec, progress)
        await self._arrange(spec.name, progress)
        return await self.status(spec.name)

    async def roll_back(self, spec: InstanceSpec, progress: Progress) -> Status:
        """See Provider."""
        upgrades = self._upgrades(spec.name)
        async with self._machine.locked(spec.name):
            await upgrades.roll_back(spec.name, spec, progress)
        await self._arrange(spec.name, progress)
        return await self.status(spec.name)

    async def forget_upgrade(self, name: str) -> None:
        """See Provider."""
        upgrades = self._upgrades(name)
        async with self._machine.locked(name):
            await upgrades.forget(name)

    async def set_password(self, name: str, user: str, password: str) -> None:
        """See Provider."""
        async with self._machine.locked(name) as manifest:
            changing.keep_password(self._machine, manifest, user, password)

    # Looking at it.

    async def status(self, name: str) -> Status:
        """See Provider."""
        manifest = self._machine.manifests.load(name)
        engine = self._engines[manifest.spec.engine]
        return await reporting.status(self._machine, engine, manifest, self.notices(manifest.spec))

    async def usage(self, name: str) -> Sequence[NodeUsage]:
        """See Provider."""
        manifest = self._machine.manifests.load(name)
        engine = self._engines[manifest.spec.engine]
        nodes = self._machine.nodes(manifest)
        return await asyncio.gather(*(asyncio.to_thread(usage.of, node, engine.find(node)) for node in nodes))

    async def supervise(self, changed: Callable[[str], None]) -> NoReturn:
        """See Provider."""
        await Supervisor(self._machine, self._engines, changed).run()

    async def slow_log(self, name: str) -> Sequence[str]:
        """See Provider."""
        manifest = self._machine.manifests.load(name)
        node = self._machine.node(manifest, manifest.primary)
        return await asyncio.to_thread(self._engines[manifest.spec.engine].slow_log, node)

    async def access(self, name: str, node: str = "") -> Access:
        """See Provider."""
        manifest = self._machine.manifests.load(name)
        engine = self._engines[manifest.spec.engine]
        wanted = self._machine.node(manifest, node or manifest.primary)
        if engine.find(wanted) is None:
            raise Unavailable(f"{wanted.id} does not run", reason="INSTANCE_UNAVAILABLE")
        return engine.access(wanted)

    # Copies.

    async def copy(self, name: str, copy_id: str, base: str, progress: Progress) -> Copy:
        """See Provider."""
        return await self._copies(self._machine.manifests.load(name).spec.engine).copy(name, copy_id, base, progress)

    async def delete_copy(self, location: str) -> None:
        """See Provider."""
        await archives.delete_copy(self._machine.layout, location)

    async def archive_copy(
        self, location: str, path: str, packing: str, progress: Progress, *, overwrite: bool
    ) -> tuple[int, str]:
        """See Provider."""
        return await archives.archive_copy(self._machine.layout, location, path, packing, progress, overwrite=overwrite)

    async def check_files(self, location: str, progress: Progress) -> str:
        """See Provider."""
        record = await asyncio.to_thread(copies.load, self._machine.layout, location)
        return await self._copies(record.copy.engine).check_files(location, progress)

    async def check_checksums(self, name: str, progress: Progress) -> str:
        """See Provider."""
        async with self._machine.locked(name) as manifest:
            node = self._machine.node(manifest, manifest.primary)
            if self._engines[manifest.spec.engine].find(node) is not None:
                raise FailedPrecondition(f"{name} must be stopped for this", reason="INSTANCE_RUNNING")
            return await self._copies(manifest.spec.engine).check_checksums(node, progress)

    async def delete_archive(self, uid: str, keep_from: str) -> None:
        """See Provider."""
        await archives.delete_archive(self._machine.layout, uid, keep_from)

    async def _arrange(self, name: str, progress: Progress) -> None:
        manifest = self._machine.manifests.load(name)
        await creating.arrange(self._engines[manifest.spec.engine], manifest, progress)

    # Which engine.

    def _engine(self, name: str) -> LocalEngine:
        return self._engines[self._machine.manifests.load(name).spec.engine]

    def _replicas(self, name: str) -> Replicas:
        engine = self._engine(name)
        if engine.replicas is None:
            raise FailedPrecondition(f"{name} has no replicas", reason="NOT_HIGHLY_AVAILABLE")
        return engine.replicas

    def _upgrades(self, name: str) -> Upgrades:
        engine = self._engine(name)
        if engine.upgrades is None:
            raise FailedPrecondition(f"{name} can not be upgraded by this provider", reason="UPGRADE_NOT_SUPPORTED")
        return engine.upgrades

    def _copies(self, engine: Engine) -> Copies:
        found = self._engines[engine].copies
        if found is None:
            raise FailedPrecondition(f"this provider can not copy {engine}", reason="COPY_NOT_SUPPORTED")
        return found
