"""Starting, stopping, restarting and changing an instance that is there."""

from __future__ import annotations

import dataclasses

from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.model import FailoverKind, InstanceSpec
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import servers
from opsplane_server.instances.providers.local.creating import arrange
from opsplane_server.instances.providers.local.endpoints import LocalEndpoints
from opsplane_server.instances.providers.local.engine import LocalEngine
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest


async def start(machine: Machine, engine: LocalEngine, name: str, progress: Progress) -> None:
    """See `Provider.start`."""
    async with machine.locked(name) as manifest:
        manifest = _become(machine, manifest, Desired.RUNNING)
        await progress("starting the server", 20)
        await servers.start(engine, machine.node(manifest, manifest.primary), machine.settings.start_timeout)
    await arrange(engine, manifest, progress)


async def stop(machine: Machine, engine: LocalEngine, name: str, progress: Progress) -> None:
    """See `Provider.stop`."""
    async with machine.locked(name) as manifest:
        manifest = _become(machine, manifest, Desired.STOPPED)
        await progress("stopping the server", 20)
        await LocalEndpoints(machine).withdraw(manifest.spec.id)
        # The primary first: it ends when its replicas have all that it wrote.
        await engine.stop(machine.node(manifest, manifest.primary))
        await servers.stop_all(engine, (node for node in machine.nodes(manifest) if not node.is_primary))


async def restart(machine: Machine, engine: LocalEngine, name: str, node_id: str, progress: Progress) -> None:
    """See `Provider.restart`."""
    manifest = machine.manifests.load(name)
    if node_id:
        await progress(f"restarting {node_id}", 20)
        await _restart(machine, engine, name, node_id)
        await arrange(engine, manifest, progress)
        return
    for number, entry in enumerate(manifest.nodes):
        if entry.id != manifest.primary:
            await progress(f"restarting {entry.id}", 10 + 60 * number // len(manifest.nodes))
            await _restart(machine, engine, name, entry.id)
    if engine.replicas is not None and len(manifest.nodes) > 1:
        await arrange(engine, manifest, progress)
        try:
            # The old primary comes back as a replica: started again.
            await engine.replicas.fail_over(name, "", FailoverKind.SWITCHOVER, "restart", progress)
            await _restart_what_waits(machine, engine, name, progress)
            return
        except FailedPrecondition as error:
            if error.reason != "NO_CANDIDATE":
                raise
    await progress(f"restarting {manifest.primary}", 80)
    await _restart(machine, engine, name, manifest.primary)
    await arrange(engine, manifest, progress)


async def _restart_what_waits(machine: Machine, engine: LocalEngine, name: str, progress: Progress) -> None:
    """A replica can not go below a limit that its primary still has, such as that of connections: when one was
    lowered, the primary must have it first.
    """
    manifest = machine.manifests.load(name)
    if not (await engine.inspect(machine.node(manifest, manifest.primary))).pending_restart:
        return
    for entry in sorted(manifest.nodes, key=lambda entry: entry.id != manifest.primary):
        await progress(f"restarting {entry.id} with lowered limits", 85)
        await _restart(machine, engine, name, entry.id)
        await arrange(engine, manifest, progress)


async def update(machine: Machine, engine: LocalEngine, spec: InstanceSpec, progress: Progress) -> None:
    """See `Provider.update`."""
    async with machine.locked(spec.name) as manifest:
        manifest = _settled(manifest).replace(spec=spec)
        machine.manifests.save(manifest)
        await progress("configuring the servers", 10)
        for node in machine.nodes(manifest):
            if not node.folder.data.exists():
                continue  # a replica that is being made
            await engine.configure(node)
            if engine.find(node) is not None:
                await engine.reload(node)
    if manifest.desired is Desired.RUNNING:
        await arrange(engine, manifest, progress)


def keep_password(machine: Machine, manifest: LocalManifest, user: str, password: str) -> None:
    """See `Provider.set_password`. The caller holds the lock."""
    users = dict(manifest.secrets.users)
    if password:
        users[user] = password
    else:
        users.pop(user, None)
    if users != manifest.secrets.users:
        machine.manifests.save(manifest.replace(secrets=dataclasses.replace(manifest.secrets, users=users)))


def _become(machine: Machine, manifest: LocalManifest, desired: Desired) -> LocalManifest:
    """Kept first, so that the supervisor of another process does not work against it."""
    if _settled(manifest).desired is not desired:
        manifest = manifest.replace(desired=desired)
        machine.manifests.save(manifest)
    return manifest


def _settled(manifest: LocalManifest) -> LocalManifest:
    """FailedPrecondition for half an instance."""
    if manifest.desired in (Desired.CREATING, Desired.DELETING):
        raise FailedPrecondition(
            f"{manifest.name} is incomplete: it was being made or deleted", reason="INSTANCE_INCOMPLETE"
        )
    return manifest


async def _restart(machine: Machine, engine: LocalEngine, name: str, node_id: str) -> None:
    async with machine.locked(name) as manifest:
        node = machine.node(_settled(manifest), node_id)
        if manifest.desired is Desired.STOPPED:
            raise FailedPrecondition(f"{name} is stopped", reason="INSTANCE_STOPPED")
        await engine.stop(node)
        await servers.start(engine, node, machine.settings.start_timeout)
