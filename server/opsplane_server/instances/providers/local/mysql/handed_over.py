"""Options for a program that takes secrets from a file alone: a file that is a pipe, so that nothing is on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from opsplane_server.storage.accounts import Account

_PREFIX: Final = "options-"
_POLL_SECONDS: Final = 0.02


def clear(folder: Path) -> None:
    """Removes what a killed process of ours has left, when nobody needs it: readers would wait for ever."""
    for path in folder.glob(f"{_PREFIX}*"):
        path.unlink(missing_ok=True)


@asynccontextmanager
async def options_file(folder: Path, name: str, account: Account, content: str) -> AsyncIterator[Path]:
    """A file that `account` can read, as often as it likes, while the block runs. At most 4096 bytes."""
    path = folder / f"{_PREFIX}{name}.cnf"
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    try:
        if os.geteuid() != account.uid:
            os.chown(path, account.uid, account.gid)
        feeding = asyncio.create_task(_feed(path, content.encode()))
        try:
            yield path
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    finally:
        path.unlink(missing_ok=True)


async def _feed(path: Path, content: bytes) -> None:
    """Gives it to whoever opens the file. Who is slow may get it twice, which does no harm to options."""
    while True:
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody has it open
                    raise
            else:
                try:
                    os.write(descriptor, content)
                finally:
                    os.close(descriptor)
        await asyncio.sleep(_POLL_SECONDS)
