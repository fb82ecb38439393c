"""Stores of what runs have measured.

PostgreSQL has all of it: rows of active runs are taken, followed and judged there (`ports.RunStore`). Another store may
have a copy, which is filled from there (`history.writer`), and ended runs can be read from either.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from opsplane_server.loadtesting.history.series import SeriesNames
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.model import Run
from opsplane_server.storage.followers import Position

POSITION_UNKNOWN: Final = "POSITION_UNKNOWN"

Placed: TypeAlias = tuple[Position, ExportRow]
"""A row, and where it stands in the order in which rows were committed."""


class MetricStore(Protocol):
    """Gives back the rows of runs that have ended."""

    def read(self, run: Run, after: Position = Position.START) -> AsyncGenerator[list[Placed], None]:
        """The rows of an ended run behind a position, in the order in which they were committed.

        They come in batches of a bounded size, none empty. Raises Unavailable when the store can not be reached now,
        OutOfRange when it has not all of these rows, or with the reason POSITION_UNKNOWN does not know the position.
        """
        ...


class MetricCopy(MetricStore, Protocol):
    """A copy of rows in another store. All writing can be repeated: the same rows give the same copy."""

    async def check(self) -> str:
        """What tells this store from any other, one that has lost everything from what it was before.

        Raises Unavailable when it can not be reached now, FailedPrecondition when it is none that can be used, with
        what to do about it.
        """
        ...

    async def write(self, run: Run, first: int, rows: Sequence[Placed], names: SeriesNames) -> None:
        """Writes rows of a run, which have the numbers from `first` on in the order of their commits; 1 is the first.

        `names` learns the names that it has not seen. Raises Unavailable, FailedPrecondition, and OutOfRange when the
        store keeps no rows as old as one of these; it has taken the others then.
        """
        ...

    async def finish(self, run: Run, rows: int) -> None:
        """Writes the results of an ended run, and how many rows it has: now it can be read. Raises as `write`."""
        ...

    async def forget(self, name: str) -> None:
        """Removes all that there is of a run. Raises Unavailable, FailedPrecondition."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has been copied: its last row and how many there are, and the names of series that are known.

    `compacted` tells whether the rows were joined into longer ones already when copying began: they are other rows.
    `whole` is False when the copy lacks rows that it did not take.
    """

    position: Position = Position.START
    rows: int = 0
    names: Sequence[tuple[str, str]] = ()
    compacted: bool = False
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Pending:
    """A run that is not in the copy yet with all its rows. `progress` is None for one of which nothing is."""

    key: int
    name: str
    progress: Progress | None


@dataclass(frozen=True, slots=True)
class Batch:
    """The next rows of a run, and whether its rows have been joined into longer ones."""

    rows: Sequence[Placed]
    compacted: bool


class CopyLedger(Protocol):
    """Knows how far runs have been copied. One process at a time may change it."""

    async def begin(self, copy: str) -> None:
        """Names the copy as `MetricCopy.check` does. With another one than before nothing has been copied yet."""
        ...

    async def pending(self, limit: int) -> list[Pending]:
        """Up to `limit` runs that have started and are not wholly copied, the newest first."""
        ...

    async def read(self, key: int, after: Position, limit: int, *, settled_only: bool) -> Batch:
        """The next rows of a run; `settled_only` as in `RunStore.read_windows`."""
        ...

    async def save(self, pending: Pending, progress: Progress) -> None:
        """Notes how far a run has been copied. NotFound when it has been deleted."""
        ...

    async def done(self, key: int) -> None:
        """Notes that all rows of an ended run have been copied."""
        ...

    async def deleted(self) -> list[tuple[int, str]]:
        """Runs that were deleted after at least a part was copied: what `removed` takes, and their names."""
        ...

    async def removed(self, entry: int) -> None:
        """Notes that nothing of a deleted run is left in the copy."""
        ...
