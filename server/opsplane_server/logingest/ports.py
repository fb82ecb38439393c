"""What reading and looking after stored records needs of the storage. `write_ports` has what storing needs.

All methods raise Unavailable while the storage can not be reached.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

from opsplane_server.logingest.queries import Day, Found, Group, LogQuery, Place, Span, Stats, TimeRange, Way
from opsplane_server.storage.followers import Position


class TooLong(Exception):
    """A search was ended because it took longer than it may; one of less time may do."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A file with the records of a day."""

    path: Path
    record_count: int


class RecordSearch(Protocol):
    """Finds records by their time."""

    async def days(self, query: LogQuery, start_us: int, end_us: int) -> list[Day]:
        """The days that overlap a time range, newest first."""
        ...

    async def hours(self, query: LogQuery, start_us: int, end_us: int) -> list[Span]:
        """The hours that overlap a time range and hold records, newest first."""
        ...

    async def minutes(self, query: LogQuery, start_us: int, end_us: int) -> list[Span]:
        """The minutes that overlap a time range and hold records, newest first."""
        ...

    async def find(
        self,
        query: LogQuery,
        day: date,
        ranges: Sequence[TimeRange],
        before: Place,
        way: Way,
        *,
        limit: int,
        max_bytes: int,
    ) -> Found:
        """The newest records of a day before a place, up to `limit` and about `max_bytes`.

        All that match must lie in `ranges`, newest first. Raises TooLong.
        """
        ...


class GroupReader(Protocol):
    """Reads records in the order of their commit."""

    async def now(self) -> Position:
        """The place after all that is settled: what comes after it is committed after this call."""
        ...

    async def check(self, after: Position) -> None:
        """Raises InvalidArgument on `cursor` for a place of another database, OutOfRange for one no longer kept."""
        ...

    async def read_groups(self, after: Position, limit: int) -> list[Group]:
        """Settled groups with records after a place, in order. Raises OutOfRange."""
        ...

    async def read_groups_before(self, before: Position, limit: int) -> list[Group]:
        """Settled groups before a place, newest first."""
        ...

    async def read_records(
        self, query: LogQuery, groups: Sequence[Group], after: Position, *, limit: int, max_bytes: int
    ) -> Found:
        """The matching records of `groups` after a place, in order, up to `limit` and about `max_bytes`."""
        ...

    async def count_records(self, query: LogQuery, groups: Sequence[Group], after: Position) -> int:
        """How many records of `groups` after a place match."""
        ...

    async def newest(self, query: LogQuery, groups: Sequence[Group], limit: int) -> list[Position]:
        """The places of the newest matching records of `groups`, up to `limit`, newest first."""
        ...


class StatsReader(Protocol):
    """Reads figures, of rollups alone."""

    async def stats(self, services: Collection[str], start_us: int, end_us: int) -> Stats:
        """The figures of a time range of whole minutes; of all services when none is named."""
        ...


class Leadership(Protocol):
    """Chooses one of all processes for what one does for all."""

    def leading(self) -> AbstractAsyncContextManager[bool]:
        """Whether this process is the one, at the beginning of the block; from then on `check` tells."""
        ...

    async def check(self) -> None:
        """Raises Unavailable when it is no longer the one."""
        ...


class Rollups(Protocol):
    """Keeps counts of records."""

    async def fold(self, limit: int) -> int:
        """Adds up to `limit` settled groups, each once whatever happens; returns how many."""
        ...

    async def remove_before(self, day: date, limit: int) -> int:
        """Removes up to `limit` counts of days before that day; returns how many."""
        ...


class DayStore(Protocol):
    """Keeps records by day."""

    async def ensure_days(self, days: Collection[date]) -> None:
        """Creates what is missing for records of these days."""
        ...

    async def expire_before(self, day: date) -> list[date]:
        """Takes the days before that day out of all reading and writing; returns all that are to be removed."""
        ...

    async def remove(self, day: date, archive: Path | None) -> Archived | None:
        """Removes an expired day, after writing its records to a file in the folder `archive` if there is one.

        Wherever it ends, either the day is there or the whole file. OSError when the file can not be written.
        """
        ...


class Indexes(Protocol):
    """Makes records easier to find, some time after they were stored."""

    async def summarize(self, limit: int) -> int:
        """Summarises up to `limit` ranges of what was stored, by time and id; returns how many were new."""
        ...

    async def summarize_filters(self, limit: int) -> int:
        """Summarises up to `limit` ranges for the bloom filters; returns how many were new."""
        ...

    async def index_next(self, before: date) -> date | None:
        """Indexes text and metadata of a day before that day; None when there is none that needs it."""
        ...


class Pruning(Protocol):
    """Forgets what is only kept for a while."""

    async def prune_groups(self, age: timedelta, limit: int) -> int:
        """Removes up to `limit` groups that are older and folded; returns how many."""
        ...

    async def prune_batches(self, age: timedelta, limit: int) -> int:
        """Removes up to `limit` answers to batches that are older; returns how many."""
        ...
