"""What transfers are measured on: vsftpd, with the files of both sides in memory."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from tests.bench.transfers_tools import Load
from tests.ftp_servers.base import FtpProcess, ServerOptions, temporary_folder
from tests.ftp_servers.vsftpd import Vsftpd

_LOOK_SECONDS: Final = 0.1
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Files:
    """A folder of files of one size."""

    name: str
    count: int
    size: int

    @property
    def names(self) -> Sequence[str]:
        """Of the files."""
        return [f"{self.name}-{number:05}" for number in range(self.count)]


class Stage:
    """The FTP server and a local folder. Sources are a folder of each side, destinations are the folder `in`."""

    def __init__(self, folder: Path, server: FtpProcess) -> None:
        self.server = server
        self.scratch = folder / "scratch"
        self.local = folder / "local"
        self.scratch.mkdir()
        self.local.mkdir()

    def make(self, files: Files) -> None:
        """Makes the sources of both sides; their content does not repeat itself."""
        remote, local = self.server.files / files.name, self.local / files.name
        remote.mkdir()
        local.mkdir()
        for name in files.names:
            (remote / name).write_bytes(os.urandom(files.size))
            self.server.own(remote / name)
            os.link(remote / name, local / name)

    def load(self, files: Files, *, up: bool) -> Load:
        """The same for all; its destination exists and is empty."""
        for folder in (self.local / "in", self.server.files / "in"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        self.server.own(self.server.files / "in")
        if up:
            return Load(str(self.local / files.name), "/data/in", files.names, up)
        return Load(f"/data/{files.name}", str(self.local / "in"), files.names, up)

    def check(self, files: Files, *, up: bool) -> None:
        """All files are at the destination, whole, and nothing else. RuntimeError if not."""
        found = {
            entry.name: entry.stat().st_size for entry in os.scandir((self.server.files if up else self.local) / "in")
        }
        if found != dict.fromkeys(files.names, files.size):
            right = sum(found.get(name) == files.size for name in files.names)
            raise RuntimeError(f"{right} of {files.count} files are right, {len(found)} are there")


@contextmanager
def running_stage() -> Iterator[Stage]:
    """At its end nothing of it is left."""
    with temporary_folder() as folder:
        server = Vsftpd(folder, ServerOptions())
        server.start()
        try:
            yield Stage(folder, server)
        finally:
            server.stop()


class SessionCpu:
    """CPU time of the FTP server's processes while it is entered, nearly.

    A process is looked at ten times a second, because one that ends tells nobody but its parent, which may have ended
    by then.
    """

    def __init__(self, server: FtpProcess) -> None:
        children = psutil.Process().children()
        self._main = next(child.pid for child in children if child.name() == server.name)
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._over = threading.Event()
        self._looker = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._first = dict(self._last)
        self._looker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._looker.join()
        self._look()

    @property
    def seconds(self) -> float:
        """How much it was."""
        return sum(self._last.values()) - sum(self._first.values())

    def _look_on(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        pids = [self._main]
        for pid in pids:
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._last[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
