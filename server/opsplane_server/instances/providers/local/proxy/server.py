"""Follows the file of routes: opens, changes and closes listeners."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog

from opsplane_server.instances.providers.local.proxy import routes
from opsplane_server.instances.providers.local.proxy.listener import Listener
from opsplane_server.instances.providers.local.proxy.routes import Route

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 1.0


class Proxy:
    """Serves what `file` says, until it is cancelled. `hint` makes it look at once, else it looks every second."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._listeners: dict[str, Listener] = {}
        self._hinted = asyncio.Event()
        self._seen: tuple[int, int] | None = None
        self._refused: set[str] = set()

    def hint(self) -> None:
        """The file has changed."""
        self._hinted.set()

    async def run(self) -> None:
        """Never returns."""
        try:
            while True:
                self._hinted.clear()
                await self._look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._hinted.wait()
        finally:
            for listener in self._listeners.values():
                listener.close()

    async def _look(self) -> None:
        try:
            status = self._file.stat()
        except FileNotFoundError:
            return
        state = (status.st_mtime_ns, status.st_ino)
        if state == self._seen and not self._refused:
            return
        try:
            wanted = {route.name: route for route in routes.read(self._file)}
        except (OSError, ValueError) as error:
            log.error("routes can not be read", error=str(error))  # those of before stay
            return
        self._seen = state
        await self._apply(wanted)

    async def _apply(self, wanted: dict[str, Route]) -> None:
        # Changes first: a client may be waiting for one, and for closing and opening nobody does.
        for name, listener in list(self._listeners.items()):
            route = wanted.get(name)
            if route is not None and _address(route) == _address(listener.route):
                if route != listener.route:
                    listener.change(route)
                    log.info("route changed", route=name, nodes=[target.node for target in route.targets])
            else:
                listener.close()
                del self._listeners[name]
                log.info("route closed", route=name)
        self._refused &= wanted.keys()
        for name, route in wanted.items():
            if name not in self._listeners:
                await self._open(route)

    async def _open(self, route: Route) -> None:
        listener = Listener(route)
        try:
            await listener.open()
        except OSError as error:
            if route.name not in self._refused:
                self._refused.add(route.name)
                log.error("port can not be opened", route=route.name, port=route.port, error=str(error))
            return
        self._refused.discard(route.name)
        self._listeners[route.name] = listener
        log.info("route opened", route=route.name, port=route.port, nodes=[target.node for target in route.targets])


def _address(route: Route) -> tuple[str, int, bool]:
    return route.host, route.port, route.greets
