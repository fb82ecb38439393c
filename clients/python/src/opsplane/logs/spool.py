"""The spool: segments in a folder, for what the server did not take yet. Survives the process; shared by many.

    SPOOL/                     one folder for all programs of a machine, or for one
      orders-1f0c.../          a client id at a server: only its own shippers touch it
        0a1b2c.../             a process; `lock` is locked as long as it lives
          lock 00000001.seg ...

A process writes into its own folder alone. The folder of a process that has died is taken over by whichever process of
the same client id finds it first, and its batches are sent under their own ids.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from opsplane.logs.segments import FRAME_BYTES, HEADER_BYTES, Frame, Segment

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUPPORTED = fcntl is not None
_LOCK = "lock"
_SUFFIX = ".seg"


class SpoolFull(Exception):
    """The spool holds as much as it may."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A batch that was read back."""

    frame: Frame
    folder: _Folder
    segment: Segment


class _Folder:
    """The folder of one process, locked by this one."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.segments: list[Segment] = []
        self._lock = lock

    @classmethod
    def create(cls, parent: Path) -> _Folder:
        while True:
            path = parent / secrets.token_hex(8)
            path.mkdir(mode=0o700)
            # Between the two lines another process may take it for one that died, and remove it.
            if (folder := cls.take(path)) is not None:
                return folder

    @classmethod
    def take(cls, path: Path) -> _Folder | None:
        """Locks a folder; None if its process lives, or it is gone."""
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        if os.fstat(lock).st_nlink == 0:  # removed by the one who had it
            os.close(lock)
            return None
        return cls(path, lock)

    def load(self) -> Iterator[str]:
        """Opens its segments; yields a line for each that is none."""
        for path in sorted(self.path.glob(f"*{_SUFFIX}")):
            try:
                segment = Segment.open(path)
            except (OSError, ValueError) as error:
                size = path.stat().st_size
                if size <= HEADER_BYTES:  # a process died as it made it
                    path.unlink()
                else:
                    path.rename(path.with_suffix(".unreadable"))
                    yield f"{size} bytes in the spool are not readable and are left aside: {error}"
                continue
            if segment.finished:
                segment.delete()
            else:
                self.segments.append(segment)

    def close(self, *, remove: bool) -> None:
        """Lets go of it. `remove`: nothing is left in it."""
        for segment in self.segments:
            segment.close()
        if remove:
            with suppress(OSError):
                (self.path / _LOCK).unlink()
                self.path.rmdir()
        os.close(self._lock)

    def abandon(self) -> None:
        """Closes files without a word to the process that this one was forked from, whose they are."""
        for segment in self.segments:
            segment.close()
        os.close(self._lock)


class Spool:
    """The spool of one process. Opens nothing until it is needed; not thread-safe. OSError tells of the disk."""

    def __init__(self, root: Path, name: str, *, limit: int, segment_bytes: int, sync: bool) -> None:
        self._root = root
        self._parent = root / name
        self._limit = limit
        self._segment_bytes = segment_bytes
        self._sync = sync
        self._own: _Folder | None = None
        self._adopted: list[_Folder] = []
        self._current: Segment | None = None
        self._number = 0
        self._dropped_damage = 0

    @property
    def size(self) -> int:
        """Bytes that this process has there, not acknowledged ones of a segment in use included."""
        return sum(segment.size for folder in self._folders() for segment in folder.segments)

    @property
    def unread(self) -> bool:
        """True when `read` may give something."""
        return any(segment.read_at < segment.size for folder in self._folders() for segment in folder.segments)

    @property
    def empty(self) -> bool:
        """True when nothing is left to be sent or acknowledged."""
        return not any(folder.segments for folder in self._folders())

    def append(self, batch_id: str, record_count: int, payload: bytes) -> None:
        """Adds a batch. Raises SpoolFull."""
        needed = FRAME_BYTES + len(batch_id) + len(payload)
        current = self._current
        if current is None or (current.size > HEADER_BYTES and current.size + needed > self._segment_bytes):
            current = self._rotate(needed)
        current.append(batch_id, record_count, payload, sync=self._sync)

    def read(self) -> Spooled | None:
        """The next batch to send: of dead processes first, then of this one."""
        for folder in self._folders():
            for segment in list(folder.segments):
                if (frame := segment.read()) is not None:
                    return Spooled(frame, folder, segment)
                if segment.finished:  # what was left of it was damaged
                    self._drop(folder, segment)
        return None

    def acknowledge(self, spooled: Spooled) -> None:
        """Forgets a batch; batches are acknowledged in the order in which they were read."""
        spooled.segment.acknowledge(spooled.frame)
        if spooled.segment.finished:
            self._drop(spooled.folder, spooled.segment)

    def rewind(self) -> None:
        """Reads again all that was not acknowledged."""
        for folder in self._folders():
            for segment in folder.segments:
                segment.rewind()

    def adopt(self) -> list[str]:
        """Takes over the folders of processes that have died; returns a line for each thing that was not readable."""
        told: list[str] = []
        if not self._parent.is_dir():
            return told
        mine = {folder.path for folder in self._folders()}
        for path in self._parent.iterdir():
            if path in mine or not path.is_dir() or (folder := _Folder.take(path)) is None:
                continue
            told.extend(folder.load())
            if folder.segments:
                self._adopted.append(folder)
            else:
                folder.close(remove=True)
        return told

    def leftovers(self) -> list[Path]:
        """Folders of dead processes of other client ids or servers, which nobody ships as long as none comes back."""
        found = []
        for parent in self._root.iterdir() if self._root.is_dir() else ():
            if parent == self._parent or not parent.is_dir():
                continue
            for path in parent.iterdir():
                if path.is_dir() and any(path.glob(f"*{_SUFFIX}")) and (folder := _Folder.take(path)) is not None:
                    folder.close(remove=False)
                    found.append(path)
        return found

    def take_damaged_bytes(self) -> int:
        """How many bytes were skipped since the last call, because they were no whole batch."""
        damaged = 0
        for folder in self._folders():
            for segment in folder.segments:
                damaged += segment.damaged_bytes
                segment.damaged_bytes = 0
        damaged += self._dropped_damage
        self._dropped_damage = 0
        return damaged

    def close(self) -> None:
        """Lets go of all folders, so that the next process finds what is left; the disk has it then."""
        for folder in self._folders():
            with suppress(OSError):
                for segment in folder.segments:
                    segment.sync()
            folder.close(remove=not folder.segments)
        self._forget()

    def abandon(self) -> None:
        """In a forked child: forgets all of it without touching what the parent uses."""
        for folder in self._folders():
            with suppress(OSError):
                folder.abandon()
        self._forget()

    def _forget(self) -> None:
        self._own, self._adopted, self._current = None, [], None

    def _folders(self) -> list[_Folder]:
        return [*self._adopted, self._own] if self._own is not None else self._adopted

    def _rotate(self, needed: int) -> Segment:
        if self._used() + max(self._segment_bytes, HEADER_BYTES + needed) > self._limit:
            raise SpoolFull
        if self._own is None:
            self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own = _Folder.create(self._parent)
        self._number += 1
        self._current = Segment.create(self._own.path / f"{self._number:08}{_SUFFIX}")
        self._own.segments.append(self._current)
        return self._current

    def _used(self) -> int:
        """Bytes of all processes: the limit is that of the folder that they share."""
        used = 0
        for path in self._root.glob(f"*/*/*{_SUFFIX}"):
            with suppress(FileNotFoundError):  # sent meanwhile by its process
                used += path.stat().st_size
        return used

    def _drop(self, folder: _Folder, segment: Segment) -> None:
        self._dropped_damage += segment.damaged_bytes
        folder.segments.remove(segment)
        segment.delete()
        if segment is self._current:
            self._current = None
        if folder in self._adopted and not folder.segments:
            self._adopted.remove(folder)
            folder.close(remove=True)
