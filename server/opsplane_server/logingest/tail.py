"""Following records as they are stored: read anew for each follower, whichever process took them in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import structlog

from opsplane_server.errors import OpsplaneError, ResourceExhausted, Unavailable
from opsplane_server.logingest.feed import GroupFeed
from opsplane_server.logingest.ports import GroupReader
from opsplane_server.logingest.queries import Group, LogQuery, StoredRecord
from opsplane_server.storage.followers import Position
from opsplane_server.storage.signals import Signal

log = structlog.get_logger(__name__)

_CHUNK_RECORDS: Final = 1000
_CHUNK_BYTES: Final = 1024 * 1024
_BUFFER_RECORDS: Final = 4000
_BUFFER_BYTES: Final = 2 * 1024 * 1024
# Records of the groups that one statement reads.
_READ_RECORDS: Final = 20_000
_BACKLOG_GROUPS: Final = 500
# Hints come every 20 ms; a statement for each of them would be many for few records.
_REST_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some records, how many matching ones were left out before them, and where to go on after them."""

    records: Sequence[StoredRecord]
    cursor: Position
    dropped_count: int = 0


class LogTail:
    """Serves followers of this process, up to `max_followers` at a time.

    `signal` tells that groups were stored. A follower gets a message every `interval` even when there is nothing.
    """

    def __init__(
        self,
        store: GroupReader,
        signal: Signal,
        *,
        max_followers: int = 32,
        interval: timedelta = timedelta(seconds=15),
    ) -> None:
        self._store = store
        self._feed = GroupFeed(store, signal)
        self._max_followers = max_followers
        self._interval = interval.total_seconds()
        self._buffers: set[_Buffer] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._feed.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self._feed.__aexit__(kind, error, trace)

    def close(self) -> None:
        """Ends all streams with Unavailable, and takes no more; to be called when the process begins to shut down."""
        self._closed = True
        for buffer in self._buffers:
            buffer.fail(_shutting_down())

    async def follow(self, query: LogQuery, cursor: str, backlog: int) -> AsyncGenerator[Chunk, None]:
        """Chunks for ever, in the order of commit: after `cursor`, or from the `backlog` newest records on.

        Raises InvalidArgument and OutOfRange for the cursor, ResourceExhausted with too many followers, Unavailable
        when the database is away or the process shuts down.
        """
        if self._closed:
            raise _shutting_down()
        if len(self._buffers) >= self._max_followers:
            raise ResourceExhausted(f"there are {self._max_followers} followers already", reason="TOO_MANY_FOLLOWERS")
        buffer = _Buffer()
        self._buffers.add(buffer)
        reader: asyncio.Task[None] | None = None
        try:
            async with self._feed.watched():
                start = await self._start(query, cursor, backlog)
                buffer.cursor = start
                reader = asyncio.create_task(self._read(query, start, buffer), name="tail logs")
                while True:
                    yield await buffer.take(self._interval)
        finally:
            self._buffers.discard(buffer)
            if reader is not None:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    async def _start(self, query: LogQuery, cursor: str, backlog: int) -> Position:
        if cursor:
            after = Position.decode(cursor)
            await self._store.check(after)
            return after
        now = await self._store.now()
        return await self._before_newest(query, now, backlog) if backlog else now

    async def _before_newest(self, query: LogQuery, before: Position, count: int) -> Position:
        """The place before the newest `count` matching records that come before a place."""
        oldest = before
        upper = before
        while count and (groups := await self._store.read_groups_before(upper, _BACKLOG_GROUPS)):
            upper = groups[-1].position
            for part in _parts([group for group in groups if query.may_match(group.services, group.levels)]):
                places = await self._store.newest(query, part[::-1], count)
                if places:
                    oldest = Position(places[-1].xid, places[-1].id - 1)
                    count -= len(places)
                if not count:
                    break
        return oldest

    async def _read(self, query: LogQuery, after: Position, buffer: _Buffer) -> None:
        try:
            # Until it has caught up it reads what was stored before at the caller's speed; from then on the caller has
            # to keep up, and what has no room in its buffer is only counted.
            live = False
            while True:
                live = live or self._feed.is_newest(after)
                for part in _parts(await self._feed.after(after)):
                    matching = [group for group in part if query.may_match(group.services, group.levels)]
                    if matching:
                        await self._read_part(query, matching, after, buffer, live=live)
                    after = part[-1].end
                    buffer.pass_by(after)
                if live:
                    await asyncio.sleep(_REST_SECONDS)
        except OpsplaneError as error:
            buffer.fail(error)
        except Exception:
            log.exception("tail failed")
            buffer.fail(Unavailable("the records can not be followed now", reason="TAIL_FAILED"))

    async def _read_part(
        self, query: LogQuery, groups: Sequence[Group], after: Position, buffer: _Buffer, *, live: bool
    ) -> None:
        transactions = {group.position.id >> 20: group.position.xid for group in groups}
        while True:
            if live and buffer.full:
                buffer.drop(await self._store.count_records(query, groups, after))
                return
            await buffer.has_room()
            found = await self._store.read_records(query, groups, after, limit=_CHUNK_RECORDS, max_bytes=_CHUNK_BYTES)
            if found.records:
                last = found.records[-1].id
                after = Position(transactions[last >> 20], last)
                buffer.put(found.records, after)
            if found.complete:
                return


def _parts(groups: Sequence[Group]) -> list[list[Group]]:
    """Cuts groups into parts that one statement can read."""
    parts: list[list[Group]] = []
    room = 0
    for group in groups:
        if not parts or group.record_count > room:
            parts.append([])
            room = _READ_RECORDS
        parts[-1].append(group)
        room -= group.record_count
    return parts


def _shutting_down() -> Unavailable:
    return Unavailable("the server shuts down; go on from the last cursor", reason="SHUTTING_DOWN")


class _Buffer:
    """What was read for a follower and not taken yet."""

    def __init__(self) -> None:
        self.cursor = Position.START
        self._chunks: deque[tuple[Chunk, int]] = deque()
        self._records = 0
        self._bytes = 0
        self._dropped = 0
        self._error: OpsplaneError | None = None
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def full(self) -> bool:
        """Whether what is read now has to be left out, or to wait."""
        return self._records >= _BUFFER_RECORDS or self._bytes >= _BUFFER_BYTES

    async def has_room(self) -> None:
        """Waits until it is no longer full."""
        await self._room.wait()

    def put(self, records: Sequence[StoredRecord], cursor: Position) -> None:
        """Adds records."""
        size = sum(len(text) for record in records for text in record if isinstance(text, str))
        self._chunks.append((Chunk(records, cursor, self._dropped), size))
        self._dropped = 0
        self._records += len(records)
        self._bytes += size
        if self.full:
            self._room.clear()
        self._filled.set()

    def drop(self, count: int) -> None:
        """Takes note of records that are left out."""
        self._dropped += count

    def pass_by(self, cursor: Position) -> None:
        """Everything up to here is in the buffer, left out, or not asked for."""
        self.cursor = cursor

    def fail(self, error: OpsplaneError) -> None:
        """Ends the stream after what is in the buffer."""
        if self._error is None:
            self._error = error
        self._filled.set()

    async def take(self, timeout: float) -> Chunk:
        """The oldest chunk; an empty one after `timeout` seconds without any."""
        if not self._chunks and self._error is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._filled.wait()
        if self._chunks:
            chunk, size = self._chunks.popleft()
            self._records -= len(chunk.records)
            self._bytes -= size
            if not self.full:
                self._room.set()
        elif self._error is not None:
            raise self._error
        else:
            chunk, self._dropped = Chunk([], self.cursor, self._dropped), 0
        if not self._chunks and self._error is None:
            self._filled.clear()
        return chunk
