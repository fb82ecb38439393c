"""Starts `worker` processes and talks to them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


class Worker:
    """A child process with an executor."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def lines(self, word: str, count: int) -> list[list[str]]:
        """The rest of the next `count` lines that start with `word`; others in between are passed over."""
        assert self._process.stdout is not None
        found: list[list[str]] = []
        while len(found) < count:
            line = (await self._process.stdout.readline()).decode().split()
            assert line, f"the worker ended before it printed {word} {count} times: {found}"
            if line[0] == word:
                found.append(line[1:])
        return found

    def open_gate(self) -> None:
        """Lets all handlers go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        """kill -9, and waits until the process is gone."""
        self._process.kill()
        await self._process.wait()

    async def terminate(self) -> int:
        """Asks it to end; its exit status."""
        self._process.terminate()
        return await self._process.wait()


@asynccontextmanager
async def started_worker(dsn: str, owner: str, *, lease_seconds: float) -> AsyncIterator[Worker]:
    """A worker that takes operations up; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.platform.worker",
        dsn,
        owner,
        str(lease_seconds),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        worker = Worker(process)
        await worker.lines("ready", 1)
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
