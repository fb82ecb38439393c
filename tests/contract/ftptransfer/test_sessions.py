"""Sessions with real servers: what works on one of them works on all."""

# ruff: noqa: F811 - fixtures are imported, and named again by those who use them
# ruff: noqa: S311, ASYNC230, ASYNC240

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pytest
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import ActiveMode, FileKind, FtpServer, TlsMode, TlsSettings
from opsplane_server.ftptransfer.sessions.exchange import Knowledge
from opsplane_server.ftptransfer.sessions.flow import DataPlane
from opsplane_server.ftptransfer.sessions.login import Login
from opsplane_server.ftptransfer.sessions.session import FtpSession
from opsplane_server.ftptransfer.sessions.tls import TlsClient

from tests.ftp_servers.base import FtpProcess
from tests.ftp_servers.certificates import make_certificate
from tests.ftp_servers.fixtures import KINDS, StartServer, ftp_kind, ftp_server, settings_of, start_ftp  # noqa: F401
from tests.waiting import until

SMALL = random.Random(1).randbytes(100_000)
BIG = random.Random(2).randbytes(3_000_000)  # more than the event loop moves itself
TLS = [(kind, mode, version) for kind in KINDS for mode in ("explicit", "implicit") for version in ("", "1.2")]


@asynccontextmanager
async def opened(settings: FtpServer, knowledge: Knowledge | None = None) -> AsyncIterator[FtpSession]:
    """A session, which leaves no file descriptor open."""
    with ThreadPoolExecutor(4) as threads:
        tls = TlsClient(settings, settings.tls) if settings.tls else None
        session = await Login(settings, knowledge or Knowledge(), DataPlane(threads), tls).open()
        try:
            yield session
        finally:
            session.quit()
            await session.wait_closed()


async def download(session: FtpSession, path: str, target: Path, *, offset: int = 0) -> int:
    """Appends the remote file, from `offset` on, to `target`."""
    with target.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        return await session.retrieve(path, file.fileno(), offset=offset)


async def upload(session: FtpSession, content: bytes, path: str, folder: Path, *, offset: int = 0) -> int:
    """Sends `content` from `offset` on."""
    source = folder / "upload"
    source.write_bytes(content)
    with source.open("rb") as file:
        return await session.store(path, file.fileno(), offset=offset)


async def refused(action: Callable[[], Awaitable[object]]) -> TransferFailure:
    with pytest.raises(TransferFailure) as caught:
        await action()
    return caught.value


def sockets() -> set[str]:
    """The sockets and pipes that this process has open."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {name for name in found if name.startswith(("socket:", "pipe:"))}


# Files


@pytest.mark.parametrize("content", [b"", b"x", SMALL, BIG], ids=["empty", "one", "small", "big"])
async def test_files_arrive_as_they_are(ftp_server: FtpProcess, tmp_path: Path, content: bytes) -> None:
    async with opened(settings_of(ftp_server)) as session:
        assert await upload(session, content, "/data/a", tmp_path) == len(content)
        assert (ftp_server.files / "a").read_bytes() == content
        assert await session.size("/data/a") == len(content)
        assert await download(session, "/data/a", tmp_path / "a") == len(content)
        assert (tmp_path / "a").read_bytes() == content
        assert session.usable


async def test_progress_tells_the_bytes_so_far(ftp_server: FtpProcess, tmp_path: Path) -> None:
    ftp_server.write("big", BIG)
    told: list[int] = []
    async with opened(settings_of(ftp_server)) as session:
        with (tmp_path / "big").open("w+b") as file:
            await session.retrieve("/data/big", file.fileno(), progress=told.append)
            assert told == sorted(told)
            assert told[-1] == len(BIG)
            told.clear()
            await session.store("/data/again", file.fileno(), progress=told.append)
    assert told[-1] == len(BIG)


@pytest.mark.parametrize("start", [1, 50_000, 99_999, 100_000])
async def test_downloads_resume(ftp_server: FtpProcess, tmp_path: Path, start: int) -> None:
    ftp_server.write("a", SMALL)
    (tmp_path / "a").write_bytes(SMALL[:start])
    async with opened(settings_of(ftp_server)) as session:
        assert session.supports_resume
        assert await download(session, "/data/a", tmp_path / "a", offset=start) == len(SMALL) - start
    assert (tmp_path / "a").read_bytes() == SMALL


@pytest.mark.parametrize("restart_store", [True, False])
async def test_uploads_resume(ftp_kind: str, start_ftp: StartServer, tmp_path: Path, restart_store: bool) -> None:
    server = start_ftp(ftp_kind, restart_store=restart_store)
    server.write("a", BIG[:1_000_000])
    async with opened(settings_of(server)) as session:
        if ftp_kind == "proftpd" and not restart_store:
            # It does not append then either.
            failure = await refused(lambda: upload(session, BIG, "/data/a", tmp_path, offset=1_000_000))
            assert (failure.code, failure.retryable) == (ErrorCode.IO_ERROR, True)
            assert not session.supports_resume
            assert (server.files / "a").read_bytes() == BIG[:1_000_000]
        else:
            assert await upload(session, BIG, "/data/a", tmp_path, offset=1_000_000) == len(BIG) - 1_000_000
            assert (server.files / "a").read_bytes() == BIG
            server.write("a", BIG[:2_000_000])
            await upload(session, BIG, "/data/a", tmp_path, offset=2_000_000)
            assert (server.files / "a").read_bytes() == BIG
        assert session.usable


async def test_appending_needs_the_right_size(start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp("pyftpdlib", restart_store=False)
    server.write("a", SMALL[:10])
    async with opened(settings_of(server)) as session:
        failure = await refused(lambda: upload(session, SMALL, "/data/a", tmp_path, offset=20))
    assert failure.reason is ErrorReason.SIZE_MISMATCH
    assert (server.files / "a").read_bytes() == SMALL[:10]


async def test_append_to_a_descriptor_that_appends(ftp_server: FtpProcess, tmp_path: Path) -> None:
    ftp_server.write("big", BIG)
    target = tmp_path / "big"
    target.write_bytes(BIG[:10])
    async with opened(settings_of(ftp_server)) as session:
        with target.open("ab") as file:
            await session.retrieve("/data/big", file.fileno(), offset=10)
    assert target.read_bytes() == BIG


NAMES = [
    "with space",
    " leading",
    "trailing ",
    "파일 이름.txt",
    "ünï",
    "-rf",
    "[a]*?",
    "quote\"'",
    "100%",
    "a;b=c d",
    "#x",
]


@pytest.mark.parametrize("name", NAMES)
async def test_names(ftp_server: FtpProcess, tmp_path: Path, name: str) -> None:
    async with opened(settings_of(ftp_server)) as session:
        # proftpd makes no folders of such names.
        folder = "folder" if "*" in name and ftp_server.name == "proftpd" else f"{name} d"
        await session.make_folders(f"/data/{folder}")
        path = f"/data/{folder}/{name}"
        await upload(session, b"content", path, tmp_path)
        assert (ftp_server.files / folder / name).read_bytes() == b"content"
        (entry,) = await session.list(f"/data/{folder}")
        assert (entry.name, entry.kind, entry.size) == (name, FileKind.FILE, 7)
        assert (await session.stat(path)).size == 7
        await download(session, path, tmp_path / "down")
        assert (tmp_path / "down").read_bytes() == b"content"
        await session.rename(path, path + "2")
        assert await session.delete(path + "2")
        assert session.usable


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b", "x\r\nDELE /data/kept"])
async def test_names_with_line_breaks_are_refused(ftp_server: FtpProcess, tmp_path: Path, name: str) -> None:
    ftp_server.write("kept", b"kept")
    async with opened(settings_of(ftp_server)) as session:
        for action in (
            lambda: session.stat(f"/data/{name}"),
            lambda: session.list(f"/data/{name}"),
            lambda: session.size(f"/data/{name}"),
            lambda: session.delete(f"/data/{name}"),
            lambda: session.make_folders(f"/data/{name}"),
            lambda: session.rename("/data/kept", f"/data/{name}"),
            lambda: session.rename(f"/data/{name}", "/data/b"),
            lambda: session.set_modify_time(f"/data/{name}", datetime.now(UTC)),
            lambda: download(session, f"/data/{name}", tmp_path / "a"),
            lambda: upload(session, b"", f"/data/{name}", tmp_path),
        ):
            failure = await refused(action)
            assert (failure.code, failure.reason) == (ErrorCode.INVALID_CONFIG, ErrorReason.PATH)
            assert not failure.retryable
        assert session.usable
        assert await session.check()
    assert [path.name for path in ftp_server.files.iterdir()] == ["kept"]


async def test_other_encodings(start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp("vsftpd")
    async with opened(settings_of(server, encoding="euc-kr")) as session:
        await upload(session, b"x", "/data/한글", tmp_path)
        assert os.listdir(os.fsencode(server.files)) == ["한글".encode("euc-kr")]
        assert [entry.name for entry in await session.list("/data")] == ["한글"]
        failure = await refused(lambda: session.stat("/data/\N{SNOWMAN}\N{GRINNING FACE}"))
        assert failure.reason is ErrorReason.PATH


@pytest.mark.parametrize("encoding", ["utf-16", "rot13", "nonsense"])
async def test_encodings_that_cannot_be(encoding: str) -> None:
    failure = await refused(lambda: opened(FtpServer("127.0.0.1", 1, encoding=encoding)).__aenter__())
    assert failure.code is ErrorCode.INVALID_CONFIG


# Folders


@pytest.mark.parametrize("mlsd", [True, False])
async def test_listings(ftp_kind: str, start_ftp: StartServer, mlsd: bool) -> None:
    server = start_ftp(ftp_kind, mlsd=mlsd)
    server.write("folder/a b", b"12345")
    server.write("folder/sub/c", b"")
    os.utime(server.files / "folder/a b", (1_700_000_000, 1_700_000_000))
    (server.files / "folder/link").symlink_to("a b")
    async with opened(settings_of(server)) as session:
        entries = {entry.name: entry for entry in await session.list("/data/folder")}
        assert set(entries) == {"a b", "sub", "link"}
        assert (entries["a b"].kind, entries["a b"].size) == (FileKind.FILE, 5)
        assert entries["sub"].kind is FileKind.FOLDER
        time = entries["a b"].modify_time
        assert time is not None
        assert abs(time.timestamp() - 1_700_000_000) < 86_400
        assert [entry.name for entry in await session.list("/data/folder/sub")] == ["c"]
        assert {entry.name for entry in await session.list("")} == {"data"}
        assert {entry.name for entry in await session.list("data")} == {"folder"}
        assert (await refused(lambda: session.list("/data/none"))).reason is ErrorReason.NOT_FOUND
        assert {entry.name for entry in await session.list("")} == {"data"}
        assert session.usable


async def test_a_long_listing_does_not_hold_up_the_loop(ftp_server: FtpProcess) -> None:
    for number in range(3000):
        (ftp_server.files / f"file number {number}").touch()
    async with opened(settings_of(ftp_server)) as session:
        assert len(await session.list("/data")) == 3000


@pytest.mark.parametrize("mlsd", [True, False])
async def test_stat(ftp_kind: str, start_ftp: StartServer, mlsd: bool) -> None:
    server = start_ftp(ftp_kind, mlsd=mlsd)
    server.write("folder/a", b"12345")
    os.utime(server.files / "folder/a", (1_700_000_000, 1_700_000_000))
    async with opened(settings_of(server)) as session:
        found = await session.stat("/data/folder/a")
        assert (found.name, found.kind, found.size) == ("a", FileKind.FILE, 5)
        assert found.modify_time == datetime.fromtimestamp(1_700_000_000, UTC)
        assert (await session.stat("/data/folder")).kind is FileKind.FOLDER
        for path in ("/data/none", "/data/none/a", "/none"):
            failure = await refused(lambda path=path: session.stat(path))  # type: ignore[misc]
            assert (failure.code, failure.ftp_code) == (ErrorCode.FILE_NOT_FOUND, 550)
            assert not failure.retryable
        assert (await session.stat("data/folder/a")).size == 5


async def test_folders_are_made_and_files_renamed_and_deleted(ftp_server: FtpProcess, tmp_path: Path) -> None:
    async with opened(settings_of(ftp_server)) as session:
        await session.make_folders("/data/a/b c/d/")
        assert (ftp_server.files / "a/b c/d").is_dir()
        await session.make_folders("/data/a/b c/d")
        await session.make_folders("data/e/f")
        assert (ftp_server.files / "e/f").is_dir()
        await upload(session, b"new", "/data/x", tmp_path)
        ftp_server.write("a/y", b"old")
        await session.rename("/data/x", "/data/a/y")
        assert (ftp_server.files / "a/y").read_bytes() == b"new"
        assert await session.delete("/data/a/y")
        assert not await session.delete("/data/a/y")
        assert (await refused(lambda: session.rename("/data/no", "/data/z"))).reason is ErrorReason.NOT_FOUND
        assert session.usable


async def test_a_folder_cannot_be_made_over_a_file(ftp_server: FtpProcess) -> None:
    ftp_server.write("a", b"")
    async with opened(settings_of(ftp_server)) as session:
        failure = await refused(lambda: session.make_folders("/data/a/b"))
        assert failure.code is ErrorCode.IO_ERROR
        assert session.usable


async def test_modification_times_are_kept(ftp_server: FtpProcess) -> None:
    path = ftp_server.write("a b", b"")
    time = datetime(2020, 2, 29, 23, 59, 58, tzinfo=UTC)
    async with opened(settings_of(ftp_server)) as session:
        assert await session.set_modify_time("/data/a b", time)
        assert path.stat().st_mtime == time.timestamp()
        assert not await session.set_modify_time("/data/none", time)
        assert await session.set_modify_time("/data/a b", datetime(2021, 1, 1, tzinfo=UTC))
        assert session.usable


async def test_time_and_size_in_one_go(ftp_server: FtpProcess) -> None:
    path = ftp_server.write("a b", b"12345")
    time = datetime(2020, 2, 29, 23, 59, 58, tzinfo=UTC)
    for knowledge in (Knowledge(), Knowledge(pipelining=False), Knowledge(modify_time_command="")):
        os.utime(path, (0, 0))
        async with opened(settings_of(ftp_server), knowledge) as session:
            assert await session.stamp("/data/a b", time) == 5
            assert path.stat().st_mtime == (time.timestamp() if knowledge.modify_time_command else 0)
            assert (await refused(lambda: session.stamp("/data/none", time))).reason is ErrorReason.NOT_FOUND
            assert session.usable


async def test_missing_files(ftp_server: FtpProcess, tmp_path: Path) -> None:
    async with opened(settings_of(ftp_server)) as session:
        failure = await refused(lambda: download(session, "/data/none", tmp_path / "a"))
        assert (failure.code, failure.reason) == (ErrorCode.FILE_NOT_FOUND, ErrorReason.NOT_FOUND)
        assert not failure.retryable
        failure = await refused(lambda: upload(session, SMALL, "/data/none/a", tmp_path))
        assert failure.code is ErrorCode.IO_ERROR
        assert failure.ftp_code in (550, 553)
        assert session.usable
        await upload(session, SMALL, "/data/a", tmp_path)


async def test_forbidden_files(ftp_server: FtpProcess, tmp_path: Path) -> None:
    if ftp_server.name == "pyftpdlib":
        pytest.skip("it runs as the owner of the files")
    ftp_server.write("a", SMALL).chmod(0)
    (ftp_server.files / "shut").mkdir(mode=0o755)
    async with opened(settings_of(ftp_server)) as session:
        failure = await refused(lambda: upload(session, SMALL, "/data/shut/a", tmp_path))
        assert failure.reason is ErrorReason.ACCESS_DENIED
        assert not failure.retryable
        assert session.usable


# Ways of connecting


async def test_epsv_refused_means_pasv(ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp(ftp_kind, epsv=False)
    server.write("a", SMALL)
    knowledge = Knowledge()
    async with opened(settings_of(server), knowledge) as session:
        for _ in range(2):
            await session.stat("/data/a")
            await download(session, "/data/a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == SMALL
    assert not knowledge.extended_passive


@pytest.mark.parametrize("announced", [False, True])
async def test_announced_addresses(ftp_server: FtpProcess, tmp_path: Path, announced: bool) -> None:
    ftp_server.write("a", SMALL)
    async with opened(settings_of(ftp_server, use_announced_address=announced)) as session:
        await download(session, "/data/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == SMALL


async def test_active_mode(ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp(ftp_kind, passive=False)
    first = random.Random().randrange(20_000, 30_000)
    active = ActiveMode("", first, first + 50)
    async with opened(settings_of(server, active=active)) as session:
        for content in (SMALL, BIG):
            await upload(session, content, "/data/a", tmp_path)
            assert (server.files / "a").read_bytes() == content
            await download(session, "/data/a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == content
        assert [entry.name for entry in await session.list("/data")] == ["a"]
        assert (await refused(lambda: download(session, "/data/none", tmp_path / "b"))).reason is ErrorReason.NOT_FOUND
        assert session.usable


async def test_active_mode_without_a_free_port(start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp("vsftpd")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with opened(settings_of(server, active=ActiveMode("", port, port))) as session:
            failure = await refused(lambda: download(session, "/data/a", tmp_path / "a"))
    assert failure.reason is ErrorReason.DATA_CONNECTION


async def test_passive_mode_where_there_is_none(ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp(ftp_kind, passive=False)
    server.write("a", SMALL)
    async with opened(settings_of(server)) as session:
        failure = await refused(lambda: download(session, "/data/a", tmp_path / "a"))
        assert failure.reason is ErrorReason.DATA_CONNECTION
        assert failure.retryable
        assert session.usable


async def test_wrong_password(ftp_server: FtpProcess) -> None:
    failure = await refused(lambda: opened(settings_of(ftp_server, password="wrong")).__aenter__())
    assert (failure.code, failure.reason) == (ErrorCode.CONNECTION_ERROR, ErrorReason.LOGIN)
    assert failure.ftp_code == 530
    assert not failure.retryable
    assert "wrong" not in failure.message


async def test_too_many_sessions(ftp_kind: str, start_ftp: StartServer) -> None:
    server = start_ftp(ftp_kind, max_sessions=1)
    async with opened(settings_of(server)):
        failure = await refused(lambda: opened(settings_of(server)).__aenter__())
    assert failure.reason is ErrorReason.TOO_MANY_SESSIONS
    assert failure.retryable


async def test_unreachable_servers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    failure = await refused(lambda: opened(FtpServer("127.0.0.1", port)).__aenter__())
    assert failure.reason is ErrorReason.UNREACHABLE
    failure = await refused(lambda: opened(FtpServer("no-such-host.invalid")).__aenter__())
    assert failure.reason is ErrorReason.HOST_UNKNOWN


# TLS


@pytest.mark.parametrize(("kind", "mode", "version"), TLS)
async def test_tls(start_ftp: StartServer, tmp_path: Path, kind: str, mode: str, version: str) -> None:
    server = start_ftp(kind, tls=mode, tls_version=version)
    async with opened(settings_of(server)) as session:
        assert session.tls_cipher.startswith("TLSv1.2" if version and kind != "pyftpdlib" else "TLSv1.")
        assert server.certificate is not None
        assert session.certificate_sha256 == server.certificate.sha256
        for content in (b"", SMALL, BIG):
            await upload(session, content, "/data/a", tmp_path)
            assert (server.files / "a").read_bytes() == content
            assert await download(session, "/data/a", tmp_path / "a") == len(content)
            assert (tmp_path / "a").read_bytes() == content
        assert [entry.name for entry in await session.list("/data")] == ["a"]
        assert (await refused(lambda: download(session, "/data/none", tmp_path / "b"))).reason is ErrorReason.NOT_FOUND
        assert session.usable


async def test_tls_in_active_mode(ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp(ftp_kind, tls="explicit", passive=False)
    async with opened(settings_of(server, active=ActiveMode())) as session:
        await upload(session, BIG, "/data/a", tmp_path)
        await download(session, "/data/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BIG


@pytest.mark.parametrize("mode", ["explicit", "implicit"])
async def test_certificates_are_checked(ftp_kind: str, start_ftp: StartServer, tmp_path: Path, mode: str) -> None:
    server = start_ftp(ftp_kind, tls=mode)
    assert server.certificate is not None
    (tmp_path / "other").mkdir()
    authority = server.certificate.authority
    good = server.certificate.sha256
    kind = TlsMode(mode.upper())
    for bad in (
        TlsSettings(kind),
        TlsSettings(kind, ca_certificates=make_certificate(tmp_path / "other").authority),
        TlsSettings(kind, ca_certificates=authority, server_name="other.example"),
        TlsSettings(kind, ca_certificates="no certificate"),
        TlsSettings(kind, certificate_sha256="0" * 64),
    ):
        failure = await refused(lambda bad=bad: opened(settings_of(server, tls=bad)).__aenter__())  # type: ignore[misc]
        assert (failure.code, failure.reason) == (ErrorCode.CONNECTION_ERROR, ErrorReason.TLS)
        assert not failure.retryable
    server.write("a", SMALL)
    for settings in (
        TlsSettings(kind, ca_certificates=authority, server_name="localhost"),
        TlsSettings(kind, certificate_sha256=good),
        TlsSettings(kind, certificate_sha256=good.upper()),
    ):
        async with opened(settings_of(server, tls=settings)) as session:
            await download(session, "/data/a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == SMALL


async def test_tls_where_there_is_none(ftp_server: FtpProcess) -> None:
    tls = TlsSettings(TlsMode.EXPLICIT)
    failure = await refused(lambda: opened(settings_of(ftp_server, tls=tls)).__aenter__())
    assert failure.reason is ErrorReason.TLS


# Ends that come too early


async def test_a_session_that_the_server_ended_is_not_usable(ftp_kind: str, start_ftp: StartServer) -> None:
    server = start_ftp(ftp_kind)
    async with opened(settings_of(server)) as session:
        lost = asyncio.Event()
        session.on_lost(lost.set)
        server.kill()
        async with asyncio.timeout(10):
            await lost.wait()
        assert not session.usable
        failure = await refused(lambda: session.size("/data/a"))
        assert (failure.code, failure.reason) == (ErrorCode.CONNECTION_ERROR, ErrorReason.CONNECTION_LOST)
        assert failure.retryable
        assert not await session.check()


@pytest.mark.parametrize("tls", ["", "explicit"])
async def test_a_cancelled_transfer_leaves_nothing_open(
    ftp_kind: str, start_ftp: StartServer, tmp_path: Path, tls: str
) -> None:
    server = start_ftp(ftp_kind, tls=tls)
    server.write("big", bytes(50_000_000))
    gc.collect()
    open_before = sockets()
    for moment in (0, 1, 3_000_000):
        async with opened(settings_of(server)) as session:
            reached = asyncio.Event()

            def progress(count: int, reached: asyncio.Event = reached, moment: int = moment) -> None:
                if count >= moment:
                    reached.set()

            with (tmp_path / "big").open("wb") as file:
                task = asyncio.create_task(session.retrieve("/data/big", file.fileno(), progress=progress))
                await asyncio.wait([asyncio.create_task(reached.wait()), task], return_when=asyncio.FIRST_COMPLETED)
                task.cancel()
                await asyncio.wait([task])
            assert task.cancelled() or not task.exception()
            assert not session.usable or not task.cancelled()

    def closed() -> bool:
        gc.collect()
        return sockets() <= open_before

    await until(closed, timeout=20)


@pytest.mark.parametrize("tls", ["", "explicit"])
async def test_the_end_of_a_session_does_not_wait_for_the_server(
    ftp_kind: str, start_ftp: StartServer, tls: str
) -> None:
    settings = settings_of(start_ftp(ftp_kind, tls=tls))
    gc.collect()
    open_before = sockets()
    with ThreadPoolExecutor(1) as threads:
        client = TlsClient(settings, settings.tls) if settings.tls else None
        session = await Login(settings, Knowledge(), DataPlane(threads), client).open()
        session.quit()
        for _ in range(3):  # turns of the event loop, none of which waits
            await asyncio.sleep(0)
        assert sockets() <= open_before


async def test_a_cancelled_upload_is_not_complete(ftp_server: FtpProcess, tmp_path: Path) -> None:
    """The server must see that it was broken off; what it has may stay, under the temporary name."""
    source = tmp_path / "big"
    source.write_bytes(bytes(200_000_000))
    async with opened(settings_of(ftp_server)) as session:
        reached = asyncio.Event()
        with source.open("rb") as file:
            task = asyncio.create_task(
                session.store("/data/part", file.fileno(), progress=lambda count: reached.set() if count else None)
            )
            await reached.wait()
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        assert not session.usable


async def test_a_full_disk(ftp_server: FtpProcess) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    ftp_server.write("big", BIG)
    async with opened(settings_of(ftp_server)) as session:
        with Path("/dev/full").open("wb") as full:
            failure = await refused(lambda: session.retrieve("/data/big", full.fileno()))
    assert (failure.code, failure.reason) == (ErrorCode.IO_ERROR, ErrorReason.NO_SPACE)


async def test_a_file_that_shrinks_while_it_is_sent(ftp_server: FtpProcess, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(bytes(100_000_000))
    async with opened(settings_of(ftp_server)) as session:
        with source.open("r+b") as file:

            def progress(count: int, file: IO[bytes] = file) -> None:
                file.truncate(1000)

            failure = await refused(lambda: session.store("/data/a", file.fileno(), progress=progress))
    assert failure.reason is ErrorReason.SOURCE_CHANGED
