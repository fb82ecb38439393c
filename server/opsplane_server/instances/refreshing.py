"""Brings records up to date with what their provider sees, and records what happened between two looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import structlog

from opsplane_server.errors import FailedPrecondition, NotFound
from opsplane_server.instances.events import Events, about
from opsplane_server.instances.model import InstanceState, Node, NodeState, Status
from opsplane_server.instances.ports import Provider
from opsplane_server.instances.records import Event, EventKind, Instance
from opsplane_server.instances.states import state_of
from opsplane_server.instances.stores.ports import EventStore, InstanceStore
from opsplane_server.platform.ports import Transactions
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest

log = structlog.get_logger(__name__)

_LOW: Final = 0.9
# Storage that is freed and filled again by logs that come and go is no news.
_RELIEF: Final = 0.05
_UNSEEN: Final = frozenset({InstanceState.CREATING, InstanceState.RESTORING, InstanceState.DELETING})
_BROKEN: Final = frozenset({InstanceState.UNAVAILABLE, InstanceState.FAILED})
# A node on its way, be it to serve again or to its rest.
_GONE: Final = frozenset({NodeState.UNREACHABLE, NodeState.FENCED, NodeState.FAILED, NodeState.REJOINING})
_NODE_EVENTS: Final = 20
# An automatic failover takes about a second; one that takes so long does not come.
_FAILOVER_SECONDS: Final = 30.0
_ATTEMPTS: Final = 5


class Refresher:
    """Refreshes records. What is done to an instance just now is its operation's to tell: it keeps out of that."""

    def __init__(
        self,
        provider: Provider,
        store: InstanceStore,
        events: EventStore,
        recorder: Events,
        transactions: Transactions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._provider = provider
        self._store = store
        self._events = events
        self._recorder = recorder
        self._transactions = transactions
        self._clock = clock
        self._without_primary: dict[str, float] = {}  # since when, by uid
        self._storage_levels: dict[str, EventKind | None] = {}

    async def refresh(self, name: str) -> Instance | None:
        """Looks at an instance and writes what is new; the record as it is then, None when there is none.

        Raises Unavailable.
        """
        for _ in range(_ATTEMPTS):
            seen = await self._store.find(name)
            if seen is None or (seen.operation and seen.state in _UNSEEN):
                return seen
            status = await self._look(seen)
            async with self._transactions.transaction():
                try:
                    before = await self._store.lock(name)
                except NotFound:
                    return None
                if _same(before, seen):
                    return await self._write(before, status)
            # Somebody wrote it meanwhile: what was looked at may be older than that.
        return seen

    async def _look(self, instance: Instance) -> Status:
        try:
            return await self._provider.status(instance.name)
        except NotFound:
            return replace(instance.status, nodes=(), primary="")
        except FailedPrecondition as error:  # its files can not be read
            log.warning("status not read", instance=instance.name, detail=error.message)
            return replace(instance.status, nodes=(), primary="")

    async def _write(self, before: Instance, status: Status) -> Instance:
        record = replace(before, status=status)
        if not before.operation:
            state, message = self._state(before, status)
            if state is before.state is InstanceState.FAILED:  # why it failed is known better than how it looks
                message = before.state_message or message
            record = replace(record, state=state, state_message=message)
        if record == before:
            return record
        record = await self._store.save(record)
        if record.hidden:
            return record
        report = status.last_failover
        # A change that somebody asked for is recorded by its operation, with who did.
        asked_for = bool(before.operation) and before.state is InstanceState.FAILING_OVER
        if report is not None and report != before.status.last_failover and not asked_for:
            await self._recorder.record_failover(record, report, operation=before.operation)
        if not before.operation:
            news = [*await self._nodes(before, record), *_broken(before, record), *self._storage(before, record)]
            for event in news:
                await self._recorder.record(event)
        return record

    def _state(self, instance: Instance, status: Status) -> tuple[InstanceState, str]:
        state, message = state_of(instance.spec, status)
        settings = instance.spec.high_availability
        candidates = [node.id for node in status.nodes if node.state is NodeState.READY]
        if state is not InstanceState.UNAVAILABLE or not candidates or not settings or not settings.automatic_failover:
            self._without_primary.pop(instance.uid, None)
            return state, message
        since = self._without_primary.setdefault(instance.uid, self._clock())
        if self._clock() - since >= _FAILOVER_SECONDS:
            return state, message
        return InstanceState.FAILING_OVER, message

    async def _nodes(self, before: Instance, after: Instance) -> list[Event]:
        known = {node.id: node for node in before.status.nodes}
        events = []
        for node in after.status.nodes:
            was = known.get(node.id)
            if was is None or was.state is node.state:
                continue
            if was.state is NodeState.READY and node.state is not NodeState.STOPPED:
                events.append(about(after.spec, EventKind.NODE_LOST, f"{node.id} is {node.state}", node=node.id))
            elif node.state is NodeState.READY and (was.state in _GONE or await self._is_lost(after, node)):
                events.append(about(after.spec, EventKind.NODE_REJOINED, f"{node.id} serves again", node=node.id))
        return events

    async def _is_lost(self, instance: Instance, node: Node) -> bool:
        """Whether the last that was told of a node is that it was lost; a new one starts too."""
        conditions = [Condition("instance_uid", "=", instance.uid), Condition("node", "=", node.id)]
        told = await self._events.list_events(instance.name, PageRequest(_NODE_EVENTS, None), conditions)
        kinds = [event.kind for event in told if event.kind in (EventKind.NODE_LOST, EventKind.NODE_REJOINED)]
        return kinds[:1] == [EventKind.NODE_LOST]

    def _storage(self, before: Instance, after: Instance) -> Iterator[Event]:
        last = self._storage_levels.get(after.uid, storage_level(_storage_share(before), None))
        level = storage_level(_storage_share(after), last)
        self._storage_levels[after.uid] = level
        if level is not None and level is not last and last is not EventKind.STORAGE_FULL:
            used, limit = after.status.storage_used_bytes, after.spec.resources.storage_bytes
            yield about(after.spec, level, f"{used} of {limit} bytes of storage are in use", node=after.status.primary)


def storage_level(share: float, last: EventKind | None) -> EventKind | None:
    """STORAGE_LOW, STORAGE_FULL or None for this share of the storage in use, when `last` was the level before."""
    if share >= 1.0 or (last is EventKind.STORAGE_FULL and share >= 1.0 - _RELIEF):
        return EventKind.STORAGE_FULL
    if share >= _LOW or (last is not None and share >= _LOW - _RELIEF):
        return EventKind.STORAGE_LOW
    return None


def _storage_share(instance: Instance) -> float:
    return instance.status.storage_used_bytes / instance.spec.resources.storage_bytes


def _broken(before: Instance, after: Instance) -> Iterator[Event]:
    if after.state is InstanceState.UNAVAILABLE and before.state is InstanceState.FAILING_OVER:
        yield about(after.spec, EventKind.FAILOVER_FAILED, after.state_message)
    if after.state in _BROKEN and before.state not in _BROKEN:
        yield about(after.spec, EventKind.FAILED, f"it is {after.state}: {after.state_message}")


def _same(one: Instance, other: Instance) -> bool:
    """Whether nobody wrote a record between two readings, but for its backups."""
    return replace(one, backups=other.backups) == other
