"""An FTP server that is a folder, and a queue in memory: what attempts and the engine are tried with."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from opsplane_server.errors import LeaseLost, Unavailable
from opsplane_server.ftptransfer.failures import ErrorReason, Failure, TransferFailure
from opsplane_server.ftptransfer.model import (
    Child,
    Connection,
    End,
    ExistingFile,
    FileKind,
    FtpServer,
    LeftOver,
    LocalFolder,
    Outcome,
    PoolFigures,
    Probe,
    Progress,
    Released,
    RemoteFile,
    Retry,
    Selection,
    Task,
)

_HALF = 2


class FolderServer:
    """An "FTP server" whose files are those of a folder, with what real ones differ in.

    `hook` is called before and after each step, by the step's name ("store", "store half", "store done"); what it
    raises breaks the step off there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hook: Callable[[str], None] = lambda step: None
        self.gate: asyncio.Event | None = None
        self.resumes = True
        self.renames_over = True
        self.keeps_times = True
        self.tells_times = True
        self.closed: set[str] = set()
        self.open_sessions = 0
        self.calls: list[str] = []

    def session(self, connection: Connection) -> AbstractAsyncContextManager["FolderSession"]:
        return self._session(connection)

    @asynccontextmanager
    async def _session(self, connection: Connection) -> AsyncIterator["FolderSession"]:
        assert isinstance(connection.kind, FtpServer)
        while self.open_sessions >= (connection.kind.max_sessions or 10):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        self.hook("login")
        self.open_sessions += 1
        try:
            yield FolderSession(self)
        finally:
            self.open_sessions -= 1

    def figures(self) -> Mapping[str, PoolFigures]:
        return {}

    def held_back(self) -> Collection[str]:
        return self.closed

    async def probe(self, server: FtpServer, path: str) -> Probe:
        raise NotImplementedError


class FolderSession:
    greeting = "220 a folder"
    features: frozenset[str] = frozenset({"MLST"})
    tls_cipher = ""
    certificate_sha256 = ""

    def __init__(self, server: FolderServer) -> None:
        self._server = server

    @property
    def supports_resume(self) -> bool:
        return self._server.resumes

    async def list(self, path: str) -> list[RemoteFile]:
        await self._step("list")
        folder = self._path(path)
        if not folder.is_dir():
            raise _missing(path)
        return [_entry(entry) for entry in folder.iterdir()]

    async def stat(self, path: str) -> RemoteFile:
        await self._step("stat")
        found = self._path(path)
        if not found.exists():
            raise _missing(path)
        entry = _entry(found.resolve())
        return entry if self._server.tells_times else RemoteFile(entry.name, entry.kind, entry.size)

    async def size(self, path: str) -> int | None:
        await self._step("size")
        if not self._path(path).is_file():
            raise _missing(path)
        return self._path(path).stat().st_size

    async def retrieve(self, path: str, descriptor: int, *, offset: int = 0, progress: Callable[[int], None]) -> int:
        await self._step("retrieve")
        if not self._path(path).is_file():
            raise _missing(path)
        half = self._path(path).read_bytes()[offset:]
        half = half[: len(half) // _HALF]
        os.write(descriptor, half)
        progress(len(half))
        await self._step("retrieve half")
        rest = self._path(path).read_bytes()[offset + len(half) :]
        os.write(descriptor, rest)
        progress(len(half) + len(rest))
        await self._step("retrieve done")
        return len(half) + len(rest)

    async def store(self, path: str, descriptor: int, *, offset: int = 0, progress: Callable[[int], None]) -> int:
        await self._step("store")
        target = self._path(path)
        if not target.parent.is_dir():
            raise TransferFailure(ErrorReason.ACCESS_DENIED, "553 Could not create file", ftp_code=553)
        content = os.pread(descriptor, 1 << 30, offset)
        with target.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            middle = len(content) // _HALF
            file.write(content[:middle])
            file.flush()
            progress(middle)
            await self._step("store half")
            file.write(content[middle:])
        progress(len(content))
        await self._step("store done")
        return len(content)

    async def rename(self, old: str, new: str) -> None:
        await self._step("rename")
        if not self._path(old).exists():
            raise _missing(old)
        if self._path(new).exists() and not self._server.renames_over:
            raise TransferFailure(ErrorReason.EXISTS, "550 file exists", ftp_code=550)
        self._path(old).replace(self._path(new))
        await self._step("rename done")

    async def delete(self, path: str) -> bool:
        await self._step("delete")
        if not self._path(path).exists():
            return False
        self._path(path).unlink()
        await self._step("delete done")
        return True

    async def make_folders(self, path: str) -> None:
        await self._step("make folders")
        self._path(path).mkdir(parents=True, exist_ok=True)

    async def set_modify_time(self, path: str, time: datetime) -> bool:
        await self._step("time")
        if not self._server.keeps_times:
            return False
        seconds = int(time.timestamp())
        os.utime(self._path(path), (seconds, seconds))
        return True

    async def stamp(self, path: str, time: datetime) -> int | None:
        size = await self.size(path)
        await self.set_modify_time(path, time)
        return size

    async def check(self) -> bool:
        return True

    async def _step(self, name: str) -> None:
        await asyncio.sleep(0)
        self._server.calls.append(name)
        self._server.hook(name)
        if self._server.gate is not None:
            await self._server.gate.wait()

    def _path(self, path: str) -> Path:
        return self._server.folder / path.lstrip("/")


def _entry(path: Path) -> RemoteFile:
    found = path.stat()
    kind = FileKind.LINK if path.is_symlink() else FileKind.FOLDER if path.is_dir() else FileKind.FILE
    time = datetime.fromtimestamp(int(found.st_mtime), UTC)
    return RemoteFile(path.name, kind, found.st_size if kind is FileKind.FILE else None, time)


def _missing(path: str) -> TransferFailure:
    return TransferFailure(ErrorReason.NOT_FOUND, f"550 {path}: no such file", ftp_code=550)


class MemoryQueue:
    """A queue of tasks in memory, with leases by the monotonic clock. `away` makes it unavailable."""

    def __init__(self, *, lease_seconds: float = 15.0) -> None:
        self.waiting: dict[str, tuple[float, Task]] = {}
        self.running: dict[str, tuple[str, Task]] = {}
        self.leases: dict[str, float] = {}
        self.ended: dict[str, Outcome] = {}
        self.history: list[tuple[str, Outcome]] = []
        self.cancelled: set[str] = set()
        self.children: dict[str, list[Child]] = {}
        self.progress: dict[str, Progress] = {}
        self.statements: list[str] = []
        self.without: list[set[str]] = []
        self.away = False
        self._lease_seconds = lease_seconds

    def put(self, *tasks: Task) -> None:
        for task in tasks:
            self.waiting[task.id] = (0.0, replace(task, generation=0, attempt=0))

    def change(self, task_id: str, *, cancelled: bool = False, failure: Failure | None = None) -> None:
        """Lets a task that waits be over."""
        due, task = self.waiting[task_id]
        self.waiting[task_id] = (due, replace(task, cancelled=cancelled, failure=failure))

    async def take(self, worker: str, limit: int, *, without: Collection[str]) -> Sequence[Task]:
        await self._statement("take")
        self.without.append(set(without))
        now = time.monotonic()
        for task_id, (owner, task) in list(self.running.items()):
            if self.leases.get(owner, 0.0) < now:
                del self.running[task_id]
                self.waiting[task_id] = (now, _known(task, self.progress.get(task_id)))
        taken: list[Task] = []
        for task_id, (due, task) in list(self.waiting.items()):
            if len(taken) < limit and due <= now and task.remote.id not in without:
                del self.waiting[task_id]
                task = again(task)
                self.running[task_id] = (worker, task)
                taken.append(task)
        return taken

    async def settle(self, worker: str, outcomes: Sequence[tuple[Task, Outcome]]) -> None:
        await self._statement("settle")
        for task, outcome in outcomes:
            if self.running.get(task.id) != (worker, task):
                continue
            del self.running[task.id]
            self.history.append((task.id, outcome))
            if isinstance(outcome, Retry):
                self.waiting[task.id] = (time.monotonic() + outcome.delay, _known(task, outcome))
            elif isinstance(outcome, Released):
                self.waiting[task.id] = (0.0, _known(task, outcome))
            elif isinstance(outcome, LeftOver):
                self.waiting[task.id] = (0.0, replace(task, cancelled=True, failure=outcome.failure))
            else:
                assert task.id not in self.ended
                self.ended[task.id] = outcome

    async def renew(self, worker: str, progress: Sequence[Progress]) -> Collection[str]:
        await self._statement("renew")
        self.leases[worker] = time.monotonic() + self._lease_seconds
        gone = set()
        for entry in progress:
            if self.running.get(entry.task.id) != (worker, entry.task) or entry.task.id in self.cancelled:
                gone.add(entry.task.id)
            else:
                self.progress[entry.task.id] = entry
        return gone

    async def expand(self, task: Task, children: Sequence[Child]) -> None:
        await self._statement("expand")
        if all(held != task for _, held in self.running.values()):
            raise LeaseLost("lost")
        self.children.setdefault(task.id, []).extend(children)

    async def leave(self, worker: str) -> None:
        await self._statement("leave")
        self.leases.pop(worker, None)
        for task_id, (owner, task) in list(self.running.items()):
            if owner == worker:
                del self.running[task_id]
                self.waiting[task_id] = (0.0, task)

    async def _statement(self, name: str) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")
        self.statements.append(name)


def _known(task: Task, told: Progress | Retry | Released | None) -> Task:
    """The task with what is known of its source."""
    return task if told is None else replace(task, size=told.size, modify_time=told.modify_time)


def again(task: Task) -> Task:
    """The task as the next attempt gets it."""
    return replace(task, generation=task.generation + 1, attempt=task.generation + 1)


def task_between(
    source: End,
    destination: End,
    *,
    id: str = "t-1",
    generation: int = 1,
    selection: Selection = Selection.FILE,
    existing_file: ExistingFile = ExistingFile.REPLACE,
    sha256: str = "",
    max_attempts: int = 5,
) -> Task:
    return Task(
        id=id,
        key=hash(id),
        generation=generation,
        source=source,
        destination=destination,
        selection=selection,
        existing_file=existing_file,
        sha256=sha256,
        attempt=generation,
        retry_count=0,
        max_attempts=max_attempts,
    )


def ftp(id: str = "ftp", *, max_sessions: int = 10) -> Connection:
    return Connection(id, FtpServer("127.0.0.1", max_sessions=max_sessions))


def local(folder: Path) -> Connection:
    return Connection("local", LocalFolder(folder))
