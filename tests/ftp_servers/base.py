"""What the FTP servers of the tests have in common: options, a folder of files, starting and stopping."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.components import cache_folder
from tests.ftp_servers.certificates import Certificate, make_certificate
from tests.ports import free_port

PASSWORD = "open sesame"
ACCOUNT = "daemon"
"""The system's account that servers started by root change to."""
START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server differs from one that does everything. Not every server can everything: `ServerKind.can`."""

    tls: str = ""
    """`explicit` or `implicit`; then data connections must be protected, and resume the control's TLS session."""
    tls_version: str = ""
    """`1.2` for nothing newer."""
    epsv: bool = True
    passive: bool = True
    mlsd: bool = True
    restart_store: bool = True
    max_sessions: int = 0
    """Sessions that are allowed at a time; 0 for any number."""
    bytes_per_second: int = 0
    """How fast it sends and takes files; 0 for as fast as it can. vsftpd alone."""


class Unavailable(Exception):
    """The server cannot run on this machine."""


class FtpProcess(ABC):
    """A server with the account `user` and PASSWORD. `start` may be called again after `stop` or `kill`.

    Its files are in `files` on the disk; over FTP that is `/data`, and the folder after the login is `/`.
    """

    name = ""
    user = "tester"

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        self.folder = folder
        self.options = options
        # vsftpd refuses an anonymous account that may write to its root, so files are one folder deeper.
        self.root = folder / "root"
        self.files = self.root / "data"
        self.files.mkdir(parents=True)
        self.own(self.files)
        self.host = "127.0.0.1"
        self.port = free_port()
        self.certificate: Certificate | None = make_certificate(folder) if options.tls else None
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The command that runs it in the foreground; may write files into `folder`."""

    def environment(self) -> Mapping[str, str]:
        """Variables to add."""
        return {}

    def start(self) -> None:
        """Returns when it takes connections."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in self.command()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} did not start: {self.output()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it and its sessions."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and its sessions at once."""
        self._end(signal.SIGKILL)

    def drop_sessions(self) -> None:
        """Ends the processes of its sessions alone; a server of one process has none."""
        for child in self._children():
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def output(self) -> str:
        """What it wrote."""
        return (self.folder / "output").read_text(errors="replace")

    def write(self, name: str, content: bytes) -> Path:
        """Puts a file among its files, as its account could have."""
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.own(path)
        return path

    def own(self, path: Path) -> None:
        """Gives a file of `files` and the folders above it to the server's account, where it runs as one of its own."""
        if os.geteuid() == 0:
            account = pwd.getpwnam(ACCOUNT)
            for each in (path, *path.parents):
                os.chown(each, account.pw_uid, account.pw_gid)
                if each == self.files:
                    return

    def _listens(self) -> bool:
        # Not by connecting: a server that allows one session would have had it.
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            connections = psutil.Process(self._process.pid).net_connections("tcp")
            return any(one.status == psutil.CONN_LISTEN and one.laddr.port == self.port for one in connections)
        return False

    def _children(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        children = self._children()
        self._process.send_signal(number)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        psutil.wait_procs(children, timeout=10)


def binary(server: str) -> tuple[Path, dict[str, str]]:
    """A server that `scripts/ftp_servers.sh` unpacked, or the machine's own, and the variables that it needs."""
    unpacked = cache_folder() / "ftp-servers" / server
    if (unpacked / "usr/sbin" / server).exists():
        libraries = {str(path.parent) for path in unpacked.glob("**/lib*.so.*")}
        return unpacked / "usr/sbin" / server, {"LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries))}
    installed = shutil.which(server, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if installed is None:
        raise Unavailable(f"no {server} here: scripts/ftp_servers.sh fetches it")
    return Path(installed), {}


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that the servers' accounts may pass. In memory where there is such a place: disks are not tested."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="opsplane-ftp-", dir=place))
    try:
        folder.chmod(0o711)
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(kind: type[FtpProcess], options: ServerOptions | None = None) -> Iterator[FtpProcess]:
    """A server that takes connections. Skips the test where it cannot run; under CI that fails."""
    with temporary_folder() as folder:
        try:
            server = kind(folder, options or ServerOptions())
        except Unavailable as reason:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(reason))
        server.start()
        try:
            yield server
        finally:
            server.stop()
