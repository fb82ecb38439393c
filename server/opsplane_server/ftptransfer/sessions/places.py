"""The right to have a session: a place of the connection's and one of the pod's, shared with the other processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from opsplane_server.ftptransfer.sessions.slots import Queue, Slot, SlotFolder

MAX_PROCESSES: Final = 64
"""Processes of a pod that are counted."""
_ASK: Final = 0.1
"""Seconds between questions whether other processes wait."""


class Place:
    """A place for one session; `number` is that of the connection's places."""

    __slots__ = ("_slots", "number")

    def __init__(self, connection: Slot, pod: Slot) -> None:
        self.number = connection.number
        self._slots = (connection, pod)

    def release(self) -> None:
        """Gives it back; once."""
        for slot in self._slots:
            slot.release()


class PodPlaces:
    """The places of the pod, over all connections."""

    def __init__(self, folder: Path, limit: int, make_room: Callable[[], bool]) -> None:
        """`make_room` is asked to end a session that does nothing, and says whether there was one."""
        self.limit = limit
        self._slots = SlotFolder(folder / "places")
        self._make_room = make_room
        self.queue = Queue(folder / "waiting")

    def take(self) -> Slot | None:
        """A place; None when all are at work."""
        slot = self._slots.take(self.limit)
        if slot is None and self._make_room():
            slot = self._slots.take(self.limit)
        return slot

    def close(self) -> None:
        """Waits no more."""
        self.queue.close()


class ConnectionPlaces:
    """The places of one connection."""

    def __init__(self, folder: Path, pod: PodPlaces) -> None:
        self._slots = SlotFolder(folder / "places")
        self._processes = SlotFolder(folder / "processes")
        self._queue = Queue(folder / "waiting")
        self._pod = pod
        self._presence: Slot | None = None
        self._asked = 0.0
        self._processes_wanting = 1

    def take(self, limit: int, maximum: int) -> Place | None:
        """A place for a session, where the connection may have `limit` of at most `maximum` in the pod."""
        if self._presence is None:
            self._presence = self._processes.take(MAX_PROCESSES)
        if limit < maximum and self._slots.taken(maximum) >= limit:
            # Some were taken when the limit was higher: their numbers are beyond it, and the server counts them.
            return None
        slot = self._slots.take(limit)
        if slot is None:
            return None
        pod = self._pod.take()
        if pod is None:
            slot.release()
            return None
        return Place(slot, pod)

    def taken(self, maximum: int) -> int:
        """How many sessions the pod has or opens now."""
        return self._slots.taken(maximum)

    def wait(self, waiting: bool) -> None:
        """Says to the other processes whether this one waits for a place."""
        self._queue.wait(waiting)

    def others_wait(self) -> bool:
        """Whether another process waits for a place of this connection; known up to a fraction of a second ago."""
        return self._wanting() > 1

    def share(self, limit: int) -> int:
        """How many of `limit` sessions this process may have: all of them while no other process waits for one."""
        return max(1, -(-limit // self._wanting()))

    def _wanting(self) -> int:
        """How many processes want places, this one included; 1 while no other waits for one."""
        now = time.monotonic()
        if now - self._asked > _ASK:
            self._asked = now
            self._processes_wanting = max(2, self._processes.taken(MAX_PROCESSES)) if self._queue.others() else 1
        return self._processes_wanting

    def leave(self) -> None:
        """This process wants no places now."""
        self._queue.close()
        if self._presence is not None:
            self._presence.release()
            self._presence = None
