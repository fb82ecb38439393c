"""Connections as the admin, what errors on them mean, and names in SQL."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from opsplane_server.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from opsplane_server.instances.model import Access

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection

MAINTENANCE = "postgres"
"""The database that every server has, and that is nobody's."""

_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
# They outrank what owners set for their databases and roles. A superuser must not meet functions and operators that a
# user has put in its way.
_SETTINGS = {
    "application_name": "opsplane",
    "search_path": "pg_catalog",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    "lock_timeout": "10s",
    "default_transaction_read_only": "off",
    "client_connection_check_interval": "5s",
}
_UNREACHABLE = (
    OSError,  # TimeoutError included
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # it starts, stops, or recovers from a crash
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InternalClientError,
    asyncpg.ReadOnlySQLTransactionError,  # it is the primary no more
)
_DAMAGED = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError, asyncpg.UndefinedFileError)


@asynccontextmanager
async def connected(access: Access, database: str = MAINTENANCE) -> AsyncIterator[Connection]:
    """A connection of its own, closed after the block; errors of the block that say nothing of a statement become the
    domain's.

    Raises Unavailable, FailedPrecondition (the admin is refused), NotFound (no such database) and DataLoss.
    """
    with translated():
        connection = await asyncpg.connect(
            host=access.host,
            port=access.port,
            user=access.user,
            password=access.password,
            database=database,
            ssl=_tls(access),
            timeout=_CONNECT_SECONDS,
            command_timeout=None,
            statement_cache_size=0,
            server_settings=_SETTINGS,
        )
        try:
            yield connection
        except asyncpg.InterfaceError as error:
            # Also raised for wrong arguments; only the state of the connection tells the two apart.
            if not connection.is_closed():
                raise
            raise _unavailable(error) from error
        finally:
            await _close(connection)


@contextmanager
def translated() -> Iterator[None]:
    """Raises the domain's errors for those of the driver that can come of any statement."""
    try:
        yield
    except asyncpg.InvalidCatalogNameError as error:
        raise NotFound(f"there is no such database: {error}") from error
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.ClientConfigurationError) as error:
        raise FailedPrecondition(f"the server refuses its admin: {error}", reason="ADMIN_REFUSED") from error
    except _DAMAGED as error:
        raise DataLoss(f"the server finds its data damaged: {error}") from error
    except asyncpg.DiskFullError as error:
        raise ResourceExhausted(f"the instance has no storage left: {error}", reason="STORAGE_FULL") from error
    except _UNREACHABLE as error:
        raise _unavailable(error) from error


def quote_identifier(name: str) -> str:
    """A name as SQL takes it, whatever it holds. ValueError for NUL, which no name can hold."""
    if not name or "\0" in name:
        raise ValueError(f"not a name: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """A text as SQL takes it, for statements that take no arguments. ValueError for NUL."""
    if "\0" in text:
        raise ValueError("a text can not hold NUL")
    quoted = "'" + text.replace("'", "''") + "'"
    # Whatever standard_conforming_strings says, a backslash in E'' is escaped by another one.
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def _unavailable(error: Exception) -> Unavailable:
    words = str(error) or type(error).__name__
    return Unavailable(f"the instance can not be used now: {words}", reason="INSTANCE_UNAVAILABLE")


async def _close(connection: Connection) -> None:
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # what was done has its result already
        connection.terminate()
    except BaseException:
        connection.terminate()
        raise


def _tls(access: Access) -> ssl.SSLContext | bool:
    if not access.ca_certificate or access.host.startswith("/"):
        return False
    context = ssl.create_default_context(cadata=access.ca_certificate)
    # The authority is the instance's own and has signed nothing else; its nodes have no names of their own.
    context.check_hostname = False
    return context
