"""Searching, newest first: back through time in slices, wide where little matches and narrow where much does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from opsplane_server.errors import Unavailable
from opsplane_server.logingest.ports import RecordSearch, TooLong
from opsplane_server.logingest.queries import Day, Found, LogQuery, Place, Span, StoredRecord, TimeRange, Way

_MAX_BYTES: Final = 3 * 1024 * 1024  # clients take messages of 4 MiB unless they are told otherwise
_MINUTE_US: Final = 60_000_000
_DAY_US: Final = 1440 * _MINUTE_US
_LEAST_WIDTH_US: Final = 1000
_MOST_RANGES: Final = 32
_EPOCH_DAY: Final = date(1970, 1, 1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_SLICE_SECONDS: Final = 0.25
# How many records the first slice has, and by how much the next ones may be larger.
_FIRST_ROWS: Final = 20_000
_FIRST_ROWS_POINTED: Final = 2_000_000
_LEAST_ROWS: Final = 1000
_GROWTH: Final = 8
# So many records read without filling the page, and indexes for text and metadata are the better way.
_ROWS_BEFORE_INDEXES: Final = 150_000
# The bloom filters of a whole day are read at once, which so many records have to be worth.
_ROWS_FOR_POINTS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Page:
    """Records, newest first. following: where the next page begins; None on the last one."""

    records: Sequence[StoredRecord]
    following: Place | None = None

    @property
    def searched_back_to_us(self) -> int | None:
        """All of this time and later was searched; None on the last page."""
        if self.following is None:
            return None
        # Of the time where the page ends there may be more to come.
        return self.following.time_us + (1 if self.following.id else 0)


class Searcher:
    """Searches for about `budget` at a time: a search that takes longer answers with what it has found until then."""

    def __init__(
        self,
        store: RecordSearch,
        *,
        budget: timedelta = timedelta(seconds=1.5),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._budget = budget.total_seconds()
        self._clock = clock

    async def page(self, query: LogQuery, start_us: int, before: Place, size: int) -> Page:
        """The newest `size` records from `start_us` on to before a place. Raises Unavailable."""
        if query.levels is not None and not query.levels:
            return Page([])
        pace = _Pace(query, size, self._clock, self._budget)
        for day in await self._store.days(query, start_us, before.time_us + bool(before.id)):
            if not day.matching:
                continue
            day_us = (day.day - _EPOCH_DAY).days * _DAY_US
            upper = min(before, Place(day_us + _DAY_US, 0))
            if pace.ended:
                return Page(pace.records, upper)
            walk = _Walk(self._store, query, day, max(start_us, day_us), upper, pace)
            if (following := await walk.run()) is not None:
                return Page(pace.records, following)
        return Page(pace.records)


def time_us(moment: datetime) -> int:
    """A time in microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


class _Pace:
    """What a page has so far, and what was learnt of how fast the search goes."""

    def __init__(self, query: LogQuery, size: int, clock: Callable[[], float], budget: float) -> None:
        self.records: list[StoredRecord] = []
        self.rows = _FIRST_ROWS_POINTED if query.pointed else _FIRST_ROWS
        self.room = _MAX_BYTES
        self._size = size
        self.clock = clock
        self._end = clock() + budget
        self._scanned = 0
        self._begun = False
        self._indexable = bool(query.terms or query.metadata) and not query.pointed

    @property
    def missing(self) -> int:
        """How many records the page has room for."""
        return self._size - len(self.records)

    @property
    def ended(self) -> bool:
        """Whether the page is to be answered as it is; never before something was searched."""
        return self._begun and (self.missing <= 0 or self.room <= 0 or self.clock() >= self._end)

    def prefers_indexes(self, day: Day) -> bool:
        """Whether so little matches that the rest of the day is better searched by its indexes."""
        if not (self._indexable and day.indexed and self._scanned):
            return False
        needed = self.missing * self._scanned / max(1, len(self.records))
        return self._scanned + needed > _ROWS_BEFORE_INDEXES

    def avoid_indexes(self) -> None:
        """They took too long: what is looked for is not rare."""
        self._indexable = False

    def add(self, found: Found) -> None:
        """Takes what a slice had into the page."""
        self._begun = True
        self.records += found.records
        self.room -= sum(_bytes_of(record) for record in found.records)

    def learn(self, rows: int, seconds: float) -> None:
        """Makes the next slice such that it takes about the time that a slice should."""
        self._scanned += rows
        fitting = max(rows, _LEAST_ROWS) * _SLICE_SECONDS / max(seconds, 0.001)
        self.rows = round(min(max(fitting, self.rows / _GROWTH, _LEAST_ROWS), self.rows * _GROWTH))

    def slower(self, rows: int) -> None:
        """A slice of so many records took too long. Raises Unavailable when no smaller one will do."""
        if rows <= _LEAST_ROWS:
            raise Unavailable("the search takes too long: the database is too busy", reason="SEARCH_TOO_SLOW")
        self.rows = max(_LEAST_ROWS, rows // _GROWTH)


class _Walk:
    """The search of a day, from `before` back to `start_us`."""

    def __init__(
        self, store: RecordSearch, query: LogQuery, day: Day, start_us: int, before: Place, pace: _Pace
    ) -> None:
        self._store = store
        self._query = query
        self._day = day
        self._start_us = start_us
        self._before = before
        self._pace = pace
        self._spans: list[Span] | None = None  # what is still to be searched, oldest first

    async def run(self) -> Place | None:
        """Searches until the page is to be answered: where the next one begins; None when the day is through."""
        while True:
            if self._pace.prefers_indexes(self._day):
                ranges, rows, way = [TimeRange(self._start_us, self._end_us)], 0, Way.WORDS
            else:
                cut = await self._cut()
                if cut is None:
                    return None
                ranges, rows = cut
                way = Way.POINTS if self._query.pointed and rows > _ROWS_FOR_POINTS else Way.TIME
            began = self._pace.clock()
            try:
                found = await self._store.find(
                    self._query,
                    self._day.day,
                    ranges,
                    self._before,
                    way,
                    limit=self._pace.missing,
                    max_bytes=self._pace.room,
                )
            except TooLong:
                if way is Way.WORDS:
                    self._pace.avoid_indexes()
                else:
                    self._pace.slower(rows)
                if self._pace.ended and self._pace.records:
                    return self._before
                continue
            self._pace.add(found)
            if not found.complete:
                last = found.records[-1]
                return Place(time_us(last.timestamp), last.id)
            self._before = Place(ranges[-1].start_us, 0)
            if way is not Way.WORDS:
                self._pace.learn(rows, self._pace.clock() - began)
            if self._before.time_us <= self._start_us:
                return None
            if self._pace.ended:
                return self._before

    async def _cut(self) -> tuple[list[TimeRange], int] | None:
        """The times of the next slice, and about how many records it has; None when nothing more matches."""
        if self._spans is None:
            hours = await self._store.hours(self._query, self._start_us, self._end_us)
            self._spans = hours[::-1]
        spans = self._spans
        newest = await self._newest(spans)
        if newest is None:
            return None
        wanted = self._wanted(newest)
        rows = self._rows_left(newest)
        if rows > 2 * wanted:
            width = max(_LEAST_WIDTH_US, round(newest.width_us * wanted / newest.total))
            start_us = max(self._start_us, newest.start_us, self._end_us - width)
            return [TimeRange(start_us, self._end_us)], wanted
        ranges = [TimeRange(max(self._start_us, newest.start_us), self._end_us)]
        index = len(spans) - 2
        while index >= 0 and rows < wanted and len(ranges) < _MOST_RANGES:
            span = spans[index]
            if span.matching and rows + span.total > 2 * wanted:
                if span.width_us == _MINUTE_US:
                    break
                minutes = await self._store.minutes(self._query, span.start_us, span.end_us)
                spans[index : index + 1] = minutes[::-1]
                index += len(minutes) - 1
                continue
            if span.matching:
                start_us = max(self._start_us, span.start_us)
                if spans[index + 1].matching:
                    ranges[-1] = TimeRange(start_us, ranges[-1].end_us)
                else:
                    ranges.append(TimeRange(start_us, span.end_us))
                rows += span.total
            index -= 1
        return ranges, rows

    async def _newest(self, spans: list[Span]) -> Span | None:
        """Goes back to the next span that has something, and returns it: an hour only if all of it is to be read."""
        while spans:
            span = spans[-1]
            if not span.matching or span.start_us >= self._end_us or span.end_us <= self._start_us:
                spans.pop()
            elif span.width_us > _MINUTE_US and self._rows_left(span) > self._wanted(span):
                spans.pop()
                minutes = await self._store.minutes(self._query, span.start_us, min(span.end_us, self._end_us))
                spans += reversed(minutes)
            else:
                self._before = min(self._before, Place(span.end_us, 0))
                return span
        return None

    def _wanted(self, span: Span) -> int:
        """How many records the next slice should have."""
        if not self._query.counted:
            return self._pace.rows
        return min(self._pace.rows, round(1.5 * self._pace.missing * span.total / span.matching))

    def _rows_left(self, span: Span) -> int:
        """About how many records of a span are still to be searched."""
        return round(span.total * min(1.0, (self._end_us - span.start_us) / span.width_us))

    @property
    def _end_us(self) -> int:
        return self._before.time_us + bool(self._before.id)


def _bytes_of(record: StoredRecord) -> int:
    return sum(len(text) for text in record if isinstance(text, str))
