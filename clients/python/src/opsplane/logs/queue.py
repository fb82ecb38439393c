"""What the application has logged and the sender has not taken yet, bounded in bytes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

# What a record in the queue takes beyond its bytes: the object and its place.
OVERHEAD_BYTES = 64
_LOOK_SECONDS = 0.1


class RecordQueue:
    """Many threads put, one takes. `wake` is called when there is something to take, and when a batch is full.

    The lock is reentrant: a signal handler or a finalizer may log while its thread is in here.
    """

    def __init__(self, limit: int, batch_records: int, batch_bytes: int, wake: Callable[[], None]) -> None:
        self.limit = limit
        self.used = 0
        """Bytes in memory, what was taken and not yet released included."""
        self.accepted = 0
        self.dropped = 0
        self.first_at = 0.0
        """When the oldest record of the batch that is not full was put, in the time of `time.monotonic`."""
        self._batch_records = batch_records
        self._batch_bytes = batch_bytes
        self._wake = wake
        self._full: deque[tuple[list[bytes], int]] = deque()
        self._aside: deque[bytes] = deque()
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._lock = threading.RLock()
        self._room = threading.Event()

    @property
    def empty(self) -> bool:
        """True when there is nothing to take."""
        return not self._open and not self._full and not self._aside

    @property
    def batch_full(self) -> bool:
        """True when there is enough for a batch."""
        return bool(self._full)

    def put(self, record: bytes, wait: float = 0.0) -> bool:
        """Adds a record; False if there is no room, nor becomes any in `wait` seconds. It is counted then."""
        if wait > 0 and not self._has_room(record):
            self._await_room(record, wait)
        # Who waits for room also waits for the lock: put aside, the record could still be dropped after this said True.
        if not self._lock.acquire(blocking=wait > 0):
            # Threads that wait here would hand the lock around with a switch of threads for each record. Whoever has it
            # next adds this one; the sender, if nobody else.
            self._aside.append(record)
            self._wake()
            return True
        try:
            wake = self._add_aside()
            before = self.dropped
            wake |= self._add(record)
            taken = self.dropped == before
        finally:
            self._lock.release()
        if wake:
            self._wake()
        return taken

    def _add_aside(self) -> bool:
        wake = False
        while self._aside:
            wake |= self._add(self._aside.popleft())
        return wake

    def _add(self, record: bytes) -> bool:
        """Adds it with the lock held, or drops it; true if there is something to wake for."""
        size = len(record)
        if not self._has_room(record):
            self.dropped += 1
            return False
        wake = False
        if self._open_bytes + size > self._batch_bytes or len(self._open) == self._batch_records:
            self._close_batch()
            wake = True
        if not self._open:
            self.first_at = time.monotonic()
            wake = True
        self._open.append(record)
        self._open_bytes += size
        self.used += size + OVERHEAD_BYTES
        self.accepted += 1
        return wake

    def take(self) -> tuple[list[bytes], int]:
        """A batch of records, and the bytes to release once they are no longer in memory; none if there was no room."""
        with self._lock:
            self._add_aside()
            if not self._full:
                self._close_batch()
            records, size = self._full.popleft() if self._full else ([], 0)
        return records, size + OVERHEAD_BYTES * len(records)

    def _close_batch(self) -> None:
        if self._open:
            self._full.append((self._open, self._open_bytes))
        self._open, self._open_bytes = [], 0

    def reserve(self, size: int) -> None:
        """Counts bytes that came into memory by another way."""
        with self._lock:
            self.used += size

    def release(self, size: int) -> None:
        """Gives bytes back."""
        with self._lock:
            self.used -= size
        self._room.set()

    def drop(self, count: int = 1) -> None:
        """Counts records that were lost otherwise."""
        with self._lock:
            self.dropped += count

    def _has_room(self, record: bytes) -> bool:
        return self.used + len(record) + OVERHEAD_BYTES <= self.limit

    def _await_room(self, record: bytes, wait: float) -> None:
        deadline = time.monotonic() + wait
        while not self._has_room(record) and (left := deadline - time.monotonic()) > 0:
            self._room.clear()
            if not self._has_room(record):
                self._room.wait(min(left, _LOOK_SECONDS))
