"""What data sets are. Plain data; the shapes follow `proto/opsplane/loadtesting/v1/datasets.proto`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

DEFAULT_LIMIT: Final = 10_000
DEFAULT_TIMEOUT: Final = timedelta(seconds=30)
MAX_ROWS: Final = 1_000_000


class RowFormat(StrEnum):
    """Formats of uploaded rows; the names are those of the API without their prefix."""

    CSV = "CSV"
    JSON = "JSON"
    JSON_LINES = "JSON_LINES"


@dataclass(frozen=True, slots=True)
class UploadedRows:
    """Rows that came with the data set. What they are is kept apart, as `Rows`."""

    format: RowFormat


@dataclass(frozen=True, slots=True)
class ClickHouseQuery:
    """A query to a ClickHouse server; empty and zero stand for the defaults, as in the API. Its password is no part
    of it."""

    host: str
    query: str
    port: int = 0
    database: str = ""
    user: str = ""
    tls: bool = False
    timeout: timedelta | None = None
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they were read: `lines` is UTF-8, each line the JSON object of one row, with all fields in order.

    `sha256` is that of all lines, hexadecimal.
    """

    fields: tuple[str, ...]
    row_count: int
    sha256: str
    lines: bytes = field(repr=False)

    def first(self, limit: int) -> Rows:
        """The first rows; 0 means all."""
        if not limit or limit >= self.row_count:
            return self
        lines = b"\n".join(self.lines.split(b"\n", limit)[:limit])
        return replace(self, row_count=limit, lines=lines)

    @property
    def file(self) -> str:
        """A JSON array of them, a line each."""
        text = self.lines.replace(b"\n", b",\n").decode()  # in values, JSON escapes it
        return f"[{text}]"


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set without its rows. `fields`, `row_count` and `sha256` of a query are those of its last use.

    `key` is the store's own; `password` is that of the query, encrypted.
    """

    name: str
    title: str
    source: UploadedRows | ClickHouseQuery
    fields: tuple[str, ...] = ()
    row_count: int = 0
    sha256: str = ""
    password: bytes | None = field(default=None, repr=False)
    key: int = 0
    create_time: datetime | None = None
