"""Processes that work on operations of instances and kill themselves at a chosen point.

    python -m tests.integration.instances.crash_worker

reads a job a line, in JSON, forks a process that works on it, and writes how that ended, a line each. A point is any
moment right before or after a process is started or ended, a file gets its name or goes, or the database takes a
write of the operation: the nth of them since the work on the operation began is where the process ends by SIGKILL.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opsplane_server.instances.engines.postgres import PostgresAdmin
from opsplane_server.instances.model import Engine
from opsplane_server.platform.execution import Execution, Handler
from opsplane_server.platform.stores.postgres import PostgresOperationStore

from tests.instances_harness import machine, provider
from tests.instances_operations import NODE, open_room

_FUNCTIONS = (
    (os, ("replace", "rename", "link", "unlink", "mkdir", "kill")),
    (shutil, ("rmtree",)),
    (subprocess.Popen, ("__init__",)),
)
_WRITES = ("checkpoint", "lock", "finish")


@dataclass(frozen=True)
class Job:
    """kill_at: the number of the point, 0 for none."""

    dsn: str
    folder: str
    first_port: int
    last_port: int
    operation: str
    kill_at: int
    log: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Points:
    """Counts the points since it was armed."""

    def __init__(self, kill_at: int) -> None:
        self._kill_at = kill_at
        self._numbers = itertools.count(1)
        self._armed = False

    def arm(self) -> None:
        self._armed = True

    def reach(self) -> None:
        if self._armed and next(self._numbers) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def lay(self) -> None:
        """Makes a point before and after each call of the functions."""
        for place, names in _FUNCTIONS:
            for name in names:
                setattr(place, name, self._around(getattr(place, name)))
        for name in _WRITES:
            setattr(PostgresOperationStore, name, self._around_write(getattr(PostgresOperationStore, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if function is _kill and args == (os.getpid(), signal.SIGKILL):
                return function(*args)
            self.reach()
            result = function(*args, **options)
            self.reach()
            return result

        return call

    def _around_write(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        async def call(*args: Any, **options: Any) -> Any:
            self.reach()
            result = await method(*args, **options)
            self.reach()
            return result

        return call


_kill = os.kill


async def work(job: Job) -> None:
    """Returns when the operation is done."""
    points = Points(job.kill_at)
    points.lay()
    folder = Path(job.folder)
    local = provider(machine(folder, first_port=job.first_port, last_port=job.last_port))
    async with open_room(job.dsn, folder, local, {Engine.POSTGRESQL: PostgresAdmin()}) as room:
        handlers = {kind: _arming(points, handler) for kind, handler in room.handlers().items()}
        async with room.platform.executor(
            handlers, owner=f"worker-{os.getpid()}", node=NODE, failure_hooks=room.failure_hooks(), max_crashes=1000
        ):
            operation = await room.platform.operations.wait(job.operation, 100)
            assert operation.state.done, operation


def _arming(points: Points, handler: Handler) -> Handler:
    async def handle(execution: Execution) -> Any:
        points.arm()
        return await handler(execution)

    return handle


def _run(job: Mapping[str, Any]) -> int:
    """What the process ended with: 0 when the operation is done, minus the signal when it was killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.setsid()
            asyncio.run(work(Job(**job)))
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(f"{_run(json.loads(line))}\n")
        sys.stdout.flush()
