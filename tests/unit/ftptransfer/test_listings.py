"""Listings of folders as many servers write them."""

# ruff: noqa: E501 - a table is easier to read in lines

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.ftptransfer.model import FileKind, RemoteFile
from opsplane_server.ftptransfer.sessions.listings import MAX_LINE, is_noise, parse_facts, parse_line, parse_time

NOW = datetime(2026, 11, 21, 15, 0, tzinfo=UTC)


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


FILE, FOLDER, LINK, OTHER = FileKind.FILE, FileKind.FOLDER, FileKind.LINK, FileKind.OTHER


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-rw-r--r--    1 1        1            1000 Nov 21 14:48 a b.txt", RemoteFile("a b.txt", FILE, 1000, at(2026, 11, 21, 14, 48))),
        ("drwxr-xr-x   2 root     root         4096 Nov 18  1958 old", RemoteFile("old", FOLDER, None, at(1958, 11, 18))),
        ("-rw-r--r-- 1 u g 5 Dec 31 23:59 last year", RemoteFile("last year", FILE, 5, at(2025, 12, 31, 23, 59))),
        ("-rw-r--r-- 1 u g 5 Nov 22 10:00 a zone ahead", RemoteFile("a zone ahead", FILE, 5, at(2026, 11, 22, 10, 0))),
        ("-rw-r--r-- 1 u g 5 Feb 29 10:00 leap", RemoteFile("leap", FILE, 5, at(2024, 2, 29, 10, 0))),
        ("lrwxrwxrwx 1 u g 3 Jan  3  2018 link -> to", RemoteFile("link", LINK, None, at(2018, 1, 3))),
        ("crw-rw-rw- 1 root root 1, 3 Jan 3 2018 null", RemoteFile("null", OTHER, None, at(2018, 1, 3))),
        ("-rw-r--r--   1 owner   17 May  4  2021 no group", RemoteFile("no group", FILE, 17, at(2021, 5, 4))),
        ("-rw-rw-r--+  1 a b 9999999999 2021-05-04 10:11 iso", RemoteFile("iso", FILE, 9999999999, at(2021, 5, 4, 10, 11))),
        ("-rw-rw-r--.  1 a b 9 2021-05-04 10:11:12.123456789 +0900 zone", RemoteFile("zone", FILE, 9, at(2021, 5, 4, 1, 11))),
        ("-rw-r--r-- 1 u domain users 5 Nov 21 14:48 group of two words", RemoteFile("group of two words", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("-rw-r--r-- 1 u g 5 21 Nov 14:48 day first", RemoteFile("day first", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("-rw-r--r-- 1 u g 5 21. Nov 2020 german", RemoteFile("german", FILE, 5, at(2020, 11, 21))),
        ("-rw-r--r-- 1 u g 5 11월 21일 14:48 korean", RemoteFile("korean", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("-rw-r--r-- 1 u g 5 Okt 21 14:48 unknown month", RemoteFile("unknown month", FILE, 5, None)),
        ("-rw-r--r-- 1 u g 5 Feb 30 14:48 no such day", RemoteFile("no such day", FILE, 5, None)),
        ("-rw-r--r-- 1 u g 5 Nov 21 14:48  leading space", RemoteFile(" leading space", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("-rw-r--r-- 1 u g 5 Nov 21 14:48 trailing ", RemoteFile("trailing ", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("-rw-r--r-- 1 u g 5 Nov 21 14:48 5 Nov 21 14:48 x", RemoteFile("5 Nov 21 14:48 x", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("-rw-r--r-- 1 u g 5 Nov 21 14:48 folder/file", RemoteFile("file", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("d [RWCEAFMS] Admin                     512 Oct 13  2004 PSI", RemoteFile("PSI", FOLDER, None, at(2004, 10, 13))),
        ("drwxr-xr-x 2 u g 4096 Nov 21 14:48 .", None),
        ("drwxr-xr-x 2 u g 4096 Nov 21 14:48 ..", None),
        ("-rw-r--r-- 1 u g 5 Nov 21 14:48 ../../etc/..", None),
        ("11-21-26  02:48PM       <DIR>          a folder", RemoteFile("a folder", FOLDER, None, at(2026, 11, 21, 14, 48))),
        ("11-21-26  12:48AM                 1234 a file", RemoteFile("a file", FILE, 1234, at(2026, 11, 21, 0, 48))),
        ("11-21-2026  12:48PM            1,234 a file", RemoteFile("a file", FILE, 1234, at(2026, 11, 21, 12, 48))),
        ("03/02/1999  10:14 AM    <DIR>          x", RemoteFile("x", FOLDER, None, at(1999, 3, 2, 10, 14))),
        ("21.11.2026  14:48                 1234 day first", RemoteFile("day first", FILE, 1234, at(2026, 11, 21, 14, 48))),
        ("2026-11-21  14:48    <JUNCTION>     link", RemoteFile("link", LINK, None, at(2026, 11, 21, 14, 48))),
        ("13-32-26  02:48PM                    1 no such day", RemoteFile("no such day", FILE, 1, None)),
        ("total 12", None),
        ("", None),
        ("ls: cannot open directory", None),
    ],
)  # fmt: skip
def test_lines_of_list(line: str, expected: RemoteFile | None) -> None:
    assert parse_line(line, NOW) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("type=file;size=5;modify=20261121144800; a b", RemoteFile("a b", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("Type=File;Size=5;Modify=20261121144800.123; a", RemoteFile("a", FILE, 5, at(2026, 11, 21, 14, 48))),
        ("type=dir;sizd=4096;modify=20261121144800; d", RemoteFile("d", FOLDER, None, at(2026, 11, 21, 14, 48))),
        ("type=OS.unix=slink:/x;size=3; l", RemoteFile("l", LINK)),
        ("type=OS.unix=chr-1/3; null", RemoteFile("null", OTHER)),
        ("type=file;size=x;modify=19991301000000; a", RemoteFile("a", FILE)),
        ("type=file;  leading", RemoteFile(" leading", FILE)),
        ("type=file; trailing ", RemoteFile("trailing ", FILE)),
        ("type=file; a;b=c", RemoteFile("a;b=c", FILE)),
        (" name alone", RemoteFile("name alone", OTHER)),
        ("type=file; /whole/path", RemoteFile("path", FILE)),
        ("type=cdir; /here", None),
        ("type=pdir; ..", None),
        ("type=dir; ..", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_facts(line: str, expected: RemoteFile | None) -> None:
    assert parse_facts(line) == expected


def test_facts_of_the_folder_itself() -> None:
    assert parse_facts("type=cdir;modify=20261121144800; /data", itself=True) == RemoteFile(
        "/data", FOLDER, None, at(2026, 11, 21, 14, 48)
    )


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0/"), min_size=1, max_size=80).filter(
    lambda name: name not in (".", "..")
)
TIMES = st.datetimes(datetime(1980, 1, 1), datetime(2026, 11, 21), timezones=st.just(UTC))
SIZES = st.integers(0, 2**62)


@given(NAMES, SIZES, TIMES)
def test_every_name_comes_back_from_facts(name: str, size: int, when: datetime) -> None:
    when = when.replace(microsecond=0)
    assert parse_facts(f"size={size};type=file;modify={when:%Y%m%d%H%M%S}; {name}") == RemoteFile(
        name, FILE, size, when
    )


@given(NAMES.filter(lambda name: " -> " not in name), SIZES, TIMES)
def test_every_name_comes_back_from_unix(name: str, size: int, when: datetime) -> None:
    when = when.replace(microsecond=0, second=0)
    recent = NOW - when < timedelta(days=180)
    written = f"{when:%b %d %H:%M}" if recent else f"{when:%b %d  %Y}"
    found = parse_line(f"-rw-r--r--   1 user     group {size:>12} {written} {name}", NOW)
    assert found == RemoteFile(name, FILE, size, when if recent else when.replace(hour=0, minute=0))


@given(NAMES.filter(lambda name: not name.startswith(" ")), SIZES, TIMES)
def test_every_name_comes_back_from_windows(name: str, size: int, when: datetime) -> None:
    when = when.replace(microsecond=0, second=0)
    found = parse_line(f"{when:%m-%d-%Y  %I:%M%p} {size:>20} {name}", NOW)
    assert found == RemoteFile(name, FILE, size, when)


@given(st.text(max_size=200))
def test_anything_is_an_entry_or_none(line: str) -> None:
    for found in (parse_line(line, NOW), parse_facts(line)):
        assert found is None or (found.name and "/" not in found.name)
    is_noise(line)
    parse_time(line)


@pytest.mark.parametrize(
    "line",
    [
        "-rw-r--r-- " + "1 " * 4000,
        "-rw-r--r-- " + "1" * 8000,
        "-rw-r--r-- " + "1 Nov " * 2000,
        "-rw-r--r-- " + "x" * MAX_LINE,
        "11-21-26  02:48PM " + " " * 8000,
        "total " + "1" * 8000,
        ";" * 8000,
    ],
)
def test_no_line_takes_long(line: str) -> None:
    began = time.process_time()
    parse_line(line, NOW)
    parse_facts(line)
    is_noise(line)
    assert time.process_time() - began < 2.0  # a second is more than a thousand times what it takes
