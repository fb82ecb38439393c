"""Removing an instance, whole or half-made, with every process that works on its files."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from opsplane_server.errors import DataLoss, FailedPrecondition, NotFound
from opsplane_server.instances.model import Engine
from opsplane_server.instances.providers.local import processes, servers
from opsplane_server.instances.providers.local.endpoints import LocalEndpoints
from opsplane_server.instances.providers.local.engine import LocalEngine
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired
from opsplane_server.storage.accounts import sync_folder

log = structlog.get_logger(__name__)


async def delete(machine: Machine, engine_of: Callable[[Engine], LocalEngine], name: str) -> None:
    """See `Provider.delete`. Harmless when there is nothing."""
    folder = machine.layout.instance(name)
    # No instance has such a name, and an instance made later under this one must not find its files there.
    trash = machine.layout.instances / f".deleting-{folder.path.name}"
    if folder.path.exists():
        async with locked(folder.lock):
            await _end(machine, engine_of, name)
            left = await asyncio.to_thread(processes.working_on, folder.path, machine.account(name))
            await processes.kill(left)
            await asyncio.to_thread(_remove, trash)
            folder.path.rename(trash)  # in one step: nobody finds half an instance
            sync_folder(machine.layout.instances)
    await asyncio.to_thread(_remove, trash)
    log.info("instance deleted", instance=name)


async def _end(machine: Machine, engine_of: Callable[[Engine], LocalEngine], name: str) -> None:
    """Ends its servers in the way of its engine, as far as the manifest still tells of them."""
    try:
        manifest = machine.manifests.load(name)
    except NotFound:
        return  # it got no further than its folder
    except (DataLoss, FailedPrecondition) as error:
        log.warning("deleting an instance without its manifest", instance=name, error=str(error))
        return
    if manifest.desired is not Desired.DELETING:
        manifest = manifest.replace(desired=Desired.DELETING)
        machine.manifests.save(manifest)
    await LocalEndpoints(machine).withdraw(manifest.spec.id)
    engine = engine_of(manifest.spec.engine)
    await servers.stop_all(engine, machine.nodes(manifest), at_once=True)
    for node in machine.nodes(manifest):
        if node.folder.run.parent != node.folder.path:  # outside, for its path was too long
            await asyncio.to_thread(_remove, node.folder.run)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
