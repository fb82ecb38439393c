"""The newest groups, read once for all followers of a process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

import structlog

from opsplane_server.errors import OpsplaneError, Unavailable
from opsplane_server.logingest.ports import GroupReader
from opsplane_server.logingest.queries import Group
from opsplane_server.storage.followers import Follower, Position
from opsplane_server.storage.signals import Signal

log = structlog.get_logger(__name__)

_KEPT: Final = 2000
_BATCH: Final = 200
_RETRY_SECONDS: Final = 1.0


class GroupFeed:
    """Reads new groups as long as somebody watches, and keeps the last ones for those who are a little behind."""

    def __init__(self, store: GroupReader, signal: Signal) -> None:
        self._store = store
        self._follower = Follower(self._fetch, signal, poll_seconds=0.5, batch=_BATCH)
        self._groups: deque[Group] = deque()
        self._floor: Position | None = None  # groups after it are kept; None while nobody watches
        self._newest = Position.START
        self._changed = asyncio.Event()
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Keeps it reading. Raises Unavailable."""
        self._watchers += 1
        try:
            if self._floor is None:
                now = await self._store.now()
                if self._floor is None:
                    self._floor = self._newest = now
                    self._task = asyncio.create_task(self._run(now), name="group feed")
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                await self._stop()

    def is_newest(self, place: Position) -> bool:
        """Whether no group after a place is known."""
        return place >= self._newest

    async def after(self, place: Position) -> Sequence[Group]:
        """The next groups after a place, in order; waits until there are some. Raises Unavailable, OutOfRange."""
        while True:
            if self._floor is None:
                raise Unavailable("the server shuts down", reason="SHUTTING_DOWN")
            if place < self._floor:
                groups: Sequence[Group] = await self._store.read_groups(place, _BATCH)
            else:
                groups = [group for group in self._groups if group.end > place][:_BATCH]
            if groups:
                return groups
            if place >= self._newest:
                await self._changed.wait()
            elif place < self._floor:
                place = self._floor  # there is nothing before it

    async def _fetch(self, after: Position, limit: int) -> list[tuple[Position, Group]]:
        return [(group.end, group) for group in await self._store.read_groups(after, limit)]

    async def _run(self, after: Position) -> None:
        while True:
            try:
                async for rows in self._follower.follow(after):
                    after = rows[-1][0]
                    self._add([group for _, group in rows])
            except Unavailable as failure:
                log.warning("following is interrupted", detail=failure.message)
            except OpsplaneError:
                log.exception("following failed")
            await asyncio.sleep(_RETRY_SECONDS)

    def _add(self, groups: Sequence[Group]) -> None:
        self._groups.extend(groups)
        while len(self._groups) > _KEPT:
            self._floor = self._groups.popleft().end
        self._newest = groups[-1].end
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _stop(self) -> None:
        task, self._task = self._task, None
        self._floor = None
        self._groups.clear()
        self._wake()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
