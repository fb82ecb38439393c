"""Runs a load generator and notes how it ended. A program of its own that needs the standard library alone.

    python -I -S launcher.py FOLDER MAX_CONSOLE_BYTES COMMAND...

It is the parent of k6 in place of the server, so the exit code is not lost when the server dies. In FOLDER it keeps:

    alive          locked for as long as it lives; holds its process id
    started        there since the command was about to start; with it there, nothing is started again
    console.log    what the command wrote, and console.1.log what it wrote before, half of the limit each
    exit           the exit code, or minus the number of the signal, once it has ended

On its standard output it says `started`, `taken` when somebody else has started or is starting the command, or what
went wrong, and closes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(folder: str, max_console_bytes: int, command: list[str]) -> None:
    """Runs the command to its end."""
    # A service manager may tell every process of the server to stop; then k6 ends, and this notes how.
    for number in _IGNORED:
        signal.signal(number, lambda *_: None)
    # A listening socket that was passed on by mistake would keep its port when the server is gone.
    for fd in map(int, os.listdir("/dev/fd")):
        if fd > 2:
            with contextlib.suppress(OSError):
                os.close(fd)
    os.chdir(folder)
    os.umask(0o077)
    if not _take():
        _answer("taken")
        return
    reading, writing = os.pipe()
    try:
        child = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_DUP2, writing, 2),
            ],
            setsigdef=[*_IGNORED, signal.SIGPIPE, signal.SIGXFSZ],
        )
    except OSError as error:
        os.unlink("started")
        _answer(error.strerror or "cannot be started")
        return
    os.close(writing)
    _answer("started")
    _copy(reading, max_console_bytes // 2)
    _, status = os.waitpid(child, 0)
    _note(os.waitstatus_to_exitcode(status))


def _take() -> bool:
    """Locks the folder and marks it as started; False when it was started before, or somebody else is starting it."""
    lock = os.open("alive", os.O_RDWR | os.O_CREAT, 0o600)
    while not os.path.exists("started"):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody else starts it, or only looks whether it lives.
            time.sleep(0.005)
            continue
        # With the lock held: another one may have come and gone since the look.
        if os.path.exists("started"):
            return False
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        os.close(os.open("started", os.O_CREAT | os.O_EXCL, 0o600))
        return True
    return False


def _answer(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever asked may be dead already
        os.write(1, text.encode())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _copy(source: int, limit: int) -> None:
    """Copies to the console files until the end. Whatever the disk says, reading goes on: a full pipe stops k6."""
    size = 0
    while data := os.read(source, 65536):
        with contextlib.suppress(OSError):
            if size + len(data) > limit:
                os.replace("console.log", "console.1.log")
                size = 0
            with open("console.log", "ab", buffering=0) as target:
                size += target.write(data[-limit:])


def _note(code: int) -> None:
    # In one step: a reader finds the whole code or no file.
    file = os.open("exit.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(file, str(code).encode())
    os.fsync(file)
    os.close(file)
    os.replace("exit.new", "exit")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
