"""The stable ports of highly available instances: which node the proxy passes whom on to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import psutil

from opsplane_server.instances.model import Engine
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import LocalManifest
from opsplane_server.instances.providers.local.proxy.process import ProxyProcess
from opsplane_server.instances.providers.local.proxy.routes import Route, Target
from opsplane_server.storage.accounts import choose_account, create_folder


class LocalEndpoints:
    """Writes routes. They belong to whoever holds the instance's lock, but for `refresh`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._folder = machine.layout.instances / ".proxy"  # no instance has such a name

    async def publish(
        self, manifest: LocalManifest, *, primary: str, replicas: Collection[str], answering: Collection[str]
    ) -> None:
        """Routes `rw` to the node `primary`, or with "" to none: clients wait; `ro` to `replicas`, `r` to both, and
        `any` to `answering`. An instance whose one server listens on `rw` itself has no routes.
        """
        routes = [] if is_direct(manifest) else self._routes(manifest, primary, replicas, answering)
        await self._replace(manifest.spec.id, routes)

    async def cut(self, manifest: LocalManifest, node_id: str) -> None:
        """Takes a node out of all routes: its clients are cut, new ones go elsewhere or wait."""
        async with locked(self._lock()):
            proxy = self._proxy()
            present = set(proxy.routes())
            wanted = {
                dataclasses.replace(route, targets=tuple(one for one in route.targets if one.node != node_id))
                if _instance(route) == manifest.spec.id
                else route
                for route in present
            }
            if wanted != present:
                proxy.write(wanted)

    async def withdraw(self, instance_id: str) -> None:
        """Closes the ports of an instance. Harmless when there are none."""
        await self._replace(instance_id, [])

    async def start(self) -> psutil.Process:
        """The proxy, running."""
        return await self._proxy().start()

    async def stop(self) -> None:
        """Ends the proxy."""
        await self._proxy().stop()

    async def _replace(self, instance_id: str, routes: Sequence[Route]) -> None:
        async with locked(self._lock()):
            proxy = self._proxy()
            present = set(proxy.routes())
            wanted = {route for route in present if _instance(route) != instance_id} | set(routes)
            if wanted != present:
                proxy.write(wanted)

    def _lock(self) -> Path:
        create_folder(self._folder)
        return self._folder / "routes.lock"

    def _routes(
        self, manifest: LocalManifest, primary: str, replicas: Collection[str], answering: Collection[str]
    ) -> Sequence[Route]:
        behind: dict[str, Callable[[str], bool]] = {
            "rw": lambda node: node == primary,
            "ro": lambda node: node in replicas,
            "r": lambda node: node in replicas or node == primary,
            "any": lambda node: node in answering,
        }
        return [
            Route(
                name=f"{manifest.spec.id}/{endpoint}",
                host=self._machine.settings.listen_host,
                port=manifest.ports[endpoint],
                targets=tuple(
                    Target(entry.id, self._machine.host, entry.port) for entry in manifest.nodes if takes(entry.id)
                ),
                greets=manifest.spec.engine is not Engine.POSTGRESQL,
            )
            for endpoint, takes in behind.items()
            if endpoint in manifest.ports
        ]

    def _proxy(self) -> ProxyProcess:
        return ProxyProcess(self._folder, choose_account(self._machine.settings.user, self._folder / "data"))


def is_direct(manifest: LocalManifest) -> bool:
    """Whether clients reach the one server without the proxy."""
    return [entry.port for entry in manifest.nodes] == [manifest.ports.get("rw")]


def _instance(route: Route) -> str:
    return route.name.partition("/")[0]
