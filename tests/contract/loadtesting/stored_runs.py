"""Runs whose rows the tests write, on PostgreSQL alone and with a copy in InfluxDB."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import pytest
from opsplane_server.loadtesting.definitions import LoadTest
from opsplane_server.loadtesting.history.port import MetricCopy, MetricStore, Placed
from opsplane_server.loadtesting.history.writer import MetricWriter
from opsplane_server.loadtesting.metrics.results import RunFold, Verdict
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.model import Outcome, Project, Run, RunEnd, RunPlan, RunState
from opsplane_server.loadtesting.stores.influx import InfluxClient, InfluxMetricStore, InfluxTarget
from opsplane_server.loadtesting.stores.postgres import (
    PostgresCopyLedger,
    PostgresMetricStore,
    PostgresProjectStore,
    PostgresRunStore,
)
from opsplane_server.loadtesting.watch import origin
from opsplane_server.storage.database import Database
from opsplane_server.storage.followers import Position
from opsplane_server.storage.leadership import PostgresLeadership
from opsplane_server.storage.signals import Signal, Signals

from tests.loadtesting_harness import MIGRATIONS
from tests.postgres_fixtures import migrated


@dataclass(frozen=True, slots=True)
class StoredRuns:
    """Runs of the project `shop` in PostgreSQL."""

    database: Database
    runs: PostgresRunStore
    ledger: PostgresCopyLedger
    history: PostgresMetricStore
    signal: Signal

    async def active(self, run_id: str, *, generators: int = 1) -> Run:
        """A run that takes rows."""
        plan = RunPlan(LoadTest("Nightly", "http://127.0.0.1:1", ()), script="//", generators=generators)
        run = Run(f"projects/shop/runs/{run_id}", "Nightly", "", plan, creator="tests", trace_id="")
        await self.runs.insert_run(run, "//", None)
        await self.runs.set_state(run.name, RunState.RUNNING)
        return await self.runs.get_run(run.name)

    async def append(self, run: Run, rows: Sequence[ExportRow]) -> None:
        """Writes rows of an active run, each in a transaction of its own."""
        for row in rows:
            await self.runs.append_windows(run.name, [row])

    async def end(self, run: Run) -> Run:
        """Ends a run with the results of its rows."""
        fold = RunFold(origin(run), run.plan.generators)
        for _, row in await all_of(self.history, run):
            fold.add(row)
        await self.runs.end_run(run.name, RunEnd(RunState.COMPLETED, Verdict.PASSED, Outcome(fold.results())))
        return await self.runs.get_run(run.name)

    async def ended(self, run_id: str, rows: Sequence[ExportRow], *, generators: int = 1) -> Run:
        """A run with these rows that has ended."""
        run = await self.active(run_id, generators=generators)
        await self.append(run, rows)
        return await self.end(run)

    def writer(self, copy: MetricCopy) -> MetricWriter:
        """What keeps a copy of them up to date."""
        leadership = PostgresLeadership(self.database, "loadtesting.metric_copy")
        return MetricWriter(self.ledger, self.runs, copy, leadership, self.signal)


@pytest.fixture
async def stored(dsn: str) -> AsyncIterator[StoredRuns]:
    """An empty database with the project."""
    async with migrated(dsn, [MIGRATIONS]) as database, Signals(dsn) as signals:
        await PostgresProjectStore(database).insert_project(Project("projects/shop", "Shop"))
        runs = PostgresRunStore(database)
        yield StoredRuns(
            database,
            runs,
            PostgresCopyLedger(database),
            PostgresMetricStore(database, runs),
            signals.topic("loadtesting_runs"),
        )


async def all_of(store: MetricStore, run: Run, after: Position = Position.START) -> list[Placed]:
    """Everything that a store gives of a run behind a position."""
    found = []
    async for batch in store.read(run, after):
        assert batch
        found += batch
    return found


@asynccontextmanager
async def copying(target: InfluxTarget) -> AsyncIterator[InfluxMetricStore]:
    """The copy in a bucket."""
    async with InfluxClient(target) as client:
        yield InfluxMetricStore(client, target)


class Settled(Protocol):
    """Does what is to be done before ended runs are read."""

    async def __call__(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A store under test. `settle` goes before the first reading of a run."""

    stored: StoredRuns
    store: MetricStore
    settle: Settled


@asynccontextmanager
async def kept_in_postgres(stored: StoredRuns) -> AsyncIterator[Kept]:
    """PostgreSQL has rows when they are written."""

    async def settle() -> None:
        pass

    yield Kept(stored, stored.history, settle)


@asynccontextmanager
async def kept_in_influxdb(stored: StoredRuns, target: InfluxTarget) -> AsyncIterator[Kept]:
    """InfluxDB has them when the writer has caught up."""
    async with AsyncExitStack() as stack:
        copy = await stack.enter_async_context(copying(target))

        async def settle() -> None:
            await stored.writer(copy).catch_up()

        yield Kept(stored, copy, settle)
