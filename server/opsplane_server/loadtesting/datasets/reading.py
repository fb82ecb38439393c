"""Reads rows in processes of their own: a large or hostile file, a slow server or a million made-up rows never hold up
the event loop, are ended at any time, and have limits on memory of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

import structlog

from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.loadtesting.datasets.generating import GENERATORS
from opsplane_server.loadtesting.datasets.model import DEFAULT_TIMEOUT, ClickHouseQuery, RowFormat, Rows
from opsplane_server.loadtesting.datasets.worker import Job
from opsplane_server.loadtesting.users.model import Generator

log = structlog.get_logger(__name__)

REASON: Final = "DATA_SET_FAILED"
CONTENT: Final = "data_set.upload.content"

# Connecting comes before the query, starting the process before both.
_GRACE: Final = timedelta(seconds=30)
_END_SECONDS: Final = 2.0
# The line with the names of all fields.
_LINE_LIMIT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReadingLimits:
    """What reading one set of rows may take. Queries mostly wait, so more of them run at a time."""

    timeout: timedelta = timedelta(seconds=300)
    memory_bytes: int = 2 * 1024**3
    cpu_seconds: int = 300
    concurrency: int = 2
    query_concurrency: int = 16


class _Problem(Exception):
    pass


class RowReader:
    """Reads rows. Use as an async context manager; leaving it ends what still runs."""

    def __init__(self, limits: ReadingLimits | None = None) -> None:
        self._limits = limits or ReadingLimits()
        self._places = asyncio.Semaphore(self._limits.concurrency)
        self._query_places = asyncio.Semaphore(self._limits.query_concurrency)
        self._processes: set[asyncio.subprocess.Process] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()

    async def parse(self, form: RowFormat, content: bytes) -> Rows:
        """The rows of a file. InvalidArgument on `data_set.upload.content` that names the line."""
        head = {"job": Job.PARSE, "format": form.value, "size": len(content)}
        try:
            async with self._places:
                return await self._run(head, content, self._limits.timeout)
        except _Problem as problem:
            raise InvalidArgument.of(CONTENT, str(problem), reason="ROWS_BROKEN") from None

    async def query(self, source: ClickHouseQuery, password: str, *, limit: int = 0) -> Rows:
        """The rows of a query, at most `limit` unless 0. FailedPrecondition `DATA_SET_FAILED` with what went wrong."""
        timeout = source.timeout or DEFAULT_TIMEOUT
        asked = asdict(source) | {"timeout": timeout.total_seconds()}
        head = {"job": Job.QUERY, "query": asked, "password": password, "limit": limit}
        try:
            async with self._query_places:
                return await self._run(head, b"", timeout + _GRACE)
        except _Problem as problem:
            raise failed(str(problem)) from None

    async def generate(self, generator: Generator, *, pool: str, seed: int, now: datetime) -> Rows:
        """The rows that a generator makes up for a pool. FailedPrecondition when they are too long."""
        head = {
            "job": Job.GENERATE,
            "generator": GENERATORS.dump_python(generator, mode="json"),
            "pool": pool,
            "seed": seed,
            "now": now.isoformat(),
        }
        try:
            async with self._places:
                return await self._run(head, b"", self._limits.timeout)
        except _Problem as problem:
            raise failed(str(problem)) from None

    async def _run(self, head: dict[str, Any], content: bytes, timeout: timedelta) -> Rows:
        try:
            async with asyncio.timeout(timeout.total_seconds()), self._process() as process:
                await _send(process, head, content)
                return await _receive(process)
        except TimeoutError:
            raise _Problem(f"reading the rows was not done after {timeout.total_seconds():g} s") from None

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "opsplane_server.loadtesting.datasets.worker",
            str(self._limits.memory_bytes),
            str(self._limits.cpu_seconds),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LINE_LIMIT,
        )
        self._processes.add(process)
        try:
            yield process
        finally:
            self._processes.discard(process)
            await _end(process)


def failed(problem: str) -> FailedPrecondition:
    """The error of a source of rows that cannot be used."""
    return FailedPrecondition(problem, reason=REASON)


async def _send(process: asyncio.subprocess.Process, head: dict[str, Any], content: bytes) -> None:
    assert process.stdin is not None
    # It may end early (uvloop says RuntimeError then); what it answered, if anything, says why.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
        process.stdin.write(json.dumps(head).encode() + b"\n")
        process.stdin.write(content)
        await process.stdin.drain()
        process.stdin.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Lets a process tell its server that it takes no more rows, but not for long."""
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        try:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
    await process.wait()


async def _receive(process: asyncio.subprocess.Process) -> Rows:
    assert process.stdout is not None
    try:
        answer = json.loads(await process.stdout.readuntil(b"\n"))
        if "fields" in answer:
            lines = await process.stdout.readexactly(answer["size"])
            return Rows(tuple(answer["fields"]), answer["row_count"], answer["sha256"], lines)
    except asyncio.IncompleteReadError:
        raise _Problem("the rows need more memory or time than reading them may take") from None
    if "problem" in answer:
        raise _Problem(answer["problem"])
    log.error("reading rows crashed", traceback=answer["crashed"])
    raise RuntimeError("reading the rows crashed")
