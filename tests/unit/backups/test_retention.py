"""Retention: what is kept, and that the last good backup always is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.backups.model import (
    Backup,
    BackupState,
    BackupType,
    Copy,
    Period,
    Source,
    Tier,
    Verification,
    VerificationState,
)
from opsplane_server.backups.retention import Policy, Verdict, base_for, before, good_ones, judge, period_of

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
SCHEDULE = 1
LIVE = Source("uid", "instances/orders")
GONE = replace(LIVE, live=False)
FAILED_DAYS = timedelta(days=7)


def copy_at(cut: datetime, *, logged: bool = False) -> Copy:
    return Copy(
        location="copies/one",
        engine="POSTGRESQL",
        engine_version="18.4",
        provider="LOCAL",
        method="PHYSICAL",
        consistency="TRANSACTION",
        node="orders-1",
        databases=("app",),
        size_bytes=1,
        restore_size_bytes=1,
        start_time=cut,
        cut_time=cut,
        complete_time=cut,
        base="",
        logged=logged,
        document=b"",
    )


def backup(
    key: int,
    created: datetime,
    *,
    state: BackupState = BackupState.READY,
    base: int = 0,
    schedule: int | None = None,
    days: int = 0,
    bad: bool = False,
    logged: bool = False,
) -> Backup:
    complete = state in (BackupState.READY, BackupState.DELETING)
    return Backup(
        name=f"backups/b{key}",
        uid=f"u{key}",
        instance="instances/orders",
        instance_uid="uid",
        type=BackupType.SCHEDULED if schedule else BackupType.ON_DEMAND,
        retention_days=days,
        state=state,
        base=f"backups/b{base}" if base else "",
        schedule_key=schedule,
        copy=copy_at(created, logged=logged) if complete else None,
        verification=Verification(VerificationState.FAILED, created, created) if bad else None,
        create_time=created,
        key=key,
    )


def judged(
    backups: list[Backup],
    *tiers: Tier,
    source: Source = LIVE,
    now: datetime = NOW,
    zone: str = "UTC",
) -> dict[int, Verdict]:
    policies = {SCHEDULE: Policy(tiers, ZoneInfo(zone))} if tiers else {}
    return judge(backups, source, policies, now=now, keep_failed=FAILED_DAYS)


def days_ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def kept(verdicts: dict[int, Verdict], now: datetime = NOW) -> list[int]:
    return sorted(key for key, one in verdicts.items() if one.expire_time is None or one.expire_time > now)


def test_own_days_count_from_the_beginning() -> None:
    found = judged([backup(1, days_ago(5), days=7), backup(2, days_ago(1))])
    assert found[1].expire_time == days_ago(5) + timedelta(days=7)
    assert found[2].expire_time is None


def test_last_good_one_of_an_instance_that_exists_is_kept() -> None:
    only = [backup(1, days_ago(400), days=7)]
    assert judged(only)[1] == Verdict((), None, True)
    assert judged(only, source=GONE)[1] == Verdict((), days_ago(393), False)


def test_newest_by_its_data_is_the_last_good_one() -> None:
    found = judged(
        [backup(1, days_ago(3)), backup(2, days_ago(2), bad=True), backup(3, days_ago(1), state=BackupState.FAILED)]
    )
    assert [one.last_good for one in found.values()] == [True, False, False]
    assert found[3].expire_time == days_ago(1) + FAILED_DAYS


def test_when_all_were_found_bad_the_newest_stays_all_the_same() -> None:
    found = judged([backup(1, days_ago(30), days=1, bad=True), backup(2, days_ago(20), days=1, bad=True)])
    assert kept(found) == [2]
    assert not any(one.last_good for one in found.values())


def test_strategy_of_seven_days_and_thirty() -> None:
    nightly = [backup(60 - age, days_ago(age + 0.4), schedule=SCHEDULE) for age in range(60)]
    found = judged(nightly, Tier("daily", Period.DAY, 7), Tier("long-term", Period.WEEK, 30))
    daily = [one for one in nightly if "daily" in found[one.key].tiers]
    long_term = [one for one in nightly if "long-term" in found[one.key].tiers]
    assert len(daily) == 7
    # The first of each week, from Monday, that is not older than 30 days.
    assert [one.create_time.strftime("%a") for one in long_term if one.create_time] == ["Mon"] * len(long_term)
    assert len(long_term) in (4, 5)
    assert kept(found) == sorted({one.key for one in daily + long_term})


def test_number_and_age_both_hold() -> None:
    hourly = [backup(number, NOW - timedelta(hours=30 - number), schedule=SCHEDULE) for number in range(1, 30)]
    assert len(kept(judged(hourly, Tier("some", keep_count=5)))) == 5
    assert len(kept(judged(hourly, Tier("some", keep_count=500, keep_days=1)))) == 23
    assert len(kept(judged(hourly, Tier("some", Period.HOUR, keep_count=3, keep_days=1)))) == 3
    assert kept(judged(hourly, Tier("some", Period.YEAR, keep_count=1))) == [1, 29], "and the last good one"


def test_expiry_is_that_of_the_tier_that_keeps_longest() -> None:
    found = judged(
        [backup(1, days_ago(1), schedule=SCHEDULE), backup(2, days_ago(0.5))],
        Tier("short", keep_days=3),
        Tier("long", keep_days=30),
    )
    assert found[1] == Verdict(("short", "long"), days_ago(1) + timedelta(days=30), False)
    endless = judged(
        [backup(1, days_ago(1), schedule=SCHEDULE), backup(2, days_ago(0.5))],
        Tier("short", keep_days=3),
        Tier("always", Period.MONTH, keep_count=12),
    )
    assert endless[1].expire_time is None


def test_days_of_its_own_keep_a_backup_that_no_tier_keeps() -> None:
    backups = [backup(1, days_ago(5), schedule=SCHEDULE, days=90), backup(2, days_ago(1), schedule=SCHEDULE)]
    assert judged(backups, Tier("one", keep_count=1))[1].expire_time == days_ago(5) + timedelta(days=90)


def test_periods_are_those_of_the_time_zone() -> None:
    # 23:30 and 00:30 in Seoul, on the same day of UTC.
    pair = [
        backup(1, datetime(2026, 6, 14, 14, 30, tzinfo=UTC), schedule=SCHEDULE),
        backup(2, datetime(2026, 6, 14, 15, 30, tzinfo=UTC), schedule=SCHEDULE),
        backup(3, datetime(2026, 6, 14, 16, 30, tzinfo=UTC), schedule=SCHEDULE),
    ]
    assert kept(judged(pair, Tier("daily", Period.DAY, 7), zone="Asia/Seoul")) == [1, 2, 3]
    assert [one.tiers for one in judged(pair, Tier("daily", Period.DAY, 7), zone="Asia/Seoul").values()] == [
        ("daily",),
        ("daily",),
        (),
    ]
    assert [one.tiers for one in judged(pair, Tier("daily", Period.DAY, 7)).values()] == [("daily",), (), ()]


@pytest.mark.parametrize(
    ("period", "same", "other"),
    [
        (Period.HOUR, "2026-06-15T12:59:59+00:00", "2026-06-15T13:00:00+00:00"),
        (Period.DAY, "2026-06-15T23:59:59+00:00", "2026-06-16T00:00:00+00:00"),
        (Period.WEEK, "2026-06-21T23:59:59+00:00", "2026-06-22T00:00:00+00:00"),
        (Period.MONTH, "2026-06-30T23:59:59+00:00", "2026-07-01T00:00:00+00:00"),
        (Period.YEAR, "2026-12-31T23:59:59+00:00", "2027-01-01T00:00:00+00:00"),
    ],
)
def test_periods_of_the_calendar(period: Period, same: str, other: str) -> None:
    assert period_of(NOW, period, UTC) == period_of(datetime.fromisoformat(same), period, UTC)
    assert period_of(NOW, period, UTC) != period_of(datetime.fromisoformat(other), period, UTC)


def test_base_lives_as_long_as_what_builds_on_it() -> None:
    chain = [
        backup(1, days_ago(20), days=7),
        backup(2, days_ago(19), base=1, days=7),
        backup(3, days_ago(18), base=2, days=30),
        backup(4, days_ago(1)),
    ]
    found = judged(chain)
    assert [found[key].expire_time for key in (1, 2, 3)] == [days_ago(18) + timedelta(days=30)] * 3
    building = [*chain[:2], backup(3, days_ago(0), state=BackupState.RUNNING, base=2), chain[3]]
    assert judged(building)[1].expire_time is None


def test_bad_base_makes_bad_what_builds_on_it() -> None:
    chain = [backup(1, days_ago(3)), backup(2, days_ago(2), bad=True), backup(3, days_ago(1), base=2)]
    assert [one.key for one in good_ones(chain)] == [1]
    assert judged(chain)[1].last_good
    found = base_for(chain)
    assert found is not None
    assert found.key == 1


def test_restorable_moments_keep_where_they_begin() -> None:
    source = replace(LIVE, window=timedelta(days=7))
    some = [backup(number, days_ago(12 - 2 * number), days=1, logged=True) for number in range(1, 6)]
    # Cut 10, 8, 6, 4 and 2 days ago: the window begins 7 days ago.
    assert kept(judged(some, source=source)) == [2, 5]
    young = some[3:]
    assert kept(judged(young, source=source)) == [4, 5], "the oldest there is"
    assert kept(
        judged([replace(one, copy=copy_at(one.create_time)) for one in some if one.create_time], source=source)
    ) == [5]


def test_moment_is_reached_from_the_newest_before_it() -> None:
    some = [backup(1, days_ago(3), logged=True), backup(2, days_ago(2)), backup(3, days_ago(1), logged=True)]
    for days, key in ((0.5, 3), (1, 3), (1.5, 1), (3, 1)):
        found = before(some, days_ago(days))
        assert found is not None
        assert found.key == key
    assert before(some, days_ago(3.1)) is None


# --- properties

TIERS = st.lists(
    st.builds(
        Tier,
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(Period),
        keep_days=st.integers(0, 40),
        keep_count=st.integers(0, 6),
    ).filter(lambda tier: tier.keep_days > 0 or tier.keep_count > 0),
    min_size=1,
    max_size=3,
    unique_by=lambda tier: tier.name,
)


@st.composite
def histories(draw: st.DrawFn) -> list[Backup]:
    """Backups of one instance, oldest first; each builds on nothing or on a complete one before it."""
    found: list[Backup] = []
    moment = days_ago(draw(st.integers(0, 90)))
    for key in range(1, draw(st.integers(1, 25)) + 1):
        moment += timedelta(hours=draw(st.integers(1, 60)))
        complete = [one.key for one in found if one.state is BackupState.READY]
        state = draw(st.sampled_from([BackupState.READY] * 6 + list(BackupState)))
        base = draw(st.sampled_from([0, 0, *complete])) if state is not BackupState.FAILED else 0
        found.append(
            backup(
                key,
                moment,
                state=state,
                base=base,
                schedule=draw(st.sampled_from([None, SCHEDULE, SCHEDULE])),
                days=draw(st.sampled_from([0, 0, 1, 10])),
                bad=state is BackupState.READY and draw(st.integers(0, 5)) == 0,
                logged=draw(st.booleans()),
            )
        )
    return found


def survivors(backups: list[Backup], tiers: list[Tier], source: Source, now: datetime) -> list[Backup]:
    """What is left when retention has deleted all that it may, each after what builds on it."""
    left = list(backups)
    while True:
        found = judge(left, source, {SCHEDULE: Policy(tuple(tiers), UTC)}, now=now, keep_failed=FAILED_DAYS)
        bases = {one.base for one in left if one.state is not BackupState.FAILED}
        doomed = [
            one
            for one in left
            if (expire := found[one.key].expire_time) is not None and expire <= now and one.name not in bases
        ]
        if not doomed:
            return left
        left = [one for one in left if one not in doomed]


@given(history=histories(), tiers=TIERS, days=st.integers(0, 400), window=st.none() | st.integers(1, 35))
def test_last_good_one_is_never_deleted(
    history: list[Backup], tiers: list[Tier], days: int, window: int | None
) -> None:
    source = replace(LIVE, window=None if window is None else timedelta(days=window))
    left = survivors(history, tiers, source, NOW + timedelta(days=days))
    good = good_ones(history)
    if good:
        newest = max(good, key=lambda one: (one.create_time, one.key))
        assert newest in left
        assert newest in good_ones(left), "with all that it builds on"
        assert judge(left, source, {}, now=NOW, keep_failed=FAILED_DAYS)[newest.key].last_good


@given(history=histories(), tiers=TIERS, days=st.integers(0, 100))
def test_what_is_kept_can_be_restored(history: list[Backup], tiers: list[Tier], days: int) -> None:
    for source in (LIVE, GONE):
        left = survivors(history, tiers, source, NOW + timedelta(days=days))
        names = {one.name for one in left}
        assert all(one.base in names for one in left if one.base and one.state is not BackupState.FAILED)


@given(history=histories(), tiers=TIERS, days=st.integers(0, 100))
def test_what_a_tier_keeps_stays(history: list[Backup], tiers: list[Tier], days: int) -> None:
    now = NOW + timedelta(days=days)
    found = judge(history, GONE, {SCHEDULE: Policy(tuple(tiers), UTC)}, now=now, keep_failed=FAILED_DAYS)
    for one in history:
        verdict = found[one.key]
        if verdict.tiers:
            assert verdict.expire_time is None or verdict.expire_time > now
        if one.state.under_way or one.state is BackupState.DELETING:
            assert verdict.expire_time is None


@given(history=histories(), tiers=TIERS, days=st.integers(0, 100))
def test_count_of_a_tier_is_its_bound(history: list[Backup], tiers: list[Tier], days: int) -> None:
    now = NOW + timedelta(days=days)
    found = judge(history, LIVE, {SCHEDULE: Policy(tuple(tiers), UTC)}, now=now, keep_failed=FAILED_DAYS)
    for tier in tiers:
        keys = [key for key, verdict in found.items() if tier.name in verdict.tiers]
        if tier.keep_count:
            assert len(keys) <= tier.keep_count
        if tier.period is not Period.ANY:
            periods = [
                period_of(one.create_time, tier.period, UTC) for one in history if one.create_time and one.key in keys
            ]
            assert len(set(periods)) == len(periods)


@given(history=histories(), tiers=TIERS)
def test_judging_twice_says_the_same(history: list[Backup], tiers: list[Tier]) -> None:
    policies = {SCHEDULE: Policy(tuple(tiers), UTC)}
    first = judge(history, LIVE, policies, now=NOW, keep_failed=FAILED_DAYS)
    told = [
        replace(
            one, tiers=first[one.key].tiers, expire_time=first[one.key].expire_time, last_good=first[one.key].last_good
        )
        for one in history
    ]
    assert judge(told, LIVE, policies, now=NOW, keep_failed=FAILED_DAYS) == first
