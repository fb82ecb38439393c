"""Reading ended runs from the copy, and from PostgreSQL where the copy has not all of a run or does not answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from opsplane_server.errors import DataLoss, FailedPrecondition, OutOfRange, Unavailable
from opsplane_server.loadtesting.history import figures
from opsplane_server.loadtesting.history.port import MetricStore, Placed
from opsplane_server.loadtesting.model import Run
from opsplane_server.storage.followers import Position

log = structlog.get_logger(__name__)


class CopyFirst:
    """`history.port.MetricStore` that prefers a copy.

    PostgreSQL gives the same figures, so a copy that is away, or lacks a run, keeps nobody from reading. The choice is
    made once a read, with its first batch: positions of the two may differ, and a copy that goes away later ends the
    read with Unavailable.
    """

    def __init__(self, copy: MetricStore, postgres: MetricStore) -> None:
        self._copy = copy
        self._postgres = postgres

    async def read(self, run: Run, after: Position = Position.START) -> AsyncGenerator[list[Placed], None]:
        """See the port."""
        async with aclosing(self._copy.read(run, after)) as batches:
            try:
                first = await anext(batches, None)
            except (OutOfRange, Unavailable, FailedPrecondition, DataLoss) as error:
                log.warning("a run is read from PostgreSQL", run=run.name, detail=error.message)
            else:
                figures.read("copy")
                if first is not None:
                    yield first
                async for batch in batches:
                    yield batch
                return
        figures.read("postgres")
        async with aclosing(self._postgres.read(run, after)) as batches:
            async for batch in batches:
                yield batch
