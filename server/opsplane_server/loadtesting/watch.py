"""Following a run: windows and changes of state, read from what is stored, so that any process serves any watcher."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace

from opsplane_server.errors import InvalidArgument, OutOfRange
from opsplane_server.loadtesting.history.port import POSITION_UNKNOWN, MetricStore
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.metrics.windows import Window, WindowAssembler, WindowCursor
from opsplane_server.loadtesting.model import Run
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.storage.followers import Position
from opsplane_server.storage.signals import Signal

# Windows of several load generators close by time; a row whose older transaction has just ended gives no hint.
_POLL_SECONDS = 0.25
_BATCH = 200


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """Something new of a run: the run itself, or its next window. `cursor` goes on after it."""

    cursor: str
    run: Run | None = None
    window: Window | None = None


class RunWatcher:
    """Streams what happens in runs. `signal` tells that a run has new windows or another state.

    What had ended when it is asked for is read from `history`.
    """

    def __init__(self, store: RunStore, history: MetricStore, signal: Signal) -> None:
        self._store = store
        self._history = history
        self._signal = signal

    async def watch(self, name: str, cursor: str) -> AsyncGenerator[RunUpdate, None]:
        """The run, its windows after `cursor` and then as they come, the run at each change of state and at its end.

        Raises NotFound, also when the run is deleted meanwhile, and InvalidArgument for a cursor of somebody else's.
        """
        start = WindowCursor.decode(cursor)
        position = Position.decode(start.position) if start.position else Position.START
        run = await self._store.get_run(name)
        yield RunUpdate(cursor, run=replace(run, outcome=None) if run.state.ended else run)
        assembler = WindowAssembler(origin(run), run.plan.generators, start)
        if run.state.ended:
            async for update in self._replay(run, position, cursor, assembler):
                yield update
            return
        while True:
            # In this order: what is hinted at while it reads is read in the next round, and all rows of a run that
            # has ended are there to be read.
            seen = self._signal.generation
            latest = await self._store.get_run(name)
            rows = await self._store.read_windows(run.key, position, _BATCH, settled_only=not latest.state.ended)
            for window in _windows(assembler, rows):
                cursor = window.cursor
                yield RunUpdate(cursor, window=window)
            if rows:
                position = rows[-1][0]
            if latest.state.ended and not rows:
                for window in assembler.finish():
                    cursor = window.cursor
                    yield RunUpdate(cursor, window=window)
                yield RunUpdate(cursor, run=latest)
                return
            if latest.state is not run.state and not latest.state.ended:
                yield RunUpdate(cursor, run=latest)
            run = latest
            if len(rows) < _BATCH and not latest.state.ended:
                await self._signal.changed(seen, _POLL_SECONDS)

    async def _replay(
        self, run: Run, position: Position, cursor: str, assembler: WindowAssembler
    ) -> AsyncGenerator[RunUpdate, None]:
        try:
            async with aclosing(self._history.read(run, position)) as batches:
                async for rows in batches:
                    for window in _windows(assembler, rows):
                        cursor = window.cursor
                        yield RunUpdate(cursor, window=window)
        except OutOfRange as error:
            if error.reason != POSITION_UNKNOWN:
                raise
            joined = "is from before the windows of this run were joined into longer ones; begin without"
            raise InvalidArgument.of("cursor", joined) from None
        for window in assembler.finish():
            cursor = window.cursor
            yield RunUpdate(cursor, window=window)
        yield RunUpdate(cursor, run=await self._store.get_run(run.name))


def _windows(assembler: WindowAssembler, rows: Iterable[tuple[Position, ExportRow]]) -> Iterable[Window]:
    now = time.time_ns()
    yield from assembler.feed(((position.encode(), row) for position, row in rows), now)
    yield from assembler.advance(now)


def origin(run: Run) -> int:
    """Where the windows of a run are counted from, the same for every watcher: its creation."""
    assert run.create_time is not None
    return int(run.create_time.timestamp() * 1_000_000) * 1000
