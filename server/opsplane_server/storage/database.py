"""The pool of connections, and transactions that several stores share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeAlias, TypeVar

import asyncpg
import structlog

from opsplane_server.errors import Aborted, FailedPrecondition, OpsplaneError, Unavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy
    from asyncpg.transaction import Transaction

    Connection: TypeAlias = PoolConnectionProxy[asyncpg.Record]
    """What stores speak to: asyncpg's connection, whose errors of the link arrive as domain errors."""
    _DriverConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.pool.PoolConnectionProxy
    _DriverConnection = asyncpg.Connection

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_ACQUIRE_SECONDS = 10.0
_CLOSE_SECONDS = 10.0
_UNDO_SECONDS = 5.0
_SERVER_SETTINGS = {
    "application_name": "opsplane",
    # A follower waits for the oldest transaction: one that its process has forgotten must not stop them all.
    "idle_in_transaction_session_timeout": "60s",
    # Neither must a statement, with its locks, whose process is dead or has given it up.
    "client_connection_check_interval": "5s",
}

_UNREACHABLE = (
    OSError,  # TimeoutError included
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, crash, start-up, a cancelled statement
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalClientError,  # a statement after the server's last word, before its end of the link is seen
)
_CONFLICTS = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,  # a wrong password included
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
)


def translate(error: BaseException) -> OpsplaneError | None:
    """The domain's word for a driver error that has nothing to do with the statement; None for all others."""
    if isinstance(error, _UNREACHABLE):
        return Unavailable(f"the database can not be reached now: {_words(error)}", reason="DATABASE_UNAVAILABLE")
    if isinstance(error, _CONFLICTS):
        return Aborted(f"another change got in between, try again: {_words(error)}", reason="DATABASE_CONFLICT")
    if isinstance(error, _REFUSED):
        return FailedPrecondition(f"the database refuses the connection: {error}", reason="DATABASE_REFUSED")
    return None


@asynccontextmanager
async def transaction_on(connection: Connection) -> AsyncIterator[None]:
    """A transaction on a connection that the caller holds; an error that leaves the block undoes it and is told."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except BaseException:
        await _undo(connection, transaction)
        raise
    await transaction.commit()


async def _undo(connection: Connection, transaction: Transaction) -> None:
    """Rolls back, or ends the connection, which undoes it as well; the error that led here is the one to tell."""
    try:
        async with asyncio.timeout(_UNDO_SECONDS):
            await transaction.rollback()
    except (TimeoutError, OpsplaneError, asyncpg.PostgresError, asyncpg.InterfaceError):
        # A cancellation that reaches the server before the statement it is meant for is lost: it may run for long.
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()


def _is_lost(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has noticed and taken it back already
        return True


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


@contextmanager
def translated() -> Iterator[None]:
    """Raises the domain's errors for what the driver calls within the block raise."""
    try:
        yield
    except (OSError, asyncpg.PostgresError, asyncpg.ClientConfigurationError, asyncpg.InternalClientError) as error:
        if (domain_error := translate(error)) is None:
            raise
        raise domain_error from error


def _translated(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with translated():
            return await method(*args, **kwargs)

    return call


class _Connection(_DriverConnection):
    """Translates at each call, so that an OSError or timeout of the caller's own code is never taken for ours."""

    __slots__ = ()

    if not TYPE_CHECKING:  # the overloads of the base class stay what type checkers see
        executemany = _translated(asyncpg.Connection.executemany)
        fetch = _translated(asyncpg.Connection.fetch)
        fetchmany = _translated(asyncpg.Connection.fetchmany)
        fetchrow = _translated(asyncpg.Connection.fetchrow)
        fetchval = _translated(asyncpg.Connection.fetchval)
        copy_records_to_table = _translated(asyncpg.Connection.copy_records_to_table)
        copy_to_table = _translated(asyncpg.Connection.copy_to_table)

    @_translated
    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        status = await super().execute(query, *args, timeout=timeout)
        # COMMIT of a transaction in which a statement failed rolls back, and says so only here. Without this, code
        # that swallows a statement's error reports success for writes that are gone.
        if status == "ROLLBACK" and query.startswith("COMMIT"):
            raise asyncpg.InFailedSQLTransactionError(
                "a statement of this transaction failed; its error was ignored and nothing was committed"
            )
        return status


async def _leave(connection: _DriverConnection) -> None:
    """In place of the statements by which a session is brought back to its beginnings."""


@dataclass(slots=True)
class _Ambient:
    connection: Connection
    failed: bool = False


class Database:
    """A pool of connections to `dsn`, opened by `async with`.

    A statement that runs longer than `command_timeout` seconds counts as Unavailable, and so do a lost, refused or
    missing connection, within about ten seconds. `stateless` spares a round trip a use: nothing that is set on a
    connection may outlive its block then. Deadlocks and serialization failures are Aborted. All other errors
    of statements are asyncpg's own: stores catch what they expect (UniqueViolationError and the like).
    """

    def __init__(
        self,
        dsn: str,
        *,
        min_size: int = 2,
        max_size: int = 10,
        command_timeout: float = 60.0,
        stateless: bool = False,
    ) -> None:
        self._dsn = dsn
        self._min_size = min_size
        self._max_size = max_size
        self._command_timeout = command_timeout
        self._stateless = stateless
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._ambient: dict[asyncio.Task[Any] | None, _Ambient] = {}

    async def __aenter__(self) -> Self:
        with translated():
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=self._min_size,
                max_size=self._max_size,
                timeout=_ACQUIRE_SECONDS,
                command_timeout=self._command_timeout,
                connection_class=_Connection,
                reset=_leave if self._stateless else None,
                server_settings=_SERVER_SETTINGS,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, self._pool = self._pool, None
        assert pool is not None
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await pool.close()
        except TimeoutError:
            log.warning("database connections still in use are cut")
            pool.terminate()

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """A connection: of this task's transaction if it is inside one, else of the pool and in autocommit."""
        ambient = self._ambient.get(asyncio.current_task())
        return self._acquire() if ambient is None else self._borrow(ambient)

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """Joins this task's transaction, or begins one that commits at the end of the block.

        All blocks that joined are one transaction: an error that leaves any of them undoes everything, and whoever
        catches it further out can not commit (RuntimeError). To survive the error of a statement, use a savepoint:
        `async with connection.transaction()`.

        It belongs to the task itself: a child task never joins. `asyncio.wait_for` makes a child task before Python
        3.12; use `asyncio.timeout`.
        """
        task = asyncio.current_task()
        ambient = self._ambient.get(task)
        return self._begin(task) if ambient is None else self._join(ambient)

    @asynccontextmanager
    async def _begin(self, task: asyncio.Task[Any] | None) -> AsyncIterator[Connection]:
        async with self._acquire() as connection, transaction_on(connection):
            ambient = self._ambient[task] = _Ambient(connection)
            try:
                yield connection
                if ambient.failed:
                    raise RuntimeError("an error left a joined block of this transaction and was ignored")
            finally:
                del self._ambient[task]

    @asynccontextmanager
    async def _join(self, ambient: _Ambient) -> AsyncIterator[Connection]:
        try:
            yield ambient.connection
        except BaseException:
            ambient.failed = True
            raise

    @asynccontextmanager
    async def _borrow(self, ambient: _Ambient) -> AsyncIterator[Connection]:
        yield ambient.connection

    @asynccontextmanager
    async def _acquire(self) -> AsyncIterator[Connection]:
        pool = self._pool
        if pool is None:
            raise RuntimeError("the database is not open")
        try:
            with translated():
                connection = await pool.acquire(timeout=_ACQUIRE_SECONDS)
        except asyncpg.InterfaceError as error:
            raise Unavailable(f"the database is being closed: {error}", reason="DATABASE_UNAVAILABLE") from error
        try:
            yield connection
        except asyncpg.InterfaceError as error:
            # Also raised for wrong arguments; only the state of the connection tells the two apart.
            if not _is_lost(connection):
                raise
            raise Unavailable("the connection to the database was lost", reason="DATABASE_UNAVAILABLE") from error
        finally:
            try:
                await pool.release(connection)
            except (
                OpsplaneError,
                OSError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
            ) as error:
                # The pool replaces it. What the block did has its result already, which this must not hide.
                log.warning("database connection dropped", error=_words(error))
