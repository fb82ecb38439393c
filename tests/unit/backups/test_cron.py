from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.backups.cron import Timetable
from opsplane_server.errors import InvalidArgument

SEOUL, NEW_YORK = ZoneInfo("Asia/Seoul"), ZoneInfo("America/New_York")


def at(*fields: int, zone: ZoneInfo | None = None) -> datetime:
    return datetime(*fields, tzinfo=zone or UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("0 3 * * *", "UTC", at(2026, 5, 1, 2), at(2026, 5, 1, 3)),
        ("0 3 * * *", "UTC", at(2026, 5, 1, 3), at(2026, 5, 2, 3)),
        ("0 3 * * *", "Asia/Seoul", at(2026, 5, 1, 12), at(2026, 5, 1, 18)),
        ("@hourly", "UTC", at(2026, 5, 1, 2, 1), at(2026, 5, 1, 3)),
        ("@daily", "Asia/Seoul", at(2026, 5, 1), at(2026, 5, 1, 15)),
        ("@weekly", "UTC", at(2026, 5, 1), at(2026, 5, 3)),
        ("@monthly", "UTC", at(2026, 5, 1), at(2026, 6, 1)),
        ("@yearly", "UTC", at(2026, 5, 1), at(2027, 1, 1)),
        ("30 2 ? * MON-FRI", "UTC", at(2026, 5, 1, 3), at(2026, 5, 4, 2, 30)),
        ("0 0 1 * ?", "UTC", at(2026, 5, 2), at(2026, 6, 1)),
        ("0 0 * * 5#2", "UTC", at(2026, 5, 2), at(2026, 5, 8)),
        ("0 0 L * *", "UTC", at(2026, 2, 2), at(2026, 2, 28)),
        ("*/15 * * * *", "UTC", at(2026, 5, 1, 0, 1), at(2026, 5, 1, 0, 15)),
    ],
)
def test_next_time(cron: str, zone: str, after: datetime, expected: datetime) -> None:
    assert Timetable(cron, zone).after(after) == expected


def test_hour_that_is_left_out_is_made_up_for() -> None:
    # On 8 March 2026 two o'clock is three o'clock in New York.
    table = Timetable("30 2 * * *", "America/New_York")
    first = table.after(at(2026, 3, 7, 3, zone=NEW_YORK))
    assert first == at(2026, 3, 8, 3, zone=NEW_YORK)
    assert table.after(first) == at(2026, 3, 9, 2, 30, zone=NEW_YORK)


def test_hour_that_comes_twice_runs_once() -> None:
    # On 1 November 2026 one o'clock comes twice in New York.
    table = Timetable("30 1 * * *", "America/New_York")
    first = table.after(at(2026, 10, 31, 2, zone=NEW_YORK))
    second = table.after(first)
    assert first.astimezone(NEW_YORK).strftime("%d %H:%M") == "01 01:30"
    assert second.astimezone(NEW_YORK).strftime("%d %H:%M") == "02 01:30"


def test_of_missed_times_the_latest_counts() -> None:
    table = Timetable("0 3 * * *", "UTC")
    due = at(2026, 5, 1, 3)
    assert table.latest(due, at(2026, 5, 1, 3)) == due
    assert table.latest(due, at(2026, 5, 4, 2, 59)) == at(2026, 5, 3, 3)
    assert table.latest(due, at(2026, 5, 4, 3)) == at(2026, 5, 4, 3)
    assert table.latest(due, at(2026, 5, 4, 3) + timedelta(microseconds=999_999)) == at(2026, 5, 4, 3)


@pytest.mark.parametrize(
    "cron", ["60 * * * *", "* * * *", "0 0 30 2 *", "a b c d e", "* * * * 8", "*/0 * * * *", "@never"]
)
def test_what_is_no_cron_is_refused(cron: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Timetable(cron, "UTC")
    assert [violation.field for violation in refused.value.violations] == ["schedule.cron"]


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Asia", "/etc/localtime"])
def test_what_is_no_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Timetable("@daily", zone)
    assert [violation.field for violation in refused.value.violations] == ["schedule.time_zone"]


FIELD = st.text(alphabet="0123456789*,/?#-LWMONJAN", min_size=1, max_size=8)


@given(fields=st.lists(FIELD, min_size=5, max_size=5))
def test_any_line_is_taken_or_refused(fields: list[str]) -> None:
    try:
        table = Timetable(" ".join(fields), "Europe/Berlin")
    except InvalidArgument:
        return
    now = datetime.now(UTC)
    assert table.after(now) > now


@given(
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    now=st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
)
def test_latest_is_the_last_one_up_to_now(minute: int, hour: int, now: datetime) -> None:
    table = Timetable(f"{minute} {hour} * * *", "Asia/Seoul")
    due = table.after(now - timedelta(days=5))
    latest = table.latest(due, now)
    assert due <= latest <= now
    assert table.after(latest) > now
