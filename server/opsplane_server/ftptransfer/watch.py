"""Following transfers: what is stored is read again and again, so that any process can tell of any transfer."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from opsplane_server.errors import Aborted, NotFound, Unavailable
from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.model import Counts, Transfer, TransferState
from opsplane_server.ftptransfer.ports import TransferFollowing
from opsplane_server.rpc.filters import Condition
from opsplane_server.storage.followers import Position
from opsplane_server.storage.signals import Signal

_PAGE: Final = 500
_CHANGES: Final = 100
_IDLE_SECONDS: Final = 2.0
# Counting may take a tenth of the time, however many transfers there are.
_COUNT_SHARE: Final = 10
# Changes are kept for five minutes.
_LATEST_SECONDS: Final = 240.0
_REMEMBERED: Final = 100_000
# What a transfer can come and go under a filter by, without being another one.
_VARYING: Final = frozenset({"state", "error.code", "error.reason", "end_time"})


@dataclass(frozen=True, slots=True)
class WatchUpdate:
    """What is new: transfers as they are now, and counts of all that are followed; None when they were not counted."""

    transfers: Sequence[Transfer]
    counts: Counts | None = None


class TransferWatcher:
    """Streams what happens to transfers. `signal` tells that some were submitted or changed their state."""

    def __init__(self, store: TransferFollowing, signal: Signal) -> None:
        self._store = store
        self._signal = signal
        self._drained = asyncio.Event()

    def drain(self) -> None:
        """Ends all watching with Unavailable: callers watch on at another process."""
        self._drained.set()

    async def watch_named(
        self, transfer_ids: Sequence[str], *, follow: bool, interval: float
    ) -> AsyncGenerator[WatchUpdate, None]:
        """The transfers of these ids, first all, then those that changed. Raises NotFound for one that is not there."""
        sent: dict[str, Transfer] = {}
        while True:
            seen = self._signal.generation
            found = await self._store.by_ids(transfer_ids)
            if not sent:
                _require_all(transfer_ids, found)
            changed = [transfer for transfer in found if sent.get(transfer.id) != transfer]
            if changed:
                yield WatchUpdate(changed, count(found))
                sent.update((transfer.id, transfer) for transfer in changed)
            if not follow and all(transfer.state.ended for transfer in found):
                return
            idle = all(transfer.state is not TransferState.RUNNING for transfer in found)
            await self._pause(interval, seen, idle=idle)

    async def watch_matching(
        self, conditions: Sequence[Condition], *, follow: bool, interval: float, counts_only: bool
    ) -> AsyncGenerator[WatchUpdate, None]:
        """Those that match and have not ended, then those that changed, and new ones as they come.

        Raises Aborted for a caller that reads so slowly that changes are lost; it is to begin anew.
        """
        reader = _Reader(self._store, conditions)
        await reader.begin()
        counter = _Counter(self._store, conditions)
        counts = await counter.count()
        yield WatchUpdate((), counts)
        if not counts_only:
            async for page in reader.active():
                yield WatchUpdate(page)
        while True:
            seen = self._signal.generation
            ended = not follow and counts.active == 0
            if not counts_only:
                # When all have ended, what told so is there to be read, settled or not.
                async for page in reader.changed(settled_only=not ended):
                    yield WatchUpdate(page)
            if ended:
                yield WatchUpdate((), await counter.count())
                return
            if counter.is_due():
                before, counts = counts, await counter.count()
                if counts != before:
                    yield WatchUpdate((), counts)
            if not follow and counts.active == 0:
                continue
            await self._pause(interval, seen, idle=not counts.running and not reader.at_work)

    async def _pause(self, interval: float, seen: int, *, idle: bool) -> None:
        """Waits for the next message; when nothing is under way, also for something to happen."""
        try:
            async with asyncio.timeout(interval):
                await self._drained.wait()
        except TimeoutError:
            if idle:
                await self._signal.changed(seen, _IDLE_SECONDS)
        if self._drained.is_set():
            raise Unavailable("the server shuts down; watch anew", reason="SERVER_SHUTS_DOWN")


class _Reader:
    """Reads the transfers that match, and then their changes, each state once."""

    def __init__(self, store: TransferFollowing, conditions: Sequence[Condition]) -> None:
        self._store = store
        self._conditions = conditions
        self._lasting = [condition for condition in conditions if condition.field not in _VARYING]
        self._varies = len(self._lasting) < len(conditions)
        self._position = Position.START
        self._read_at = 0.0
        self._told: OrderedDict[int, None] = OrderedDict()
        self.at_work: dict[int, Transfer] = {}
        """Those that were under way when it last looked, as they were told."""

    async def begin(self) -> None:
        self._position = await self._store.position()
        self._read_at = time.monotonic()

    async def active(self) -> AsyncGenerator[list[Transfer], None]:
        after = 0
        while page := await self._store.active(self._conditions, after, _PAGE):
            after = page[-1].key
            self._remember(page)
            yield page

    async def changed(self, *, settled_only: bool) -> AsyncGenerator[list[Transfer], None]:
        """Pages of what changed since the last call; at the end those that are under way."""
        while True:
            self._require_in_time()
            changes = await self._store.changes(self._position, _CHANGES, settled_only=settled_only)
            self._read_at = time.monotonic()
            if changes:
                self._position = changes[-1][0]
            keys = sorted({key for _, found in changes for key in found})
            for start in range(0, len(keys), _PAGE):
                if page := await self._matching(keys[start : start + _PAGE]):
                    self._remember(page)
                    yield page
            if len(changes) < _CHANGES:
                break
        running = {transfer.key: transfer for transfer in await self._store.running(self._conditions)}
        moved = [transfer for key, transfer in running.items() if self.at_work.get(key) != transfer]
        self.at_work = running
        for start in range(0, len(moved), _PAGE):
            page = moved[start : start + _PAGE]
            self._remember(page)
            yield page

    async def _matching(self, keys: Sequence[int]) -> list[Transfer]:
        """Those of the transfers that match, and those that did, whose last state is to be told.

        Without those under way, which `changed` reads anyway.
        """
        found = await self._store.by_keys(keys, self._conditions)
        if self._varies:
            there = {transfer.key for transfer in found}
            left = [key for key in keys if key not in there and key in self._told]
            if left:
                found += await self._store.by_keys(left, self._lasting)
                for key in left:
                    self._told.pop(key, None)
        return [transfer for transfer in found if transfer.state is not TransferState.RUNNING]

    def _remember(self, transfers: Collection[Transfer]) -> None:
        if not self._varies:
            return
        self._told.update((transfer.key, None) for transfer in transfers if not transfer.state.ended)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)

    def _require_in_time(self) -> None:
        if time.monotonic() - self._read_at > _LATEST_SECONDS:
            raise Aborted("the caller reads too slowly: changes were lost, watch anew", reason="WATCH_TOO_SLOW")


class _Counter:
    """Counts, and says when to count again."""

    def __init__(self, store: TransferFollowing, conditions: Sequence[Condition]) -> None:
        self._store = store
        self._conditions = conditions
        self._due = 0.0

    async def count(self) -> Counts:
        began = time.monotonic()
        counts = await self._store.counts(self._conditions)
        now = time.monotonic()
        self._due = now + _COUNT_SHARE * (now - began)
        return counts

    def is_due(self) -> bool:
        return time.monotonic() >= self._due


def count(transfers: Collection[Transfer]) -> Counts:
    """Counts of these transfers, a glob or tree as one."""
    states = [transfer.state for transfer in transfers]
    return replace(
        Counts(**{state.value.lower(): states.count(state) for state in TransferState}),
        skipped=sum(transfer.skipped for transfer in transfers),
        size_bytes=sum(transfer.size_bytes or 0 for transfer in transfers),
        bytes_transferred=sum(transfer.bytes_transferred for transfer in transfers),
        bytes_per_second=sum(transfer.bytes_per_second for transfer in transfers),
    )


def _require_all(transfer_ids: Sequence[str], found: Sequence[Transfer]) -> None:
    there = {transfer.id for transfer in found}
    for transfer_id in transfer_ids:
        if transfer_id not in there:
            raise NotFound.resource(names.transfer(transfer_id))
