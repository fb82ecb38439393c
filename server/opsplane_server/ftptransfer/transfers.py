"""Transfers: submitting, cancelling and beginning them anew."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from opsplane_server.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    OpsplaneError,
    ResourceExhausted,
)
from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.beneath import split
from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import Admission, Connection, FtpServer, Location, NewTransfer, Transfer
from opsplane_server.ftptransfer.ports import ConnectionSource, TransferStore
from opsplane_server.storage.signals import Signal

_METADATA_BYTES: Final = 16 * 1024
_COUNT_SECONDS: Final = 1.0
_COUNT_SHARE: Final = 20


class WrongTransfer(Exception):
    """A transfer that can not be done as it is written; `field` is the path of what is wrong."""

    def __init__(self, field: str, failure: TransferFailure) -> None:
        super().__init__(failure.message)
        self.field = field
        self.failure = failure

    def as_error(self) -> OpsplaneError:
        """What an RPC says of a single transfer."""
        message = self.failure.message
        if self.failure.reason is ErrorReason.NO_CONNECTION:
            return NotFound(message, reason="CONNECTION_NOT_FOUND")
        violation = FieldViolation(f"transfer.{self.field}", message)
        return InvalidArgument(f"transfer.{self.field}: {message}", [violation], reason=self.failure.code)


@dataclass(frozen=True, slots=True)
class Submission:
    """What came of one of many transfers: its id, and whether it is new; or what is wrong with it."""

    id: str
    new: bool
    wrong: WrongTransfer | None = None


class Transfers:
    """Puts transfers into the queue. Every method joins the caller's transaction where there is one.

    max_attempts: of a transfer that says nothing of it. queue_limit: how many may be in the queue before no more are
    taken; it is looked at about once a second. `work` and `changes` are told of what was done; when a transaction goes
    on after that, tell them again.
    """

    def __init__(
        self,
        store: TransferStore,
        connections: ConnectionSource,
        *,
        work: Signal,
        changes: Signal,
        max_attempts: int = 5,
        queue_limit: int = 5_000_000,
    ) -> None:
        self._store = store
        self._connections = connections
        self._work = work
        self._changes = changes
        self._max_attempts = max_attempts
        self._queue_limit = queue_limit
        self._backlog = 0
        self._count_due = float("-inf")

    async def submit(self, new: NewTransfer) -> tuple[Transfer, bool]:
        """The transfer, and whether it is new. Raises InvalidArgument, NotFound, AlreadyExists, ResourceExhausted."""
        [checked] = await self._checked([new])
        if isinstance(checked, WrongTransfer):
            raise checked.as_error()
        await self._require_room()
        [(admission, transfer_id)] = await self._insert([checked])
        if admission is Admission.CONFLICT:
            raise AlreadyExists(
                f"task_id {new.task_id!r} is that of {names.transfer(transfer_id)}, between other places",
                reason="TASK_ID_TAKEN",
                metadata={"resource": names.transfer(transfer_id)},
            )
        return await self._store.get(transfer_id), admission is Admission.NEW

    async def submit_many(self, transfers: Sequence[NewTransfer]) -> list[Submission]:
        """What came of each. Raises ResourceExhausted, and then none was taken."""
        await self._require_room()
        checked = await self._checked(transfers)
        inserted = iter(await self._insert([one for one in checked if not isinstance(one, WrongTransfer)]))
        found = []
        for one in checked:
            if isinstance(one, WrongTransfer):
                found.append(Submission("", False, one))
                continue
            admission, transfer_id = next(inserted)
            if admission is Admission.CONFLICT:
                message = f"is that of {names.transfer(transfer_id)}, between other places"
                failure = TransferFailure(ErrorReason.MALFORMED_TASK, message)
                found.append(Submission("", False, WrongTransfer("task_id", failure)))
            else:
                found.append(Submission(transfer_id, admission is Admission.NEW))
        return found

    async def admit(self, transfers: Sequence[NewTransfer]) -> Sequence[tuple[Admission, str]]:
        """See `ports.TransferIntake`. Knows no limit: whoever asks looks at `backlog` before."""
        checked = await self._checked(transfers)
        return await self._insert(
            [
                (replace(new, failure=new.failure or one.failure.failure), "")
                if isinstance(one, WrongTransfer)
                else one
                for new, one in zip(transfers, checked, strict=True)
            ]
        )

    async def backlog(self) -> int:
        """See `ports.TransferIntake`: counted about once a second, more rarely where that takes long."""
        began = time.monotonic()
        if began >= self._count_due:
            self._backlog = await self._store.backlog()
            now = time.monotonic()
            self._count_due = now + max(_COUNT_SECONDS, _COUNT_SHARE * (now - began))
        return self._backlog

    async def cancel(self, transfer_id: str) -> Transfer:
        """Cancels it; the transfer, which may take seconds to reach CANCELLED. Raises NotFound."""
        await self._store.cancel(transfer_id)
        self.tell()
        return await self._store.get(transfer_id)

    async def retry(self, transfer_id: str) -> Transfer:
        """Begins it anew. Raises NotFound, FailedPrecondition."""
        transfer = await self._store.get(transfer_id)
        try:
            connections = await self._connections.resolve({transfer.source.connection, transfer.destination.connection})
            _, _, remote = _ends(transfer.source, transfer.destination, connections)
        except WrongTransfer as wrong:
            raise FailedPrecondition(
                f"{names.transfer(transfer_id)}: {wrong.failure.message}", reason=wrong.failure.code
            ) from None
        await self._store.retry(transfer_id, remote.id)
        self._work.notify()
        self._changes.notify()
        return await self._store.get(transfer_id)

    def tell(self) -> None:
        """Tells those who do transfers and those who follow them that something was committed."""
        self._work.notify()
        self._changes.notify()

    async def _insert(self, checked: Sequence[tuple[NewTransfer, str]]) -> list[tuple[Admission, str]]:
        admissions = await self._store.insert(checked)
        self._backlog += sum(admission is Admission.NEW for admission, _ in admissions)
        self.tell()
        return admissions

    async def _require_room(self) -> None:
        if await self.backlog() >= self._queue_limit:
            raise ResourceExhausted("the queue is full", reason="QUEUE_FULL")

    async def _checked(self, transfers: Sequence[NewTransfer]) -> list[tuple[NewTransfer, str] | WrongTransfer]:
        """Each with ids of connections and the id of the FTP one, or what is wrong with it."""
        wanted = {end.connection for new in transfers for end in (new.source, new.destination)}
        connections = await self._connections.resolve(wanted)
        checked: list[tuple[NewTransfer, str] | WrongTransfer] = []
        for new in transfers:
            try:
                checked.append(self._one(new, connections))
            except WrongTransfer as wrong:
                checked.append(wrong)
        return checked

    def _one(self, new: NewTransfer, connections: Mapping[str, Connection]) -> tuple[NewTransfer, str]:
        source, destination, remote = _ends(new.source, new.destination, connections)
        _check_path("source", new.source.path, source)
        _check_path("destination", new.destination.path, destination)
        if new.metadata is not None and len(json.dumps(new.metadata, ensure_ascii=False).encode()) > _METADATA_BYTES:
            failure = TransferFailure(ErrorReason.MALFORMED_TASK, "is more than 16 KiB as JSON")
            raise WrongTransfer("metadata", failure)
        return (
            replace(
                new,
                source=Location(source.id, new.source.path),
                destination=Location(destination.id, new.destination.path),
                max_attempts=new.max_attempts or self._max_attempts,
            ),
            remote.id,
        )


def _ends(
    source: Location, destination: Location, connections: Mapping[str, Connection]
) -> tuple[Connection, Connection, Connection]:
    """Source, destination, and the one of them that is the FTP server. Raises WrongTransfer."""
    found = []
    for field, end in (("source", source), ("destination", destination)):
        connection = connections.get(end.connection)
        if connection is None:
            message = f"{names.connection(end.connection)} does not exist"
            raise WrongTransfer(f"{field}.connection", TransferFailure(ErrorReason.NO_CONNECTION, message))
        found.append(connection)
    first, last = found
    if first.is_local == last.is_local:
        what = "both are local folders" if first.is_local else "both are FTP servers"
        failure = TransferFailure(ErrorReason.ENDS, f"exactly one end must be a local folder, and {what}")
        raise WrongTransfer("destination.connection", failure)
    return first, last, last if first.is_local else first


def _check_path(field: str, path: str, connection: Connection) -> None:
    try:
        if isinstance(connection.kind, FtpServer):
            _check_remote(path, connection.kind.encoding)
        else:
            split(path)
    except TransferFailure as failure:
        raise WrongTransfer(f"{field}.path", failure) from None


def _check_remote(path: str, encoding: str) -> None:
    if not path or any(character in path for character in "\0\r\n"):
        raise TransferFailure(ErrorReason.PATH, f"{path!r} can not be sent to an FTP server")
    try:
        path.encode(encoding)
    except UnicodeEncodeError:
        raise TransferFailure(ErrorReason.PATH, f"{path!r} can not be written in {encoding}") from None
