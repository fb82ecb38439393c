"""Keeping the instances of a machine as they should be: one process of the machine does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NoReturn

import structlog

from opsplane_server.errors import OpsplaneError
from opsplane_server.instances.model import Engine
from opsplane_server.instances.providers.local import processes
from opsplane_server.instances.providers.local.endpoints import LocalEndpoints, is_direct
from opsplane_server.instances.providers.local.engine import LocalEngine
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.monitor import Monitor

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.5


class Supervisor:
    """A monitor for each instance that there is, and a proxy that runs."""

    def __init__(self, machine: Machine, engines: Mapping[Engine, LocalEngine], changed: Callable[[str], None]) -> None:
        self._machine = machine
        self._engines = engines
        self._changed = changed
        self._endpoints = LocalEndpoints(machine)
        self._monitors: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> NoReturn:
        """See `Provider.supervise`."""
        proxy = asyncio.create_task(self._keep_proxy(), name="instances proxy")
        try:
            while True:
                self._look()
                processes.reap()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            tasks = [proxy, *self._monitors.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _look(self) -> None:
        """A monitor ends when its instance is gone, and one that failed is replaced."""
        names = set(self._machine.manifests.names())
        for name, task in list(self._monitors.items()):
            if task.done():
                del self._monitors[name]
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.error("monitor failed", instance=name, exc_info=error)
        for name in names - self._monitors.keys():
            monitor = Monitor(self._machine, self._engines, name, self._changed)
            self._monitors[name] = asyncio.create_task(monitor.run(), name=f"monitor {name}")

    async def _keep_proxy(self) -> NoReturn:
        while True:
            try:
                if any(not is_direct(manifest) for manifest in self._machine.manifests.all()):
                    proxy = await self._endpoints.start()
                    await processes.ended(proxy, _LOOK_SECONDS * 20)
                    continue
            except OpsplaneError as error:
                log.error("proxy does not start", error=error.message)
            await asyncio.sleep(_LOOK_SECONDS)
