"""What a backup is, and a schedule: plain data. Enumerations have the names of the API without their prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from google.rpc import status_pb2


class BackupState(StrEnum):
    """What a backup is doing."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    READY = "READY"
    FAILED = "FAILED"
    DELETING = "DELETING"

    @property
    def under_way(self) -> bool:
        """Whether it is still being made."""
        return self in (BackupState.QUEUED, BackupState.RUNNING)


class BackupType(StrEnum):
    """What asked for it."""

    ON_DEMAND = "ON_DEMAND"
    SCHEDULED = "SCHEDULED"
    FINAL = "FINAL"
    PRE_UPGRADE = "PRE_UPGRADE"


class VerificationState(StrEnum):
    """How a verification went."""

    RUNNING = "RUNNING"
    PASSED = "PASSED"
    FAILED = "FAILED"


class Period(StrEnum):
    """A period of the calendar; ANY has every backup for itself."""

    ANY = "ANY"
    HOUR = "HOUR"
    DAY = "DAY"
    WEEK = "WEEK"
    MONTH = "MONTH"
    YEAR = "YEAR"


class Packing(StrEnum):
    """How an archive is packed; the names are those of `opsplane.instances.v1.ArchiveCopyRequest.packing`."""

    TAR = "TAR"
    TAR_GZIP = "TAR_GZIP"
    TAR_ZSTD = "TAR_ZSTD"

    @property
    def suffix(self) -> str:
        """How its files are called."""
        return {"TAR": ".tar", "TAR_GZIP": ".tar.gz", "TAR_ZSTD": ".tar.zst"}[self.value]


@dataclass(frozen=True, slots=True)
class Copy:
    """What the instance's provider made: see `backup.proto` for the fields of the same names.

    base: location of the copy that it builds on, empty for a full one. logged: whether the instance archived its log
    then. document: the serialized `opsplane.instances.v1.InstanceCopy`, which goes back to the provider as it is.
    """

    location: str
    engine: str
    engine_version: str
    provider: str
    method: str
    consistency: str
    node: str
    databases: tuple[str, ...]
    size_bytes: int
    restore_size_bytes: int
    start_time: datetime
    cut_time: datetime
    complete_time: datetime
    base: str
    logged: bool
    document: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a verification: kind and result by the names of the API."""

    kind: str
    result: str
    message: str
    duration: timedelta


@dataclass(frozen=True, slots=True)
class Verification:
    """The findings of a verification that has ended. restore_duration is None when nothing was restored."""

    state: VerificationState
    start_time: datetime
    complete_time: datetime
    restore_duration: timedelta | None = None
    checks: tuple[Check, ...] = ()
    table_count: int = 0
    row_count: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup with its state.

    key, revision: the store's own. engine: by the name of the API. base: name of the backup that it builds on.
    schedule: name of the schedule that made it; schedule_key is None when that is gone. due_time: the time of the
    schedule that it was made for. verifying_since: since when a verification is under way; `verification` is the one
    before it then. operation: the one that makes or deletes it, empty when none does.
    """

    name: str
    uid: str
    instance: str
    instance_uid: str
    type: BackupType
    engine: str = ""
    retention_days: int = 0
    incremental: bool = False
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: BackupState = BackupState.QUEUED
    error: status_pb2.Status | None = None
    base: str = ""
    schedule: str = ""
    schedule_key: int | None = None
    due_time: datetime | None = None
    tiers: tuple[str, ...] = ()
    copy: Copy | None = None
    start_time: datetime | None = None
    complete_time: datetime | None = None
    expire_time: datetime | None = None
    last_good: bool = False
    verification: Verification | None = None
    verifying_since: datetime | None = None
    operation: str = ""
    create_time: datetime | None = None
    key: int = 0
    revision: int = 0

    @property
    def passed_over(self) -> bool:
        """Whether a verification has found it bad."""
        return self.verification is not None and self.verification.state is VerificationState.FAILED


@dataclass(frozen=True, slots=True)
class Source:
    """An instance that there are backups of, as it was last seen.

    live: whether it is still there. window: how far back any moment of it can be restored, None where its log is not
    archived. pruned: location of the copy from which on its archived log is kept, None while all of it is.
    """

    uid: str
    name: str
    live: bool = True
    window: timedelta | None = None
    pruned: str | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """A rule of retention: the first good backup of each period, for some days, up to some number; 0 is no limit."""

    name: str
    period: Period = Period.ANY
    keep_days: int = 0
    keep_count: int = 0


DEFAULT_TIERS = (Tier("default", keep_days=7),)
"""What a schedule without tiers keeps."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to send word of events. kinds: names of `opsplane.instances.v1.Event.Kind`, in the API's numbers."""

    url: str
    signing_key: str = field(default="", repr=False)
    kinds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """How a schedule stands with one instance.

    since_full, since_verified: good backups since the last full one, itself included, and since the last that was
    verified. pending_due: the earliest time of the schedule for which there is no good backup yet. told_due: the one
    of these that word was sent of.
    """

    instance: str
    last_backup: str = ""
    last_success_time: datetime | None = None
    last_failure_time: datetime | None = None
    last_error: str = ""
    since_full: int = 0
    since_verified: int = 0
    pending_due: datetime | None = None
    told_due: datetime | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Backups by the clock. key, revision: the store's own; next_run_time is None while it is suspended."""

    name: str
    instances: tuple[str, ...]
    cron: str
    time_zone: str
    overdue_after: timedelta
    tiers: tuple[Tier, ...] = ()
    full_every: int = 0
    verify_every: int = 0
    suspended: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    webhooks: tuple[Webhook, ...] = ()
    next_run_time: datetime | None = None
    last_run_time: datetime | None = None
    statuses: tuple[ScheduleStatus, ...] = ()
    create_time: datetime | None = None
    update_time: datetime | None = None
    key: int = 0
    revision: int = 0

    @property
    def retention(self) -> tuple[Tier, ...]:
        """The tiers that hold."""
        return self.tiers or DEFAULT_TIERS

    def is_overdue(self, status: ScheduleStatus, now: datetime) -> bool:
        """Whether a backup of that instance is overdue."""
        due = status.pending_due
        return due is not None and not self.suspended and due + self.overdue_after < now


@dataclass(frozen=True, slots=True)
class Notice:
    """An event that waits to be told to the service Instances.

    kind, severity: names of `opsplane.instances.v1.Event` without their prefix. key_text: told twice under the same one
    it is recorded once.
    """

    kind: str
    severity: str
    instance: str
    instance_uid: str
    resource: str
    operation: str
    message: str
    key_text: str
    webhooks: tuple[Webhook, ...] = ()
    key: int = 0
    attempts: int = 0
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """What backups need to know of an instance: `state` and `engine` by the names of the API."""

    name: str
    uid: str
    engine: str
    state: str
    window: timedelta | None
    latest_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """What is to be exported where: `connection` is empty for a file of the server, `path` is complete."""

    backup: str
    connection: str
    path: str
    packing: Packing
    overwrite: bool
