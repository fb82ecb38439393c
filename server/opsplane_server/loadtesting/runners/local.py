"""k6 as processes of this machine.

Each load generator has a folder of its own, with its script, its console and its exit code, and a session of its
own, so that it outlives the server and the next one finds it (`launcher` says how). The lock that the launcher holds
tells whether it lives: process ids are given again, a lock is not, and clocks do not matter.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import structlog

from opsplane_server.errors import FailedPrecondition, NotFound, Unavailable
from opsplane_server.loadtesting.k6.inspect import Inspection, inspect
from opsplane_server.loadtesting.runners import launcher
from opsplane_server.loadtesting.runners.console import ConsoleLine, parse, read_tail
from opsplane_server.loadtesting.runners.k6_binary import K6, find_k6
from opsplane_server.loadtesting.runners.k6_environment import k6_environment
from opsplane_server.loadtesting.runners.port import Exited, GeneratorSpec, Lost, Running, Status

log = structlog.get_logger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_OWN_FILES = {"alive", "started", "removed", "exit", "exit.new", "console.log", "console.1.log"}
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_LOOK_SECONDS = 0.05
_KILL_SECONDS = 10.0
_BARRED_SECONDS = 24 * 3600.0


class LocalRunner:
    """`port.Runner` on this machine. `folder` is made when needed; `k6` is a path, or None for the packaged one.

    What a load generator writes is kept up to `max_console_bytes`, the last of it where it is more.
    """

    def __init__(self, folder: Path, *, k6: Path | None = None, max_console_bytes: int = 4 << 20) -> None:
        self._folder = folder.absolute()
        self._configured = k6
        self._max_console_bytes = max_console_bytes
        self._k6: K6 | None = None
        self._children: dict[str, int] = {}  # launchers to take out of the process table
        self._processes: dict[str, psutil.Process] = {}  # k6 itself, once it was seen

    async def version(self) -> str:
        """See the port."""
        return str(await self._find())

    async def inspect(
        self, script: str, files: Mapping[str, str] | None = None, *, field: str = "run.script"
    ) -> Inspection:
        """Has k6 read a script without running it; `files` stand beside it.

        InvalidArgument on `field`, FailedPrecondition `K6_MISSING`.
        """
        k6 = await self._find()
        with tempfile.TemporaryDirectory(prefix="opsplane-script-") as folder:
            await asyncio.to_thread(_write, Path(folder), {**(files or {}), "script.js": script})
            return await inspect(k6.path, Path(folder) / "script.js", field=field)

    async def start(self, spec: GeneratorSpec) -> None:
        """See the port."""
        k6 = await self._find()
        home = str(self._path(spec.name))
        command = k6.run_arguments(spec.main, segment=spec.segment, thresholds=spec.thresholds)
        environment = k6_environment(
            spec.exporter,
            instance=spec.instance,
            home=home,
            thresholds=spec.thresholds,
            script=spec.environment,
        )
        answer = await asyncio.to_thread(self._launch, spec.name, dict(spec.files), command, environment)
        if answer not in ("started", "taken"):
            raise FailedPrecondition(f"k6 cannot be started: {answer}", reason="K6_MISSING")
        log.info("load generator started", generator=spec.name, k6=str(k6), already=answer == "taken")

    async def poll(self, name: str) -> Status:
        """See the port."""
        return await asyncio.to_thread(self._status, name)

    async def stop(self, name: str, grace: timedelta = timedelta(seconds=2)) -> Exited | Lost:
        """See the port."""
        for number, seconds in ((signal.SIGINT, grace.total_seconds()), (signal.SIGKILL, _KILL_SECONDS)):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await self._end(name, number)
            log.warning("load generator does not end", generator=name, signal=number.name)
        raise Unavailable(f"load generator {name} cannot be ended")

    async def console(self, name: str, max_bytes: int = 65536) -> list[ConsoleLine]:
        """See the port."""
        folder = self._path(name)
        if not (folder / "started").exists() or (folder / "removed").exists():
            raise NotFound.resource(f"load generator {name}")
        files = [folder / "console.1.log", folder / "console.log"]
        lines = await asyncio.to_thread(read_tail, files, max_bytes)
        return [parse(line, folder) for line in lines]

    async def clean_up(self, name: str) -> None:
        """See the port."""
        folder = self._path(name)
        await asyncio.to_thread(_bar, folder)
        with suppress(NotFound):
            if isinstance(await self.poll(name), Running):
                await self.stop(name, timedelta())
        await asyncio.to_thread(_remove, folder)

    async def _find(self) -> K6:
        if self._k6 is None:
            self._k6 = await find_k6(self._configured)
        return self._k6

    def _path(self, name: str) -> Path:
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is no name of a load generator")
        return self._folder / name

    def _launch(self, name: str, files: dict[str, str], command: list[str], environment: dict[str, str]) -> str:
        """Starts the launcher and returns its answer."""
        folder = self._path(name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / "started").exists():
            return "taken"
        _write(folder, files)
        reading, writing = os.pipe()
        try:
            arguments = [sys.executable, "-I", "-S", launcher.__file__, str(folder), str(self._max_console_bytes)]
            pid = os.posix_spawn(
                sys.executable,
                [*arguments, *command],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, writing, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD],
            )
        finally:
            os.close(writing)
        with open(reading, encoding="utf-8") as answers:
            answer = answers.read() or "its launcher ended"
        if answer == "started":
            self._children[name] = pid
        else:
            os.waitpid(pid, 0)
        return answer

    def _status(self, name: str) -> Status:
        folder = self._path(name)
        # The order matters: what was started before the look at the lock, and does not live, has ended.
        started = (folder / "started").exists()
        launcher_pid = _living(folder)
        if launcher_pid is not None:
            return Running(self._cpu_seconds(name, launcher_pid), _cpus())
        self._reap(name)
        with suppress(FileNotFoundError):
            return Exited(int((folder / "exit").read_text()))
        if not started or (folder / "removed").exists():
            raise NotFound.resource(f"load generator {name}")
        for orphan in _orphans(folder):
            log.warning("load generator without its launcher killed", generator=name, pid=orphan.pid)
            with suppress(psutil.NoSuchProcess):
                orphan.kill()
        return Lost()

    def _cpu_seconds(self, name: str, launcher_pid: int) -> float | None:
        """The CPU time of k6; None when it has not started yet, or ends just now."""
        with suppress(psutil.Error):
            if launcher_pid and name not in self._processes:
                for child in psutil.Process(launcher_pid).children():
                    self._processes[name] = child
            if name in self._processes:
                times = self._processes[name].cpu_times()
                return float(times.user + times.system)
        return None

    def _reap(self, name: str) -> None:
        self._processes.pop(name, None)
        pid = self._children.pop(name, None)
        if pid is not None:
            os.waitpid(pid, 0)

    async def _end(self, name: str, number: signal.Signals) -> Exited | Lost:
        """Signals k6 once it is there, and waits until it has ended."""
        signalled = False
        while True:
            status = await self.poll(name)
            if not isinstance(status, Running):
                return status
            if not signalled:
                signalled = await asyncio.to_thread(_signal, self._path(name), number)
            await asyncio.sleep(_LOOK_SECONDS)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        if not _FILE_NAME.match(name) or name in _OWN_FILES:
            raise ValueError(f"{name!r} is no name of a file of a script")
        (folder / name).write_text(content, encoding="utf-8")


def _cpus() -> float:
    """How many CPUs a process of ours may use: those of the machine, or what its container may have of them."""
    cpus = float(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):
        quota, period = _CPU_LIMIT.read_text().split()
        cpus = min(cpus, float(quota) / float(period))  # `max` is no number: no limit
    return cpus


def _bar(folder: Path) -> None:
    """Keeps a load generator from being started, if it was not yet."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "started").touch(mode=0o600)


def _remove(folder: Path) -> None:
    """Removes all but the marks that it was there, and the marks of others from longer ago."""
    (folder / "removed").touch(mode=0o600)
    for path in folder.iterdir():
        if path.name not in ("started", "removed"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for mark in folder.parent.glob("*/removed"):
        with suppress(FileNotFoundError):
            if time.time() - mark.stat().st_mtime > _BARRED_SECONDS:
                shutil.rmtree(mark.parent)


def _living(folder: Path) -> int | None:
    """Process id of the launcher, 0 when it has not written it yet; None when it does not live."""
    try:
        with (folder / "alive").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
    except FileNotFoundError:
        pass
    return None


def _signal(folder: Path, number: signal.Signals) -> bool:
    """Signals k6 itself, never its launcher, which has to see how it ends. False when k6 has not started yet."""
    pid = _living(folder)
    if not pid:
        return False
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            child.send_signal(number)
            return True
    return False


def _orphans(folder: Path) -> Iterator[psutil.Process]:
    """Processes of a launcher that does not live any more.

    They are still in its session. A session's number is not given to another process as long as it has members, so
    where a process has the number, the session is empty.
    """
    try:
        session = int((folder / "alive").read_text())
    except (FileNotFoundError, ValueError):
        return
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(session).status() != psutil.STATUS_ZOMBIE:
            return
    for process in psutil.process_iter():
        with suppress(OSError):
            if os.getsid(process.pid) == session:
                yield process
