"""Connections as the admin, and what errors on them mean."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias

import aiomysql  # type: ignore[import-untyped]
from pymysql.err import MySQLError

from opsplane_server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from opsplane_server.instances.model import Access

Row: TypeAlias = tuple[Any, ...]

SOCKET: Final = "mysqld.sock"
"""Name of the unix socket in the folder that `Access.host` may be."""

_CONNECT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
# They outrank what owners set for the server. Without a list of warnings the driver has none to print.
_SESSION: Final = (
    "SET SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', max_error_count = 0, time_zone = '+00:00', "
    "autocommit = 1, lock_wait_timeout = 10, innodb_lock_wait_timeout = 10, wait_timeout = 3600"
)

UNKNOWN_DATABASE: Final = frozenset({1008, 1049})
USER_OPERATION_FAILED: Final = 1396
READ_ONLY_VARIABLE: Final = 1238
UNKNOWN_VARIABLE: Final = 1193
NOT_GLOBAL_VARIABLE: Final = 1228
WRONG_VALUE: Final = frozenset({1231, 1232})
MORE_THAN_ONE_ROW: Final = 1242

UNREACHABLE: Final = frozenset(
    {
        1040, 1053, 1129, 1152, 1158, 1159, 1160, 1161, 1203, 1226,  # too many connections, shutdown, network
        1205, 1213, 1290, 1317, 1792, 1836, 1927, 3032, 3169,  # locks, read-only, killed, offline
        2000, 2002, 2003, 2006, 2013, 2014, 2055,  # told by the driver
    }
)  # fmt: skip
_REFUSED: Final = frozenset({1045, 1130, 1251, 1698, 2059, 2061})
_DISK_FULL: Final = frozenset({1021, 1026, 1114})
_DAMAGED: Final = frozenset({1033, 1034, 1035, 1194, 1195, 1712, 1812, 1932, 1967})
_CHARSETS: Final = {1115: "charset", 1273: "collation", 1253: "collation"}


class Session:
    """A connection as the admin."""

    def __init__(self, connection: aiomysql.Connection) -> None:
        self._connection = connection

    @property
    def version(self) -> str:
        """As the server says it, for example `10.11.6-MariaDB`."""
        return str(self._connection.get_server_info())

    @property
    def mariadb(self) -> bool:
        """Whether it is a MariaDB, else it is a MySQL."""
        return "mariadb" in self.version.lower()

    async def rows(self, sql: str, arguments: Sequence[object] = ()) -> list[Row]:
        """What a query returns. `%s` stands for an argument; without arguments `%` is nothing special."""
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql, tuple(arguments) or None)
            return list(await cursor.fetchall())

    async def execute(self, sql: str, arguments: Sequence[object] = ()) -> None:
        """A statement whose result does not matter."""
        await self.rows(sql, arguments)

    async def row(self, sql: str, arguments: Sequence[object] = ()) -> Row | None:
        """The first row, None if there is none."""
        rows = await self.rows(sql, arguments)
        return rows[0] if rows else None

    async def value(self, sql: str, arguments: Sequence[object] = ()) -> Any:
        """The first column of the first row, None if there is none."""
        row = await self.row(sql, arguments)
        return row[0] if row else None

    async def exists(self, sql: str, arguments: Sequence[object] = ()) -> bool:
        """Whether a query returns anything."""
        return bool(await self.rows(sql, arguments))


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[Session]:
    """A connection of its own, closed after the block; errors of the block that say nothing of a statement become the
    domain's.

    Raises Unavailable, FailedPrecondition (the admin is refused) and DataLoss.
    """
    with translated():
        connection = _connection(access)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                # Not by aiomysql.connect, which leaves its socket open when it is cancelled.
                await connection._connect()
            yield Session(connection)
            await _say_goodbye(connection)
        finally:
            connection.close()


@contextmanager
def translated() -> Iterator[None]:
    """Raises the domain's errors for those of the driver that can come of any statement."""
    try:
        yield
    except MySQLError as error:
        number, words = code_of(error), _words(error)
        if number in UNREACHABLE or number == 0:
            raise _unavailable(words) from error
        if number in UNKNOWN_DATABASE:
            raise NotFound(f"there is no such database: {words}") from error
        if number == 1007:
            raise AlreadyExists(f"the database exists already: {words}") from error
        if number in _CHARSETS:
            raise InvalidArgument.of(_CHARSETS[number], words) from error
        if number in _REFUSED:
            raise FailedPrecondition(f"the server refuses its admin: {words}", reason="ADMIN_REFUSED") from error
        if number in _DISK_FULL:
            raise ResourceExhausted(f"the instance has no storage left: {words}", reason="STORAGE_FULL") from error
        if number in _DAMAGED:
            raise DataLoss(f"the server finds its data damaged: {words}") from error
        raise
    except (OSError, EOFError) as error:  # TimeoutError included
        raise _unavailable(str(error) or type(error).__name__) from error


def code_of(error: MySQLError) -> int:
    """The number of an error; 0 when the driver gives none, as for a connection that is closed."""
    number = error.args[0] if error.args else 0
    return number if isinstance(number, int) else 0


def _words(error: MySQLError) -> str:
    return str(error.args[-1]) if error.args else type(error).__name__


def _unavailable(words: str) -> Unavailable:
    return Unavailable(f"the instance can not be used now: {words}", reason="INSTANCE_UNAVAILABLE")


def _connection(access: Access) -> aiomysql.Connection:
    local = access.host.startswith("/")
    return aiomysql.Connection(
        host="localhost" if local else access.host,
        port=access.port,
        unix_socket=f"{access.host}/{SOCKET}" if local else None,
        user=access.user,
        password=access.password.encode().decode("latin-1"),  # as which it would encode it
        charset="utf8mb4",
        autocommit=None,  # the statement below sets it
        init_command=_SESSION,
        ssl=_tls(access),
        program_name="opsplane",
    )


async def _say_goodbye(connection: aiomysql.Connection) -> None:
    """Else the server's log fills with aborted connections."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await connection.ensure_closed()
    except (OSError, MySQLError):  # what was done has its result already
        pass


def _tls(access: Access) -> ssl.SSLContext | None:
    if not access.ca_certificate or access.host.startswith("/"):
        return None
    context = ssl.create_default_context(cadata=access.ca_certificate)
    # The authority is the instance's own and has signed nothing else; its nodes have no names of their own.
    context.check_hostname = False
    return context
