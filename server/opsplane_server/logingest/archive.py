"""Files of records that are no longer kept in the database."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from opsplane_server.errors import DataLoss

_LEVEL: Final = 5
_READ_BYTES: Final = 1 << 20


class ArchiveFile:
    """A file of lines, compressed with gzip, that is there as a whole or not at all.

    It is written under another name; `finish` reads it again, and only then gives it its own. Left without `finish`, it
    leaves nothing behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scratch = path.with_name(f".{path.name}.part")
        self._raw: BinaryIO | None = None
        self._gzip: gzip.GzipFile | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    async def write(self, data: bytes) -> None:
        """Adds bytes; OSError when the disk is full."""
        assert self._gzip is not None
        await asyncio.to_thread(self._gzip.write, data)

    async def finish(self, lines: int) -> None:
        """Makes the file durable under its name. DataLoss when it does not have so many lines."""
        await asyncio.to_thread(self._finish, lines)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._raw = os.fdopen(descriptor, "wb")
        self._gzip = gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=self._raw, mtime=0)

    def _finish(self, lines: int) -> None:
        assert self._gzip is not None
        assert self._raw is not None
        self._gzip.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        found = _count_lines(self._scratch)
        if found != lines:
            raise DataLoss(f"{self._scratch} has {found} lines instead of {lines}", reason="ARCHIVE_INCOMPLETE")
        os.rename(self._scratch, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _close(self) -> None:
        if self._raw is not None:
            self._raw.close()
        self._scratch.unlink(missing_ok=True)


def _count_lines(path: Path) -> int:
    lines = 0
    with gzip.open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            lines += block.count(b"\n")
    return lines
