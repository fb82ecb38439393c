"""Sessions over networks that delay, cut, throttle and truncate: no failure may look like a success."""

from __future__ import annotations

# ruff: noqa: F811, S311 - fixtures are imported, and named again by those who use them
import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.sessions.session import FtpSession

from tests.contract.ftptransfer.test_sessions import BIG, SMALL, download, opened, refused, upload
from tests.ftp_proxy import Fault, FtpProxy
from tests.ftp_servers.base import FtpProcess
from tests.ftp_servers.fixtures import StartServer, ftp_kind, ftp_server, settings_of, start_ftp  # noqa: F401
from tests.ftp_servers.vsftpd import Vsftpd


@asynccontextmanager
async def through(
    server: FtpProcess,
    *,
    control: Fault | None = None,
    data: Fault | None = None,
    wait: float = 2.0,
    stall: float = 0.0,
) -> AsyncIterator[FtpSession]:
    """A session through a proxy; it waits `wait` seconds for replies, and `stall` for data."""
    async with FtpProxy(
        server.host, server.port, control=lambda: control or Fault(), data=lambda: data or Fault()
    ) as it:
        settings = replace(settings_of(server), port=it.port, reply_timeout=wait, stall_timeout=stall or wait)
        async with opened(settings) as session:
            yield session


@pytest.mark.parametrize("epsv", [True, False])
async def test_the_proxy_alone_changes_nothing(
    ftp_kind: str, start_ftp: StartServer, tmp_path: Path, epsv: bool
) -> None:
    server = start_ftp(ftp_kind, epsv=epsv)
    slow = Fault(delay=0.001)
    async with through(server, control=slow, data=slow) as session:
        for content in (b"", SMALL, BIG):
            await upload(session, content, "/data/a", tmp_path)
            assert (await session.stat("/data/a")).size == len(content)
            await download(session, "/data/a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == content
        assert session.usable


@pytest.mark.parametrize("size", [100_000, 3_000_000])
@pytest.mark.parametrize("after", [0, 1, 50_000, 99_999])
async def test_a_cut_data_connection_fails_the_transfer(
    ftp_server: FtpProcess, tmp_path: Path, size: int, after: int
) -> None:
    content = BIG[:size]
    ftp_server.write("a", content)
    async with through(ftp_server, data=Fault(cut_after=after)) as session:
        failure = await refused(lambda: download(session, "/data/a", tmp_path / "a"))
        assert failure.code is ErrorCode.CONNECTION_ERROR
        assert failure.retryable
        came = (tmp_path / "a").read_bytes()
        assert content.startswith(came)
        assert len(came) <= after
    async with through(ftp_server, data=Fault(cut_after=after)) as session:
        try:
            await upload(session, content, "/data/b", tmp_path)
        except TransferFailure as failure:
            assert failure.retryable  # noqa: PT017 - on some servers a reset looks like an end
        else:
            assert await session.size("/data/b") != size


@pytest.mark.parametrize("after", [0, 1, 50_000, 99_999])
async def test_a_truncated_download_is_seen_by_its_size(ftp_server: FtpProcess, tmp_path: Path, after: int) -> None:
    """A proper end with a confirmation: only the size tells, which is why attempts compare it."""
    ftp_server.write("a", SMALL)
    async with through(ftp_server, data=Fault(truncate_after=after)) as session:
        try:
            count = await download(session, "/data/a", tmp_path / "a")
        except TransferFailure as failure:
            assert failure.retryable  # noqa: PT017
        else:
            assert count < len(SMALL)
            assert await session.size("/data/a") == len(SMALL)


@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_data_that_stands_still_fails_the_transfer(ftp_server: FtpProcess, tmp_path: Path, size: int) -> None:
    ftp_server.write("a", BIG[:size])
    async with through(ftp_server, data=Fault(stall_after=60_000), wait=0.5) as session:
        async with asyncio.timeout(10):
            failure = await refused(lambda: download(session, "/data/a", tmp_path / "a"))
        assert failure.reason is ErrorReason.STALLED
        assert failure.retryable
        assert not session.usable


async def test_an_upload_that_stands_still_fails(ftp_server: FtpProcess, tmp_path: Path) -> None:
    async with through(ftp_server, data=Fault(stall_after=60_000), wait=0.5) as session:
        async with asyncio.timeout(20):
            failure = await refused(lambda: upload(session, bytes(30_000_000), "/data/a", tmp_path))
        assert failure.reason is ErrorReason.STALLED
        assert not session.usable


@pytest.mark.parametrize("size", [100_000, 30_000_000])
async def test_a_file_that_a_stalled_upload_still_holds_can_be_deleted_and_stored_again(
    ftp_server: FtpProcess, tmp_path: Path, size: int
) -> None:
    """Some servers keep it locked for minutes."""
    async with through(ftp_server, data=Fault(stall_after=60_000), wait=0.5) as session:
        failure = await refused(lambda: upload(session, bytes(size), "/data/a", tmp_path))
        assert failure.unanswered
        async with opened(settings_of(ftp_server)) as another:
            await another.delete("/data/a")
            await upload(another, SMALL, "/data/a", tmp_path)
            assert (ftp_server.files / "a").read_bytes() == SMALL


async def test_an_upload_that_is_cut_is_over_for_the_server_too(ftp_server: FtpProcess, tmp_path: Path) -> None:
    async with through(ftp_server, data=Fault(cut_after=60_000), wait=5.0) as session:
        failure = await refused(lambda: upload(session, bytes(30_000_000), "/data/a", tmp_path))
        assert failure.code is ErrorCode.CONNECTION_ERROR
        assert not failure.unanswered


@pytest.mark.parametrize("command", ["stat", "retrieve"])
async def test_a_session_of_vsftpd_that_says_500_and_dies_is_a_lost_connection(
    start_ftp: StartServer, tmp_path: Path, command: str
) -> None:
    server = start_ftp("vsftpd", bytes_per_second=100_000)
    assert isinstance(server, Vsftpd)
    server.write("a", BIG)
    async with opened(settings_of(server)) as session:
        lost = asyncio.Event()
        session.on_lost(lost.set)
        begun = asyncio.Event()
        if command == "retrieve":
            with (tmp_path / "a").open("wb") as file:
                reading = asyncio.create_task(
                    session.retrieve("/data/a", file.fileno(), progress=lambda _: begun.set())
                )
                await begun.wait()
                server.drop_workers()
                failure = await refused(lambda: reading)
        else:
            server.drop_workers()
            await lost.wait()
            failure = await refused(lambda: session.stat("/data/a"))
    assert (failure.code, failure.reason) == (ErrorCode.CONNECTION_ERROR, ErrorReason.CONNECTION_LOST)
    assert ": 500 OOPS: " in failure.message
    assert failure.retryable


async def test_slow_data_is_not_standing_still(ftp_server: FtpProcess, tmp_path: Path) -> None:
    content = SMALL * 5
    async with through(ftp_server, data=Fault(rate=400_000), wait=0.6, stall=5.0) as session:
        await upload(session, content, "/data/a", tmp_path)
        assert (ftp_server.files / "a").read_bytes() == content
        await download(session, "/data/a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == content


async def test_a_control_connection_may_break_anywhere(ftp_server: FtpProcess, tmp_path: Path) -> None:
    """Whatever byte it breaks at: a failure of the right kind, or all of the file."""
    ftp_server.write("a", SMALL)
    random_places = random.Random(7)
    outcomes = set()
    for fault in [
        Fault(**{kind: random_places.randrange(1, 900)})
        for kind in ("cut_after", "truncate_after", "stall_after")
        for _ in range(12)
    ]:
        try:
            async with asyncio.timeout(20), through(ftp_server, control=fault, wait=0.5) as session:
                await session.stat("/data/a")
                await download(session, "/data/a", tmp_path / "a")
                assert (tmp_path / "a").read_bytes() == SMALL
                outcomes.add("whole")
        except TransferFailure as failure:
            assert failure.code is ErrorCode.CONNECTION_ERROR  # noqa: PT017
            assert failure.retryable  # noqa: PT017
            outcomes.add("failed")
    assert "failed" in outcomes
