"""Connections, transfers, and what a worker does for them. Plain data; times are aware, spans are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from opsplane_server.ftptransfer.failures import ErrorCode, Failure


class TlsMode(StrEnum):
    """How TLS starts: by AUTH TLS, or from the first byte."""

    EXPLICIT = "EXPLICIT"
    IMPLICIT = "IMPLICIT"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Protection by TLS. `certificate_sha256` (lower case) is the one certificate to trust, instead of the others."""

    mode: TlsMode
    ca_certificates: str = ""
    server_name: str = ""
    certificate_sha256: str = ""


@dataclass(frozen=True, slots=True)
class ActiveMode:
    """The server connects to us. Empty: our address of the control connection; 0: the ports of the settings."""

    address: str = ""
    first_port: int = 0
    last_port: int = 0


@dataclass(frozen=True, slots=True)
class FtpServer:
    """An FTP server and the account on it. `max_sessions` and `idle_timeout` of 0 mean the pool's settings."""

    host: str
    port: int = 21
    user: str = "anonymous"
    password: str = field(default="", repr=False)
    tls: TlsSettings | None = None
    active: ActiveMode | None = None
    use_announced_address: bool = False
    encoding: str = "utf-8"
    max_sessions: int = 0
    idle_timeout: float = 0.0
    reply_timeout: float = 30.0
    stall_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine, out of which no path leads."""

    base_path: Path


@dataclass(frozen=True, slots=True)
class Connection:
    """One end of transfers. `config_section` is the section of connections.ini that it is from, else empty.

    Two connections of the same id and another `revision` have other settings.
    """

    id: str
    kind: FtpServer | LocalFolder
    title: str = ""
    revision: int = 0
    config_section: str = ""
    key: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.kind, LocalFolder)


class FileKind(StrEnum):
    """What an entry of a folder is."""

    FILE = "FILE"
    FOLDER = "FOLDER"
    LINK = "LINK"
    OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An entry of a folder, also of a local one. None where the server does not say."""

    name: str
    kind: FileKind
    size: int | None = None
    modify_time: datetime | None = None


class Selection(StrEnum):
    """What the source of a transfer means."""

    FILE = "FILE"
    GLOB = "GLOB"
    TREE = "TREE"


class Priority(StrEnum):
    """Which transfers go first."""

    LOW = "LOW"
    NORMAL = "NORMAL"
    HIGH = "HIGH"


class ExistingFile(StrEnum):
    """What to do when the destination exists."""

    REPLACE = "REPLACE"
    SKIP_SAME = "SKIP_SAME"
    SKIP = "SKIP"
    FAIL = "FAIL"


class TransferState(StrEnum):
    """Where a transfer stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """True when it will not change any more, unless it is begun anew."""
        return self in (TransferState.SUCCEEDED, TransferState.FAILED, TransferState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Location:
    """A path on a connection, by the connection's id."""

    connection: str
    path: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a transfer came from: `rpc`, `kafka`, `glob` or `tree`; the caller's name, or the topic."""

    kind: str
    submitter: str = ""
    partition: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """How many transfers are in which state, and their bytes."""

    pending: int = 0
    running: int = 0
    waiting: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    size_bytes: int = 0
    bytes_transferred: int = 0
    bytes_per_second: float = 0.0

    @property
    def active(self) -> int:
        """How many have not ended."""
        return self.pending + self.running + self.waiting


@dataclass(frozen=True, slots=True)
class NewTransfer:
    """A transfer to put into the queue.

    task_key: what makes it one and the same when it comes again; empty for none. Of a task with a task_id it is that;
    keys that are made here begin with a control character, which no task_id has.
    message: of a transfer from Kafka the message as it came, a JSON object as text, which its result repeats; when the
    transfer ends, a row of it is put into `ftptransfer.outbox` in the same transaction. Empty for all others.
    failure: set for a task that is wrong: it is kept as FAILED at once, so that its result is told.
    """

    id: str
    source: Location
    destination: Location
    origin: Origin
    selection: Selection = Selection.FILE
    priority: Priority = Priority.NORMAL
    existing_file: ExistingFile = ExistingFile.REPLACE
    max_attempts: int = 0
    retry_count: int = 0
    task_id: str = ""
    task_key: str = ""
    group: str = ""
    metadata: Mapping[str, Any] | None = None
    sha256: str = ""
    message: str = ""
    failure: Failure | None = None


class Admission(StrEnum):
    """What became of a `NewTransfer`: taken; known already; or its task_key belongs to one between other places."""

    NEW = "NEW"
    KNOWN = "KNOWN"
    CONFLICT = "CONFLICT"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer with its state. `key` is the store's own and grows with age."""

    id: str
    key: int
    source: Location
    destination: Location
    origin: Origin
    selection: Selection
    priority: Priority
    existing_file: ExistingFile
    max_attempts: int
    retry_count: int
    task_id: str
    group: str
    metadata: Mapping[str, Any] | None
    sha256: str
    state: TransferState
    create_time: datetime
    update_time: datetime
    failure: Failure | None = None
    attempt_count: int = 0
    next_attempt_time: datetime | None = None
    size_bytes: int | None = None
    bytes_transferred: int = 0
    resumed_bytes: int = 0
    bytes_per_second: float = 0.0
    skipped: bool = False
    source_modify_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    duration: float | None = None
    parent: str = ""
    children: Counts | None = None


@dataclass(frozen=True, slots=True)
class End:
    """One end of a task: the connection with its settings, and the path on it."""

    connection: Connection
    path: str


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs for one attempt of a transfer; exactly one end is local.

    `id` is that of the transfer, `generation` counts how often it was taken. `attempt` is 1 for the first attempt that
    is made here, `retry_count` says how many were made elsewhere.

    size, modify_time: of the source, when what an earlier attempt left was begun; without a time nothing is known.
    cancelled, failure: when one of them is set, there is to be no attempt. What earlier ones left at the destination is
    to be removed, and the task settled as Failed with this failure, as Cancelled where there is none, or as LeftOver.
    The end where nothing is left may be made up then. One that was LeftOver with a failure has both.
    """

    id: str
    key: int
    generation: int
    source: End
    destination: End
    selection: Selection
    existing_file: ExistingFile
    sha256: str
    attempt: int
    retry_count: int
    max_attempts: int
    size: int | None = None
    modify_time: datetime | None = None
    cancelled: bool = False
    failure: Failure | None = None

    @property
    def is_over(self) -> bool:
        """True when it is only to be cleaned up after."""
        return self.cancelled or self.failure is not None

    @property
    def remote(self) -> Connection:
        """The FTP end."""
        return self.destination.connection if self.source.connection.is_local else self.source.connection

    @property
    def is_upload(self) -> bool:
        """True from local to FTP."""
        return self.source.connection.is_local

    @property
    def is_last_attempt(self) -> bool:
        """True when no other attempt may follow."""
        return self.attempt + self.retry_count >= self.max_attempts


@dataclass(frozen=True, slots=True)
class Child:
    """A file that a glob or tree stands for. Paths are whole, on the connections of their task."""

    source_path: str
    destination_path: str
    size: int | None = None


# What came of an attempt. `sent` are the bytes that went over the line, `duration` is in seconds. Where `size` and
# `modify_time` are not the file's, they are the source's when what is left at the destination was begun: see `Task`.


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The file is there, whole. `size` is the file's; `resumed` bytes had been brought by an earlier attempt."""

    size: int
    sent: int = 0
    resumed: int = 0
    skipped: bool = False
    modify_time: datetime | None = None
    duration: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """Given up; nothing of it is left at the destination."""

    failure: Failure
    sent: int = 0
    duration: float = 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """To be tried again after `delay` seconds."""

    failure: Failure
    delay: float
    sent: int = 0
    duration: float = 0.0
    size: int | None = None
    modify_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Broken off because that was asked for; nothing of it is left at the destination."""

    sent: int = 0
    duration: float = 0.0


@dataclass(frozen=True, slots=True)
class Released:
    """Given back unfinished, for another worker to go on at once; does not count as an attempt."""

    sent: int = 0
    size: int | None = None
    modify_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class LeftOver:
    """Failed, or cancelled where there is no failure; but what it left at the destination can not be removed now.

    It is to be handed out again for that alone, and ends when that is done, or was tried long enough.
    """

    failure: Failure | None = None
    sent: int = 0
    duration: float = 0.0


@dataclass(frozen=True, slots=True)
class Expanded:
    """Of a glob or tree: all its files were given to `TransferQueue.expand`. It ends with the last of them."""


Outcome: TypeAlias = Succeeded | Failed | Retry | Cancelled | Released | LeftOver | Expanded


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task under way is: bytes at the destination, size if known, bytes sent in this attempt, bytes/s.

    modify_time: the source's, as in `Task`.
    """

    task: Task
    transferred: int = 0
    size: int | None = None
    sent: int = 0
    bytes_per_second: float = 0.0
    modify_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """The sessions of a connection in this process.

    `limit`, `retry_time` and `last_failure` are the pod's; `retry_time` is set while the circuit is open.
    """

    sessions: int = 0
    busy: int = 0
    limit: int = 0
    waiting: int = 0
    circuit_open: bool = False
    retry_time: datetime | None = None
    last_failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of trying a connection; `failure` is None when everything worked.

    `last_step` failed or was done last: `resolve`, `connect`, `tls`, `login`, `features`, `list`; locally `read`,
    `write`.
    """

    failure: Failure | None = None
    last_step: str = ""
    duration: float = 0.0
    greeting: str = ""
    features: tuple[str, ...] = ()
    tls_cipher: str = ""
    certificate_sha256: str = ""
    entry_count: int = 0


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """A process and its figures; `pools` by the id of the connection."""

    worker: str
    version: str
    start_time: datetime
    draining: bool = False
    tasks_in_progress: int = 0
    bytes_per_second: float = 0.0
    files_per_second: float = 0.0
    pools: Mapping[str, PoolFigures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """The figures of all processes together. `failed` counts by class; the times are as of the reading.

    backlog: of those active, how many are PENDING. oldest_age: how long the oldest of these has waited, seconds.
    """

    running: bool
    workers: tuple[WorkerFigures, ...]
    active: int
    backlog: int
    oldest_age: float | None
    succeeded: int
    cancelled: int
    failed: Mapping[ErrorCode, int]
    malformed: int
    bytes_transferred: int
    since_time: datetime

    @property
    def ended(self) -> int:
        """Transfers that ended."""
        return self.succeeded + self.cancelled + sum(self.failed.values())
