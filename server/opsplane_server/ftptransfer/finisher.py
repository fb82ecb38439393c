"""Gives files their names once they are safe on the disk, many at a time, off the event loop.

A switch to a thread and back costs as much as all other system calls for a small file. So files that are complete
within a few milliseconds go together; where the disk is slow each has a thread of its own, since a disk makes many
files safe in the time of one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from opsplane_server.ftptransfer.failures import TransferFailure
from opsplane_server.ftptransfer.local_files import Finish, Target, disk_failure

_GATHER_SECONDS: Final = 0.004
_BATCH_SECONDS: Final = 0.004  # how much work a thread is given at once
_MOST: Final = 64


class _Job:
    __slots__ = ("done", "failure", "finish", "target")

    def __init__(self, target: Target, finish: Finish, done: asyncio.Future[None]) -> None:
        self.target = target
        self.finish = finish
        self.done = done
        self.failure: Exception | None = None


class Finisher:
    """Runs `Target.finish` in up to `threads` threads. Leaving it waits for what is under way."""

    def __init__(self, *, threads: int = 16) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="finish")
        self._jobs: list[_Job] = []
        self._seconds = 0.0  # a file takes, lately

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        await asyncio.to_thread(self._threads.shutdown)

    async def finish(self, target: Target, finish: Finish) -> None:
        """As `Target.finish`. It goes on to its end, and closes the file, even when the caller is cancelled."""
        job = _Job(target, finish, self._loop.create_future())
        if not self._jobs:
            self._loop.call_later(_GATHER_SECONDS, self._flush)
        self._jobs.append(job)
        await job.done

    def _flush(self) -> None:
        jobs, self._jobs = self._jobs, []
        size = max(1, min(_MOST, int(_BATCH_SECONDS / self._seconds))) if self._seconds else _MOST
        for start in range(0, len(jobs), size):
            self._threads.submit(self._work, jobs[start : start + size])

    def _work(self, jobs: Sequence[_Job]) -> None:
        began = time.perf_counter()
        _finish(jobs)
        seconds = (time.perf_counter() - began) / len(jobs)
        self._loop.call_soon_threadsafe(self._tell, jobs, seconds)

    def _tell(self, jobs: Sequence[_Job], seconds: float) -> None:
        self._seconds += (seconds - self._seconds) / 8 if self._seconds else seconds
        for job in jobs:
            if job.done.done():  # the caller was cancelled
                continue
            if job.failure is None:
                job.done.set_result(None)
            else:
                job.done.set_exception(job.failure)


def _finish(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        try:
            job.target.rename(job.finish)
        except Exception as error:
            job.failure = error
    synced: dict[tuple[int, int], TransferFailure | None] = {}
    for job in jobs:
        try:
            for folder in job.target.folders if job.failure is None else ():
                job.failure = job.failure or _sync(folder, synced)
        finally:
            job.target.leave()


def _sync(folder: int, synced: dict[tuple[int, int], TransferFailure | None]) -> TransferFailure | None:
    """Makes the folder's entries safe, once for all of them that are the same folder."""
    found = os.fstat(folder)
    key = found.st_dev, found.st_ino
    if key not in synced:
        try:
            os.fsync(folder)
            synced[key] = None
        except OSError as error:
            synced[key] = disk_failure(error, "the folder")
    return synced[key]
