"""What is kept of instances: their records, what happened to them, what they use. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from opsplane_server.instances.model import InstanceSpec, InstanceState, Status, UpgradeReport
from opsplane_server.instances.monitoring import NodeUsage, ServerSample


class EventKind(StrEnum):
    """What happened; see `events.proto`."""

    CREATED = "CREATED"
    RESTORED = "RESTORED"
    RECOVERED = "RECOVERED"
    UPDATED = "UPDATED"
    STARTED = "STARTED"
    STOPPED = "STOPPED"
    RESTARTED = "RESTARTED"
    DELETED = "DELETED"
    FAILED_OVER = "FAILED_OVER"
    SWITCHED_OVER = "SWITCHED_OVER"
    FAILOVER_FAILED = "FAILOVER_FAILED"
    NODE_LOST = "NODE_LOST"
    NODE_REJOINED = "NODE_REJOINED"
    UPGRADED = "UPGRADED"
    UPGRADE_FAILED = "UPGRADE_FAILED"
    UPGRADE_ROLLED_BACK = "UPGRADE_ROLLED_BACK"
    DATABASE_CREATED = "DATABASE_CREATED"
    DATABASE_DELETED = "DATABASE_DELETED"
    USER_CREATED = "USER_CREATED"
    USER_UPDATED = "USER_UPDATED"
    USER_DELETED = "USER_DELETED"
    PASSWORD_ROTATED = "PASSWORD_ROTATED"  # noqa: S105
    CONNECTION_INFO_READ = "CONNECTION_INFO_READ"
    BACKUP_COMPLETED = "BACKUP_COMPLETED"
    BACKUP_FAILED = "BACKUP_FAILED"
    BACKUP_OVERDUE = "BACKUP_OVERDUE"
    BACKUP_VERIFIED = "BACKUP_VERIFIED"
    VERIFICATION_FAILED = "VERIFICATION_FAILED"
    BACKUP_DELETED = "BACKUP_DELETED"
    BACKUP_EXPORTED = "BACKUP_EXPORTED"
    STORAGE_LOW = "STORAGE_LOW"
    STORAGE_FULL = "STORAGE_FULL"
    FAILED = "FAILED"


class Severity(StrEnum):
    """How much an event matters."""

    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class Granularity(StrEnum):
    """The spans that usage is summed over, in UTC; the names are those of PostgreSQL's date_trunc too."""

    HOUR = "HOUR"
    DAY = "DAY"
    MONTH = "MONTH"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where events are posted to. kinds: empty for those of severity WARNING and above, and changes of primary."""

    url: str
    signing_key: str = field(default="", repr=False)
    kinds: tuple[EventKind, ...] = ()


@dataclass(frozen=True, slots=True)
class BackupFigures:
    """What is known of an instance's backups. name: of the newest usable one, empty for none; size_bytes: of all."""

    name: str = ""
    cut_time: datetime | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """The record of an instance.

    version: as it was asked for, a major or an exact one, until an upgrade succeeds; `spec.version` is exact. state:
    what an operation does with it, else what came of `status` the last time that was read. operation: name of the one
    that changes it now, empty for none. previous: the settings before an update or upgrade under way. hidden: a scratch
    instance that no RPC shows. revision: counts the changes of what its owner set, for the etag. key: grows with age.
    """

    spec: InstanceSpec
    version: str
    state: InstanceState
    state_message: str = ""
    status: Status = field(default_factory=Status)
    operation: str = ""
    previous: InstanceSpec | None = None
    deletion_protection: bool = False
    expire_time: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    webhooks: tuple[Webhook, ...] = ()
    last_upgrade: UpgradeReport | None = None
    source_backup: str = ""
    source_time: datetime | None = None
    backups: BackupFigures = BackupFigures()
    hidden: bool = False
    revision: int = 1
    key: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None

    @property
    def name(self) -> str:
        """`instances/{instance}`."""
        return self.spec.name

    @property
    def uid(self) -> str:
        """Unique for ever."""
        return self.spec.uid

    def reverted(self) -> Instance:
        """With the settings before the update or upgrade under way, if there is one."""
        if self.previous is None:
            return self
        return replace(self, spec=self.previous, previous=None, revision=self.revision + 1)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an instance; never with a password. id and time are given by the store.

    Whoever asked, and the trace, are empty for what the server did by itself.
    """

    kind: EventKind
    severity: Severity
    instance: str
    instance_uid: str
    message: str
    node: str = ""
    resource: str = ""
    operation: str = ""
    principal: str = ""
    trace_id: str = ""
    id: int = 0
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class WebhookPost:
    """An event that is to be posted. attempt_count: how often that failed."""

    id: int
    event: Event
    url: str
    signing_key: str = field(repr=False)
    attempt_count: int


@dataclass(frozen=True, slots=True)
class NodeSample:
    """What was read of one node; None is what could not be."""

    node: str
    usage: NodeUsage | None = None
    server: ServerSample | None = None
    lag_bytes: int | None = None
    lag: timedelta | None = None


@dataclass(frozen=True, slots=True)
class InstanceSample:
    """What was read of all nodes of an instance at one moment. The counters in it are raw: rates are made of two."""

    time: datetime
    nodes: tuple[NodeSample, ...]


@dataclass(frozen=True, slots=True)
class UsageAmounts:
    """What was used, and its cost in millionths of the currency unit at the rates of that time."""

    cpu_core_hours: float = 0.0
    memory_gib_hours: float = 0.0
    storage_gib_hours: float = 0.0
    backup_gib_hours: float = 0.0
    cost_micros: float = 0.0


@dataclass(frozen=True, slots=True)
class UsageSpan:
    """What an instance used from start_time on, for an hour, day or month."""

    instance: str
    instance_uid: str
    start_time: datetime
    end_time: datetime
    amounts: UsageAmounts
