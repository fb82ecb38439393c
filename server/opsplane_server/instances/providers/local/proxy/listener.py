"""A stable port: takes clients, spreads them over the targets of its route, and cuts those whose target has left."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from opsplane_server.instances.providers.local.proxy.pipes import Pipe, Side
from opsplane_server.instances.providers.local.proxy.routes import Route, Target

_BACKLOG = 1024
_CONNECT_SECONDS = 2.0
_RETRY_SECONDS = 0.05
_CANCEL_SECONDS = 5.0


class Listener:
    """Serves one route from `open` to `close`; OSError when the port is another's."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self._server: asyncio.Server | None = None
        self._pipes: set[Pipe] = set()
        self._turn = itertools.count()
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Listens."""
        self._server = await asyncio.get_running_loop().create_server(
            self._accept, self.route.host, self.route.port, backlog=_BACKLOG, reuse_address=True
        )

    def close(self) -> None:
        """Listens no more, and cuts all connections."""
        if self._server is not None:
            self._server.close()
        for pipe in list(self._pipes):
            pipe.abort()

    def change(self, route: Route) -> None:
        """Takes the targets of `route`, whose address must be the same."""
        self.route = route
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for pipe in list(self._pipes):
            if pipe.target is not None and pipe.target not in route.targets:
                pipe.abort()

    def _accept(self) -> Pipe:
        pipe = Pipe(self, greets=self.route.greets)
        self._pipes.add(pipe)
        return pipe

    # What pipes ask.

    async def connect(self, side: Callable[[], Side], deadline: float) -> tuple[Target, Side] | None:
        """Tries the targets, the least busy first, until one takes the connection."""
        loop = asyncio.get_running_loop()
        while True:
            changed = self._changed
            for target in self._in_turn():
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(_CONNECT_SECONDS):
                        _, connected = await loop.create_connection(side, target.host, target.port)
                    if target in self.route.targets:
                        return target, connected
                    connected.abort()  # it left the route meanwhile
            left = deadline - loop.time()
            if left <= 0:
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _RETRY_SECONDS) if self.route.targets else left):
                    await changed.wait()

    async def cancel(self, request: bytes) -> None:
        """Asks every target, because which one runs the statement can not be seen: its secret number fits one only."""
        async with asyncio.TaskGroup() as group:
            for target in self.route.targets:
                group.create_task(_cancel(target, request))

    def ended(self, pipe: Pipe) -> None:
        """Forgets it."""
        self._pipes.discard(pipe)

    def _in_turn(self) -> Sequence[Target]:
        busy = Counter(pipe.target for pipe in self._pipes)
        targets = self.route.targets
        first = next(self._turn) % len(targets) if targets else 0
        return sorted((*targets[first:], *targets[:first]), key=lambda target: busy[target])


async def _cancel(target: Target, request: bytes) -> None:
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_CANCEL_SECONDS):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            try:
                writer.write(request)
                await reader.read()  # it closes when it has passed the request on
            finally:
                writer.transport.abort()
