"""Making an instance: its manifest first, so that what comes after can be found again, gone on with, or removed."""

from __future__ import annotations

import structlog

from opsplane_server.errors import AlreadyExists, FailedPrecondition, NotFound
from opsplane_server.instances.model import CopySource, InstanceSpec, Secrets
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import servers
from opsplane_server.instances.providers.local.engine import LocalEngine
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest, NodeEntry
from opsplane_server.storage.accounts import create_folder

log = structlog.get_logger(__name__)

ENDPOINTS = ("rw", "ro", "r", "any")


async def create(
    machine: Machine,
    engine: LocalEngine,
    spec: InstanceSpec,
    secrets: Secrets,
    source: CopySource | None,
    progress: Progress,
) -> None:
    """See `Provider.create`."""
    folder = machine.layout.instance(spec.name)
    create_folder(folder.path)
    async with locked(folder.lock):
        manifest = await _begin(machine, spec, secrets)
        if manifest.desired is Desired.CREATING:
            await _first_node(machine, engine, manifest, source, progress)
            manifest = manifest.replace(desired=Desired.RUNNING)
            machine.manifests.save(manifest)
    await arrange(engine, manifest, progress)
    log.info("instance created", instance=spec.name, uid=spec.uid, version=spec.version)


async def arrange(engine: LocalEngine, manifest: LocalManifest, progress: Progress) -> None:
    """Makes the replicas what they should be, where there are or should be any. The lock is not held."""
    if engine.replicas is not None and (manifest.spec.high_availability is not None or len(manifest.nodes) > 1):
        await engine.replicas.apply(manifest.name, progress)


async def _begin(machine: Machine, spec: InstanceSpec, secrets: Secrets) -> LocalManifest:
    """The manifest, a new one with ports of its own unless an earlier attempt got so far."""
    try:
        manifest = machine.manifests.load(spec.name)
    except NotFound:
        return await _choose(machine, spec, secrets)
    if manifest.spec.uid != spec.uid:
        raise AlreadyExists(
            f"there is data of another instance {spec.name} on this machine; RecoverInstance takes it in",
            reason="INSTANCE_DATA_EXISTS",
            metadata={"resource": spec.name, "uid": manifest.spec.uid},
        )
    if manifest.desired is Desired.DELETING:
        raise FailedPrecondition(f"{spec.name} is being deleted", reason="INSTANCE_DELETING")
    return manifest


async def _choose(machine: Machine, spec: InstanceSpec, secrets: Secrets) -> LocalManifest:
    async with machine.choosing_ports() as choice:
        ports = {"rw": choice.next()}
        node_port = ports["rw"]
        if spec.high_availability is not None:
            # The proxy has the stable ports.
            ports |= {endpoint: choice.next() for endpoint in ENDPOINTS[1:]}
            node_port = choice.next()
        first = NodeEntry(id=f"{spec.id}-1", port=node_port, version=spec.version)
        manifest = LocalManifest(
            spec=spec, secrets=secrets, nodes=(first,), ports=ports, primary=first.id, desired=Desired.CREATING
        )
        machine.manifests.save(manifest)
    return manifest


async def _first_node(
    machine: Machine, engine: LocalEngine, manifest: LocalManifest, source: CopySource | None, progress: Progress
) -> None:
    node = machine.node(manifest, manifest.primary)
    machine.create_node_folder(node)
    if source is None:
        await engine.initialise(node, progress)
    elif engine.copies is None:
        raise FailedPrecondition(f"{manifest.spec.engine} can not be restored here", reason="COPY_NOT_SUPPORTED")
    else:
        await engine.copies.restore(node, source, progress)
    await progress("starting the server", 70)
    await servers.start(engine, node, machine.settings.start_timeout)
    await progress("setting up users and databases", 85)
    await engine.prepare(node)
