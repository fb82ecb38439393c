"""Batches that wait for the server: in memory, and in the spool."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from opsplane.logs.queue import RecordQueue
from opsplane.logs.report import ProblemKind, Reporter
from opsplane.logs.settings import Settings
from opsplane.logs.spool import Spool, Spooled, SpoolFull

_ADOPT_SECONDS = 30.0
_AGAIN_SECONDS = 1.0


@dataclass(slots=True)
class Batch:
    """Records that are sent together, always under the same id."""

    batch_id: str
    record_count: int
    request: bytes
    """A StreamLogsRequest with the batch, serialized."""
    cost: int
    """Bytes that it takes of the bound of memory."""
    spooled: Spooled | None = None
    """Where it is in the spool; None for one that is in memory alone."""


class Backlog:
    """Belongs to the sender's thread. Faults of the disk are reported, and records stay in memory then."""

    def __init__(self, settings: Settings, queue: RecordQueue, reporter: Reporter) -> None:
        self.in_memory: deque[Batch] = deque()
        self.spilled = 0
        """Records written to the spool so far."""
        self.spool: Spool | None = None
        self._settings = settings
        self._queue = queue
        self._reporter = reporter
        self._spool_turn = True
        self._adopt_at = 0.0
        self._spill_at = 0.0  # when the spool may take something again; 0 for now
        self._looked_for_leftovers = False
        if settings.spool is not None:
            self.spool = Spool(
                settings.spool,
                settings.spool_name,
                limit=settings.spool_bytes,
                segment_bytes=settings.segment_bytes,
                sync=settings.spool_fsync,
            )

    @property
    def empty(self) -> bool:
        """True when `next` has nothing to give."""
        return not self.in_memory and (self.spool is None or not self.spool.unread)

    @property
    def due_at(self) -> float:
        """When `adopt` or `spill` has something to do without anything new."""
        if self.spool is None:
            return float("inf")
        return min(self._adopt_at, self._spill_at or self._adopt_at)

    @property
    def spool_bytes(self) -> int:
        """Size of what this process has in the spool."""
        return self.spool.size if self.spool is not None else 0

    def next(self) -> Batch | None:
        """From the spool and from memory by turns, so that neither waits until the other is empty."""
        self._spool_turn = not self._spool_turn
        if (self._spool_turn or not self.in_memory) and (batch := self._read()) is not None:
            return batch
        return self.in_memory.popleft() if self.in_memory else None

    def give_back(self, batches: Sequence[Batch]) -> None:
        """All that `next` gave and that was not acknowledged since, in that order: `next` will give it again."""
        for batch in reversed(batches):
            if batch.spooled is None:
                self.in_memory.appendleft(batch)
            else:
                self._queue.release(batch.cost)
        if self.spool is not None:
            self.spool.rewind()

    def acknowledge(self, batch: Batch) -> None:
        """Forgets a batch; those of the spool in the order in which `next` gave them."""
        if batch.spooled is not None and self.spool is not None:
            try:
                self.spool.acknowledge(batch.spooled)
            except OSError as error:
                self._reporter.tell(ProblemKind.SPOOL, f"the spool {self._settings.spool} can not be written: {error}")
        self._queue.release(batch.cost)

    def spill(self, keep_bytes: int) -> None:
        """Moves batches from memory to the spool, the oldest first, until memory holds no more than that."""
        if self.spool is None or time.monotonic() < self._spill_at:
            return
        self._spill_at = 0.0
        while self.in_memory and self._queue.used > keep_bytes and self._spill_one(self.spool):
            pass

    def close(self) -> int:
        """Spills all and lets go of the spool; returns how many records that did not work for."""
        if self.spool is not None:
            while self.in_memory and self._spill_one(self.spool):
                pass
            self.spool.close()
        lost = sum(batch.record_count for batch in self.in_memory)
        self.in_memory.clear()
        return lost

    def adopt(self) -> None:
        """Takes over what dead processes have left, from time to time."""
        now = time.monotonic()
        if self.spool is None or now < self._adopt_at:
            return
        self._adopt_at = now + _ADOPT_SECONDS
        try:
            for line in self.spool.adopt():
                self._reporter.tell(ProblemKind.DAMAGED, line)
            if not self._looked_for_leftovers:
                self._looked_for_leftovers = True
                for path in self.spool.leftovers():
                    self._reporter.tell(
                        ProblemKind.SPOOL, f"{path} holds log records of another server or client id; nobody ships them"
                    )
        except OSError as error:
            self._reporter.tell(ProblemKind.SPOOL, f"the spool {self._settings.spool} can not be read: {error}")

    def _read(self) -> Batch | None:
        if self.spool is None:
            return None
        try:
            spooled = self.spool.read()
        except OSError as error:
            self._reporter.tell(ProblemKind.SPOOL, f"the spool {self._settings.spool} can not be read: {error}")
            return None
        if damaged := self.spool.take_damaged_bytes():
            self._reporter.tell(
                ProblemKind.DAMAGED, f"{damaged} bytes of the spool were no whole batch and are left out"
            )
        if spooled is None:
            return None
        frame = spooled.frame
        cost = len(frame.payload)
        self._queue.reserve(cost)
        return Batch(frame.batch_id, frame.record_count, frame.payload, cost, spooled)

    def _spill_one(self, spool: Spool) -> bool:
        batch = self.in_memory[0]
        try:
            spool.append(batch.batch_id, batch.record_count, batch.request)
        except SpoolFull:
            problem = f"the spool {self._settings.spool} holds its {self._settings.spool_bytes} bytes"
        except OSError as error:
            problem = f"the spool {self._settings.spool} can not be written: {error}"
        else:
            self.in_memory.popleft()
            self.spilled += batch.record_count
            self._queue.release(batch.cost)
            self._reporter.end(ProblemKind.SPOOL, f"the spool {self._settings.spool} takes records again")
            return True
        self._spill_at = time.monotonic() + _AGAIN_SECONDS
        self._reporter.begin(ProblemKind.SPOOL, f"{problem}; log records are kept in memory")
        return False
