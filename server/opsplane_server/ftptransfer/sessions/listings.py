"""Listings of folders: MLSD and MLST (RFC 3659), and what servers answer to LIST, which no standard defines."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from opsplane_server.ftptransfer.model import FileKind, RemoteFile

MAX_LINE: Final = 16 * 1024
"""Longest line that is looked at, in characters; no path is nearly as long."""

_MONTHS: Final = {
    "jan": 1,
    "feb": 2,
    "mar": 3,
    "apr": 4,
    "may": 5,
    "jun": 6,
    "jul": 7,
    "aug": 8,
    "sep": 9,
    "oct": 10,
    "nov": 11,
    "dec": 12,
}

# Quantifiers are possessive where they can be: a server must not be able to make matching slow.
_UNIX = re.compile(
    r"""(?P<type>[-bcdlpsD])(?:[-rwxsStTlLg]{9}[.+@]?|\s\[[-A-Z]{8}\])\s
    (?P<owners>.*?)(?<!\d)(?P<size>\d++)\s++
    (?:(?P<month>[^\W\d]{3,9}+|\d{1,2}+월)\.?\s++(?P<day>\d{1,2})일?\s++(?:(?P<time>\d{1,2}:\d\d)|(?P<year>\d{4})년?)
      |(?P<day2>\d{1,2})\.?\s++(?P<month2>[^\W\d]{3,9}+)\.?\s++(?:(?P<time2>\d{1,2}:\d\d)|(?P<year2>\d{4}))
      |(?P<iso>\d{4}-\d\d-\d\d\s\d\d:\d\d)(?::\d\d(?:\.\d++)?)?(?:\s(?P<zone>[-+]\d{4}))?)
    \s(?P<name>.+)""",
    re.VERBOSE,
)
_DOS = re.compile(
    r"""(?P<first>\d{1,4})[-/.](?P<second>\d{1,2})[-/.](?P<third>\d{2,4})\s++
    (?P<hour>\d{1,2}):(?P<minute>\d\d)(?::\d\d)?(?:\s?(?P<half>[AaPp])[Mm])?\s++
    (?:<(?P<special>[A-Z]+)>\s{1,10}|(?P<size>[\d,]++)\s)(?P<name>.+)""",
    re.VERBOSE,
)
_STAMP = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(?:\.\d+)?")
_NOISE = re.compile(r"\s*|total\s+\d+.*|.{0,20}\b\d+ (?:files?|Dir)\b.*", re.IGNORECASE)


class UnreadableListing(Exception):
    """No line of a listing could be read."""


def parse_time(text: str) -> datetime | None:
    """A time of MDTM and of MLSD's facts, which is UTC; None if it is none."""
    found = _STAMP.fullmatch(text.strip())
    if found is None:
        return None
    try:
        return datetime(*map(int, found.groups()), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError:
        return None


def parse_facts(line: str, *, itself: bool = False) -> RemoteFile | None:
    """A line of MLSD or MLST; None for what is none. The folder itself and the one above count with `itself` alone."""
    facts, space, path = line.partition(" ")
    if not space or len(line) > MAX_LINE:
        return None
    kind, size, time = FileKind.OTHER, None, None
    for fact in facts.split(";"):
        key, _, value = fact.partition("=")
        match key.lower():
            case "type":
                if value.lower() in ("cdir", "pdir") and not itself:
                    return None
                kind = _fact_kind(value.lower())
            case "size" if value.isascii() and value.isdigit():
                size = int(value)
            case "modify":
                time = parse_time(value)
    name = path if itself else _name(path)
    return RemoteFile(name, kind, size if kind is FileKind.FILE else None, time) if name else None


def parse_line(line: str, now: datetime) -> RemoteFile | None:
    """A line of LIST as Unix or Windows write it; None if it is none. Times are taken for UTC."""
    if len(line) > MAX_LINE:
        return None
    if found := _UNIX.fullmatch(line):
        return _unix(found, now)
    if found := _DOS.fullmatch(line):
        return _dos(found)
    return None


def is_noise(line: str) -> bool:
    """Whether a line that is no entry is one that belongs to listings all the same, such as `total 12`."""
    return _NOISE.fullmatch(line[:200]) is not None


def parser_for(*, facts: bool, now: datetime) -> Callable[[str], RemoteFile | None]:
    """What reads the lines of MLSD (`facts`) or of LIST."""
    return parse_facts if facts else lambda line: parse_line(line, now)


def _fact_kind(value: str) -> FileKind:
    if value.startswith(("os.unix=slink", "os.unix=symlink", "slink", "symlink", "link")):
        return FileKind.LINK
    if value in ("dir", "cdir", "pdir"):
        return FileKind.FOLDER
    return FileKind.FILE if value == "file" else FileKind.OTHER


def _unix(found: re.Match[str], now: datetime) -> RemoteFile | None:
    kind = {"-": FileKind.FILE, "d": FileKind.FOLDER, "l": FileKind.LINK}.get(found["type"], FileKind.OTHER)
    path = found["name"]
    if kind is FileKind.LINK:
        path = path.partition(" -> ")[0]
    name = _name(path)
    if not name:
        return None
    return RemoteFile(name, kind, int(found["size"]) if kind is FileKind.FILE else None, _unix_time(found, now))


def _unix_time(found: re.Match[str], now: datetime) -> datetime | None:
    try:
        if found["iso"]:
            time = datetime.strptime(found["iso"], "%Y-%m-%d %H:%M")
            return time.replace(tzinfo=_zone(found["zone"])).astimezone(UTC)
        word = found["month"] or found["month2"]
        month = int(word[:-1]) if word.endswith("월") else _MONTHS.get(word[:3].lower(), 0)
        day = int(found["day"] or found["day2"])
        if year := found["year"] or found["year2"]:
            return datetime(int(year), month, day, tzinfo=UTC)
        hour, minute = map(int, (found["time"] or found["time2"]).split(":"))
        return _latest(now, month, day, hour, minute)
    except ValueError:
        return None


def _latest(now: datetime, month: int, day: int, hour: int, minute: int) -> datetime | None:
    """The last time that it was this date; up to a day ahead, because the server's zone is not known."""
    for year in range(now.year + 1, now.year - 9, -1):  # a 29th of February may be eight years away
        try:
            time = datetime(year, month, day, hour, minute, tzinfo=UTC)
        except ValueError:
            continue
        if time <= now + timedelta(days=1):
            return time
    return None


def _zone(text: str | None) -> timezone:
    if not text:
        return UTC
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[3:5]))
    return timezone(-offset if text[0] == "-" else offset)


def _dos(found: re.Match[str]) -> RemoteFile | None:
    name = _name(found["name"])
    if not name:
        return None
    special = found["special"]
    if special is None:
        return RemoteFile(name, FileKind.FILE, int(found["size"].replace(",", "") or 0), _dos_time(found))
    return RemoteFile(name, FileKind.FOLDER if special == "DIR" else FileKind.LINK, None, _dos_time(found))


def _dos_time(found: re.Match[str]) -> datetime | None:
    first, second, third = int(found["first"]), int(found["second"]), int(found["third"])
    if len(found["first"]) == 4:
        year, month, day = first, second, third
    else:
        month, day = (second, first) if first > 12 else (first, second)
        year = third if third > 99 else third + (2000 if third < 70 else 1900)
    hour = int(found["hour"])
    if half := found["half"]:
        hour = hour % 12 + (12 if half in "Pp" else 0)
    try:
        return datetime(year, month, day, hour, int(found["minute"]), tzinfo=UTC)
    except ValueError:
        return None


def _name(path: str) -> str:
    """The last part of what a server calls an entry: some write its whole path. Empty for `.` and `..`."""
    name = path.rpartition("/")[2]
    return "" if name in (".", "..") or "\0" in name else name
