"""Locks between the processes of this machine: `flock`, which the kernel frees when a process dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_FIRST_WAIT = 0.005
_LONGEST_WAIT = 0.1


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Holds the lock of this file, made if it is missing; waits for it as long as it takes. Not reentrant.

    FileNotFoundError when the folder is not there, or goes away while this waits.
    """
    descriptor = await _acquire(path)
    try:
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock, to be closed by the caller, or None while another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if not _same_file(descriptor, path):  # removed by the one who had it before
        os.close(descriptor)
        return None
    return descriptor


async def _acquire(path: Path) -> int:
    wait = _FIRST_WAIT
    while True:
        descriptor = try_lock(path)
        if descriptor is not None:
            return descriptor
        # Polled, for a thread that waits inside flock can not be cancelled.
        await asyncio.sleep(wait)
        wait = min(wait * 2, _LONGEST_WAIT)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
