"""What an instance is: what its owner asks for, how it stands, what happened to it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class Engine(StrEnum):
    """Kind of server; the names are those of the API without their prefix, as in every enumeration here."""

    POSTGRESQL = "POSTGRESQL"
    MYSQL = "MYSQL"
    MARIADB = "MARIADB"


class ProviderKind(StrEnum):
    """What runs an instance."""

    LOCAL = "LOCAL"
    KUBERNETES = "KUBERNETES"


class InstanceState(StrEnum):
    """What an instance is doing, or how it is."""

    CREATING = "CREATING"
    RESTORING = "RESTORING"
    STARTING = "STARTING"
    READY = "READY"
    DEGRADED = "DEGRADED"
    UPDATING = "UPDATING"
    RESTARTING = "RESTARTING"
    FAILING_OVER = "FAILING_OVER"
    UPGRADING = "UPGRADING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    UNAVAILABLE = "UNAVAILABLE"
    FAILED = "FAILED"
    DELETING = "DELETING"


class NodeRole(StrEnum):
    """What a node is for; UNKNOWN while that can not be asked."""

    UNKNOWN = "UNKNOWN"
    PRIMARY = "PRIMARY"
    REPLICA = "REPLICA"


class NodeState(StrEnum):
    """How a node is."""

    STARTING = "STARTING"
    READY = "READY"
    REJOINING = "REJOINING"
    UNREACHABLE = "UNREACHABLE"
    FENCED = "FENCED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class FailoverKind(StrEnum):
    """What brought a change of primary about."""

    AUTOMATIC = "AUTOMATIC"
    FORCED = "FORCED"
    SWITCHOVER = "SWITCHOVER"


# What is asked for


@dataclass(frozen=True, slots=True)
class Resources:
    """Of each node, with every default filled in."""

    storage_bytes: int
    memory_bytes: int
    cpu_millis: int
    memory_request_bytes: int
    cpu_request_millis: int


@dataclass(frozen=True, slots=True)
class HighAvailability:
    """node_count: the primary included. synchronous_replicas: how many a commit waits for, 0 for none."""

    node_count: int
    synchronous_replicas: int = 0
    automatic_failover: bool = True


@dataclass(frozen=True, slots=True)
class PointInTimeRecovery:
    """Archiving of the write-ahead log."""

    window_days: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an instance lies in a cluster. The local provider keeps it and gives a notice."""

    namespace: str = ""
    storage_class: str = ""
    zone_spread: str = ""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What a provider makes true: every default is filled in, and `version` is an exact one that it offers.

    name: `instances/{instance}`. machine: whose local provider has it, empty for any. generation: counts the changes
    of these settings.
    """

    name: str
    uid: str
    engine: Engine
    version: str
    provider: ProviderKind
    machine: str
    database: str
    username: str
    resources: Resources
    parameters: Mapping[str, str] = field(default_factory=dict)
    high_availability: HighAvailability | None = None
    point_in_time_recovery: PointInTimeRecovery | None = None
    placement: Placement | None = None
    generation: int = 1

    @property
    def id(self) -> str:
        """The name without its collection."""
        return self.name.removeprefix("instances/")

    @property
    def node_count(self) -> int:
        """How many servers it has in all."""
        return self.high_availability.node_count if self.high_availability is not None else 1


@dataclass(frozen=True, slots=True)
class Secrets:
    """The passwords of an instance that nobody but its provider and its owner's clients may have.

    admin: of the account `ADMIN_USER`, by which the server itself works. replication: of `REPLICATION_USER`.
    users: by name, those that were set here.
    """

    admin: str = field(repr=False)
    replication: str = field(repr=False)
    users: Mapping[str, str] = field(repr=False)


ADMIN_USER = "opsplane_admin"
REPLICATION_USER = "opsplane_replication"


# How it stands


@dataclass(frozen=True, slots=True)
class Notice:
    """A setting that is kept but has no or less effect: its path in the API's Instance, and why."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A stable address."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The stable addresses; `ro` is None for a single server."""

    rw: Endpoint
    r: Endpoint
    any: Endpoint
    ro: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One server. lag_bytes and lag are 0 for the primary and for a replica that is level."""

    id: str
    role: NodeRole
    state: NodeState
    host: str
    port: int
    synchronous: bool = False
    lag_bytes: int = 0
    lag: timedelta = timedelta()
    zone: str = ""
    start_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class FailoverReport:
    """A change of primary as it was measured; see `status.proto`."""

    kind: FailoverKind
    old_primary: str
    new_primary: str
    reason: str
    start_time: datetime
    detect_time: datetime
    complete_time: datetime
    lost_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class UpgradeReport:
    """An upgrade; rollback_expire_time is None when there is no way back any more."""

    from_version: str
    to_version: str
    complete_time: datetime
    backup: str = ""
    rollback_expire_time: datetime | None = None
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """What a provider sees of an instance. `primary` is the id of a node, empty while there is none."""

    nodes: tuple[Node, ...] = ()
    primary: str = ""
    endpoints: Endpoints | None = None
    running_version: str = ""
    pending_restart: tuple[str, ...] = ()
    storage_used_bytes: int = 0
    tls: bool = False
    ca_certificate: str = ""
    notices: tuple[Notice, ...] = ()
    last_failover: FailoverReport | None = None
    archive_from: datetime | None = None
    archive_until: datetime | None = None
    sample_time: datetime | None = None

    @property
    def ready_nodes(self) -> int:
        """How many nodes serve."""
        return sum(node.state is NodeState.READY for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Access:
    """How the server itself reaches a node, with every right."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    ca_certificate: str = ""


# Copies: what backups are made of


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of an instance's data, made by its provider; see `backup.proto` for the fields of the same names.

    location: where it lies, below the provider's folder of copies. base: location that an incremental one builds on.
    tables: number of rows as the engine estimates them, by `database.schema.table`, at the cut.
    """

    location: str
    engine: Engine
    engine_version: str
    method: str
    consistency: str
    node: str
    databases: tuple[str, ...]
    users: tuple[str, ...]
    tables: Mapping[str, int]
    size_bytes: int
    restore_size_bytes: int
    start_time: datetime
    cut_time: datetime
    complete_time: datetime
    base: str = ""


@dataclass(frozen=True, slots=True)
class CopySource:
    """What a new instance is made from: a copy, and with `stop_time` the archived log of its instance up to then.

    archive: uid of the instance whose log it is.
    """

    location: str
    archive: str = ""
    stop_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a provider still knows of an instance whose record is lost. Passwords are those that can still be read."""

    spec: InstanceSpec
    secrets: Secrets
    stopped: bool
