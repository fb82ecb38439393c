"""Reads the log of slow statements of MariaDB and MySQL.

# Time: 261121 18:01:26                          (MySQL: 2026-11-21T18:01:49.572846Z)
# User@Host: app[app] @  [127.0.0.1]             (MySQL: and `  Id:    11`)
# Thread_id: 7  Schema: shop  QC_hit: No         (MariaDB alone)
# Query_time: 0.310444  Lock_time: 0.000000  Rows_sent: 1  Rows_examined: 0
# Rows_affected: 0  Bytes_sent: 66
use shop;                                        (when it is not that of the statement before)
SET timestamp=1795284086;
select sleep(0.31);
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from opsplane_server.instances.sql import SlowQuery

_USER: Final = re.compile(r"# User@Host: ([^\[]*)\[")
_FIGURE: Final = re.compile(r"(Schema|Query_time|Rows_sent|Rows_affected): *(\S+)")
_TIMESTAMP: Final = re.compile(r"SET timestamp=(\d+)(?:\.\d+)?;")
_USE: Final = re.compile(r"use (.*);")
_SKIPPED: Final = ("# Time: ", "Tcp port: ", "Time  ")

_CONSTANTS: Final = re.compile(
    r"(?P<text>'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\")"
    r"|(?P<name>`(?:[^`]|``)*`)"
    r"|(?P<comment>/\*(?!!).*?\*/|--\s[^\n]*|#[^\n]*)"
    r"|(?P<unclosed>['\"].*)"  # the log was cut here: nothing of a constant may be shown
    r"|(?<![\w$.@])(?P<number>0x[0-9a-f]+|0b[01]+|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?![\w$])",
    re.IGNORECASE | re.DOTALL,
)
_PREFIXED: Final = re.compile(r"\b(?:[xbn]|_[a-z0-9]+) ?\?", re.IGNORECASE)
_LIST: Final = re.compile(r"\(\s*\?(?:\s*,\s*\?)*\s*\)")
_ROWS: Final = re.compile(r"\(\?\)(?:\s*,\s*\(\?\))+")
_SPACE: Final = re.compile(r"\s+")


@dataclass(slots=True)
class Entry:
    """One statement of the log."""

    user: str = ""
    database: str = ""
    seconds: float = 0.0
    rows: int = 0
    time: datetime | None = None
    lines: list[str] = field(default_factory=list)


def entries(lines: Sequence[str]) -> Iterator[Entry]:
    """The statements of the log, in its order. What comes before the first whole one is left out."""
    entry: Entry | None = None
    database = ""
    for line in lines:
        if line.startswith("# User@Host: "):
            if entry is not None:
                yield entry
            match = _USER.match(line)
            entry = Entry(user=match[1].strip() if match else "")
        elif entry is None or line.startswith(_SKIPPED):
            continue
        elif line.startswith("# ") and not entry.lines:
            database = _take_figures(entry, line, database)
        elif not entry.lines and (match := _USE.fullmatch(line.strip())):
            database = match[1].strip("`")
        elif not entry.lines and (match := _TIMESTAMP.fullmatch(line.strip())):
            entry.time = datetime.fromtimestamp(int(match[1]), UTC)
            entry.database = entry.database or database
        elif not line.endswith("started with:"):  # the head of a new log
            entry.lines.append(line)
    if entry is not None:
        yield entry


def _take_figures(entry: Entry, line: str, database: str) -> str:
    """Returns the database that holds from here on."""
    for name, value in _FIGURE.findall(line):
        if name == "Schema" and value != "QC_hit:":  # else it is empty
            entry.database = database = value
        elif name == "Schema":
            database = ""
        elif name == "Query_time":
            entry.seconds = float(value)
        elif value.isdecimal():
            entry.rows += int(value)
    return database


def summarise(lines: Sequence[str], longest: int) -> tuple[list[SlowQuery], datetime | None]:
    """The statements of the log, those that differ in constants only as one of at most `longest` characters, and
    the time of the first.
    """
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    first: datetime | None = None
    for entry in entries(lines):
        text = normalise(" ".join(entry.lines))
        if text and entry.time is not None:
            groups.setdefault((text, entry.database, entry.user), []).append(entry)
            first = min(first, entry.time) if first else entry.time
    return [_query(key, group, longest) for key, group in groups.items()], first


def normalise(statement: str) -> str:
    """The statement with `?` for every constant, and one for a list of them; without comments."""
    text = _CONSTANTS.sub(_replacement, statement.strip().rstrip(";"))
    text = _LIST.sub("(?)", _PREFIXED.sub("?", text))
    return _SPACE.sub(" ", _ROWS.sub("(?)", text)).strip()


def _replacement(match: re.Match[str]) -> str:
    if match["name"] is not None:
        return match["name"]
    return " " if match["comment"] is not None else "?"


def _query(key: tuple[str, str, str], group: Sequence[Entry], longest: int) -> SlowQuery:
    text, database, user = key
    total = sum(entry.seconds for entry in group)
    return SlowQuery(
        query=text[:longest],
        query_id=hashlib.sha256(f"{database}\0{text}".encode()).hexdigest()[:16],
        database=database,
        user=user,
        calls=len(group),
        total_time=timedelta(seconds=total),
        mean_time=timedelta(seconds=total / len(group)),
        max_time=timedelta(seconds=max(entry.seconds for entry in group)),
        rows=sum(entry.rows for entry in group),
        last_time=max(entry.time for entry in group if entry.time is not None),
    )
