"""What attempts leave that are cut in the middle: the next one goes on with it, and in the end nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from opsplane_server.ftptransfer.model import TransferState

from tests.ftp_servers.fixtures import StartServer, start_ftp
from tests.integration.ftptransfer.test_engine_servers import Site, site
from tests.waiting import until

__all__ = ["start_ftp"]

pytestmark = pytest.mark.slow

_SIZE = 8_000_000
_RATE = 4_000_000
_PART = 1_000_000
_NEVER = 100_000.0


def _content(seed: int) -> bytes:
    return random.Random(seed).randbytes(_SIZE)  # noqa: S311


async def _begun(place: Site, transfer: str) -> None:
    """Returns when a part of the file has come, and the queue knows it."""

    async def begun() -> bool:
        return (await place.store.get(transfer)).bytes_transferred >= _PART

    await until(begun, timeout=30)


async def _waits(place: Site, transfer: str) -> None:
    """Returns when an attempt has failed."""

    async def waits() -> bool:
        return (await place.store.get(transfer)).state is TransferState.WAITING

    await until(waits, timeout=30)


async def _kill(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.wait()


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("changed", [False, True])
async def test_another_worker_goes_on_where_one_was_killed(
    dsn: str, start_ftp: StartServer, tmp_path: Path, way: str, changed: bool
) -> None:
    async with site(dsn, start_ftp("vsftpd", bytes_per_second=_RATE), tmp_path) as place:
        put = getattr(place, way)
        [one] = await place.submit([put("big", _content(1))])
        async with place.worker() as first:
            await _begun(place, one)
            await _kill(first)
        assert len(place.temporaries()) == 1
        if changed:
            put("big", _content(2))
            source = (place.server.files if way == "down" else place.local) / "out/big"
            os.utime(source, (1_000_000_000, 1_000_000_000))
        async with place.worker():
            await until(place.done, timeout=30)
        await place.check([one])
        found = await place.store.get(one)
    assert found.bytes_transferred == _SIZE
    assert (found.resumed_bytes > 0) is not changed


@pytest.mark.parametrize("way", ["down", "up"])
async def test_another_worker_goes_on_with_what_failed(
    dsn: str, start_ftp: StartServer, tmp_path: Path, way: str
) -> None:
    server = start_ftp("vsftpd", bytes_per_second=_RATE)
    async with site(dsn, server, tmp_path) as place:
        [one] = await place.submit([getattr(place, way)("big", _content(1))])
        async with place.worker(retry_seconds=6.0):
            await _begun(place, one)
            await asyncio.to_thread(server.drop_sessions)
            await _waits(place, one)
        async with place.worker():
            await until(place.done, timeout=30)
        await place.check([one])
        found = await place.store.get(one)
    assert (found.attempt_count, found.bytes_transferred) == (2, _SIZE)
    assert found.resumed_bytes > 0


@pytest.mark.parametrize("way", ["down", "up"])
async def test_nothing_is_left_of_what_is_cancelled_while_it_waits(
    dsn: str, start_ftp: StartServer, tmp_path: Path, way: str
) -> None:
    server = start_ftp("vsftpd", bytes_per_second=_RATE)
    async with site(dsn, server, tmp_path) as place:
        [one] = await place.submit([getattr(place, way)("big", _content(1))])
        async with place.worker(retry_seconds=_NEVER):
            await _begun(place, one)
            await asyncio.to_thread(server.drop_sessions)
            await _waits(place, one)
            assert len(place.temporaries()) == 1
            await place.queue.cancel(one)
            await until(place.done, timeout=30)
        found = await place.store.get(one)
        assert place.temporaries() == []
        assert not any(path.exists() for path in place.contents)
    assert (found.state, found.attempt_count) == (TransferState.CANCELLED, 1)


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("end", [TransferState.CANCELLED, TransferState.FAILED])
async def test_nothing_is_left_of_what_a_killed_worker_had(
    dsn: str, start_ftp: StartServer, tmp_path: Path, way: str, end: TransferState
) -> None:
    async with site(dsn, start_ftp("vsftpd", bytes_per_second=_RATE), tmp_path) as place:
        [one] = await place.submit([getattr(place, way)("big", _content(1))])
        async with place.worker() as first:
            await _begun(place, one)
            if end is TransferState.FAILED:
                async with place.database.connection() as connection:
                    await connection.execute("UPDATE ftptransfer.queue SET crashes = 19")
            await _kill(first)
        assert len(place.temporaries()) == 1
        if end is TransferState.CANCELLED:
            await place.queue.cancel(one)
        async with place.worker():
            await until(place.done, timeout=30)
        found = await place.store.get(one)
        assert place.temporaries() == []
        assert not any(path.exists() for path in place.contents)
    assert found.state is end
