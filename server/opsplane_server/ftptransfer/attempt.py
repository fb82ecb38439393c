"""One attempt of one task: brings one file from its source to its destination, whole or not at all.

What it needs of the past it sees from what is there, so that an attempt may end anywhere, by `kill -9` too:

- The temporary file is this transfer's alone. It is gone on with only when the source is still the version that it was
  begun from (`earlier`), else it is begun anew.
- When the task was taken before and the destination has the source's size and time, an earlier attempt has done it and
  could not tell. (The time is set before the file gets its name.) Otherwise it is done once more, which is harmless.

`Download` and `Upload` are the two ways; here is what they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.finisher import Finisher
from opsplane_server.ftptransfer.model import ExistingFile, RemoteFile, Succeeded, Task
from opsplane_server.ftptransfer.ports import Sessions

LOOK_AGAIN_SECONDS: Final = 1.0
"""A source that is read for longer than this is looked at once more: servers do not tell when a file changes."""

_HASH_BYTES: Final = 8 * 1024 * 1024
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Version:
    """Which content a source has: another size or time is other content. Without a time nothing is known."""

    size: int | None
    modify_time: datetime | None

    def is_known_as(self, other: Version | None) -> bool:
        """Whether both are surely the same."""
        return self == other and self.size is not None and self.modify_time is not None


@dataclass(frozen=True, slots=True)
class Means:
    """What attempts work with.

    allowed: says, from any thread, whether the worker still has its lease. begun: is called when one gets its session.
    """

    sessions: Sessions
    finisher: Finisher
    allowed: Callable[[], bool]
    begun: Callable[[], None]


class Attempt(Protocol):
    """An attempt, and how far it is. `Download` and `Upload` are attempts."""

    steps: Steps

    async def run(self) -> Succeeded:
        """Transfers the file; raises TransferFailure. What it leaves then the next attempt goes on with."""
        ...

    async def clean_up(self) -> None:
        """Removes what was left at the destination, because there will be no other attempt. Raises TransferFailure."""
        ...


class Steps:
    """How far an attempt is, for those who watch it."""

    __slots__ = ("_begun", "begun", "finishing", "resumed", "sent", "started", "transferred", "version")

    def __init__(self, earlier: Version | None, begun: Callable[[], None]) -> None:
        self._begun = begun
        self.version = earlier
        """Of the source that the temporary file is made from; None while there is none, or none to go on with."""
        self.started = 0.0
        """When it got its session, by `time.monotonic`; 0 before."""
        self.begun = False
        """True when this attempt has written to the temporary file, or may have."""
        self.finishing = False
        """True from when the file is about to get its name: to break it off then would leave open whether it has."""
        self.sent = 0
        self.transferred = 0
        self.resumed = 0

    def start(self) -> None:
        """The attempt has a session now."""
        self.started = time.monotonic()
        self._begun()

    def begin(self, version: Version, resumed: int) -> None:
        """The temporary file has the first `resumed` bytes of this version, and no others."""
        self.version = version
        self.begun = True
        self.resumed = self.transferred = resumed

    def progress(self, sent: int) -> None:
        """So many bytes went over the data connection."""
        self.sent = sent
        self.transferred = self.resumed + sent

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self.started if self.started else 0.0

    def succeeded(self, size: int, modify_time: datetime | None, *, skipped: bool = False) -> Succeeded:
        """The outcome of an attempt that has come to its end."""
        return Succeeded(
            size=size,
            sent=self.sent,
            resumed=self.resumed,
            skipped=skipped,
            modify_time=modify_time,
            duration=self.seconds,
        )


def is_settled_by(task: Task, found: RemoteFile, source: RemoteFile, *, same_content: bool = True) -> bool:
    """Whether the destination `found` needs no transfer any more; EXISTS when it forbids one.

    same_content: False when it is known to have another SHA-256 than asked for, or when that can not be known.
    """
    if task.existing_file is ExistingFile.SKIP:
        return True
    same = same_content and source.size is not None and found.size == source.size
    if found.modify_time is None or source.modify_time is None:
        same = False
        age = _SECOND
    else:
        age = source.modify_time - found.modify_time
    if task.existing_file is ExistingFile.SKIP_SAME and same and age < _SECOND:
        return True
    if task.generation > 1 and same and abs(age) < _SECOND:
        return True
    if task.existing_file is ExistingFile.FAIL:
        raise TransferFailure(ErrorReason.EXISTS, f"{task.destination.path} exists")
    return False


def destination_path(task: Task) -> str:
    """Where the file goes: into the folder that the task names, or where it says."""
    path = task.destination.path
    return path + task.source.path.rpartition("/")[2] if path.endswith("/") else path


async def has_sha256(descriptor: int, sha256: str) -> bool:
    """Whether the whole open file has this SHA-256. Reads in a thread, and can be cancelled."""
    hasher = hashlib.sha256()
    offset = 0

    def read() -> int:
        content = os.pread(descriptor, _HASH_BYTES, offset)
        hasher.update(content)
        return len(content)

    while count := await asyncio.to_thread(read):
        offset += count
    return hasher.hexdigest() == sha256.lower()


def wrong_sha256(path: str) -> TransferFailure:
    """The failure of a file that is not what was asked for."""
    return TransferFailure(ErrorReason.CHECKSUM_MISMATCH, f"{path} has another SHA-256 than asked for")


def changed(path: str) -> TransferFailure:
    """The failure of a source that did not stay as it was."""
    return TransferFailure(ErrorReason.SOURCE_CHANGED, f"{path} changed while it was read")


def lease_lost() -> TransferFailure:
    """The failure of an attempt that may not go on; nobody is told of it."""
    return TransferFailure(ErrorReason.UNSPECIFIED, "the lease of the task has run out")


@contextlib.contextmanager
def at_destination() -> Iterator[None]:
    """FILE_NOT_FOUND speaks of the source: what is missing at the destination is an IO_ERROR."""
    try:
        yield
    except TransferFailure as failure:
        if failure.reason is not ErrorReason.NOT_FOUND:
            raise
        raise TransferFailure(
            ErrorReason.UNSPECIFIED, failure.message, ftp_code=failure.ftp_code, code=ErrorCode.IO_ERROR
        ) from failure
