"""Processes of this machine: launching servers that outlive us, finding and ending them for certain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

import psutil
import structlog

from opsplane_server.errors import Unavailable
from opsplane_server.storage.accounts import Account
from opsplane_server.storage.binaries import environment

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_CHILDREN: set[int] = set()
"""Servers that this process started and has not collected yet: dead ones would stay as zombies until we end."""


def launch(account: Account, command: Sequence[str | Path], log_file: Path) -> psutil.Process:
    """Starts a server in a session of its own that outlives this process; its output is appended to `log_file`.

    Nothing secret may be in `command`: everybody on the machine can read it. Blocks for a moment.
    """
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(descriptor, account.uid, account.gid)
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment(),
            start_new_session=True,
            **account.popen_options,
        )
    finally:
        os.close(descriptor)
    let_go(child)
    return psutil.Process(child.pid)


def let_go(child: subprocess.Popen[bytes]) -> None:
    """Leaves a child to `reap`, because it outlives its object, of which subprocess would warn."""
    child.returncode = 0
    _CHILDREN.add(child.pid)


def reap() -> None:
    """Collects the servers of this process that have died."""
    for pid in tuple(_CHILDREN):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended = pid
        if ended:
            _CHILDREN.discard(pid)


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; neither a zombie nor another process with the same number counts."""
    reap()
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_time(process: psutil.Process) -> datetime | None:
    """When it started; None if it has ended."""
    try:
        return datetime.fromtimestamp(process.create_time(), UTC)
    except psutil.NoSuchProcess:
        return None


async def ended(process: psutil.Process, timeout: float) -> bool:
    """Waits until it has ended, told by the kernel at once; False after `timeout` seconds."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        reap()
        return True
    try:
        if not alive(process):  # checked after opening: the number may have changed hands before
            return True
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            async with asyncio.timeout(timeout):
                await gone.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(descriptor)
        reap()
        return True
    finally:
        os.close(descriptor)


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Signals it, unless it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


async def end(process: psutil.Process, steps: Iterable[tuple[signal.Signals, float]]) -> None:
    """Sends each signal in turn and waits so many seconds for the end. Unavailable if it outlives the last.

    The kernel may keep even a killed process while its disk hangs: nobody may then take it for dead.
    """
    for number, seconds in steps:
        send(process, number)
        if await ended(process, seconds):
            return
        log.warning("process does not end", pid=process.pid, signal=number.name)
    raise Unavailable(f"process {process.pid} does not end", reason="PROCESS_STUCK")


async def kill(processes: Iterable[psutil.Process], timeout: float = 30.0) -> None:
    """Ends processes with SIGKILL and waits until they are gone."""
    targets = list(processes)
    for process in targets:
        send(process, signal.SIGKILL)
    for process in targets:
        if not await ended(process, timeout):
            raise Unavailable(f"process {process.pid} does not end", reason="PROCESS_STUCK")


def tree(process: psutil.Process) -> list[psutil.Process]:
    """It and all that it started, as far as they live."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


async def to_the_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs blocking work in a thread; when this is cancelled, the work is done before the error goes on.

    A thread can not be broken off: without this a server could come up after everything has been cleared away.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def working_on(folder: Path, account: Account | None = None) -> list[psutil.Process]:
    """Processes with a path at or below `folder` in their command line: servers, and programs that a killed
    process of ours left behind. account: only those that run as this one. Blocks for a moment.
    """
    place = str(folder)
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            ours = account is None or process.uids().real == account.uid
        except psutil.Error:
            continue
        if ours and process.pid != os.getpid() and any(_names(word, place) for word in words[1:]):
            found.append(process)
    return found


def _names(word: str, place: str) -> bool:
    _, found, rest = word.partition(place)
    return bool(found) and (not rest or rest[0] in "/,;'\" ")
