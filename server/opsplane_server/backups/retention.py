"""Which backups of an instance are kept, and until when. Pure functions: the same backups give the same answer.

A backup stays as long as any of these says so: its own days; a tier of its schedule; that it is the last good one of an
instance that exists; that it is where the restorable moments of the instance begin; that a newer one builds on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from opsplane_server.backups.model import Backup, BackupState, Period, Source, Tier


@dataclass(frozen=True, slots=True)
class Policy:
    """The tiers of a schedule, and the time zone of their periods."""

    tiers: tuple[Tier, ...]
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of a backup: `expire_time` is None while nothing deletes it."""

    tiers: tuple[str, ...]
    expire_time: datetime | None
    last_good: bool


def judge(
    backups: Sequence[Backup],
    source: Source,
    policies: Mapping[int, Policy],
    *,
    now: datetime,
    keep_failed: timedelta,
) -> dict[int, Verdict]:
    """Judges all backups of one instance; the answer is by their keys.

    `policies` are those of their schedules, by key. `keep_failed` is how long a backup that is of no use is kept for
    people to look at.
    """
    good = {backup.name: backup for backup in good_ones(backups)}
    kept = _kept_by_tiers(backups, good, policies, now)
    last = _newest(list(good.values())) if source.live else None
    pinned = _pinned(backups, list(good.values()), source, now)
    found: dict[int, Verdict] = {}
    for backup in backups:
        tiers = kept.get(backup.key, {})
        expire: datetime | None = None
        if backup.name not in pinned and not backup.state.under_way and backup.state is not BackupState.DELETING:
            expire = _expire_time(backup, tiers, policies, good=backup.name in good, now=now, keep_failed=keep_failed)
        found[backup.key] = Verdict(tuple(tiers), expire, last is not None and backup.name == last.name)
    return _keep_bases(backups, found)


def good_ones(backups: Sequence[Backup]) -> list[Backup]:
    """Those that can be restored as far as is known: complete, and nothing that they consist of was found bad."""
    by_name = {backup.name: backup for backup in backups}

    def whole(backup: Backup) -> bool:
        links = 0
        while backup.state in (BackupState.READY, BackupState.DELETING) and not backup.passed_over:
            if not backup.base:
                return True
            base = by_name.get(backup.base)
            links += 1
            if base is None or links > len(backups):
                return False
            backup = base
        return False

    return [backup for backup in backups if backup.state is BackupState.READY and whole(backup)]


def base_for(backups: Sequence[Backup]) -> Backup | None:
    """What an incremental backup builds on: the newest good one."""
    return _newest(good_ones(backups))


def before(backups: Sequence[Backup], moment: datetime) -> Backup | None:
    """The newest good backup up to a moment from which the archived log leads on."""
    return _newest([backup for backup in good_ones(backups) if _starts_log(backup) and cut_of(backup) <= moment])


def cut_of(backup: Backup) -> datetime:
    """The moment whose data a complete backup holds."""
    assert backup.copy is not None
    return backup.copy.cut_time


def _starts_log(backup: Backup) -> bool:
    return backup.copy is not None and backup.copy.logged


def _newest(backups: Sequence[Backup]) -> Backup | None:
    return max(backups, key=lambda backup: (cut_of(backup), backup.key), default=None)


def _pinned(backups: Sequence[Backup], good: Sequence[Backup], source: Source, now: datetime) -> set[str]:
    """Names of those that no rule of age or number deletes."""
    if not source.live:
        return set()
    # When all were found bad, the newest of them may still hold what can be saved.
    ready = [backup for backup in backups if backup.state is BackupState.READY]
    pinned = [_newest(good) or _newest(ready)]
    if source.window is not None:
        begin = now - source.window
        logged = [backup for backup in good if _starts_log(backup)]
        oldest = min(logged, key=lambda backup: (cut_of(backup), backup.key), default=None)
        pinned.append(_newest([backup for backup in logged if cut_of(backup) <= begin]) or oldest)
    return {backup.name for backup in pinned if backup is not None}


def _kept_by_tiers(
    backups: Sequence[Backup], good: Mapping[str, Backup], policies: Mapping[int, Policy], now: datetime
) -> dict[int, dict[str, datetime | None]]:
    """By key of the backup the tiers that keep it, each with the end of its days (None: no limit by age)."""
    kept: dict[int, dict[str, datetime | None]] = {}
    for key, policy in policies.items():
        own = sorted(
            (backup for backup in backups if backup.schedule_key == key and backup.name in good),
            key=lambda backup: backup.key,
        )
        for tier in policy.tiers:
            firsts: dict[object, Backup] = {}
            for backup in own:
                firsts.setdefault(period_of(created(backup), tier.period, policy.zone) or backup.key, backup)
            chosen = list(firsts.values())
            if tier.keep_count:
                chosen = chosen[-tier.keep_count :]
            for backup in chosen:
                until = created(backup) + timedelta(days=tier.keep_days) if tier.keep_days else None
                if until is None or until > now:
                    kept.setdefault(backup.key, {})[tier.name] = until
    return kept


def period_of(moment: datetime, period: Period, zone: tzinfo) -> tuple[int, ...] | None:
    """What two moments of the same period have in common; None where every moment is on its own."""
    local = moment.astimezone(zone)
    match period:
        case Period.HOUR:
            # The hour that comes twice when the clock is set back is two hours.
            return local.year, local.month, local.day, local.hour, local.fold
        case Period.DAY:
            return local.year, local.month, local.day
        case Period.WEEK:
            return local.isocalendar()[:2]
        case Period.MONTH:
            return local.year, local.month
        case Period.YEAR:
            return (local.year,)
        case _:
            return None


def created(backup: Backup) -> datetime:
    """When a stored backup was asked for."""
    assert backup.create_time is not None
    return backup.create_time


def _expire_time(
    backup: Backup,
    tiers: Mapping[str, datetime | None],
    policies: Mapping[int, Policy],
    *,
    good: bool,
    now: datetime,
    keep_failed: timedelta,
) -> datetime | None:
    ends: list[datetime] = []
    if backup.retention_days:
        ends.append(created(backup) + timedelta(days=backup.retention_days))
    if not good and (backup.state is BackupState.FAILED or backup.schedule_key in policies):
        found_bad = backup.verification.complete_time if backup.verification is not None else created(backup)
        ends.append(max(found_bad, created(backup)) + keep_failed)
    for until in tiers.values():
        if until is None:
            return None
        ends.append(until)
    if not ends and backup.schedule_key in policies:
        return now
    return max(ends, default=None)


def _keep_bases(backups: Sequence[Backup], found: dict[int, Verdict]) -> dict[int, Verdict]:
    """Lengthens the life of each base to that of what builds on it; who builds is always younger than its base."""
    keys = {backup.name: backup.key for backup in backups}
    for backup in sorted(backups, key=lambda backup: backup.key, reverse=True):
        base = keys.get(backup.base)
        if base is None or backup.state is BackupState.FAILED:
            continue
        own, below = found[backup.key], found[base]
        if below.expire_time is not None and (own.expire_time is None or own.expire_time > below.expire_time):
            found[base] = Verdict(below.tiers, own.expire_time, below.last_good)
    return found
