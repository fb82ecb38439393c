"""The loop that does transfers: takes tasks, runs their attempts side by side, and hands their outcomes back.

Nothing is asked of the queue for a single file: tasks are taken and settled in batches, and one statement a second
renews the lease and tells the progress of all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import structlog

from opsplane_server.errors import LeaseLost, OpsplaneError
from opsplane_server.ftptransfer import retries
from opsplane_server.ftptransfer.attempt import Attempt, Means, Version
from opsplane_server.ftptransfer.downloads import Download
from opsplane_server.ftptransfer.expansion import LocalListing, expand
from opsplane_server.ftptransfer.failures import ErrorReason, HeldBack, TransferFailure
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.finisher import Finisher
from opsplane_server.ftptransfer.lanes import Exhausted, Lanes
from opsplane_server.ftptransfer.local_files import FileBusy, LocalFiles
from opsplane_server.ftptransfer.model import (
    Cancelled,
    Child,
    Expanded,
    Failed,
    LeftOver,
    LocalFolder,
    Outcome,
    Released,
    Retry,
    Selection,
    Succeeded,
    Task,
)
from opsplane_server.ftptransfer.ports import Sessions, TransferQueue
from opsplane_server.ftptransfer.progress import InHand, Why, kept
from opsplane_server.ftptransfer.settling import Settler
from opsplane_server.ftptransfer.uploads import Upload
from opsplane_server.storage.signals import Signal

log = structlog.get_logger(__name__)

_RENEW_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 1.0
_BUSY_SECONDS: Final = 1.0
_CLEAN_UP_SECONDS: Final = 30.0
_LEAVE_SECONDS: Final = 5.0
_LEASE_PART: Final = 0.8  # of the lease; the rest is for what is just being done when it ends


class TransferEngine:
    """Does the transfers of `queue` while it is entered.

    worker: names this process and no other, nor an earlier one. places: most tasks in hand, of all connections.
    sessions_per_connection: how many sessions a connection has of which nothing is known yet. lease_seconds: as long
    as the queue's. drain_seconds: how long transfers under way may go on when it is left; then they are given back.
    """

    def __init__(
        self,
        queue: TransferQueue,
        sessions: Sessions,
        work: Signal,
        figures: TransferFigures,
        *,
        worker: str,
        places: int = 400,
        sessions_per_connection: int = 10,
        lease_seconds: float = 15.0,
        drain_seconds: float = 10.0,
    ) -> None:
        self._queue = queue
        self._sessions = sessions
        self._work = work
        self._figures = figures
        self._worker = worker
        self._places = places
        self._sessions_per_connection = sessions_per_connection
        self._lease_seconds = lease_seconds * _LEASE_PART
        self._lease_until = 0.0
        self._drain_seconds = drain_seconds
        self._finisher = Finisher()
        self._means = Means(sessions, self._finisher, self._has_lease, figures.begun)
        self._settler = Settler(queue, worker, self._settled)
        self._in_hand: dict[str, InHand] = {}
        self._lanes = Lanes(self._session_limit)
        self._room = asyncio.Event()
        self._crowded = False
        self._leased = asyncio.Event()
        self._exhausted = Exhausted()
        self._loops: list[asyncio.Task[None]] = []
        self.draining = False

    async def __aenter__(self) -> Self:
        await self._finisher.__aenter__()
        self._loops = [
            asyncio.create_task(self._take_up(), name="take transfers up"),
            asyncio.create_task(self._keep(), name="keep the lease of transfers"),
            asyncio.create_task(self._settler.run(), name="settle transfers"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes nothing more, lets what is under way go on for a while, and gives the rest back."""
        self.draining = True
        take_up, keep, settle = self._loops
        await _stop(take_up)
        await self._drain()
        await self._finisher.__aexit__(None, None, None)
        await _stop(settle)
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._settler.flush()
                await self._queue.leave(self._worker)
        except (OpsplaneError, TimeoutError) as failure:
            # Others go on when the lease has run out.
            log.warning("transfers not given back", error=str(failure))
        await _stop(keep)

    async def _drain(self) -> None:
        for held in self._in_hand.values():
            if not held.started:
                held.break_off(Why.RELEASED)
        await self._wait(self._drain_seconds)
        for held in self._in_hand.values():
            held.break_off(Why.RELEASED)
        await self._wait(_LEAVE_SECONDS)
        for held in self._in_hand.values():
            held.abandon()
        await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        jobs = [held.job for held in self._in_hand.values() if held.job is not None and not held.job.done()]
        if jobs:
            await asyncio.wait(jobs, timeout=seconds)

    # Taking

    async def _take_up(self) -> None:
        while True:
            await self._leased.wait()
            seen = self._work.generation
            self._room.clear()
            limit = min(self._places - len(self._in_hand), self._lanes.room(2 * self._sessions_per_connection))
            self._crowded = limit <= 0
            if self._crowded:
                await self._room.wait()
                continue
            without = {*self._lanes.full(time.monotonic()), *self._sessions.held_back()}
            if self._exhausted.covers(without, seen, time.monotonic()):
                await self._work_or_room(seen)
                continue
            tasks = await self._take(limit, without)
            for task in tasks:
                self._start(task)
            if len(tasks) < limit:
                self._exhausted = Exhausted(without, seen, time.monotonic() + _POLL_SECONDS)

    async def _take(self, limit: int, without: Collection[str]) -> Sequence[Task]:
        try:
            return await self._queue.take(self._worker, limit, without=without)
        except OpsplaneError as failure:
            log.warning("no transfers taken", detail=failure.message)
        except Exception:
            log.exception("no transfers taken")
        await asyncio.sleep(_POLL_SECONDS)
        return ()

    async def _work_or_room(self, seen: int) -> None:
        changed = asyncio.create_task(self._work.changed(seen, _POLL_SECONDS))
        room = asyncio.create_task(self._room.wait())
        try:
            await asyncio.wait((changed, room), return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
            room.cancel()

    def _session_limit(self, connection: str) -> int:
        figures = self._sessions.figures().get(connection)
        return figures.limit if figures is not None and figures.limit else self._sessions_per_connection

    # Doing

    def _start(self, task: Task) -> None:
        now = time.monotonic()
        held = InHand(task, self._attempt(task), now)
        self._in_hand[task.id] = held
        self._lanes.add(task.remote.id, now)
        held.job = asyncio.create_task(self._do(held))
        held.job.add_done_callback(lambda job: self._ended(held, job))

    def _attempt(self, task: Task) -> Attempt | None:
        if task.selection is not Selection.FILE:
            return None
        earlier = Version(task.size, task.modify_time) if task.modify_time is not None else None
        return (Upload if task.is_upload else Download)(task, self._means, earlier=earlier)

    async def _do(self, held: InHand) -> Outcome | None:
        """What came of a task; None when it is lost."""
        try:
            return await self._outcome(held)
        except LeaseLost:
            pass
        except asyncio.CancelledError:
            if held.why is Why.CANCELLED:
                return await self._cancelled(held)
            if held.why is not Why.LOST:
                return Released(held.sent)
        if held.attempt is not None and held.attempt.steps.begun:
            # Whoever has the task now may have ended it before this attempt wrote its temporary file. If not, that one
            # has to begin again.
            await self._clean_up(held)
        return None

    async def _outcome(self, held: InHand) -> Outcome:
        if held.task.is_over:
            return await self._end(held)
        try:
            return await self._run(held)
        except TransferFailure as failure:
            return await self._failed(held, failure)
        except (asyncio.CancelledError, LeaseLost):
            raise
        except OpsplaneError as error:  # of the queue, while a tree was expanded
            log.warning("transfer waits", transfer=held.task.id, detail=error.message)
            await asyncio.sleep(_POLL_SECONDS)
            return Released(held.sent)
        except Exception as error:
            log.exception("transfer failed unexpectedly", transfer=held.task.id)
            return await self._failed(held, TransferFailure(ErrorReason.UNSPECIFIED, f"unexpected: {error!r}"))

    async def _run(self, held: InHand) -> Succeeded | Expanded:
        if held.attempt is not None:
            return await held.attempt.run()
        task = held.task
        held.expanding = True
        self._figures.begun()

        async def add(children: Sequence[Child]) -> None:
            await self._queue.expand(task, children)

        if isinstance(task.source.connection.kind, LocalFolder):
            await expand(task, LocalListing(LocalFiles(task.source.connection.kind.base_path)), add)
        else:
            async with self._sessions.session(task.remote) as session:
                await expand(task, session, add)
        return Expanded()

    async def _failed(self, held: InHand, failure: TransferFailure) -> Outcome:
        if not self._has_lease():
            raise LeaseLost(f"the lease of transfer {held.task.id} has run out")
        if held.unwanted:
            return await self._cancelled(held)
        task = held.task
        if isinstance(failure, HeldBack):
            if task.remote.id not in self._sessions.held_back():
                # Another process is just trying the server.
                await asyncio.sleep(_BUSY_SECONDS)
            return Released()  # its server was not even asked
        if isinstance(failure, FileBusy):
            # The kernel frees the file when that process wakes up or dies; until then no attempt is to blame.
            await asyncio.sleep(_BUSY_SECONDS)
            return Released(held.sent)
        seconds = None if task.is_last_attempt else retries.delay(failure.failure, task.attempt)
        if seconds is not None:
            return Retry(failure.failure, seconds, held.sent, _seconds(held))
        log.info(
            "transfer failed",
            transfer=task.id,
            code=failure.code.value,
            reason=failure.reason.value,
            detail=failure.message,
            attempt=task.attempt,
        )
        if await self._clean_up(held):
            return LeftOver(failure.failure, held.sent, _seconds(held))
        return Failed(failure.failure, held.sent, _seconds(held))

    async def _cancelled(self, held: InHand) -> Cancelled | LeftOver:
        if await self._clean_up(held):
            return LeftOver(None, held.sent, _seconds(held))
        return Cancelled(held.sent, _seconds(held))

    async def _end(self, held: InHand) -> Outcome:
        """Ends a task that is not to be attempted any more."""
        failure = held.task.failure
        if not await self._clean_up(held):
            return Cancelled() if failure is None else Failed(failure)
        # The server may be back in a moment; the queue knows when it has waited long enough.
        await asyncio.sleep(_BUSY_SECONDS)
        return LeftOver(failure)

    async def _clean_up(self, held: InHand) -> bool:
        """Removes what is left of a task; True when it was not possible, but may be later."""
        if held.attempt is None:
            return False
        try:
            async with asyncio.timeout(_CLEAN_UP_SECONDS):
                await held.attempt.clean_up()
        except (TransferFailure, TimeoutError) as failure:
            log.warning("temporary file not removed", transfer=held.task.id, detail=str(failure))
            return isinstance(failure, TimeoutError) or failure.retryable
        except Exception:
            log.exception("temporary file not removed", transfer=held.task.id)
        return False

    # Ending

    def _ended(self, held: InHand, job: asyncio.Task[Outcome | None]) -> None:
        # One that is cancelled before its first step has no outcome of its own.
        outcome = Released() if job.cancelled() else job.result()
        task = held.task
        self._count(held, outcome)
        if self._lanes.end(task.remote.id, time.monotonic()):
            self._room.set()
        if held.attempt is not None and isinstance(outcome, Retry | Released):
            size, modify_time = kept(held.attempt.steps.version)
            outcome = replace(outcome, size=size, modify_time=modify_time)
        if outcome is None:
            self._forget(task)
        else:
            self._settler.add(task, outcome)

    def _settled(self, outcomes: Iterable[tuple[Task, Outcome]]) -> None:
        for task, _ in outcomes:
            self._forget(task)

    def _forget(self, task: Task) -> None:
        held = self._in_hand.get(task.id)
        # It may have been taken again already.
        if held is not None and held.task is task:
            del self._in_hand[task.id]
        if self._crowded:
            self._room.set()

    def _count(self, held: InHand, outcome: Outcome | None) -> None:
        figures = self._figures
        figures.transferred(held.count())
        if not held.started:
            figures.begun()
        match outcome:
            case Succeeded(duration=seconds):
                figures.succeeded(seconds)
            case Failed(failure=failure, duration=seconds):
                figures.failed(failure.code, seconds)
            case _:
                figures.paused()

    # The lease

    def _has_lease(self) -> bool:
        return time.monotonic() < self._lease_until

    async def _keep(self) -> None:
        while True:
            began = time.monotonic()
            if self._leased.is_set() and not self._has_lease():
                self._lose()
            try:
                async with asyncio.timeout(self._lease_seconds):
                    await self._renew(began)
            except (OpsplaneError, TimeoutError) as failure:
                log.warning("lease of transfers not renewed", error=str(failure))
            except Exception:
                log.exception("lease of transfers not renewed")
            await asyncio.sleep(max(0.0, began + _RENEW_SECONDS - time.monotonic()))

    async def _renew(self, began: float) -> None:
        if not self._leased.is_set():
            # The queue may think that it still has what is lost.
            await self._queue.leave(self._worker)
        held = [entry for entry in self._in_hand.values() if entry.why is not Why.LOST]
        for entry in held:
            self._figures.transferred(entry.count())
        gone = await self._queue.renew(self._worker, [entry.progress(began) for entry in held])
        if self._leased.is_set() and not self._has_lease():
            return  # it came too late
        self._lease_until = began + self._lease_seconds
        self._leased.set()
        for entry in held:
            if entry.task.id in gone:
                entry.break_off(Why.CANCELLED)

    def _lose(self) -> None:
        """The lease has run out: others may have the tasks now, and their temporary files."""
        log.warning("transfers lost", count=len(self._in_hand))
        self._leased.clear()
        for held in self._in_hand.values():
            held.break_off(Why.LOST)
        self._settler.drop()


def _seconds(held: InHand) -> float:
    return held.attempt.steps.seconds if held.attempt is not None else 0.0


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
