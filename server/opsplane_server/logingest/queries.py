"""What is asked of stored records, and what is found."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import Final, NamedTuple

from opsplane_server.errors import InvalidArgument
from opsplane_server.rpc.filters import Condition, FieldType
from opsplane_server.storage.followers import Position

EARLIEST_US: Final = 0
LATEST_US: Final = 4_102_444_800_000_000
"""Records lie from 1970 to before 2100; all times here are microseconds since 1970."""

FILTER_FIELDS: Final[Mapping[str, FieldType]] = {
    **dict.fromkeys(
        (
            "message", "service_version", "environment", "host", "logger", "thread", "span_id", "request_id",
            "session_id", "http_method", "http_path", "error_type", "stack_trace",
        ),
        FieldType.STRING,
    ),
    "http_status": FieldType.INTEGER,
    "duration_ms": FieldType.NUMBER,
}  # fmt: skip

_MAX_WORD_BYTES: Final = 2046  # of PostgreSQL's text search
_WORD: Final = re.compile(r"[0-9A-Za-z\x80-\U0010ffff]+")
_TERM: Final = re.compile(r'\s*(?:"(?P<phrase>[^"]*)"|(?P<word>[^\s"]+))')


@dataclass(frozen=True, slots=True)
class Term:
    """Words that stand one after the other; of the last one only the beginning if `prefix` is set."""

    text: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which records: those that match all that is set.

    levels: numbers of the API; None for all, empty for none. services: empty for all. metadata: pairs of key and value.
    """

    levels: frozenset[int] | None = None
    services: tuple[str, ...] = ()
    trace_id: str = ""
    user_id: str = ""
    terms: tuple[Term, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    conditions: tuple[Condition, ...] = ()

    @property
    def counted(self) -> bool:
        """Whether the rollups know how many records match: only services and levels are asked for."""
        return not (self.trace_id or self.user_id or self.terms or self.metadata or self.conditions)

    @property
    def pointed(self) -> bool:
        """Whether the bloom filters tell most places that hold nothing."""
        request = any(condition.field == "request_id" and condition.op == "=" for condition in self.conditions)
        return bool(self.trace_id or self.user_id or request)

    def may_match(self, services: Collection[str], levels: Collection[int]) -> bool:
        """Whether records of these services and levels can be among them."""
        if self.services and not any(service in self.services for service in services):
            return False
        return self.levels is None or any(level in self.levels for level in levels)


def parse_text(text: str) -> tuple[Term, ...]:
    """The terms of a text to search for. InvalidArgument on `query.text` when it has no word, or too long a one."""
    terms: list[Term] = []
    at = 0
    while text[at:].strip():
        match = _TERM.match(text, at)
        if match is None:
            raise InvalidArgument.of("query.text", "a double quote is not closed")
        at = match.end()
        term = match["phrase"] if match["word"] is None else match["word"]
        words = _WORD.findall(term)
        if any(len(word.encode()) > _MAX_WORD_BYTES for word in words):
            raise InvalidArgument.of("query.text", f"a word is longer than {_MAX_WORD_BYTES} bytes")
        if words:
            terms.append(Term(term, prefix=term.endswith("*") and _WORD.match(term[-2:-1]) is not None))
    if at and not terms:
        raise InvalidArgument.of("query.text", "has no word")
    return tuple(terms)


class StoredRecord(NamedTuple):
    """A record as it is stored; the fields of the table in their order. metadata: JSON text."""

    id: int
    received_at: datetime
    timestamp: datetime
    level: int
    service: str
    message: str
    service_version: str | None
    environment: str | None
    host: str | None
    logger: str | None
    thread: str | None
    trace_id: str | None
    span_id: str | None
    request_id: str | None
    user_id: str | None
    session_id: str | None
    http_method: str | None
    http_path: str | None
    http_status: int | None
    duration_ms: float | None
    error_type: str | None
    stack_trace: str | None
    metadata: str | None


class Way(Enum):
    """By which indexes a slice of a day is searched; each finds the same, and is best for another kind of search."""

    TIME = "time"  # all records of the slice
    POINTS = "points"  # where the bloom filters do not exclude the trace, user or request
    WORDS = "words"  # those with the words and metadata, of past days alone


class Place(NamedTuple):
    """Where a search stands: records before this time, and at this time those with a lower id, are still to come."""

    time_us: int
    id: int


@dataclass(frozen=True, slots=True)
class Found:
    """Records in the order asked for. complete: there are no more; else there is room for no more."""

    records: Sequence[StoredRecord]
    complete: bool


@dataclass(frozen=True, slots=True)
class Day:
    """What is stored of a day. matching: records of the services and levels asked for.

    indexed: whether there are indexes for text and metadata.
    """

    day: date
    total: int
    matching: int
    indexed: bool


class TimeRange(NamedTuple):
    """From a time on to before another."""

    start_us: int
    end_us: int


class Span(NamedTuple):
    """What is stored of an hour or minute: all records, and those of the services and levels asked for."""

    start_us: int
    width_us: int
    total: int
    matching: int

    @property
    def end_us(self) -> int:
        """Where the next one begins."""
        return self.start_us + self.width_us


@dataclass(frozen=True, slots=True)
class Group:
    """What one transaction stored: records with the ids from `position.id` on."""

    position: Position
    record_count: int
    first_time: datetime
    last_time: datetime
    services: frozenset[str]
    levels: frozenset[int]

    @property
    def end(self) -> Position:
        """The place of its last record."""
        return Position(self.position.xid, self.position.id + self.record_count - 1)


@dataclass(frozen=True, slots=True)
class ServiceCount:
    """How many records of each level a service has."""

    service: str
    levels: Mapping[int, int]

    @property
    def count(self) -> int:
        """How many records."""
        return sum(self.levels.values())


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of records: those asked for, and what holds whatever was asked for."""

    services: Sequence[ServiceCount]
    last_24h_count: int
    oldest: datetime | None
    newest: datetime | None
    stored_bytes: int
    as_of: datetime
