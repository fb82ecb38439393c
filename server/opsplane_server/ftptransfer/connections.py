"""Connections: those of connections.ini, which can only be read here, and those of the store."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from opsplane_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.connections_file import ConnectionsFile
from opsplane_server.ftptransfer.model import Connection, FtpServer, LocalFolder
from opsplane_server.ftptransfer.ports import ConnectionStore, TransferStore
from opsplane_server.rpc import etags
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest

_FRESH_SECONDS: Final = 1.0


class ConnectionCatalog:
    """`ports.ConnectionSource`: all connections, for those who use them. Keeps what it read for a second."""

    def __init__(self, file: ConnectionsFile, store: ConnectionStore) -> None:
        self._file = file
        self._store = store
        self._known: dict[str, Connection] = {}
        self._checked = float("-inf")

    async def resolve(self, ids: Collection[str]) -> Mapping[str, Connection]:
        """See the port. An id may also be the name of a section of connections.ini."""
        found: dict[str, Connection] = {}
        stored: set[str] = set()
        for one in ids:
            connection = self._file.find(one)
            if connection is None:
                stored.add(one)
            else:
                found[one] = connection
        if stored:
            await self._refresh(stored)
            found.update((one, self._known[one]) for one in stored if one in self._known)
        return found

    def expire(self) -> None:
        """Says that connections were changed here: who changed them must find them so at once."""
        self._checked = float("-inf")

    async def get(self, connection_id: str) -> Connection:
        """The connection as it is now. Raises NotFound."""
        connection = self._file.connections.get(connection_id)
        return connection if connection is not None else await self._store.get(connection_id)

    async def list_connections(self, page: PageRequest, conditions: Sequence[Condition]) -> list[Connection]:
        """Up to `page.size + 1`: those of the file in its order, then those of the store, newest first.

        The sort key of a page is (0, place in the file) or (1, key in the store).
        """
        section, place = page.key or (0, 0)
        found: list[Connection] = []
        if section == 0:
            found = [
                one
                for one in self._file.connections.values()
                if one.key > int(place or 0) and all(_holds(one, condition) for condition in conditions)
            ]
        if len(found) <= page.size:
            key = (place,) if section == 1 else None
            wanted = PageRequest(page.size - len(found), key)
            stored = await self._store.list_connections(wanted, conditions)
            found += [one for one in stored if one.id not in self._file.connections]
        return found[: page.size + 1]

    async def _refresh(self, ids: Collection[str]) -> None:
        now = time.monotonic()
        if now - self._checked > _FRESH_SECONDS:
            revisions = await self._store.revisions(self._known.keys() | ids)
            self._known = {
                one: connection for one, connection in self._known.items() if revisions.get(one) == connection.revision
            }
            self._checked = now
        missing = [one for one in ids if one not in self._known]
        if missing:
            self._known.update(await self._store.find(missing))


class Connections:
    """Creates, changes and deletes connections. Every method joins the caller's transaction where there is one.

    `folders`: the only ones in which local folders may be; empty for all. `forbidden` ones may neither be in a local
    folder nor around it: what the server keeps for itself. `reserved`: folders that the connections of these ids alone
    may have all the same.
    """

    def __init__(
        self,
        file: ConnectionsFile,
        store: ConnectionStore,
        transfers: TransferStore,
        *,
        folders: Sequence[Path] = (),
        forbidden: Sequence[Path] = (),
        reserved: Mapping[str, Path] | None = None,
    ) -> None:
        self._file = file
        self._store = store
        self._transfers = transfers
        self._folders = [Path(os.path.realpath(folder)) for folder in folders]
        self._forbidden = [Path(os.path.realpath(folder)) for folder in forbidden]
        self._reserved = {name: Path(os.path.realpath(folder)) for name, folder in (reserved or {}).items()}

    async def create(self, connection: Connection) -> Connection:
        """Raises InvalidArgument, AlreadyExists."""
        self.check(connection)
        if connection.id in self._file.connections:
            raise AlreadyExists.resource(names.connection(connection.id))
        return await self._store.insert(connection)

    async def change(self, connection_id: str, etag: str) -> Connection:
        """The connection, locked, to be changed. Raises NotFound, Aborted, FailedPrecondition."""
        self._refuse_file(connection_id)
        current = await self._store.lock(connection_id)
        etags.check(etag, names.connection(current.id), current.revision)
        return current

    async def update(self, connection: Connection) -> Connection:
        """Stores a changed connection. Raises InvalidArgument."""
        self.check(connection)
        return await self._store.update(connection)

    async def delete(self, connection_id: str, *, etag: str, force: bool) -> None:
        """Deletes it; with `force` transfers that need it are cancelled. Raises what `change` raises."""
        current = await self.change(connection_id, etag)
        needed = await self._transfers.count_active(current.id)
        if needed and not force:
            raise FailedPrecondition(
                f"{names.connection(current.id)}: {needed} transfers need it; use force",
                reason="CONNECTION_IN_USE",
                metadata={"resource": names.connection(current.id)},
            )
        if needed:
            await self._transfers.cancel_all(current.id)
        await self._store.delete(current.id)

    def check(self, connection: Connection) -> None:
        """Raises InvalidArgument for a local folder that may not be used, and for an encoding that is none."""
        kind = connection.kind
        if isinstance(kind, FtpServer):
            _check_encoding(kind.encoding)
            return
        base = Path(os.path.realpath(kind.base_path))
        if self._reserved.get(connection.id) == base:
            return
        if any(base.is_relative_to(folder) or folder.is_relative_to(base) for folder in self._forbidden):
            raise _refused_folder("holds what the server keeps for itself")
        if self._folders and not any(base.is_relative_to(folder) for folder in self._folders):
            raise _refused_folder("is not in a folder that the server's configuration allows")

    def _refuse_file(self, connection_id: str) -> None:
        if connection_id in self._file.connections:
            name = names.connection(connection_id)
            raise FailedPrecondition(
                f"{name} comes from connections.ini; change it there",
                reason="CONNECTION_FROM_FILE",
                metadata={"resource": name},
            )


def _refused_folder(what: str) -> InvalidArgument:
    return InvalidArgument.of("connection.local.base_path", what, reason="FOLDER_NOT_ALLOWED")


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
        b"".decode(encoding)
    except (LookupError, ValueError, TypeError):
        raise InvalidArgument.of("connection.ftp.encoding", f"{encoding!r} is no encoding of text") from None


def _holds(connection: Connection, condition: Condition) -> bool:
    """Whether a connection of the file meets a condition, as SQL would have it."""
    kind = connection.kind
    value: object = {
        "title": connection.title,
        "kind": "local" if isinstance(kind, LocalFolder) else "ftp",
        "host": kind.host if isinstance(kind, FtpServer) else "",
        "create_time": connection.create_time,
    }[condition.field]
    wanted = condition.value
    match condition.op:
        case "=":
            return value == wanted
        case "!=":
            return value != wanted
        case ":":
            return str(wanted).lower() in str(value).lower()
        case op:
            return bool(_COMPARE[op](value, wanted))


_COMPARE: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
