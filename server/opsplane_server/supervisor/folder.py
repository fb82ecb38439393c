"""The data folder: used by one server at a time.

DATA_DIR/lock            held by the parent
        /workers.lock    held by the workers, so that the next parent knows whether some of a killed one remain
        /node            the name of this installation
        /run/XXXX        sockets of one run of the server
        /secrets.key     encrypts secrets
        /postgres        the embedded PostgreSQL
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from opsplane_server.errors import FailedPrecondition
from opsplane_server.storage.accounts import create_folder

log = structlog.get_logger(__name__)

_LONGEST_SOCKET_NAME = len("/metrics-255.sock")
_SOCKET_PATH_LIMIT = 107  # bytes, without the closing zero: sun_path of Linux
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")  # others mean something in gRPC's addresses


class DataFolder:
    """Creates and locks the folder; waits up to `patience` seconds for workers that a killed parent left behind.

    FailedPrecondition if another server uses it, or if it can not be used at all.
    """

    def __init__(self, path: Path, *, patience: float) -> None:
        self.path = path
        self._patience = patience
        self._locks: list[int] = []
        self._run_folder: Path | None = None
        self._node = ""

    async def __aenter__(self) -> Self:
        try:
            create_folder(self.path)
            if not self._lock("lock"):
                raise FailedPrecondition(
                    f"another Opsplane server uses {self.path}: stop it, or choose another data directory",
                    reason="DATA_DIR_IN_USE",
                )
            await self._outlive_orphans()
            self._node = self._read_node()
            self._run_folder = self._make_run_folder()
        except OSError as error:
            self._close()
            raise FailedPrecondition(
                f"the data directory {self.path} can not be used: {error.strerror}: {error.filename}",
                reason="DATA_DIR_UNUSABLE",
            ) from None
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run_folder is not None:
            shutil.rmtree(self._run_folder, ignore_errors=True)
        self._close()

    @property
    def run_folder(self) -> Path:
        """For sockets, of this user alone."""
        assert self._run_folder is not None
        return self._run_folder

    @property
    def node(self) -> str:
        """The name of this installation; it stays the same, so that work which is bound to it finds back."""
        return self._node

    @property
    def workers_lock(self) -> int:
        """A file descriptor that workers inherit; whoever has it holds the lock."""
        return self._locks[1]

    def _lock(self, name: str) -> bool:
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks.append(descriptor)
        return True

    async def _outlive_orphans(self) -> None:
        """They end by themselves: the end of their standard input tells them that their parent is dead."""
        if self._lock("workers.lock"):
            return
        log.warning("workers of a killed server are still ending", seconds=self._patience)
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    await asyncio.sleep(0.05)
                    if self._lock("workers.lock"):
                        return
        except TimeoutError:
            raise FailedPrecondition(
                f"workers of a killed server still use {self.path} and do not end: "
                "end the processes `opsplane_server.worker`",
                reason="DATA_DIR_IN_USE",
            ) from None

    def _read_node(self) -> str:
        file = self.path / "node"
        if not file.exists():
            new = file.with_suffix(".new")
            new.write_text(f"{socket.gethostname()}-{secrets.token_hex(4)}")
            new.rename(file)
        return file.read_text()

    def _make_run_folder(self) -> Path:
        above = self.path / "run"
        shutil.rmtree(above, ignore_errors=True)  # of killed servers
        above.mkdir(mode=0o700, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=above, prefix=""))
        too_long = len(os.fsencode(folder)) + _LONGEST_SOCKET_NAME > _SOCKET_PATH_LIMIT
        if too_long or not _PLAIN_PATH.fullmatch(str(folder)):
            return Path(tempfile.mkdtemp(prefix="opsplane-"))
        return folder

    def _close(self) -> None:
        while self._locks:
            os.close(self._locks.pop())
