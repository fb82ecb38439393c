"""The main process of a PostgreSQL server, found by its data folder: it may outlive the process that started it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A server process at work on the data folder `data`."""

    process: psutil.Process
    data: Path

    @property
    def alive(self) -> bool:
        """Whether it still runs; another process with the same number does not count."""
        try:
            # is_running compares start times; a zombie is dead, only nobody has asked for its status yet.
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def sockets(self) -> Path | None:
        """The folder of its unix socket; None until it has got so far."""
        lines = _pid_file_lines(self.data)
        own = len(lines) > 4 and lines[0] == str(self.process.pid)
        return Path(lines[4]) if own and lines[4] else None


def find(data: Path) -> Postmaster | None:
    """The live server of this data folder, or None.

    The number in `postmaster.pid` alone proves nothing: after a kill -9 or a reboot it may be any process.
    """
    lines = _pid_file_lines(data)
    if not lines:
        return None
    try:
        process = psutil.Process(int(lines[0]))
        arguments = process.cmdline()
    except (ValueError, psutil.Error):
        return None
    # The command line, not the working directory: reading that of another user takes a capability that root
    # lacks in most containers. Only the main process keeps its command line, the others overwrite theirs.
    if "-D" not in arguments[:-1] or Path(arguments[0]).name != "postgres":
        return None
    folder = arguments[arguments.index("-D") + 1]
    if not os.path.exists(folder) or not os.path.samefile(folder, data):
        return None
    postmaster = Postmaster(process, data)
    return postmaster if postmaster.alive else None


def disown(data: Path) -> None:
    """Prepares the data folder of a dead server for the next start by this process.

    PostgreSQL refuses to start when the number in a stale `postmaster.pid` belongs to another live process of its
    user. Our own number (it ignores its parent's) avoids that, and keeps the file's shared memory key, by which
    it notices server processes that are still at work on the data. Call it only when `find` returned None.
    """
    file = data / "postmaster.pid"
    lines = _pid_file_lines(data)
    if lines:
        file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    else:
        file.unlink(missing_ok=True)  # empty: it died between creating and writing it


def _pid_file_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []
