"""The pool of sessions with real servers, and what two of them share as two processes of a pod do."""

from __future__ import annotations

# ruff: noqa: F811 - fixtures are imported, and named again by those who use them
import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from opsplane_server.ftptransfer.failures import ErrorReason, HeldBack, TransferFailure
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.model import Connection, FtpServer, PoolFigures, TlsMode, TlsSettings
from opsplane_server.ftptransfer.sessions import circuit, connection_pool, limits
from opsplane_server.ftptransfer.sessions.pool import SessionPool

from tests.ftp_servers.base import FtpProcess
from tests.ftp_servers.fixtures import StartServer, ftp_kind, ftp_server, settings_of, start_ftp  # noqa: F401
from tests.ports import free_port
from tests.waiting import until


def connection(server: FtpServer, name: str = "c", revision: int = 1) -> Connection:
    return Connection(name, server, revision=revision)


@asynccontextmanager
async def pool(folder: Path, **settings: Any) -> AsyncIterator[SessionPool]:
    async with SessionPool(folder / "slots", TransferFigures(), **settings) as it:
        yield it


@asynccontextmanager
async def sessions(of: SessionPool, where: Connection, count: int) -> AsyncIterator[list[Any]]:
    """So many sessions at once."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(of.session(where)) for _ in range(count)]


def figures(of: SessionPool, name: str = "c") -> PoolFigures:
    return of.figures().get(name, PoolFigures())


@pytest.fixture
def server(start_ftp: StartServer) -> FtpProcess:
    return start_ftp("vsftpd")


async def test_sessions_are_used_again(ftp_server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(ftp_server))
    async with pool(tmp_path) as it:
        async with it.session(where) as first:
            assert figures(it).busy == 1
        async with it.session(where) as second:
            assert second is first
        now = figures(it)
        assert (now.sessions, now.busy, now.limit, now.waiting) == (1, 0, 10, 0)


async def test_a_session_in_the_middle_of_something_is_thrown_away(server: FtpProcess, tmp_path: Path) -> None:
    server.write("big", bytes(30_000_000))
    where = connection(settings_of(server))
    async with pool(tmp_path) as it:

        async def broken_off() -> Any:
            async with it.session(where) as session:
                with (tmp_path / "big").open("wb") as file:
                    reached = asyncio.Event()
                    task = asyncio.create_task(
                        session.retrieve("/data/big", file.fileno(), progress=lambda _: reached.set())
                    )
                    await reached.wait()
                    task.cancel()
                    await asyncio.wait([task])
                return session

        first = await broken_off()
        assert figures(it).sessions == 0
        async with it.session(where) as second:
            assert second is not first
            assert await second.check()


async def test_limits_and_order(server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(server, max_sessions=2))
    async with pool(tmp_path) as it:
        order: list[int] = []

        async def use(number: int) -> None:
            async with it.session(where) as session:
                order.append(number)
                assert figures(it).busy <= 2
                assert await session.check()

        async with sessions(it, where, 2):
            tasks = []
            for number in range(10):
                tasks.append(asyncio.create_task(use(number)))
                await until(lambda number=number: figures(it).waiting == number + 1)  # type: ignore[misc]
        await asyncio.gather(*tasks)
        assert order == list(range(10))
        assert figures(it).sessions == 2


async def test_a_cancelled_waiter_takes_nothing_with_it(server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(server, max_sessions=1))
    async with pool(tmp_path) as it:
        async with sessions(it, where, 1):
            waiters = [asyncio.create_task(it.session(where).__aenter__()) for _ in range(3)]
            await until(lambda: figures(it).waiting == 3)
            waiters[0].cancel()
            waiters[1].cancel()
        await asyncio.wait(waiters[:2])
        await waiters[2]
        assert figures(it).waiting == 0
        assert figures(it).busy == 1


async def test_processes_share_the_limit(server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(server, max_sessions=3))
    async with pool(tmp_path) as one, pool(tmp_path) as other:
        async with sessions(one, where, 2), sessions(other, where, 1):
            waiter = asyncio.create_task(other.session(where).__aenter__())
            await until(lambda: figures(other).waiting == 1)
            assert figures(one).sessions + figures(other).sessions == 3
        await waiter


async def test_idle_sessions_make_room_for_another_process(server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(server, max_sessions=3))
    async with pool(tmp_path) as one, pool(tmp_path) as other:
        async with sessions(one, where, 3):
            pass
        assert figures(one).sessions == 3
        async with asyncio.timeout(10), sessions(other, where, 3):
            assert figures(one).sessions == 0


async def test_busy_processes_share_fairly(server: FtpProcess, tmp_path: Path) -> None:
    """One that came first and has always work gives up half of its sessions to one that came later."""
    where = connection(settings_of(server, max_sessions=4))
    async with pool(tmp_path) as one, pool(tmp_path) as other:
        stop = asyncio.Event()

        async def work(of: SessionPool) -> None:
            while not stop.is_set():
                async with of.session(where) as session:
                    await session.check()

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(work(one))
            await until(lambda: figures(one).sessions == 4)
            for _ in range(8):
                group.create_task(work(other))
            await until(lambda: figures(one).sessions == figures(other).sessions == 2)
            stop.set()


async def test_places_of_a_killed_process_are_free(server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(server, max_sessions=2))
    script = (
        "import sys, pathlib, signal\n"
        "from opsplane_server.ftptransfer.sessions.slots import SlotFolder\n"
        "slots = [SlotFolder(pathlib.Path(sys.argv[1])).take(2) for _ in range(2)]\n"
        "print(None not in slots, flush=True)\n"
        "signal.pause()\n"
    )
    places = tmp_path / "slots" / "connections" / "c" / "places"
    async with pool(tmp_path) as it:
        with subprocess.Popen([sys.executable, "-c", script, places], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
            assert process.stdout is not None
            assert process.stdout.readline() == b"True\n"
            waiter = asyncio.create_task(it.session(where).__aenter__())
            await until(lambda: figures(it).waiting == 1)
            process.send_signal(signal.SIGKILL)
            await waiter


async def test_the_pods_limit_and_idle_sessions_of_other_connections(server: FtpProcess, tmp_path: Path) -> None:
    a, b = (connection(settings_of(server), name) for name in "ab")
    async with pool(tmp_path, max_sessions=2) as it:
        async with sessions(it, a, 2):
            waiter = asyncio.create_task(it.session(b).__aenter__())
            await until(lambda: figures(it, "b").waiting == 1)
        await waiter
        assert (figures(it, "a").sessions, figures(it, "b").sessions) == (1, 1)


async def test_sessions_that_do_nothing_end(server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(server, idle_timeout=0.1))
    async with pool(tmp_path) as it:
        async with it.session(where):
            pass
        await until(lambda: figures(it).sessions == 0)


async def test_a_session_that_the_server_ended_is_not_handed_out(ftp_server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(ftp_server))
    async with pool(tmp_path) as it:
        async with it.session(where):
            pass
        ftp_server.kill()
        await until(lambda: figures(it).sessions == 0)
        ftp_server.start()
        async with it.session(where) as session:
            assert await session.check()


async def test_a_session_is_asked_before_it_is_used_after_a_pause(
    server: FtpProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "CHECK_AFTER", 0.0)
    where = connection(settings_of(server))
    async with pool(tmp_path) as it:
        async with it.session(where) as first:
            pass
        async with it.session(where) as second:
            assert second is first


async def test_other_settings_mean_other_sessions(server: FtpProcess, tmp_path: Path) -> None:
    old, new = connection(settings_of(server)), connection(settings_of(server, reply_timeout=9.0), revision=2)
    async with pool(tmp_path) as it:
        async with it.session(old) as first:
            async with it.session(new) as second:
                assert second is not first
            assert await first.check()
            async with it.session(old) as third:
                assert third is second
        assert figures(it).sessions == 1


async def test_421_lowers_the_limit_and_nobody_fails(ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp(ftp_kind, max_sessions=3)
    where = connection(settings_of(server))
    async with pool(tmp_path) as one, pool(tmp_path) as other:
        done = 0

        async def work(of: SessionPool) -> None:
            nonlocal done
            for _ in range(3):
                async with of.session(where) as session:
                    assert await session.check()
                    done += 1

        async with asyncio.timeout(180), asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(work(one if number % 2 else other))
        assert done == 48
        # One that is being opened may count as well, so that the limit ends one above the server's.
        assert 1 <= figures(one).limit <= 4
        await until(lambda: figures(one).limit == figures(other).limit)


async def test_the_limit_rises_again(start_ftp: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_ftp("vsftpd", max_sessions=1)
    where = connection(settings_of(server, max_sessions=3))
    async with pool(tmp_path) as it:
        async with sessions(it, where, 1):
            waiter = asyncio.create_task(it.session(where).__aenter__())
            await until(lambda: figures(it).limit == 1)
            server.options = replace(server.options, max_sessions=0)
            waiter.cancel()
            await asyncio.wait([waiter])
        server.stop()
        server.start()
        monkeypatch.setattr(limits, "QUIET_SECONDS", 0.0)
        async with asyncio.timeout(20), sessions(it, where, 3):
            assert figures(it).limit == 3


async def test_a_server_that_fails_is_left_alone_and_tried_again(
    server: FtpProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "FIRST_PAUSE", 0.3)
    where = connection(settings_of(server))
    server.stop()
    async with pool(tmp_path) as one, pool(tmp_path) as other:
        for _ in range(circuit.FAILURES):
            with pytest.raises(TransferFailure) as caught:
                async with one.session(where):
                    pass
            assert caught.value.reason is ErrorReason.UNREACHABLE
        assert list(one.held_back()) == ["c"]
        now = figures(one)
        assert now.circuit_open
        assert now.retry_time is not None
        assert now.last_failure is not None
        assert now.last_failure.reason is ErrorReason.UNREACHABLE
        for it in (one, other):
            with pytest.raises(HeldBack) as held:
                async with it.session(where):
                    pass
            assert held.value.retryable
        server.start()
        await until(lambda: not one.held_back())
        async with one.session(where) as session:
            assert await session.check()
        async with other.session(where):
            pass
        assert not figures(one).circuit_open
        assert figures(other).retry_time is None


async def test_pauses_grow_and_new_settings_end_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "FIRST_PAUSE", 0.05)
    where = connection(FtpServer("127.0.0.1", free_port()))
    async with pool(tmp_path) as it:
        pauses: list[datetime] = []
        while len(pauses) < 4:
            try:
                async with it.session(where):
                    pass
            except HeldBack:
                await until(lambda: not it.held_back())
            except TransferFailure:
                time = figures(it).retry_time
                if time is not None and time not in pauses:
                    pauses.append(time)
        assert pauses == sorted(pauses)
        changed = replace(where, revision=2)
        with pytest.raises(TransferFailure) as caught:
            async with it.session(changed):
                pass
        assert not isinstance(caught.value, HeldBack)


async def test_wrong_passwords_stop_sooner(server: FtpProcess, tmp_path: Path) -> None:
    where = connection(settings_of(server, password="wrong"))
    async with pool(tmp_path) as it:
        for _ in range(circuit.REFUSED_LOGINS):
            with pytest.raises(TransferFailure) as caught:
                async with it.session(where):
                    pass
            assert caught.value.reason is ErrorReason.LOGIN
        assert list(it.held_back()) == ["c"]


# Trying a connection


async def test_probe(ftp_server: FtpProcess, tmp_path: Path) -> None:
    ftp_server.write("a", b"")
    async with pool(tmp_path) as it:
        probe = await it.probe(settings_of(ftp_server), "/data")
        assert (probe.failure, probe.last_step, probe.entry_count) == (None, "list", 1)
        assert probe.greeting
        assert "SIZE" in probe.features
        assert probe.duration > 0
        assert (await it.probe(settings_of(ftp_server), "")).entry_count == 1


async def test_probe_tells_what_is_wrong(ftp_kind: str, start_ftp: StartServer, tmp_path: Path) -> None:
    server = start_ftp(ftp_kind, tls="explicit")
    good = settings_of(server)
    assert server.certificate is not None
    wrong = [
        (replace(good, host="no-such-host.invalid"), "resolve", ErrorReason.HOST_UNKNOWN),
        (replace(good, port=free_port()), "connect", ErrorReason.UNREACHABLE),
        (replace(good, tls=TlsSettings(TlsMode.EXPLICIT)), "tls", ErrorReason.TLS),
        (replace(good, password="wrong"), "login", ErrorReason.LOGIN),
    ]
    async with pool(tmp_path) as it:
        for settings, step, reason in wrong:
            probe = await it.probe(settings, "")
            assert probe.failure is not None
            assert (probe.last_step, probe.failure.reason) == (step, reason)
            shown = server.certificate.sha256 if step in ("tls", "login") else ""
            assert probe.certificate_sha256 == shown
        probe = await it.probe(good, "/none")
        assert probe.failure is not None
        assert (probe.last_step, probe.failure.reason) == ("list", ErrorReason.NOT_FOUND)
        assert probe.tls_cipher
        assert probe.certificate_sha256 == server.certificate.sha256
