"""Reading log files by lines, from a remembered place on, through rotation and truncation.

A file is known by its device, its number (inode) and its first bytes, not by its name: rotation gives it another name,
and a new file may get the number of one that was deleted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from opsplane.cli.logs_lines import MAX_LINE_BYTES

_HEAD_BYTES = 256
_READ_BYTES = 256 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file it is. `head` is the digest of its first `head_bytes` bytes; it may have had fewer than 256 then."""

    device: int
    inode: int
    head_bytes: int
    head: str


class LogFile:
    """An open file. `position` is where the next line begins, in bytes."""

    def __init__(self, path: Path) -> None:
        self.position = 0
        self._file = path.open("rb", buffering=0)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of it."""
        self._file.close()

    def identity(self) -> Identity:
        """Which file it is now."""
        status = os.fstat(self._file.fileno())
        head = os.pread(self._file.fileno(), _HEAD_BYTES, 0)
        return Identity(status.st_dev, status.st_ino, len(head), hashlib.sha256(head).hexdigest())

    def is_same(self, known: Identity) -> bool:
        """Whether it is the file that was known, and not cut off and begun anew since."""
        status = os.fstat(self._file.fileno())
        head = os.pread(self._file.fileno(), known.head_bytes, 0)
        return (status.st_dev, status.st_ino, hashlib.sha256(head).hexdigest()) == (
            known.device,
            known.inode,
            known.head,
        )

    def is_at(self, path: Path) -> bool:
        """Whether this path names it. Not so after it was renamed or deleted, once there is another one."""
        try:
            now = path.stat()
        except FileNotFoundError:
            return True  # between the two steps of a rotation, or for good: either way there is nothing else to read
        status = os.fstat(self._file.fileno())
        return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)

    def is_cut_off(self, known: Identity) -> bool:
        """Whether it was begun anew: it is shorter than what was read of it, or begins otherwise than it did."""
        return self.size < self.position + len(self._buffer) or not self.is_same(known)

    @property
    def size(self) -> int:
        """Bytes that it has now."""
        return os.fstat(self._file.fileno()).st_size

    def seek(self, position: int) -> None:
        """Goes on reading there, where a line must begin."""
        self.position = position
        self._buffer = b""
        self._file.seek(position)

    def lines(self, *, end: int | None = None, partial: bool = False) -> Iterator[tuple[int, bytes]]:
        """The lines that there are now, up to `end`, with their places and without their ends.

        The last one counts only if it is complete, or with `partial`. One that is longer than a record may be comes in
        pieces.
        """
        while True:
            yield from self._complete_lines(end)
            if end is not None and self.position + len(self._buffer) >= end:
                break
            more = self._file.read(_READ_BYTES if end is None else end - self.position - len(self._buffer))
            if not more:
                break
            self._buffer += more
        if partial and self._buffer:
            line, self._buffer = self._buffer, b""
            start, self.position = self.position, self.position + len(line)
            yield start, _without_mark(start, line)

    def _complete_lines(self, end: int | None) -> Iterator[tuple[int, bytes]]:
        buffer, place = self._buffer, 0
        try:
            while True:
                newline = buffer.find(b"\n", place, place + MAX_LINE_BYTES)
                if newline >= 0:
                    line, following = buffer[place:newline], newline + 1
                elif len(buffer) - place > MAX_LINE_BYTES:
                    following = _between_characters(buffer, place + MAX_LINE_BYTES)
                    line = buffer[place:following]
                else:
                    return
                start = self.position
                self.position += following - place
                place = following
                yield start, _without_mark(start, line)
        finally:
            self._buffer = buffer[place:]


def find(path: Path, known: Identity) -> LogFile | None:
    """Opens the file that was known under this path: itself, or what it was renamed to, in the same folder."""
    candidates = [path]
    with suppress(OSError):
        candidates += sorted(
            Path(entry.path)
            for entry in os.scandir(path.parent)
            if entry.name.startswith(path.stem) and entry.inode() == known.inode and entry.name != path.name
        )
    for candidate in candidates:
        try:
            file = LogFile(candidate)
        except OSError:
            continue
        if file.is_same(known):
            return file
        file.close()
    return None


def _between_characters(buffer: bytes, place: int) -> int:
    """The nearest place at or before it that is not within a character of UTF-8."""
    for back in range(4):
        if buffer[place - back] & 0xC0 != 0x80:
            return place - back
    return place


def _without_mark(start: int, line: bytes) -> bytes:
    return line.removeprefix(_BYTE_ORDER_MARK) if start == 0 else line
