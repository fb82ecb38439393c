"""A real server for tests: `opsplane serve` as a process of its own, and ways to hurt it.

    with running_server("--workers", "2") as server:
        channel = grpc.aio.insecure_channel(server.address)
        kill(server.workers()[0])

Each has a data directory of its own and takes free ports. Whatever a test does, the server, its workers and its
PostgreSQL are gone when the block ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import opsplane
import opsplane_server
import psutil
from opsplane_server.config_sources import ALIASES, OF_DATA_SETS, POOLER_CONFIG, WITHOUT_EFFECT

from tests.postgres_fixtures import reachable_folder

START_SECONDS = 60.0
STOP_SECONDS = 60.0

# Where this interpreter finds the packages under test; a child that runs elsewhere must find the same.
IMPORT_PATH = os.pathsep.join(
    dict.fromkeys(str(Path(package.__path__[0]).resolve().parent) for package in (opsplane_server, opsplane))
)


class ServerFailed(AssertionError):
    """The server ended before it was ready."""


class ServerProcess:
    """One `opsplane serve`. `start` returns at once; most other things need `wait_ready` first."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.data_dir = folder / "data"
        self._folder = folder
        self._arguments = arguments
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] | None = None

    def start(self) -> None:
        """Starts the process, for the first time or again over the same data."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._ready = None
        # The last of a flag counts, so tests may name ports of their own.
        defaults = (f"--data-dir={self.data_dir}", "--port=0", "--metrics-port=0")
        command = [sys.executable, "-P", "-m", "opsplane_server", *defaults, *self._arguments]
        # Settings of a developer's machine must not decide what is tested.
        foreign = ALIASES.keys() | OF_DATA_SETS | WITHOUT_EFFECT | {POOLER_CONFIG}
        ours = {name: value for name, value in os.environ.items() if name not in foreign}
        environment = {**ours, "PYTHONPATH": IMPORT_PATH, **self._environment}
        with (self._folder / "stdout").open("wb") as output, (self._folder / "stderr").open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=self._folder,
                env=environment,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Returns when the server says that it is ready; ServerFailed with what it said if it ends before."""
        deadline = time.monotonic() + START_SECONDS
        while self._ready is None:
            ended = self.process.poll()
            self._ready = self.find_log("server ready") if self.output() else None
            if self._ready is None:
                if ended is not None:
                    raise ServerFailed(f"status {ended}: {self.errors()}")
                if time.monotonic() > deadline:
                    raise ServerFailed(f"not ready in time: {self.errors()}")
                time.sleep(0.02)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The parent process."""
        assert self._process is not None, "it was never started"
        return self._process

    @property
    def pid(self) -> int:
        """The parent process."""
        return self.process.pid

    @property
    def address(self) -> str:
        """Where gRPC is served."""
        return str(self._fact("address"))

    @property
    def metrics_url(self) -> str:
        """Where metrics and probes are served."""
        return f"http://{self._fact('metrics_address')}"

    def workers(self) -> list[int]:
        """The worker processes that there are now."""
        _, text = self.get("/health")
        return [worker["pid"] for worker in json.loads(text)["workers"] if worker["pid"] is not None]

    def ever_workers(self) -> set[int]:
        """Every worker process that said it was ready since the last start."""
        return {record["pid"] for record in self.logs() if record["event"] == "worker ready"}

    def postgres(self) -> int:
        """The main process of the embedded PostgreSQL that there is now."""
        return int((self.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the metrics port."""
        try:
            with urllib.request.urlopen(f"{self.metrics_url}{path}", timeout=10) as response:  # noqa: S310
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def output(self) -> str:
        """What it wrote to standard output since the last start."""
        return (self._folder / "stdout").read_text()

    def errors(self) -> str:
        """What it and its workers wrote to standard error since the last start."""
        return (self._folder / "stderr").read_text()

    def logs(self) -> list[dict[str, Any]]:
        """The log records among that; a line that is still being written is left out."""
        records = []
        for line in self.errors().splitlines():
            with suppress(json.JSONDecodeError):
                record = json.loads(line)
                if isinstance(record, dict):
                    records.append(record)
        return records

    def find_log(self, event: str) -> dict[str, Any] | None:
        """The first record of this event, None if there is none yet."""
        return next((record for record in self.logs() if record["event"] == event), None)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the parent."""
        self.process.send_signal(number)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """The status of the parent when it has ended."""
        return self.process.wait(timeout)

    def stop(self) -> int:
        """Asks the server to end and returns its status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Ends the parent alone, by SIGKILL; what it started goes on."""
        self.signal(signal.SIGKILL)
        self.wait()

    def destroy(self) -> None:
        """Ends everything that there is of it, nicely first."""
        if self._process is None:
            return
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
        for pid in self.ever_workers():
            if "opsplane_server.worker" in _command(pid):
                kill(pid)
        with suppress(OSError, ValueError, IndexError):
            pid = self.postgres()
            if str(self.data_dir) in " ".join(_command(pid)):
                psutil.Process(pid).send_signal(signal.SIGQUIT)
                psutil.wait_procs([psutil.Process(pid)], timeout=10)

    def _fact(self, name: str) -> Any:
        assert self._ready is not None, "wait_ready first"
        return self._ready[name]


@contextmanager
def new_server(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server with an empty data directory, not started yet."""
    with reachable_folder() as folder:
        server = ServerProcess(folder, *arguments, environment=environment)
        try:
            yield server
        finally:
            server.destroy()


@contextmanager
def running_server(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server that is ready."""
    with new_server(*arguments, environment=environment) as server:
        server.start()
        server.wait_ready()
        yield server


def kill(pid: int) -> None:
    """Ends a process by SIGKILL, if there is one."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether the process runs; one that only nobody has asked about does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
