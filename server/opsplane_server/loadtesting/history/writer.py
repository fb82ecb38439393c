"""Copies what runs measure from PostgreSQL to another store, for as long as it takes.

It follows the rows that PostgreSQL has, run by run, and notes there how far it has come. So nothing waits for the
other store: neither load generators nor memory know whether it is slow or away, and when it is back what was missed
is simply next. Whatever happens, some rows are written twice at worst, which changes nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final, Protocol

import structlog

from opsplane_server.background import Background
from opsplane_server.errors import Aborted, DataLoss, FailedPrecondition, NotFound, OutOfRange, Unavailable
from opsplane_server.loadtesting.history import figures
from opsplane_server.loadtesting.history.port import Batch, CopyLedger, MetricCopy, Pending, Progress
from opsplane_server.loadtesting.history.series import SeriesNames
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.storage.signals import Signal

log = structlog.get_logger(__name__)

# So few that a batch is a few megabytes even with the most series.
_BATCH: Final = 50
_RUNS: Final = 100

# Figures come every second from each load generator: a rest makes one request of many of them.
_REST_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 2.0
_ELECTION_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = (1.0, 30.0)


class Leadership(Protocol):
    """Chooses one of all processes for what one does for all."""

    def leading(self) -> AbstractAsyncContextManager[bool]:
        """Whether this process is the one, at the beginning of the block; from then on `check` tells."""
        ...

    async def check(self) -> None:
        """Raises Unavailable when it is no longer the one."""
        ...


class MetricWriter(Background):
    """Keeps `copy` up to date. Every process may run one: only the leader of all does the work.

    `signal` tells that there are new rows.
    """

    _task_name = "copy figures"

    def __init__(
        self, ledger: CopyLedger, runs: RunStore, copy: MetricCopy, leadership: Leadership, signal: Signal
    ) -> None:
        self._ledger = ledger
        self._runs = runs
        self._copy = copy
        self._leadership = leadership
        self._signal = signal
        self._trouble = ""
        self._pause = _RETRY_SECONDS[0]

    async def catch_up(self) -> int:
        """Copies all that there is now; returns how many rows. Raises Unavailable, FailedPrecondition."""
        await self._ledger.begin(await self._copy.check())
        copied = 0
        while rows := await self._round():
            copied += rows
        return copied

    async def _run(self) -> None:
        while True:
            try:
                async with self._leadership.leading() as leads:
                    if leads:
                        await self._lead()
                await asyncio.sleep(_ELECTION_SECONDS)
            except (Unavailable, Aborted, FailedPrecondition) as failure:
                self._tell(failure)
                wait = failure.retry_after.total_seconds() if isinstance(failure, Unavailable) else 0.0
                await self._rest(wait)
            except Exception:
                log.exception("copying figures failed")
                figures.failed()
                await self._rest(0.0)

    async def _lead(self) -> None:
        await self._ledger.begin(await self._copy.check())
        while True:
            seen = self._signal.generation
            await self._leadership.check()
            rows = await self._round()
            self._works()
            if not rows:
                await asyncio.sleep(_REST_SECONDS)
                # A row that had to wait for an older transaction gives no hint.
                await self._signal.changed(seen, _POLL_SECONDS)

    def _works(self) -> None:
        self._pause = _RETRY_SECONDS[0]
        figures.works()
        if self._trouble:
            log.info("figures are copied again")
            self._trouble = ""

    def _tell(self, failure: Unavailable | Aborted | FailedPrecondition) -> None:
        """Once for each trouble: it may last for days."""
        figures.failed()
        if failure.reason == self._trouble:
            return
        self._trouble = failure.reason
        tell = log.error if isinstance(failure, FailedPrecondition) else log.warning
        tell("figures are not copied now, and will be later", detail=failure.message)

    async def _rest(self, least: float) -> None:
        await asyncio.sleep(max(self._pause, least))
        self._pause = min(self._pause * 2, _RETRY_SECONDS[1])

    async def _round(self) -> int:
        """A batch of each run that has one; returns how many rows were copied."""
        for entry, name in await self._ledger.deleted():
            await self._copy.forget(name)
            await self._ledger.removed(entry)
        waiting = await self._ledger.pending(_RUNS)
        figures.pending(len(waiting))
        copied = 0
        for pending in waiting:
            try:
                copied += await self._advance(pending)
            except NotFound:
                continue  # it was deleted meanwhile
            except DataLoss as error:
                # Nor can it be read from here. The others must not wait for it.
                log.error("a run can not be copied", run=pending.name, detail=error.message)
                await self._ledger.done(pending.key)
        return copied

    async def _advance(self, pending: Pending) -> int:
        """The next batch of a run; returns how many rows it had."""
        # In this order: all rows of a run that has ended are there to be read.
        run = await self._runs.get_run(pending.name)
        progress = pending.progress or Progress()
        batch = await self._read(run, progress)
        if progress.rows and batch.rows and batch.compacted != progress.compacted:
            # Its rows have been joined: what was copied of it until then would be there twice.
            await self._copy.forget(run.name)
            progress = Progress()
            await self._ledger.save(pending, progress)
            batch = await self._read(run, progress)
        ends = run.state.ended and len(batch.rows) < _BATCH
        if not progress.rows and (batch.rows or ends):
            progress = replace(progress, compacted=batch.compacted)
            # Before anything is written, so that it is known when the run is deleted.
            await self._ledger.save(pending, progress)
        if batch.rows:
            progress = await self._copied(pending, run, progress, batch)
        if ends:
            if progress.whole:
                await self._finish(run, progress)
            await self._ledger.done(run.key)
        return len(batch.rows)

    async def _finish(self, run: Run, progress: Progress) -> None:
        try:
            await self._copy.finish(run, progress.rows)
        except OutOfRange as error:
            log.warning("a copy lacks figures", run=run.name, detail=error.message)

    async def _read(self, run: Run, progress: Progress) -> Batch:
        return await self._ledger.read(run.key, progress.position, _BATCH, settled_only=not run.state.ended)

    async def _copied(self, pending: Pending, run: Run, progress: Progress, batch: Batch) -> Progress:
        names, whole = SeriesNames(progress.names), progress.whole
        try:
            await self._copy.write(run, progress.rows + 1, batch.rows, names)
            figures.copied(len(batch.rows))
        except OutOfRange as error:
            # It never will: neither the rows after them nor other runs may wait.
            figures.rejected(len(batch.rows))
            if whole:
                log.warning("a copy lacks figures", run=run.name, detail=error.message)
            whole = False
        progress = replace(
            progress,
            position=batch.rows[-1][0],
            rows=progress.rows + len(batch.rows),
            names=names.known,
            whole=whole,
        )
        await self._ledger.save(pending, progress)
        return progress
