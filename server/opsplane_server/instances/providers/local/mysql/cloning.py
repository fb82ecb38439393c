"""MySQL's own copying statement: CLONE LOCAL DATA DIRECTORY."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from datetime import UTC, datetime, timedelta
from typing import Final

from pymysql.err import MySQLError

from opsplane_server.errors import FailedPrecondition, OpsplaneError, ResourceExhausted, Unavailable
from opsplane_server.instances.engines.mysql.connecting import UNREACHABLE, Session, code_of, connected
from opsplane_server.instances.engines.mysql.databases import kill
from opsplane_server.instances.engines.mysql.names import SYSTEM_DATABASE_LIST
from opsplane_server.instances.model import Access
from opsplane_server.instances.providers.local.bulk import Part
from opsplane_server.instances.providers.local.copies import CopyFolder

_POLL_SECONDS: Final = 0.2
_NO_ROOM: Final = frozenset({3, 14, 1021, 1026})  # it can not write or extend a file
_NOTED_LATER: Final = timedelta(milliseconds=100)
_WORKING_STAGES: Final = "FILE COPY,PAGE COPY,REDO COPY"


async def copy(access: Access, folder: CopyFolder, part: Part) -> datetime:
    """Copies the data of a server at work to `folder.data`, ready for a start; the moment that they are of."""
    async with connected(access) as session:
        if not await session.exists("SELECT 1 FROM information_schema.plugins WHERE plugin_name = 'clone'"):
            raise FailedPrecondition(
                "this build of MySQL has no plugin mysql_clone, which copies are made by", reason="COPY_NOT_SUPPORTED"
            )
        await _require_innodb(session)
        await _end_others(session, folder)
        connection = await session.value("SELECT CONNECTION_ID()")
        start_time = datetime.now(UTC)
        cloning = asyncio.create_task(session.execute("CLONE LOCAL DATA DIRECTORY = %s", (str(folder.data),)))
        try:
            while not (await asyncio.wait({cloning}, timeout=_POLL_SECONDS))[0]:
                await part.tell(await _percent(access))
            cloning.result()
        except MySQLError as error:
            if code_of(error) in UNREACHABLE:
                raise
            if code_of(error) in _NO_ROOM:
                raise ResourceExhausted(f"no room for the copy: {error.args[-1]}", reason="NO_SPACE") from error
            raise FailedPrecondition(f"the copy could not be made: {error.args[-1]}", reason="COPY_FAILED") from error
        finally:
            if not cloning.done():
                await asyncio.shield(_break_off(access, int(connection), cloning))
        return await _cut_time(session) or start_time


async def _require_innodb(session: Session) -> None:
    """Other tables would be empty in the copy: better none than one that lacks data without a word."""
    rows = await session.rows(
        "SELECT CONCAT(table_schema, '.', table_name) FROM information_schema.tables WHERE engine <> 'InnoDB'"
        " AND table_type = 'BASE TABLE' AND FIND_IN_SET(table_schema, %s) = 0 ORDER BY 1",
        (SYSTEM_DATABASE_LIST,),
    )
    if rows:
        names = ", ".join(row[0] for row in rows[:10])
        raise FailedPrecondition(
            f"MySQL copies InnoDB tables alone; of another engine are: {names}",
            reason="COPY_NOT_SUPPORTED",
            metadata={"count": str(len(rows))},
        )


async def _end_others(session: Session, folder: CopyFolder) -> None:
    """Ends what a killed process of ours had begun: the server goes on when nobody listens, and makes one at a time."""
    while rows := await session.rows(
        "SELECT id, info FROM information_schema.processlist WHERE info LIKE 'CLONE LOCAL %'"
    ):
        for connection, statement in rows:
            if f"'{folder.data}'" not in str(statement):
                raise Unavailable("another copy of this instance is being made", reason="COPY_IN_PROGRESS")
            await kill(session, [int(connection)])
        await asyncio.sleep(_POLL_SECONDS)
    await asyncio.to_thread(shutil.rmtree, folder.data, ignore_errors=True)


async def _percent(access: Access) -> int:
    """What is done; 0 while it is not known, as without the performance schema."""
    with contextlib.suppress(OpsplaneError):
        async with connected(access) as session:
            row = await session.row(
                "SELECT SUM(data), SUM(estimate) FROM performance_schema.clone_progress"
                " WHERE FIND_IN_SET(stage, %s) > 0",
                (_WORKING_STAGES,),
            )
            if row is not None and row[1]:
                return min(99, int(row[0] or 0) * 100 // int(row[1]))
    return 0


async def _cut_time(session: Session) -> datetime | None:
    """The log is copied up to where it ends when the copying of pages is over, which is noted a moment later: what was
    committed by the time told here is in the copy, and what was committed right after it may be. None without the
    performance schema.
    """
    row = await session.row(
        "SELECT begin_time, end_time FROM performance_schema.clone_progress"
        " WHERE stage = 'PAGE COPY' AND state = 'Completed'"
    )
    if row is None or None in row:
        return None
    begin: datetime = row[0].replace(tzinfo=UTC)
    end: datetime = row[1].replace(tzinfo=UTC)
    return max(begin, end - _NOTED_LATER)


async def _break_off(access: Access, connection: int, cloning: asyncio.Task[None]) -> None:
    """The server goes on when nobody listens, and writes to a folder that is about to be removed."""
    with contextlib.suppress(OpsplaneError, MySQLError):
        async with connected(access) as session:
            await session.execute("KILL QUERY %s", (connection,))
    await asyncio.wait({cloning})
    with contextlib.suppress(Exception):
        cloning.result()
