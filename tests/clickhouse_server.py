"""A real ClickHouse for tests: a server on loopback with ports and a folder of its own, to be killed and restarted.

    def test_it(clickhouse: ClickHouseServer) -> None:      # one a session, nobody may hurt it

scripts/clickhouse.sh puts the program into the cache. Without it tests are skipped, and fail under CI.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.sax.saxutils import escape

import pytest
from clickhouse_driver import Client, errors

from tests.components import cache_folder, lacking
from tests.ftp_servers.certificates import Certificate, make_certificate
from tests.ports import free_ports

_START_SECONDS = 120.0
_STOP_SECONDS = 60.0

# Its own zone is one that times must not be read in by mistake.
_CONFIG = """<?xml version="1.0"?>
<yandex>
  <logger><level>warning</level><log>{folder}/log</log><errorlog>{folder}/errors</errorlog></logger>
  <listen_host>127.0.0.1</listen_host>
  <listen_host>{unnamed}</listen_host>
  <http_port>{http}</http_port>
  <tcp_port>{tcp}</tcp_port>
  <tcp_port_secure>{secure}</tcp_port_secure>
  <openSSL><server>
    <certificateFile>{chain}</certificateFile><privateKeyFile>{key}</privateKeyFile>
    <verificationMode>none</verificationMode><loadDefaultCAFile>false</loadDefaultCAFile>
    <cacheSessions>false</cacheSessions><preferServerCiphers>true</preferServerCiphers>
  </server></openSSL>
  <path>{folder}/data/</path>
  <tmp_path>{folder}/tmp/</tmp_path>
  <users_config>users.xml</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <timezone>Asia/Seoul</timezone>
  <mark_cache_size>16777216</mark_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
</yandex>
"""

# `reader` may read alone and set nothing, `settings` may read and set what is not `readonly`.
_USERS = """<?xml version="1.0"?>
<yandex>
  <profiles>
    <default/>
    <reader><readonly>1</readonly></reader>
    <settings><readonly>2</readonly></settings>
  </profiles>
  <quotas><default/></quotas>
  <users>{users}</users>
</yandex>
"""
_USER = """<{name}><password>{password}</password><networks><ip>127.0.0.1</ip></networks>
  <profile>{profile}</profile><quota>default</quota></{name}>"""


class ClickHouseServer:
    """One server over a folder. Its ports stay the same when it is started again."""

    host = "127.0.0.1"
    unnamed_host = "127.0.0.2"  # which its certificate does not hold
    user, password = "opsplane", "sesame & <öffne> dich"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.secure_port, http = free_ports(3)
        self.certificate: Certificate = make_certificate(folder)
        self.authority_file = folder / "authority.pem"
        self.authority_file.write_text(self.certificate.authority)
        for name in ("data", "tmp"):
            (folder / name).mkdir()
        config = _CONFIG.format(
            folder=folder,
            unnamed=self.unnamed_host,
            http=http,
            tcp=self.port,
            secure=self.secure_port,
            chain=self.certificate.chain_file,
            key=self.certificate.key_file,
        )
        users = "".join(
            _USER.format(name=name, password=escape(self.password), profile=profile)
            for name, profile in ((self.user, "default"), ("reader", "reader"), ("settings", "settings"))
        )
        (folder / "config.xml").write_text(config)
        (folder / "users.xml").write_text(_USERS.format(users=users))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(signal.SIGKILL)  # what it holds is thrown away

    def start(self) -> None:
        """Starts it, for the first time or again over the same data; returns when it answers."""
        tree = _tree()
        places = [str(place) for place in (*tree.glob("usr/lib/*"), *tree.glob("lib/*"))]
        with (self._folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [str(tree / "usr/sbin/clickhouse-server"), f"--config-file={self._folder / 'config.xml'}"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd=self._folder,
                env=os.environ | {"LD_LIBRARY_PATH": ":".join(places)},
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"ClickHouse did not start: {self._said()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self._end(signal.SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While it is stopped: connections are taken by the system, and nothing answers."""
        assert self._process is not None, "it was never started"
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def run(self, query: str, rows: Sequence[Any] | None = None) -> Any:
        """Runs a query as the user who may do everything."""
        with Client(self.host, port=self.port, user=self.user, password=self.password) as client:
            return client.execute(query, rows)

    def _answers(self) -> bool:
        try:
            return bool(self.run("SELECT 1") == [(1,)])
        except (errors.NetworkError, errors.SocketTimeoutError, EOFError):
            return False

    def _said(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")[-2000:]
            for path in (self._folder / "console", self._folder / "errors")
            if path.exists()
        )

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(_STOP_SECONDS)


def require_clickhouse() -> None:
    """Skips the test where ClickHouse is not in the cache; under CI that is a failure."""
    if not (_tree() / "usr/sbin/clickhouse-server").exists():
        lacking("ClickHouse is missing: run scripts/clickhouse.sh")


@contextmanager
def running_clickhouse() -> Iterator[ClickHouseServer]:
    """A server of one's own, for tests that hurt it."""
    require_clickhouse()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="opsplane-clickhouse-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield stack.enter_context(ClickHouseServer(folder))


@pytest.fixture(scope="session")
def clickhouse() -> Iterator[ClickHouseServer]:
    """The session's server; nobody may hurt it."""
    with running_clickhouse() as server:
        yield server


def _tree() -> Path:
    return cache_folder() / "clickhouse"
