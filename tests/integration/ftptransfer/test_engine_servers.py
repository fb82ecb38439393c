"""The engine with the queue in PostgreSQL and real FTP servers, while processes die at any moment."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from opsplane_server.ftptransfer.model import Location, NewTransfer, Origin, Selection, TransferState
from opsplane_server.ftptransfer.stores.postgres import PostgresTransferStore
from opsplane_server.ftptransfer.temporary import is_temporary
from opsplane_server.ftptransfer.transfers import Transfers
from opsplane_server.rpc.ids import new_id
from opsplane_server.storage.database import Database
from opsplane_server.storage.migrations import Migrations
from opsplane_server.storage.signals import Signals

from tests.ftp_servers.base import FtpProcess
from tests.ftp_servers.fixtures import StartServer, ftp_kind, start_ftp
from tests.integration.ftptransfer.engine_process import CHANGES, WORK, Ends
from tests.postgres_fixtures import migrated
from tests.waiting import until

__all__ = ["ftp_kind", "start_ftp"]

pytestmark = pytest.mark.slow

_LEASE_SECONDS = 3.0


class Site:
    """A database with the queue, an FTP server, a local folder, and workers that come and go."""

    def __init__(self, dsn: str, database: Database, signals: Signals, server: FtpProcess, folder: Path) -> None:
        self.server = server
        self.local = folder / "local"
        self.local.mkdir()
        self.store = PostgresTransferStore(database)
        self.database = database
        self._dsn = dsn
        self._folder = folder
        self._numbers = itertools.count(1)
        self.contents: dict[Path, bytes] = {}
        """What must be at the destinations in the end."""
        self.queue = Transfers(
            self.store,
            Ends(server.host, server.port, server.user, self.local),
            work=signals.topic(WORK),
            changes=signals.topic(CHANGES),
            max_attempts=50,
        )

    @asynccontextmanager
    async def worker(
        self, pod: str = "pod", *, retry_seconds: float = 0.5
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """A worker at work; ended gracefully, if it has not been killed. Those of a pod share its sessions."""
        arguments = (
            *(self._dsn, self.server.host, self.server.port, self.server.user),
            *(self.local, self._folder / pod),
            *(f"worker-{next(self._numbers)}", _LEASE_SECONDS, retry_seconds),
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.ftptransfer.engine_process", *map(str, arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while (line := await process.stdout.readline()) != b"ready\n":
                assert line, "the worker did not start"
            drain = asyncio.create_task(process.stdout.read())
            yield process
            if process.returncode is None:
                process.stdin.close()
                assert await process.wait() == 0, (await drain).decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def down(self, name: str, content: bytes) -> NewTransfer:
        """A download of a new file of the server."""
        self.server.write(f"out/{name}", content)
        self.contents[self.local / "in" / name] = content
        return _transfer(Location("ftp", f"/data/out/{name}"), Location("local", f"/in/{name}"))

    def up(self, name: str, content: bytes) -> NewTransfer:
        """An upload of a new local file."""
        path = self.local / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        self.contents[self.server.files / "in" / name] = content
        return _transfer(Location("local", f"/out/{name}"), Location("ftp", f"/data/in/{name}"))

    async def submit(self, transfers: Sequence[NewTransfer]) -> list[str]:
        return [transfer_id for _, transfer_id in await self.queue.admit(transfers)]

    async def done(self) -> bool:
        return await self.left() == 0

    async def left(self) -> int:
        """How many transfers have not ended."""
        async with self.database.connection() as connection:
            count: int = await connection.fetchval("SELECT count(*) FROM ftptransfer.queue")
            return count

    async def check(self, ids: Sequence[str]) -> None:
        """All files are there, whole, and nothing else is."""
        transfers = [await self.store.get(one) for one in ids]
        assert [transfer for transfer in transfers if transfer.state is not TransferState.SUCCEEDED] == []
        wrong = [path for path, content in self.contents.items() if not _is(path, content)]
        assert wrong == []
        assert self.temporaries() == []

    def temporaries(self) -> list[Path]:
        """Files that are not whole yet, of both sides."""
        folders = self.local, self.server.files
        return [path for folder in folders for path in folder.rglob("*") if is_temporary(path.name)]


@asynccontextmanager
async def site(dsn: str, server: FtpProcess, folder: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        migrations = [Migrations("ftptransfer", "opsplane_server.ftptransfer")]
        database = await stack.enter_async_context(migrated(dsn, migrations))
        signals = await stack.enter_async_context(Signals(dsn))
        yield Site(dsn, database, signals, server, folder)


def _transfer(source: Location, destination: Location, selection: Selection = Selection.FILE) -> NewTransfer:
    return NewTransfer(
        id=new_id(), source=source, destination=destination, origin=Origin("rpc", "test"), selection=selection
    )


def _is(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _files(site: Site, count: int, *, size: int, seed: int) -> list[NewTransfer]:
    """Files of all sizes up to `size`, as many down as up; each has content of its own."""
    chance = random.Random(seed)  # noqa: S311
    transfers = []
    for number in range(count):
        content = chance.randbytes(chance.choice([0, 1, chance.randrange(1000), chance.randrange(size)]))
        transfers.append((site.up if number % 2 else site.down)(f"f{number}", content))
    return transfers


async def test_files_of_all_sizes_both_ways(dsn: str, ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    async with site(dsn, start_ftp(ftp_kind), tmp_path) as place:
        ids = await place.submit(_files(place, 200, size=400_000, seed=1))
        async with place.worker(), place.worker():
            await until(place.done)
        await place.check(ids)


async def test_destinations_are_replaced(dsn: str, ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    async with site(dsn, start_ftp(ftp_kind), tmp_path) as place:
        transfers = _files(place, 20, size=1000, seed=2)
        for path in place.contents:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"what was there before")
            if path.is_relative_to(place.server.files):
                place.server.own(path)
        ids = await place.submit(transfers)
        async with place.worker():
            await until(place.done)
        await place.check(ids)


async def test_trees_both_ways(dsn: str, ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    async with site(dsn, start_ftp(ftp_kind), tmp_path) as place:
        for name in ("a", "b/c", "b/d/e f", "ü"):
            place.server.write(f"tree/{name}", name.encode())
            (place.local / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (place.local / "tree" / name).write_bytes(name.encode())
            place.contents[place.local / "in" / name] = place.contents[place.server.files / "in" / name] = name.encode()
        ids = await place.submit(
            [
                _transfer(Location("ftp", "/data/tree"), Location("local", "/in"), Selection.TREE),
                _transfer(Location("local", "/tree"), Location("ftp", "/data/in"), Selection.TREE),
            ]
        )
        async with place.worker():
            await until(place.done)
        await place.check(ids)


async def test_workers_that_are_killed_at_any_moment(
    dsn: str, ftp_kind: str, start_ftp: StartServer, tmp_path: Path
) -> None:
    chance = random.Random(3)  # noqa: S311
    async with site(dsn, start_ftp(ftp_kind), tmp_path) as place:
        ids = await place.submit(_files(place, 400, size=3_000_000, seed=4))
        for _ in range(4):
            async with place.worker() as first, place.worker():
                await asyncio.sleep(chance.uniform(0.05, 0.8))
                first.kill()
                await first.wait()
                await asyncio.sleep(chance.uniform(0.05, 0.8))
        async with place.worker(), place.worker():
            await until(place.done, timeout=120)
        await place.check(ids)


async def test_server_that_is_killed_at_any_moment(
    dsn: str, ftp_kind: str, start_ftp: StartServer, tmp_path: Path
) -> None:
    chance = random.Random(5)  # noqa: S311
    server = start_ftp(ftp_kind)
    async with site(dsn, server, tmp_path) as place:
        ids = await place.submit(_files(place, 400, size=3_000_000, seed=6))
        async with place.worker(), place.worker():
            for _ in range(4):
                await asyncio.sleep(chance.uniform(0.1, 0.8))
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(chance.uniform(0.0, 0.5))
                await asyncio.to_thread(server.start)
            await until(place.done, timeout=120)
        await place.check(ids)


async def test_worker_that_sleeps_through_its_lease(dsn: str, start_ftp: StartServer, tmp_path: Path) -> None:
    """Others do its tasks meanwhile, but for files that it has open: those wait until it wakes up and lets them go."""
    async with site(dsn, start_ftp("vsftpd"), tmp_path) as place:
        ids = await place.submit(_files(place, 400, size=3_000_000, seed=7))

        async def nearly_done() -> bool:
            return await place.left() <= 20

        async with place.worker("sleepy") as first:
            await asyncio.sleep(0.5)
            os.kill(first.pid, signal.SIGSTOP)
            async with place.worker("other"):
                await until(nearly_done, timeout=60)
                os.kill(first.pid, signal.SIGCONT)
                await until(place.done, timeout=60)
        await place.check(ids)
