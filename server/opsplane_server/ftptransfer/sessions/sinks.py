"""Where what is received goes."""

from __future__ import annotations

import errno
import os
from typing import Final, Protocol

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure

MAX_LISTING: Final = 256 * 1024 * 1024
"""Longest listing that is taken into memory, in bytes."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Sink(Protocol):
    """Takes bytes in order. `descriptor` is the file that they go to, None if it is none."""

    descriptor: int | None

    def write(self, data: memoryview) -> None:
        """Takes all of `data`, which is used again afterwards. Raises TransferFailure."""
        ...


class FileSink:
    """Writes into an open file at its position."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor

    def write(self, data: memoryview) -> None:
        """See `Sink.write`."""
        assert self.descriptor is not None
        try:
            written = os.write(self.descriptor, data)
            while written < len(data):
                data = data[written:]
                written = os.write(self.descriptor, data)
        except OSError as error:
            raise disk_failure(error) from error


class MemorySink:
    """Keeps a listing."""

    __slots__ = ("content", "descriptor")

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self.content = bytearray()

    def write(self, data: memoryview) -> None:
        """See `Sink.write`."""
        if len(self.content) + len(data) > MAX_LISTING:
            raise TransferFailure(ErrorReason.UNSPECIFIED, "the listing is too long", code=ErrorCode.IO_ERROR)
        self.content += data


def disk_failure(error: OSError) -> TransferFailure:
    """The failure of reading or writing a local file."""
    if error.errno in _FULL:
        return TransferFailure(ErrorReason.NO_SPACE, f"the local disk is full: {error.strerror}")
    message = f"the local file cannot be read or written: {error.strerror or error}"
    return TransferFailure(ErrorReason.UNSPECIFIED, message, code=ErrorCode.IO_ERROR)
