"""Places that the processes of a pod share: locked files, which the kernel gives back when a process dies."""

from __future__ import annotations

import fcntl
import os
import random
from pathlib import Path
from typing import Final

_MODE: Final = 0o600


class Slot:
    """A place that is taken until it is released."""

    __slots__ = ("_descriptor", "number")

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives it back; once."""
        os.close(self._descriptor)


class SlotFolder:
    """A number of places, each a file in a folder. Whoever has the lock of a file has the place."""

    def __init__(self, folder: Path) -> None:
        """The folder is made when the first place is taken."""
        self._folder = folder

    def take(self, limit: int) -> Slot | None:
        """One of the first `limit` places; None when all are taken."""
        start = random.randrange(limit) if limit > 0 else 0  # noqa: S311 - so that processes seldom try the same one
        for each in range(limit):
            number = (start + each) % limit
            descriptor = self._open(number)
            if _lock(descriptor, fcntl.LOCK_EX):
                return Slot(number, descriptor)
            os.close(descriptor)
        return None

    def taken(self, limit: int) -> int:
        """How many of the first `limit` places are taken."""
        count = 0
        # Most were never taken, and have no file.
        for number in self._numbers():
            if number >= limit:
                continue
            descriptor = self._open(number)
            count += not _lock(descriptor, fcntl.LOCK_SH)
            os.close(descriptor)
        return count

    def _numbers(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self._folder)]
        except FileNotFoundError:
            return []

    def _open(self, number: int) -> int:
        return _open(self._folder / str(number))


class Queue:
    """Tells the other processes that this one waits for a place, and this one whether others do."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = -1
        self._waiting = False

    @property
    def waiting(self) -> bool:
        """Whether this process waits."""
        return self._waiting

    def wait(self, waiting: bool) -> None:
        """Says whether this process waits."""
        if waiting != self._waiting:
            self._waiting = waiting
            fcntl.flock(self._opened(), fcntl.LOCK_SH if waiting else fcntl.LOCK_UN)

    def others(self) -> bool:
        """Whether another process waits."""
        descriptor = self._opened()
        alone = _lock(descriptor, fcntl.LOCK_EX)
        # Whoever asks gives up the lock that it had.
        fcntl.flock(descriptor, fcntl.LOCK_SH if self._waiting else fcntl.LOCK_UN)
        return not alone

    def close(self) -> None:
        """Waits no more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._waiting = False

    def _opened(self) -> int:
        if self._descriptor < 0:
            self._descriptor = _open(self._file)
        return self._descriptor


def _open(file: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(file, flags, _MODE)
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, flags, _MODE)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
