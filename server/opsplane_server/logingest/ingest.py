"""Group commit: what many streams send becomes few transactions, each one COPY.

A few lanes, one connection each, take what has arrived since they last took: under load a group holds the batches of
many streams, and while one lane waits for PostgreSQL another decodes. A batch is answered after its commit.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import structlog
from opsplane.logingest.v1 import records_pb2

from opsplane_server.errors import OpsplaneError, ResourceExhausted, Unavailable
from opsplane_server.logingest import figures, framing
from opsplane_server.logingest.acceptance import Acceptance
from opsplane_server.logingest.model import Durability
from opsplane_server.logingest.storing import GroupWork
from opsplane_server.logingest.write_ports import RecordWriter, RecordWriters
from opsplane_server.storage.signals import Signal

log = structlog.get_logger(__name__)

_GROUP_BYTES: Final = 1 << 20
_GROUP_BATCHES: Final = 1000
# Small batches that come while a COPY is under way are worth waiting for: a commit costs as much for one as for many.
_SMALL_GROUP_BYTES: Final = 64 << 10
_LINGER_SECONDS: Final = 0.003
_AWAY_SECONDS: Final = 10.0
_RECONNECT_SECONDS: Final = 0.2


@dataclass(slots=True, eq=False)
class Submission:
    """A batch on its way: as the message of a stream, without settings."""

    sender: str
    message: bytes
    answer: asyncio.Future[records_pb2.BatchResult]
    size: int
    arrived: float = field(default_factory=time.monotonic)


class Ingest:
    """Takes batches and stores them. One for each process.

    pending_bytes: most that waits to be stored; beyond it nothing is taken.
    """

    def __init__(
        self,
        writers: RecordWriters,
        acceptance: Acceptance,
        groups: Signal,
        *,
        lanes: int = 2,
        pending_bytes: int = 16 << 20,
    ) -> None:
        self._writers = writers
        self._acceptance = acceptance
        self._groups = groups
        self._lanes = lanes
        self._pending_limit = pending_bytes
        self._pending_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._waiting: dict[Durability, deque[Submission]] = {durability: deque() for durability in Durability}
        self._arrived = asyncio.Event()
        self._busy = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._run_lane(), name=f"store logs {number}") for number in range(self._lanes)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_waiting(Unavailable("the server shuts down", reason="SHUTTING_DOWN"), arrived_before=math.inf)

    async def write(self, sender: str, batch: bytes, durability: Durability) -> records_pb2.BatchResult:
        """Stores one serialized LogBatch and returns after its commit.

        Raises ResourceExhausted when too much is under way already, Unavailable when the database is away.
        """
        message = framing.join_message(batch)
        if not self.has_room(len(message)):
            raise ResourceExhausted(
                "too many logs are under way",
                reason="TOO_MUCH_PENDING",
                retry_after=timedelta(milliseconds=200),
            )
        return await self.submit(sender, message, durability)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may wait; any number may, where nothing does."""
        return self._pending_bytes == 0 or self._pending_bytes + size <= self._pending_limit

    async def wait_for_room(self, size: int) -> None:
        """Returns when so many bytes more may wait."""
        while not self.has_room(size):
            self._room.clear()
            await self._room.wait()

    def submit(self, sender: str, message: bytes, durability: Durability) -> asyncio.Future[records_pb2.BatchResult]:
        """Puts the message of a stream in line; the answer comes after the commit. Raises as `write`."""
        submission = Submission(sender, message, asyncio.get_running_loop().create_future(), len(message))
        self._pending_bytes += len(message)
        self._waiting[durability].append(submission)
        self._arrived.set()
        return submission.answer

    async def _run_lane(self) -> None:
        work: _Work | None = None
        while True:
            try:
                async with self._writers.writer() as writer:
                    while True:
                        if work is None:
                            work = await self._take()
                        await self._store(work, writer)
                        work = None
            except OpsplaneError as error:
                log.warning("logs can not be stored now", detail=error.message)
                limit = time.monotonic() - _AWAY_SECONDS
                if work is not None and work.arrived < limit:
                    self._fail(work.submissions, error)
                    work = None
                self._fail_waiting(error, arrived_before=limit)
                await asyncio.sleep(_RECONNECT_SECONDS)
            except Exception as error:
                log.exception("a group of logs was not stored")
                if work is not None:
                    self._fail(work.submissions, error)
                    work = None
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _take(self) -> _Work:
        while True:
            durability = self._next()
            if durability is None:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            waiting = self._waiting[durability]
            if self._busy and sum(one.size for one in waiting) < _SMALL_GROUP_BYTES:
                await asyncio.sleep(_LINGER_SECONDS)
            if submissions := _cut(waiting):
                return _Work(durability, submissions)

    def _next(self) -> Durability | None:
        """The durability whose first batch has waited longest."""
        waiting = [durability for durability, queue in self._waiting.items() if queue]
        return min(waiting, key=lambda durability: self._waiting[durability][0].arrived) if waiting else None

    async def _store(self, work: _Work, writer: RecordWriter) -> None:
        self._busy += 1
        began = time.monotonic()
        try:
            if work.group is None:
                submitted = [(one.sender, one.message) for one in work.submissions]
                work.group = GroupWork(submitted, self._acceptance, work.durability)
                for one in work.submissions:
                    one.message = b""  # it is decoded now
                del submitted
            await work.group.run(writer)
        finally:
            self._busy -= 1
        for submission, outcome in zip(work.submissions, work.group.outcomes, strict=True):
            self._settle(submission, outcome)
        if work.group.stored_count:
            self._groups.notify()
        figures.stored_group(time.monotonic() - began)
        figures.pending(self._pending_bytes)
        figures.count([one for one in work.group.outcomes if isinstance(one, records_pb2.BatchResult)])

    def _settle(self, submission: Submission, outcome: records_pb2.BatchResult | Exception) -> None:
        self._pending_bytes -= submission.size
        self._room.set()
        if submission.answer.done():  # its stream has gone
            return
        if isinstance(outcome, Exception):
            submission.answer.set_exception(outcome)
            submission.answer.exception()  # marks it as seen: whoever asked may have gone meanwhile
        else:
            submission.answer.set_result(outcome)

    def _fail(self, submissions: Sequence[Submission], error: Exception) -> None:
        for submission in submissions:
            self._settle(submission, error)

    def _fail_waiting(self, error: Exception, *, arrived_before: float) -> None:
        for queue in self._waiting.values():
            while queue and queue[0].arrived < arrived_before:
                self._settle(queue.popleft(), error)


@dataclass(slots=True)
class _Work:
    """What a lane has in hand."""

    durability: Durability
    submissions: Sequence[Submission]
    group: GroupWork | None = None

    @property
    def arrived(self) -> float:
        return self.submissions[0].arrived


def _cut(queue: deque[Submission]) -> Sequence[Submission]:
    """Takes from the head of the queue what makes a group."""
    group: list[Submission] = []
    size = 0
    while queue and len(group) < _GROUP_BATCHES and (not group or size + queue[0].size <= _GROUP_BYTES):
        submission = queue.popleft()
        size += submission.size
        group.append(submission)
    return group
