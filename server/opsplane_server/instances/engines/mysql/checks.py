"""Looking through the data of an instance: is everything there, and can it be read?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from pymysql.err import MySQLError

from opsplane_server.errors import DataLoss
from opsplane_server.instances.engines.mysql.connecting import Session, code_of
from opsplane_server.instances.engines.mysql.databases import database_exists, user_hosts
from opsplane_server.instances.engines.mysql.names import SYSTEM_DATABASE_LIST, quote_identifier

_FINE: Final = frozenset({"status", "note", "info", "warning"})
_SYSTEM_TABLES: Final = "mysql"
_LOST_CONNECTION: Final = frozenset({0, 2006, 2013})


async def count_rows(session: Session) -> Mapping[str, int]:
    """Rows by `database.table`, all of one moment: in this family a schema is a database."""
    # Without it, what is committed meanwhile would be in some counts and not in others.
    await session.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    await session.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
    counts: dict[str, int] = {}
    for database, table in await tables(session):
        target = f"{quote_identifier(database)}.{quote_identifier(table)}"
        try:
            counts[f"{database}.{table}"] = int(await session.value(f"SELECT COUNT(*) FROM {target}"))  # noqa: S608
        except MySQLError as error:
            if code_of(error) in _LOST_CONNECTION:
                raise
            raise DataLoss(f"the table {database}.{table} can not be read: {error.args[-1]}") from error
    await session.execute("COMMIT")
    return counts


async def estimated_rows(session: Session) -> Mapping[str, int]:
    """The same as the engine estimates them, without reading the tables."""
    if not session.mariadb:
        await session.execute("SET SESSION information_schema_stats_expiry = 0")
    rows = await session.rows(
        "SELECT table_schema, table_name, COALESCE(table_rows, 0) FROM information_schema.tables"
        " WHERE table_type NOT LIKE '%%VIEW' AND FIND_IN_SET(table_schema, %s) = 0",
        (SYSTEM_DATABASE_LIST,),
    )
    return {f"{database}.{table}": int(count) for database, table, count in rows}


async def tables(session: Session) -> Sequence[tuple[str, str]]:
    """Those of users that hold rows, with their databases."""
    rows = await session.rows(
        "SELECT table_schema, table_name FROM information_schema.tables"
        " WHERE table_type NOT LIKE '%%VIEW' AND table_type <> 'SEQUENCE' AND FIND_IN_SET(table_schema, %s) = 0"
        " ORDER BY 1, 2",
        (SYSTEM_DATABASE_LIST,),
    )
    return [(database, table) for database, table in rows]


async def check_catalog(session: Session, databases: Collection[str], users: Collection[str]) -> str:
    """Has the server check its own tables and, with all their indexes, those of users. DataLoss."""
    missing = [name for name in sorted(databases) if not await database_exists(session, name)]
    if missing:
        raise DataLoss(f"databases are missing: {', '.join(missing)}")
    missing = [name for name in sorted(users) if not await user_hosts(session, name)]
    if missing:
        raise DataLoss(f"users are missing: {', '.join(missing)}")
    own = await session.rows(
        "SELECT table_schema, table_name FROM information_schema.tables"
        " WHERE table_schema = %s AND table_type = 'BASE TABLE' AND engine <> 'CSV' ORDER BY 2",  # these are logs
        (_SYSTEM_TABLES,),
    )
    theirs = await tables(session)
    for database, table in (*own, *theirs):
        await _check_table(session, database, table)
    return (
        f"{len(databases)} databases and {len(users)} users are there; {len(own)} system tables and"
        f" {len(theirs)} tables of users are sound"
    )


async def _check_table(session: Session, database: str, table: str) -> None:
    target = f"{quote_identifier(database)}.{quote_identifier(table)}"
    for _, _, kind, words in await session.rows(f"CHECK TABLE {target} EXTENDED"):
        if str(kind).lower() not in _FINE or (str(kind).lower() == "warning" and "corrupt" in str(words).lower()):
            raise DataLoss(f"the table {database}.{table} is damaged: {words}")
        if str(kind).lower() == "status" and str(words).lower() in ("corrupt", "operation failed"):
            raise DataLoss(f"the table {database}.{table} is damaged: {words}")
