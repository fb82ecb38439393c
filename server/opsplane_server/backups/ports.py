"""What backups need from outside: stores, the service Instances, and FtpTransfer where it is served.

Stores join the transaction of their caller. Whoever changes a backup holds its source by `lock_source` first, so that
handlers, calls and retention never decide about the same instance at once. Locks are taken in one order, so that nobody
waits in a circle: the schedule, sources by their uids, the status of a schedule with an instance.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from google.protobuf import any_pb2
from opsplane.instances.v1 import copies_pb2

from opsplane_server.backups.model import (
    Backup,
    Copy,
    InstanceFacts,
    Notice,
    Packing,
    Schedule,
    ScheduleStatus,
    Source,
)
from opsplane_server.errors import OpsplaneError
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest


class BackupStore(Protocol):
    """Keeps backups, and the instances that they are of."""

    async def lock_source(self, uid: str) -> Source:
        """Returns the source and keeps others from deciding about its backups until the transaction ends. NotFound."""
        ...

    async def meet(self, source: Source) -> Source:
        """Stores an instance when it is new, and locks it."""
        ...

    async def save_source(self, source: Source) -> None:
        """Stores what was seen of an instance."""
        ...

    async def forget_source(self, uid: str) -> None:
        """Forgets an instance without backups."""
        ...

    async def list_sources(self) -> list[Source]:
        """All that there are backups of, or archived log."""
        ...

    async def newest_source(self, instance: str) -> Source:
        """The last of this name. NotFound."""
        ...

    async def insert(self, backup: Backup) -> Backup:
        """Stores a new backup. AlreadyExists."""
        ...

    async def get(self, name: str) -> Backup:
        """NotFound."""
        ...

    async def lock(self, name: str) -> Backup:
        """Locks its source, then returns the backup. NotFound."""
        ...

    async def save(self, backup: Backup) -> Backup:
        """Stores all that can change and counts the revision up."""
        ...

    async def delete(self, backup: Backup) -> None:
        """Removes the record."""
        ...

    async def of_source(self, uid: str) -> list[Backup]:
        """All of one instance, oldest first."""
        ...

    async def deleted_by(self, operation: str) -> list[Backup]:
        """Those that an operation is deleting, newest first: what builds on another one comes before it."""
        ...

    async def find(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Backup]:
        """Up to `page.size + 1` backups, newest first; the key of a page is their `key`."""
        ...

    async def use(self, backup: Backup, operation: str) -> None:
        """Notes that an operation needs the files of a backup."""
        ...

    async def users_of(self, backups: Collection[Backup]) -> set[str]:
        """Operations that need the files of any of these."""
        ...

    async def leave(self, operation: str) -> None:
        """Ends all uses by an operation, and forgets what was sealed for it."""
        ...

    async def seal(self, operation: str, request: copies_pb2.RestoreCopyRequest) -> None:
        """Keeps a request with its passwords, encrypted, until it is sent."""
        ...

    async def unseal(self, operation: str) -> copies_pb2.RestoreCopyRequest:
        """NotFound when it was forgotten."""
        ...

    async def expired(self, now: datetime, limit: int) -> list[Backup]:
        """Backups that are to be deleted: nothing builds on them, and no operation needs them."""
        ...

    async def counts(self) -> Mapping[str, int]:
        """How many backups there are in each state."""
        ...

    async def good_times(self) -> Mapping[str, datetime]:
        """By name of the instance the moment of its last good backup."""
        ...


class ScheduleStore(Protocol):
    """Keeps schedules and how they stand."""

    async def insert(self, schedule: Schedule) -> Schedule:
        """Stores a new schedule with a status for each instance. AlreadyExists."""
        ...

    async def get(self, name: str) -> Schedule:
        """NotFound."""
        ...

    async def lock(self, name: str) -> Schedule:
        """Returns the schedule and keeps others from changing it until the transaction ends. NotFound."""
        ...

    async def by_keys(self, keys: Collection[int]) -> list[Schedule]:
        """Those that are there."""
        ...

    async def find(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Schedule]:
        """Up to `page.size + 1` schedules, newest first; the key of a page is their `key`."""
        ...

    async def save(self, schedule: Schedule) -> Schedule:
        """Stores changed settings, counts the revision up, and keeps the status of instances that stay."""
        ...

    async def delete(self, schedule: Schedule) -> None:
        """Removes it; its backups stay and belong to no schedule any more."""
        ...

    async def sources(self, key: int) -> list[str]:
        """Uids of the instances that the schedule has backups of, in order."""
        ...

    async def due(self, now: datetime) -> list[Schedule]:
        """Those whose time has come."""
        ...

    async def set_run(self, key: int, last: datetime, following: datetime) -> None:
        """Notes a run and the time of the next one."""
        ...

    async def lock_status(self, key: int, instance: str) -> ScheduleStatus | None:
        """How it stands with an instance, locked; None when the schedule or the instance is no longer in it."""
        ...

    async def save_status(self, key: int, status: ScheduleStatus) -> None:
        """Stores how it stands with an instance."""
        ...

    async def overdue_untold(self, now: datetime) -> list[tuple[Schedule, ScheduleStatus]]:
        """Statuses that are overdue and of which no word was sent yet."""
        ...


class NoticeStore(Protocol):
    """Keeps events until they are told."""

    async def add(self, notice: Notice) -> None:
        """Adds an event in the task's transaction."""
        ...

    async def waiting(self, limit: int) -> list[Notice]:
        """Those whose time has come, oldest first."""
        ...

    async def told(self, notice: Notice) -> None:
        """Forgets one."""
        ...

    async def put_off(self, notice: Notice, wait: timedelta) -> None:
        """Has it tried again later."""
        ...


class Lead(Protocol):
    """Lets one process at a time do what must be done once."""

    async def take(self, owner: str, duration: timedelta) -> bool:
        """Takes or keeps the lead for that long; False while another process has it."""
        ...

    async def give(self, owner: str) -> None:
        """Gives it back."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteOperation:
    """An operation of another service as it is now; `error` and `response` are set by its end."""

    name: str
    done: bool
    stage: str
    progress_percent: int
    error: OpsplaneError | None = None
    cancelled: bool = False
    response: any_pb2.Any | None = None


class Instances(Protocol):
    """The service Instances. What takes long returns the name of its operation; `request_id` makes repetition harmless.

    Raises the errors that it answers with, Unavailable when it can not be reached.
    """

    async def get(self, name: str) -> InstanceFacts:
        """NotFound."""
        ...

    async def list_all(self) -> list[InstanceFacts]:
        """All instances."""
        ...

    async def copy(self, instance: str, copy_id: str, base: str, request_id: str) -> str:
        """Copies an instance, on top of the copy at `base` if there is one."""
        ...

    async def restore(self, request: copies_pb2.RestoreCopyRequest, request_id: str) -> str:
        """Makes an instance from a copy."""
        ...

    async def check(self, copy: Copy, request_id: str) -> str:
        """Restores a copy into a scratch instance and checks it."""
        ...

    async def archive(self, location: str, path: str, packing: Packing, *, overwrite: bool, request_id: str) -> str:
        """Writes a copy as an archive below the export folder."""
        ...

    async def delete_copy(self, location: str, request_id: str) -> str:
        """Removes a copy."""
        ...

    async def prune_log(self, uid: str, keep_from: str, request_id: str) -> str:
        """Removes the archived log of an instance before what the copy at `keep_from` needs; "" for all."""
        ...

    async def record(self, notice: Notice) -> None:
        """Records an event; the same `key_text` is recorded once."""
        ...

    def watch(self, operation: str) -> AsyncGenerator[RemoteOperation, None]:
        """The operation as it is and each change of it, ending after the last. NotFound."""
        ...

    async def cancel(self, operation: str) -> None:
        """Asks it to stop."""
        ...


@dataclass(frozen=True, slots=True)
class Shipment:
    """A file that is sent: the transfer that does it, how far it is, and why it failed if it did."""

    transfer: str
    done: bool
    bytes_transferred: int = 0
    error: OpsplaneError | None = None
    cancelled: bool = False


class Shipping(Protocol):
    """The service FtpTransfer, as far as archives are sent by it."""

    def served(self) -> bool:
        """Whether it can be called at all."""
        ...

    async def check(self, connection: str) -> None:
        """NotFound (the connection), InvalidArgument (it is no FTP server)."""
        ...

    async def send(
        self, file: str, connection: str, destination: str, *, sha256: str, overwrite: bool, request_id: str
    ) -> str:
        """Sends a file of the export folder, by its whole path; returns the name of the transfer."""
        ...

    def watch(self, transfer: str) -> AsyncGenerator[Shipment, None]:
        """The transfer as it is and each change of it, ending after the last."""
        ...

    async def cancel(self, transfer: str) -> None:
        """Ends it before its time."""
        ...

    async def remove(self, file: str, request_id: str) -> None:
        """Removes a file that was sent. Harmless when it is gone."""
        ...
