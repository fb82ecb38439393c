"""Seeing runs through with load generators that do what a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from opsplane_server.errors import NotFound, Unavailable
from opsplane_server.loadtesting.datasets.pools import DataSetRows
from opsplane_server.loadtesting.datasets.preparing import RowSource
from opsplane_server.loadtesting.runners.console import ConsoleLine
from opsplane_server.loadtesting.runners.port import Exited, GeneratorSpec, Lost, Running, Status
from opsplane_server.loadtesting.runs import RUN_KIND
from opsplane_server.loadtesting.supervise import RunSupervisor
from opsplane_server.storage.secrets import SecretBox

from tests.loadtesting_harness import LoadTesting


@dataclass
class FakeRunner:
    """A `Runner` whose load generators run until a test ends them."""

    refusals: int = 0
    started: dict[str, Status] = field(default_factory=dict)
    specs: list[GeneratorSpec] = field(default_factory=list)
    cleaned: list[str] = field(default_factory=list)
    polls: int = 0
    busy: bool = False

    async def version(self) -> str:
        return "k6 of a test"

    async def start(self, spec: GeneratorSpec) -> None:
        if self.refusals:
            self.refusals -= 1
            raise Unavailable("no room for another process")
        if spec.name not in self.started:
            self.specs.append(spec)
            self.started[spec.name] = Running()

    async def poll(self, name: str) -> Status:
        self.polls += 1
        if self.busy and isinstance(self.started.get(name), Running):
            return Running(cpu_seconds=1000.0 * self.polls, cpus=2.0)
        if name not in self.started:
            raise NotFound.resource(name)
        return self.started[name]

    async def stop(self, name: str, grace: timedelta = timedelta(seconds=2)) -> Exited | Lost:
        if isinstance(await self.poll(name), Running):
            self.started[name] = Exited(105)
        status = self.started[name]
        assert not isinstance(status, Running)
        return status

    async def console(self, name: str, max_bytes: int = 65536) -> list[ConsoleLine]:
        return [ConsoleLine(None, "INFO", "hello")]

    async def clean_up(self, name: str) -> None:
        self.cleaned.append(name)

    def end(self, status: Status) -> None:
        self.started = dict.fromkeys(self.started, status)


@asynccontextmanager
async def supervising(
    loadtesting: LoadTesting,
    runner: FakeRunner,
    box: SecretBox,
    owner: str = "one",
    rows: RowSource | None = None,
    max_retry: int = 2,
) -> AsyncIterator[None]:
    """An executor that sees runs through with the fake runner; rows are those of data sets unless others are given."""
    supervisor = RunSupervisor(
        loadtesting.runs,
        runner,
        box,
        loadtesting.platform.signals.topic("loadtesting_runs"),
        rows or DataSetRows(loadtesting.data_sets, loadtesting.secrets, loadtesting.reader),
        endpoint=loadtesting.address,
        poll=timedelta(milliseconds=20),
        max_retry=max_retry,
        job_timeout=timedelta(hours=1),
        job_warning=timedelta(hours=1),
        clean_up=True,
        places=10,
    )
    executor = loadtesting.platform.executor(
        {RUN_KIND: supervisor.handle}, owner=owner, failure_hooks={RUN_KIND: supervisor.failed}
    )
    async with executor:
        yield
