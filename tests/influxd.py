"""A real InfluxDB 2 for tests: influxd on loopback over a folder of its own, to be killed and started again.

    async def test_it(influxdb: Influxd) -> None:      # one a session, buckets are a test's own
        target = influxdb.new_bucket()

scripts/influxdb.sh builds it into the cache. Without it tests are skipped, and fail under CI.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

from tests.components import cache_folder, lacking
from tests.ftp_servers.certificates import Certificate
from tests.ports import free_port

if TYPE_CHECKING:
    from opsplane_server.loadtesting.stores.influx import InfluxTarget

VERSION = "2.7.12"

ORG = "tests"

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


def program() -> Path:
    """Where influxd is; it may be missing."""
    return cache_folder() / f"influxdb-{VERSION}" / "influxd"


def require_influxd() -> None:
    """Skips the test where InfluxDB is not installed; under CI that is a failure."""
    if not program().is_file():
        lacking(f"InfluxDB {VERSION} (scripts/influxdb.sh) is not installed")


class Influxd:
    """One server over a folder. Its address stays the same when it is started again.

    With a certificate it speaks TLS.
    """

    def __init__(self, folder: Path, certificate: Certificate | None = None) -> None:
        self._folder = folder
        self._certificate = certificate
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._token = secrets.token_hex(16)
        self._org_id = ""

    def __enter__(self) -> Self:
        self.start()
        answer = self._post(
            "/api/v2/setup",
            {"username": "tests", "password": "sesame-sesame", "org": ORG, "bucket": "first", "token": self._token},
        )
        self._org_id = answer["org"]["id"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"http{'s' if self._certificate else ''}://127.0.0.1:{self.port}"

    def new_bucket(self, *, keep_seconds: int = 0, rights: tuple[str, ...] = ("read", "write")) -> InfluxTarget:
        """A new bucket, and a token that may do no more than these."""
        from opsplane_server.loadtesting.stores.influx import InfluxTarget  # its driver takes a second to import

        name = f"bucket-{secrets.token_hex(6)}"
        rules = [{"type": "expire", "everySeconds": keep_seconds}] if keep_seconds else []
        made = self._post("/api/v2/buckets", {"orgID": self._org_id, "name": name, "retentionRules": rules})
        resource = {"type": "buckets", "id": made["id"], "orgID": self._org_id}
        allowed = [{"action": right, "resource": resource} for right in rights]
        token = self._post("/api/v2/authorizations", {"orgID": self._org_id, "permissions": allowed})["token"]
        return InfluxTarget(self.url, ORG, name, token)

    def replace_bucket(self, target: InfluxTarget) -> InfluxTarget:
        """Another bucket, empty, of the same name; with a token that may do everything."""
        with self._http() as http:
            [bucket] = http.get("/api/v2/buckets", params={"name": target.bucket}).raise_for_status().json()["buckets"]
            http.delete(f"/api/v2/buckets/{bucket['id']}").raise_for_status()
        self._post("/api/v2/buckets", {"orgID": self._org_id, "name": target.bucket, "retentionRules": []})
        return replace(target, token=self._token)

    def start(self) -> None:
        """Starts it, for the first time or again over the same data; returns when it answers."""
        command = [
            str(program()),
            f"--bolt-path={self._folder / 'bolt'}",
            f"--engine-path={self._folder / 'engine'}",
            f"--sqlite-path={self._folder / 'sqlite'}",
            f"--http-bind-address=127.0.0.1:{self.port}",
            "--reporting-disabled",
            "--log-level=warn",
        ]
        if self._certificate is not None:
            command += [f"--tls-cert={self._certificate.chain_file}", f"--tls-key={self._certificate.key_file}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"InfluxDB did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it, nicely if it goes."""
        try:
            self._end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL)

    def _healthy(self) -> bool:
        try:
            with self._http() as http:
                return http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def _post(self, path: str, content: Any) -> Any:
        with self._http() as http:
            return http.post(path, json=content).raise_for_status().json()

    def _http(self) -> httpx.Client:
        verify: ssl.SSLContext | bool = False
        if self._certificate is not None:
            verify = ssl.create_default_context(cadata=self._certificate.authority)
        headers = {"Authorization": f"Token {self._token}"}
        return httpx.Client(base_url=self.url, headers=headers, verify=verify, timeout=60, trust_env=False)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(_STOP_SECONDS)


@contextmanager
def running_influxd(certificate: Certificate | None = None) -> Iterator[Influxd]:
    """A server of one's own, for tests that hurt it or ask for more."""
    require_influxd()
    folder = Path(tempfile.mkdtemp(prefix="opsplane-influxd-"))
    try:
        with Influxd(folder, certificate) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def influxdb() -> Iterator[Influxd]:
    """The session's server; nobody may hurt it."""
    with running_influxd() as server:
        yield server
