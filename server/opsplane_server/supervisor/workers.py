"""Worker processes: starting, watching, restarting, stopping."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import psutil
import structlog
from pydantic import ValidationError

from opsplane_server.errors import FailedPrecondition
from opsplane_server.supervisor.facts import Report, State, WorkerFacts

log = structlog.get_logger(__name__)

_MODULE = "opsplane_server.worker"
_READY_SECONDS = 60.0
_STARTS = 3  # how often a worker may die without a word before the server gives up starting
_RESTART_SECONDS = (0.1, 10.0)  # first, longest pause
_STABLE_SECONDS = 30.0  # a worker that lived so long dies of something new
_CLOSE_SECONDS = 15.0  # to close connections, after the grace for calls
_HURRIED_SECONDS = 5.0

# Settings reach workers by standard input. What is secret in the environment must not reach the programs that they
# start, least of all k6, whose scripts can read it.
_PRIVATE = ("OPSPLANE_", "DATABASE_", "DB_", "PGPASS")

# Programs that a worker starts are executed at once, so gRPC need not survive a fork; its preparations for one break
# calls that are under way.
_GRPC = {"GRPC_ENABLE_FORK_SUPPORT": "false"}

# Groups of logs are decoded in blocks of some megabytes. glibc would give each back to the system at once and take it
# again, page by page, for the next: a third of the time of decoding. Arrow's own allocator does so too.
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(48 << 20),
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


class WorkerFailed(FailedPrecondition):
    """A worker could not start and said why."""


class WorkerDied(Exception):
    """A worker ended without a word before it was ready; the message says how."""


class Worker:
    """A place for one worker process, and the process that fills it now."""

    def __init__(self, facts: WorkerFacts) -> None:
        self._facts = facts
        self._log = log.bind(worker=facts.index)
        self._process: asyncio.subprocess.Process | None = None
        self._reports: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._failure = ""
        self.state = State.STARTING
        self.restarts = 0
        self.run = 0
        """Counts the processes of this place."""

    @property
    def facts(self) -> WorkerFacts:
        """What its process is told."""
        return self._facts

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    @property
    def serving(self) -> bool:
        """Whether it answers and says that it is ready."""
        return self.pid is not None and self.state is State.SERVING

    @property
    def resident_bytes(self) -> int | None:
        """Memory of the process, None while there is none."""
        if self.pid is None:
            return None
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None

    async def start(self) -> None:
        """Returns when the worker serves. Raises WorkerFailed, WorkerDied; then no process is left."""
        self.run += 1
        self._failure = ""
        self.state = State.STARTING
        await self._spawn()
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await self._left(State.STARTING)
        except TimeoutError:
            self._failure = f"it was not ready after {_READY_SECONDS:.0f} s"
        except BaseException:
            await self._kill()
            raise
        if self.state is State.SERVING:
            return
        status = await self._kill()
        if self._failure:
            raise WorkerFailed(self._failure, reason="WORKER_FAILED")
        raise WorkerDied(f"a worker ended before it was ready ({status})")

    async def keep(self, died: Callable[[], None]) -> NoReturn:
        """Replaces the process whenever it ends; `died` is told each time before."""
        clock = asyncio.get_running_loop().time
        delay, longest = _RESTART_SECONDS
        while True:
            assert self._process is not None
            started = clock()
            status = await self._process.wait()
            self._log.error("worker died", pid=self._process.pid, status=_words(status))
            died()
            if clock() - started >= _STABLE_SECONDS:
                delay = _RESTART_SECONDS[0]
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)
                self.restarts += 1
                try:
                    await self.start()
                except (WorkerFailed, WorkerDied) as error:
                    self._log.error("worker not restarted", error=str(error), retry_seconds=delay)
                else:
                    self._log.info("worker restarted", pid=self.pid)
                    break

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if there is a process."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> None:
        """Returns when there is no process."""
        if self._process is not None:
            await self._process.wait()
        if self._reports is not None:
            await asyncio.wait((self._reports,))  # unlike a plain await it does not pass a cancellation on

    async def _spawn(self) -> None:
        reading, writing = os.pipe()
        try:
            facts = self._facts.model_copy(update={"report_fd": writing})
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", _MODULE,
                stdin=asyncio.subprocess.PIPE,
                stdout=sys.stderr,  # libraries that print must not write between our own lines
                env={name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
                | _GRPC
                | _MEMORY,
                pass_fds=(writing, facts.lock_fd),
                start_new_session=True,  # a Ctrl-C in the terminal is for the parent, who tells its workers
            )  # fmt: skip
        except OSError as error:
            os.close(reading)
            raise WorkerDied(f"no process could be started for a worker: {error.strerror}") from error
        finally:
            os.close(writing)
        self._reports = asyncio.create_task(self._read(reading), name="worker reports")
        assert self._process.stdin is not None
        self._process.stdin.write(facts.to_line())

    async def _read(self, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        try:
            async for line in reader:
                try:
                    report = Report.model_validate_json(line)
                except ValidationError:  # a worker that is killed may leave half a line
                    continue
                self._failure = report.message
                self._set(report.state)
        finally:
            transport.close()
            self._set(State.FAILED)

    def _set(self, state: State) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _left(self, state: State) -> None:
        while self.state is state:
            await self._changed.wait()

    async def _kill(self) -> str:
        assert self._process is not None
        if self.state is State.FAILED:
            # It ends by itself; killing it would hide how.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HURRIED_SECONDS):
                    await self.wait()
        self.signal(signal.SIGKILL)
        await self.wait()
        return _words(self._process.returncode)


async def start_all(workers: Sequence[Worker]) -> None:
    """Returns when all serve. FailedPrecondition if one can not, or dies again and again."""
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(_start(worker))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # they fail for the same reason


async def _start(worker: Worker) -> None:
    for attempt in range(1, _STARTS + 1):
        try:
            return await worker.start()
        except WorkerDied as error:
            if attempt == _STARTS:
                raise FailedPrecondition(f"{error}, {attempt} times", reason="WORKER_DIES") from None
            log.warning("worker died at its start", error=str(error), attempt=attempt)
    raise AssertionError("unreachable")


async def stop_all(workers: Sequence[Worker], *, grace: float, hurry: asyncio.Event) -> None:
    """Ends all: they get `grace` seconds for open calls, and less once `hurry` is set."""
    for worker in workers:
        worker.signal(signal.SIGTERM)
    ended = asyncio.ensure_future(asyncio.gather(*(worker.wait() for worker in workers)))
    hurried = asyncio.create_task(hurry.wait())
    try:
        done, _ = await asyncio.wait(
            (ended, hurried), timeout=grace + _CLOSE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if hurried in done:
            for worker in workers:
                worker.signal(signal.SIGTERM)
            await asyncio.wait((ended,), timeout=_HURRIED_SECONDS)
        if not ended.done():
            log.error("workers do not end and are killed")
            for worker in workers:
                worker.signal(signal.SIGKILL)
        await ended
    finally:
        hurried.cancel()


def _words(status: int | None) -> str:
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"status {status}"
