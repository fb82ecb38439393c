"""What FtpTransfer needs from outside: FTP sessions, a queue, and stores.

Stores join the ambient transaction of their caller. They speak of connections and transfers by id; a missing one
raises `errors.NotFound`. What has to do with files and FTP servers raises `failures.TransferFailure`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Protocol

from opsplane_server.ftptransfer.model import (
    Admission,
    Child,
    Connection,
    Counts,
    FtpServer,
    NewTransfer,
    Outcome,
    PoolFigures,
    Probe,
    Progress,
    RemoteFile,
    ServiceFigures,
    Task,
    Transfer,
    WorkerFigures,
)
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest
from opsplane_server.storage.followers import Position


class RemoteSession(Protocol):
    """A session that is logged in, for one command at a time. Paths are whole; every method raises TransferFailure."""

    @property
    def greeting(self) -> str:
        """What the server said first."""
        ...

    @property
    def features(self) -> frozenset[str]:
        """What FEAT names, upper case, for example `REST STREAM`."""
        ...

    @property
    def tls_cipher(self) -> str:
        """TLS version and cipher; empty without TLS."""
        ...

    @property
    def certificate_sha256(self) -> str:
        """SHA-256 of the server's certificate, hexadecimal; empty without TLS."""
        ...

    @property
    def supports_resume(self) -> bool:
        """Whether `offset` may be other than 0."""
        ...

    async def list(self, path: str) -> list[RemoteFile]:
        """The entries of a folder, without `.` and `..`; an empty path is the folder after the login."""
        ...

    async def stat(self, path: str) -> RemoteFile:
        """The file or folder; fails with NOT_FOUND."""
        ...

    async def size(self, path: str) -> int | None:
        """Size of a file; None where the server does not say. Fails with NOT_FOUND."""
        ...

    async def retrieve(self, path: str, descriptor: int, *, offset: int = 0, progress: Callable[[int], None]) -> int:
        """Writes the file from `offset` on into the open file at its position; returns how many bytes.

        `progress` is called with the bytes so far. It returns when the server has confirmed the end.
        """
        ...

    async def store(self, path: str, descriptor: int, *, offset: int = 0, progress: Callable[[int], None]) -> int:
        """Sends the rest of the open file from `offset` on, to the same place of `path`; returns how many bytes."""
        ...

    async def rename(self, old: str, new: str) -> None:
        """Renames a file, over one that exists."""
        ...

    async def delete(self, path: str) -> bool:
        """Deletes a file; False when it was not there."""
        ...

    async def make_folders(self, path: str) -> None:
        """Makes a folder and those above it, where they are missing."""
        ...

    async def set_modify_time(self, path: str, time: datetime) -> bool:
        """Sets the time of a file; False where the server does not allow it."""
        ...

    async def stamp(self, path: str, time: datetime) -> int | None:
        """Sets the time of a file, where the server allows it, and returns its size as `size` does."""
        ...

    async def check(self) -> bool:
        """Whether the session still answers."""
        ...


class Sessions(Protocol):
    """The sessions of all connections."""

    def session(self, connection: Connection) -> AbstractAsyncContextManager[RemoteSession]:
        """A session for the block; waits for a free place. One whose reply state is unknown is not used again."""
        ...

    def figures(self) -> Mapping[str, PoolFigures]:
        """The connections, by id, that have or lately had sessions in this process."""
        ...

    def held_back(self) -> Collection[str]:
        """Ids of connections whose server failed again and again: no task of theirs is to be taken now."""
        ...

    async def probe(self, server: FtpServer, path: str) -> Probe:
        """Tries a server with a session of its own: logs in and lists `path`. Failures are the answer."""
        ...


class TransferQueue(Protocol):
    """Tasks under leases. A worker's lease holds all that it took; what it lost it can not change any more."""

    async def take(self, worker: str, limit: int, *, without: Collection[str]) -> Sequence[Task]:
        """Up to `limit` tasks by priority, then age, retries that are due included; none of the connections `without`.

        `without` may also name connections that have no place free: they are passed over cheaply however many tasks
        they have. First come those that are to be cleaned up after, see `Task.cancelled`: of connections `without` only
        the downloads, for which no session is needed.
        """
        ...

    async def settle(self, worker: str, outcomes: Sequence[tuple[Task, Outcome]]) -> None:
        """Keeps what came of tasks, all in one transaction. Those that the worker has lost are left as they are."""
        ...

    async def renew(self, worker: str, progress: Sequence[Progress]) -> Collection[str]:
        """Renews the worker's lease and keeps the progress; to be called each second with all tasks under way.

        Returns ids of the tasks that were cancelled or lost: break them off and settle them as Cancelled.
        """
        ...

    async def expand(self, task: Task, children: Sequence[Child]) -> None:
        """Adds transfers for files of a glob or tree; those that were added before are left as they are.

        When all are given, settle the task as Expanded. Raises `errors.LeaseLost` when the worker has lost the task.
        """
        ...

    async def leave(self, worker: str) -> None:
        """Ends the worker's lease at once: what it still holds is free for others."""
        ...


class TransferIntake(Protocol):
    """The other end of the queue: where tasks come in."""

    async def admit(self, transfers: Sequence[NewTransfer]) -> Sequence[tuple[Admission, str]]:
        """Keeps them, all in one transaction; for each what became of it and the id of the transfer that there is.

        A wrong one, or one with `failure`, is kept as FAILED, and with a `message` goes to the outbox at once.
        Locations may name connections by their section of connections.ini. Joins the ambient transaction.
        """
        ...

    async def backlog(self) -> int:
        """About how many transfers have not ended; cheap enough to ask before each batch."""
        ...


class ConnectionSource(Protocol):
    """Where connections are looked up by those who use them; those of connections.ini go before those of the store."""

    async def resolve(self, ids: Collection[str]) -> Mapping[str, Connection]:
        """The connections of these ids, with passwords, at most a second old; those that are not there are left out."""
        ...


class ConnectionStore(Protocol):
    """Keeps connections that were made by RPC."""

    async def insert(self, connection: Connection) -> Connection:
        """Stores a new connection and returns it with its times. AlreadyExists."""
        ...

    async def get(self, connection_id: str) -> Connection:
        """Returns the connection."""
        ...

    async def lock(self, connection_id: str) -> Connection:
        """Returns the connection and keeps others from changing it until the transaction ends."""
        ...

    async def find(self, ids: Collection[str]) -> dict[str, Connection]:
        """The connections of these ids; those that are not there are left out."""
        ...

    async def revisions(self, ids: Collection[str]) -> dict[str, int]:
        """The revisions of these connections as they are now; those that are not there are left out."""
        ...

    async def list_connections(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Connection]:
        """Up to `page.size + 1` connections, newest first."""
        ...

    async def update(self, connection: Connection) -> Connection:
        """Stores title and kind, counts the revision up and returns the connection."""
        ...

    async def delete(self, connection_id: str) -> None:
        """Deletes the connection."""
        ...


class TransferStore(Protocol):
    """Keeps transfers."""

    async def insert(self, transfers: Sequence[tuple[NewTransfer, str]]) -> list[tuple[Admission, str]]:
        """Puts transfers into the queue, each with the id of its FTP connection; see `TransferIntake.admit`.

        AlreadyExists when an id is taken.
        """
        ...

    async def get(self, transfer_id: str) -> Transfer:
        """Returns the transfer."""
        ...

    async def list_transfers(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Transfer]:
        """Up to `page.size + 1` transfers, newest first."""
        ...

    async def cancel(self, transfer_id: str) -> None:
        """Cancels the transfer, and those made of it, unless it has ended.

        One that no worker ever had ends at once, another when what it left is removed.
        """
        ...

    async def retry(self, transfer_id: str, remote: str) -> None:
        """Puts a transfer that failed or was cancelled into the queue anew; `remote` is its FTP connection."""
        ...

    async def count_active(self, connection_id: str) -> int:
        """How many transfers that have not ended need the connection."""
        ...

    async def cancel_all(self, connection_id: str) -> None:
        """Cancels the transfers that have not ended and need the connection."""
        ...

    async def backlog(self) -> int:
        """How many transfers have not ended."""
        ...


class TransferFollowing(Protocol):
    """Reads what happens to transfers."""

    async def position(self) -> Position:
        """Where the changes from now on begin."""
        ...

    async def changes(self, after: Position, limit: int, *, settled_only: bool) -> list[tuple[Position, Sequence[int]]]:
        """Up to `limit` changes after a position, in order, each with the keys of the transfers it was of.

        Unless only settled ones are read, more may come before those that were.
        """
        ...

    async def by_ids(self, ids: Sequence[str]) -> list[Transfer]:
        """The transfers of these ids."""
        ...

    async def by_keys(self, keys: Sequence[int], conditions: Sequence[Condition]) -> list[Transfer]:
        """Those of the transfers that match, by age."""
        ...

    async def active(self, conditions: Sequence[Condition], after: int, limit: int) -> list[Transfer]:
        """Up to `limit` transfers after a key that match and have not ended, by age."""
        ...

    async def running(self, conditions: Sequence[Condition]) -> list[Transfer]:
        """The transfers that match and are under way."""
        ...

    async def counts(self, conditions: Sequence[Condition]) -> Counts:
        """Counts of all that match. Bytes of globs and trees are those of their files, which count if they match."""
        ...


class FigureStore(Protocol):
    """Keeps the figures of all processes."""

    async def beat(self, worker: WorkerFigures) -> None:
        """Keeps the figures of a process."""
        ...

    async def leave(self, worker: str) -> None:
        """Says that the process ends; what it counted stays."""
        ...

    async def read(self) -> ServiceFigures:
        """The figures of all processes that were heard of lately, and what the database counted."""
        ...


class Sweeps(Protocol):
    """What nobody but time does. Several processes may do it at once; one of them does, the others return."""

    async def sweep(self) -> bool:
        """Frees what dead workers held, ends what is cancelled and trees that are complete; True if there is more."""
        ...

    async def forget(self, age: timedelta) -> int:
        """Deletes transfers that ended longer than `age` ago, and what else is old; how many transfers."""
        ...
