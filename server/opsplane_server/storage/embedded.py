"""A PostgreSQL server of our own, for installations that bring none.

The binaries come with a wheel. The server belongs to its data folder, not to the process that started it: it
outlives a killed parent and the next parent adopts it. It listens on a unix socket alone.

    DATA_DIR/lock              held by the process that owns the server
            /password          of the superuser `opsplane`, for the owner's eyes
            /data              PostgreSQL's own
            /run               its socket, unless that path would be too long
            /postgres.log      and postgres.log.1, the one before
            /binaries-18.4     a copy, where PostgreSQL's account can not reach the wheel
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import asyncpg
import psutil
import structlog

from opsplane_server.errors import FailedPrecondition, Unavailable
from opsplane_server.storage import postmaster
from opsplane_server.storage.accounts import (
    Account,
    choose_account,
    create_folder,
    private_folder,
    require_passable,
    sync_folder,
)
from opsplane_server.storage.binaries import environment, reachable_binaries, run_as, wheel_binaries
from opsplane_server.storage.postmaster import Postmaster

log = structlog.get_logger(__name__)

_USER = "opsplane"
_DATABASE = "opsplane"
_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_LIMIT = 107  # bytes, without the closing zero: sun_path of Linux
_LOG_LIMIT = 16 * 1024 * 1024
_POLL_SECONDS = 0.05
_STOPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))  # fast, immediate, the last resort

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "192MB",
    "log_checkpoints": "off",
    # Neither statements nor key values in the log: they can hold what is secret.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class EmbeddedPostgres:
    """Starts, adopts and stops the PostgreSQL server of `data_dir`.

    `binaries` is an install tree with bin, lib and share, by default that of the wheel. `user` is the system user
    who runs it when this process is root (default: the owner of existing data, else the first there is of opsplane,
    postgres, nobody). Use it as a context manager, or call `start` and `stop`; a server that `watch` found dead is
    started again by `start`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Path | None = None,
        user: str | None = None,
        max_connections: int = 100,
        start_timeout: float = 60.0,
    ) -> None:
        self._folder = data_dir.absolute()
        self._binaries = binaries
        self._user = user
        self._max_connections = max_connections
        self._start_timeout = start_timeout
        self._lock: int | None = None
        self._child: int | None = None  # the number of a server that this process has started
        self._postmaster: Postmaster | None = None
        self._dsn: str | None = None

    @property
    def dsn(self) -> str:
        """The address for asyncpg, password included; only while it is started."""
        if self._dsn is None:
            raise RuntimeError("the embedded PostgreSQL is not started")
        return self._dsn

    @property
    def pid(self) -> int:
        """The number of its main process; only while it is started."""
        if self._postmaster is None:
            raise RuntimeError("the embedded PostgreSQL is not started")
        return self._postmaster.process.pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when the server accepts connections, be it a new one or one that was running already.

        Raises FailedPrecondition if it can not run here (another owner, a folder out of reach, damaged or foreign
        data) and Unavailable if it does not get ready in time; then nothing is left running that was not before.
        """
        try:
            self._take_lock()
            account, binaries, data = await self._prepare()
            async with asyncio.timeout(self._start_timeout):
                self._dsn = await self._run(account, binaries, data)
        except TimeoutError:
            await self._abandon()
            waited = f"{self._start_timeout:.0f} s"
            raise Unavailable(
                f"PostgreSQL in {self._folder} was not ready after {waited}: {_last_line(self._logged())}"
            ) from None
        except OSError as error:
            await self._abandon()
            raise FailedPrecondition(
                f"PostgreSQL can not run in {self._folder}: {error}", reason="DATA_DIR_UNUSABLE"
            ) from error
        except BaseException:
            await self._abandon()
            raise

    async def stop(self) -> None:
        """Ends the server and gives the folder free; open connections are cut, committed data is safe."""
        try:
            if self._postmaster is not None:
                await self._end(self._postmaster)
        finally:
            self._postmaster = self._dsn = None
            self._release_lock()

    async def watch(self) -> None:
        """Returns when the server has died. Meanwhile it keeps the log file bounded."""
        while self._postmaster is not None and self._is_alive(self._postmaster):
            _bound_log(self._log_file, _LOG_LIMIT)
            await asyncio.sleep(0.2)

    @property
    def _log_file(self) -> Path:
        return self._folder / "postgres.log"

    # Preparing: everything that must be there before the server can run.

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        create_folder(self._folder)
        self._folder = self._folder.resolve()
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise FailedPrecondition(f"another Opsplane server uses {self._folder}", reason="DATA_DIR_IN_USE") from None
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _prepare(self) -> tuple[Account, Path, Path]:
        data = self._folder / "data"
        account = choose_account(self._user, data)
        require_passable(self._folder, account)
        binaries = (self._binaries or wheel_binaries()).absolute()
        binaries = await asyncio.to_thread(reachable_binaries, binaries, account, self._folder)
        for pattern in ("initdb-*", "binaries-new-*"):
            for leftover in self._folder.glob(pattern):
                # Errors are ignored because the initdb of a killed parent may still write there; next time, then.
                await asyncio.to_thread(shutil.rmtree, leftover, ignore_errors=True)
        if not data.exists():
            await self._create_data(account, binaries, data)
        return account, binaries, data

    async def _create_data(self, account: Account, binaries: Path, data: Path) -> None:
        """Initialises aside and renames, so that a half-made folder is never taken for data."""
        password = self._password(create=True)
        scratch = Path(tempfile.mkdtemp(prefix="initdb-", dir=self._folder))
        try:
            password_file = scratch / "password"
            password_file.touch(0o600)
            password_file.write_text(password + "\n")
            for path in (scratch, password_file):
                os.chown(path, account.uid, account.gid)
            command = [
                str(binaries / "bin" / "initdb"), f"--pgdata={scratch / 'data'}", f"--username={_USER}",
                f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C",
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--data-checksums",
            ]  # fmt: skip
            result = await asyncio.to_thread(run_as, account, command)
            if result.returncode != 0:
                raise FailedPrecondition(
                    f"initdb failed in {self._folder}: {_last_line(result.stdout)}", reason="DATABASE_START"
                )
            (scratch / "data").rename(data)
            sync_folder(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        log.info("database created", folder=str(data), user=account.name)

    def _password(self, *, create: bool = False) -> str:
        """The superuser's password; written once, before there is any data that it opens."""
        file = self._folder / "password"
        if create and not file.exists():
            new = file.with_suffix(".new")
            new.unlink(missing_ok=True)
            new.touch(0o600)
            with new.open("w") as stream:
                stream.write(secrets.token_urlsafe(32))
                stream.flush()
                os.fsync(stream.fileno())
            new.rename(file)
            sync_folder(self._folder)
        return file.read_text()

    # Running.

    async def _run(self, account: Account, binaries: Path, data: Path) -> str:
        """Adopts or launches until a server answers; returns its address."""
        while True:
            adopted = postmaster.find(data)
            self._postmaster = adopted or self._launch(account, binaries, data)
            dsn = await self._wait_until_ready(self._postmaster)
            if dsn is not None:
                log.info("postgres adopted" if adopted else "postgres started", folder=str(data), pid=self.pid)
                return dsn
            # It ended. One that was adopted was on its way down, and one that was launched may have met one that
            # came up at the same time, or what is left of a killed one. Anything else will not get better.
            if adopted is None and postmaster.find(data) is None:
                said = self._logged()
                if "pre-existing shared memory block" not in said:
                    raise FailedPrecondition(f"PostgreSQL did not start: {_last_line(said)}", reason="DATABASE_START")
                await asyncio.sleep(0.5)

    def _launch(self, account: Account, binaries: Path, data: Path) -> Postmaster:
        sockets = self._socket_folder()
        private_folder(sockets, account)
        for stale in sockets.glob(f"{_SOCKET_NAME}*"):
            stale.unlink()  # its lock file names a process too, and that number may be another's by now
        postmaster.disown(data)
        _bound_log(self._log_file, 0)
        settings = _SETTINGS | {
            "max_connections": str(self._max_connections),
            "unix_socket_directories": str(sockets),
        }
        command = [str(binaries / "bin" / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        # O_APPEND lets _bound_log truncate the file under the running server.
        log_file = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=environment(),
                start_new_session=True,  # a Ctrl-C in our terminal is not meant for it
                **account.popen_options,
            )
        finally:
            os.close(log_file)
        # It may outlive this object, and another one adopt it: subprocess would warn of that, so it looks no more.
        child.returncode = 0
        self._child = child.pid
        return Postmaster(psutil.Process(child.pid), data)

    def _socket_folder(self) -> Path:
        """`run`, or a short folder where that is too long for a socket or can not stand in an address."""
        sockets = self._folder / "run"
        if len(os.fsencode(sockets / _SOCKET_NAME)) <= _SOCKET_PATH_LIMIT and "," not in str(sockets):
            return sockets
        digest = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"opsplane-{digest}"

    async def _wait_until_ready(self, server: Postmaster) -> str | None:
        """The address once a connection succeeds; None if the server ended before."""
        while self._is_alive(server):
            sockets = server.sockets
            if sockets is not None:
                address = self._address(sockets, "postgres")
                try:
                    connection = await asyncpg.connect(address, timeout=5)
                except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
                    raise FailedPrecondition(
                        f"{self._folder}/password is not that of the database: {error}", reason="DATABASE_START"
                    ) from error
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    pass  # not yet; the loop ends with the server or the time
                else:
                    try:
                        await _ensure_database(connection)
                    finally:
                        await connection.close()
                    return self._address(sockets, _DATABASE)
            await asyncio.sleep(_POLL_SECONDS)
        return None

    def _address(self, sockets: Path, database: str) -> str:
        query = urlencode({"host": str(sockets), "port": 5432})
        return f"postgresql://{_USER}:{quote(self._password())}@/{database}?{query}"

    def _is_alive(self, server: Postmaster) -> bool:
        if self._child is not None:
            try:
                ended, _ = os.waitpid(self._child, os.WNOHANG)
            except ChildProcessError:  # its status was collected by somebody else
                ended = self._child
            if ended:
                self._child = None
        return server.alive

    async def _end(self, server: Postmaster) -> None:
        for number, seconds in _STOPS:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have just ended by itself
                server.process.send_signal(number)
            for _ in range(int(seconds / _POLL_SECONDS)):
                if not self._is_alive(server):
                    log.info("postgres stopped", folder=str(self._folder), signal=number.name)
                    return
                await asyncio.sleep(_POLL_SECONDS)
        log.error("postgres does not stop", folder=str(self._folder), pid=server.process.pid)

    async def _abandon(self) -> None:
        """After a failed start: ends what this process launched, never what it found."""
        if self._child is not None and self._postmaster is not None:
            await self._end(self._postmaster)
        self._postmaster = self._dsn = None
        self._release_lock()

    def _logged(self) -> str:
        """The end of what was logged since the last launch."""
        try:
            with self._log_file.open("rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - 16384))
                return stream.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def _bound_log(file: Path, limit: int) -> None:
    """Moves what has been logged to `FILE.1` if it is more than `limit` bytes; the server's open file stays."""
    if file.exists() and file.stat().st_size > limit:
        shutil.copyfile(file, file.with_name(file.name + ".1"))
        os.truncate(file, 0)


def _last_line(text: str) -> str:
    """The line that says why: the last FATAL one, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL:" in line]
    return (fatal or lines or ["it has logged nothing"])[-1]


async def _ensure_database(connection: asyncpg.Connection) -> None:
    if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", _DATABASE):
        await connection.execute(f'CREATE DATABASE "{_DATABASE}"')
