r"""A process that does transfers, as a worker does, to be killed at any moment.

    python -m tests.integration.ftptransfer.engine_process \
        DSN HOST PORT USER BASE SLOTS WORKER LEASE_SECONDS RETRY_SECONDS

`ftp` is the FTP server, `local` the folder BASE. What is to be tried again is, within RETRY_SECONDS or after half of
them. It prints `ready`, and on a line of standard input it drains and ends.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path

import uvloop
from opsplane_server.ftptransfer import retries
from opsplane_server.ftptransfer.engine import TransferEngine
from opsplane_server.ftptransfer.failures import Failure
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.model import Connection, FtpServer, LocalFolder
from opsplane_server.ftptransfer.sessions.pool import SessionPool
from opsplane_server.ftptransfer.stores.postgres import PostgresSweeps, PostgresTransferQueue, queue_database
from opsplane_server.ftptransfer.upkeep import Upkeep
from opsplane_server.storage.signals import Signals

from tests.ftp_servers.base import PASSWORD

WORK, CHANGES = "work", "changes"


class Ends:
    """A `ConnectionSource` of the two ends."""

    def __init__(self, host: str, port: int, user: str, base: Path) -> None:
        server = FtpServer(host, port, user, PASSWORD, reply_timeout=5.0, stall_timeout=5.0)
        self._connections = {"ftp": Connection("ftp", server), "local": Connection("local", LocalFolder(base))}

    async def resolve(self, ids: Collection[str], *, fresh: bool = False) -> Mapping[str, Connection]:
        return {name: self._connections[name] for name in ids if name in self._connections}


async def _run(dsn: str, ends: Ends, slots: Path, worker: str, lease_seconds: float, retry_seconds: float) -> None:
    def delay(failure: Failure, attempt: int) -> float | None:
        return random.uniform(retry_seconds / 2, retry_seconds) if failure.retryable else None  # noqa: S311

    retries.delay = delay
    figures = TransferFigures()
    async with queue_database(dsn) as database, Signals(dsn) as signals, SessionPool(slots, figures) as sessions:
        work, changes = signals.topic(WORK), signals.topic(CHANGES)
        queue = PostgresTransferQueue(database, ends, work=work, changes=changes, lease_seconds=lease_seconds)
        engine = TransferEngine(
            queue, sessions, work, figures, worker=worker, lease_seconds=lease_seconds, drain_seconds=5.0
        )
        async with (
            Upkeep(PostgresSweeps(database), work=work, changes=changes, keep=timedelta(days=1)),
            engine,
        ):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    _dsn, _host, _port, _user, _base, _slots, _worker, _lease, _retry = sys.argv[1:]
    _ends = Ends(_host, int(_port), _user, Path(_base))
    uvloop.run(_run(_dsn, _ends, Path(_slots), _worker, float(_lease), float(_retry)))
