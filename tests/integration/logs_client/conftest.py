"""A stub server on a unix socket, and programs that log to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opsplane.logs import Problem, ProblemKind, Shipper

from tests.integration.logs_client.stub_server import Behaviour

ROOT = Path(__file__).resolve().parent.parent.parent.parent


class StubServer:
    """The stub of `stub_server`, started and killed by the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix:{folder / 'server'}"
        self._process: subprocess.Popen[str] | None = None
        Behaviour().write(folder)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.logs_client.stub_server", self.address, str(self.folder)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def behave(self, **behaviour: Any) -> None:
        Behaviour(**behaviour).write(self.folder)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """Every batch that came, also those that were not stored."""
        path = self.folder / "journal"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if "\n" in line]

    @property
    def stored(self) -> Counter[str]:
        """How often each message is stored: once, for deduplication as the server has it."""
        return Counter(
            message
            for batch in self.journal
            if batch["stored"] and not batch["duplicate"]
            for message in batch["messages"]
        )


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[StubServer]:
    """A stub server that is not started yet."""
    folder = tmp_path / "s"
    folder.mkdir()
    server = StubServer(folder)
    yield server
    server.kill()


@pytest.fixture
def server(stub: StubServer) -> StubServer:
    """A stub server that is up."""
    stub.start()
    return stub


class Shippers:
    """Makes shippers to the stub that are closed when the test ends, and gathers what they tell."""

    def __init__(self, address: str, spool: Path) -> None:
        self.spool = spool
        self.problems: list[Problem] = []
        self._address = address
        self._made: list[Shipper] = []

    def make(self, **settings: Any) -> Shipper:
        settings = {"service": "test", "spool": self.spool, "linger_seconds": 0.01, **settings}
        shipper = Shipper(self._address, on_problem=self.problems.append, **settings)
        self._made.append(shipper)
        return shipper

    def told(self, kind: ProblemKind, *, over: bool = False) -> list[str]:
        return [problem.message for problem in self.problems if problem.kind is kind and problem.over is over]

    def close(self) -> None:
        for shipper in self._made:
            shipper.close(0)


@pytest.fixture
def shippers(stub: StubServer, tmp_path: Path) -> Iterator[Shippers]:
    made = Shippers(stub.address, tmp_path / "spool")
    yield made
    made.close()


class App:
    """A program of `apps` that logs, in a process of its own."""

    def __init__(self, name: str, address: str, spool: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.logs_client.apps", name, address, str(spool), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def end(self, *, timeout: float = 60) -> tuple[str, str]:
        """Waits for its end; what it printed, and to standard error."""
        out, err = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, err
        return out, err


@pytest.fixture
def run_app(stub: StubServer, tmp_path: Path) -> Iterator[Any]:
    """Starts programs of `apps`; those that are left are killed."""
    started: list[App] = []

    def run(name: str, *arguments: str, spool: Path | None = None, **environment: str) -> App:
        app = App(name, stub.address, spool or tmp_path / "spool", *arguments, **environment)
        started.append(app)
        return app

    yield run
    for app in started:
        if app.process.poll() is None:
            app.kill()
