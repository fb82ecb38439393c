"""Work on many bytes in a thread: counted, told of, and stopped when nobody wants it any more."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from opsplane_server.errors import ResourceExhausted
from opsplane_server.instances.ports import Progress

_TELL_SECONDS = 0.5
_SPARE_BYTES = 64 * 1024 * 1024

T = TypeVar("T")
U = TypeVar("U")


class Stopped(Exception):
    """Raised in the thread when its work is not wanted any more; nobody outside of this module sees it."""


class Tally:
    """Counts what a thread has done of `total` bytes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._stopped = False

    def add(self, count: int) -> None:
        """Called by the thread, for every megabyte or so: this is where it ends when it has to."""
        if self._stopped:
            raise Stopped
        self._done += count

    def stop(self) -> None:
        """Has the next `add` raise."""
        self._stopped = True

    @property
    def percent(self) -> int:
        """What is done, 0 to 100."""
        return min(100, self._done * 100 // self._total) if self._total else 0


async def in_thread(work: Callable[[], T], tally: Tally, tell: Callable[[int], Awaitable[None]]) -> T:
    """Runs `work`, which adds to `tally`, in a thread, and tells how much is done about twice a second.

    When this is cancelled, or `tell` raises, the thread has ended before this does.
    """
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=_TELL_SECONDS)
            if done:
                return task.result()
            await tell(tally.percent)
    finally:
        if not task.done():
            tally.stop()
            await asyncio.wait({task})
            task.exception()  # Stopped, as a rule; whoever broke this off has an error of their own


def files_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every regular file in `folder`, in the order of names; what vanishes meanwhile is left out. Blocks."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path))
        else:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield Path(entry.path), status


def size_of(folder: Path) -> int:
    """Bytes of the files in `folder`. Blocks."""
    return sum(status.st_size for _, status in files_below(folder))


def storage_of(folder: Path) -> int:
    """Bytes that the files in `folder` take on the disk, without the holes of sparse ones. Blocks."""
    return sum(status.st_blocks * 512 for _, status in files_below(folder))


def require_space(folder: Path, needed: int, what: str) -> None:
    """ResourceExhausted (NO_SPACE) when the file system of `folder` has no room for `needed` bytes and some more."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise ResourceExhausted(
            f"{what} takes {needed:,} bytes, but {folder} has {free:,} free",
            reason="NO_SPACE",
            metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
        )


@dataclass(slots=True)
class Part:
    """Tells of a part of some work: `width` percent of the whole, from `start` on."""

    progress: Progress
    message: str
    start: int = 0
    width: int = 100
    _told: int = field(default=-1, init=False)

    async def tell(self, percent: int) -> None:
        """percent: of this part. Told once each."""
        done = self.start + percent * self.width // 100
        if done != self._told:
            self._told = done
            await self.progress(self.message, done)


async def together(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Runs both at once; when one fails the other is cancelled, and the error comes out as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            one, two = tasks.create_task(first), tasks.create_task(second)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return one.result(), two.result()
