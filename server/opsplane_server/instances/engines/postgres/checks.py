"""Looking through all of a server's data, for a copy that was restored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from opsplane_server.errors import DataLoss, NotFound
from opsplane_server.instances.engines.postgres.connecting import Connection, connected, quote_identifier
from opsplane_server.instances.model import Access

_DATABASES = """
SELECT datname::text FROM pg_database
WHERE NOT datistemplate AND datallowconn AND datname <> 'postgres' ORDER BY datname
"""
# Partitioned tables hold nothing themselves.
_TABLES = """
SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND (c.relkind = 'r' OR c.relispopulated)
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
ORDER BY 1, 2
"""
_SYSTEM_TABLES = """
SELECT c.relname::text FROM pg_class c
WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' ORDER BY 1
"""
_FINDINGS: Final = {
    # A file of every table and index; temporary ones are those of connections that are gone.
    "has no file": """
        SELECT c.oid::regclass::text FROM pg_class c
        WHERE pg_relation_filepath(c.oid) IS NOT NULL AND c.relpersistence <> 't'
            AND (pg_stat_file(pg_relation_filepath(c.oid), true)).size IS NULL""",
    "is in a schema that is not there": """
        SELECT c.oid::regclass::text FROM pg_class c
        WHERE NOT EXISTS (SELECT FROM pg_namespace n WHERE n.oid = c.relnamespace)""",
    "has lost columns": """
        SELECT c.oid::regclass::text FROM pg_class c
        WHERE c.relnatts <> (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)""",
    "is an index of nothing": """
        SELECT i.indexrelid::regclass::text FROM pg_index i
        WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = i.indrelid)
            OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = i.indexrelid)""",
}
# Everything is to be read, not only what an index says of it.
_BY_HEAP: Final = "SET LOCAL enable_seqscan = on; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off"
_BY_INDEX: Final = "SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = on; SET LOCAL enable_bitmapscan = off"


async def count_rows(access: Access) -> Mapping[str, int]:
    """See the port."""
    counted: dict[str, int] = {}
    async with connected(access) as connection:
        databases = [row["datname"] for row in await connection.fetch(_DATABASES)]
    for database in databases:
        async with _damage_is_told(database), connected(access, database) as connection:
            for table in await connection.fetch(_TABLES):
                name = f"{quote_identifier(table['schema'])}.{quote_identifier(table['name'])}"
                async with connection.transaction(readonly=True):
                    await connection.execute(_BY_HEAP)
                    rows = await connection.fetchval(f"SELECT count(*) FROM ONLY {name}")  # noqa: S608
                counted[f"{database}.{table['schema']}.{table['name']}"] = rows
    return counted


async def check_catalog(access: Access, databases: Collection[str], users: Collection[str]) -> str:
    """See the port."""
    async with connected(access) as connection:
        there = {row["datname"] for row in await connection.fetch("SELECT datname::text FROM pg_database")}
        roles = {row["rolname"] for row in await connection.fetch("SELECT rolname::text FROM pg_roles")}
    if missing := sorted(set(databases) - there):
        raise DataLoss(f"the database {missing[0]} is missing")
    if missing := sorted(set(users) - roles):
        raise DataLoss(f"the user {missing[0]} is missing")
    relations = indexes = 0
    for database in sorted({*databases, "postgres"}):
        async with _damage_is_told(database), connected(access, database) as connection:
            relations += await _check_database(connection)
            indexes += await _check_indexes(connection)
    found = f"{len(databases)} databases, {len(users)} users, {relations} tables and indexes are in the catalog"
    return f"{found}, {indexes} indexes are in order" if indexes else found


async def _check_database(connection: Connection) -> int:
    for finding, query in _FINDINGS.items():
        broken = await connection.fetchval(query)
        if broken is not None:
            raise DataLoss(f"{broken} {finding}")
    for (table,) in await connection.fetch(_SYSTEM_TABLES):
        async with connection.transaction(readonly=True):
            count = f"SELECT count(*) FROM pg_catalog.{quote_identifier(table)}"  # noqa: S608
            await connection.execute(_BY_HEAP)
            rows = await connection.fetchval(count)
            await connection.execute(_BY_INDEX)
            if await connection.fetchval(count) != rows:
                raise DataLoss(f"an index of the system table {table} does not fit it")
    relations: int = await connection.fetchval("SELECT count(*) FROM pg_class")
    return relations


async def _check_indexes(connection: Connection) -> int:
    """By amcheck, where the server has it; it is not kept. How many were looked at."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'amcheck')"):
        return 0
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("CREATE SCHEMA opsplane_check; CREATE EXTENSION amcheck SCHEMA opsplane_check")
        indexes = await connection.fetch(
            "SELECT i.indexrelid AS oid, i.indexrelid::regclass::text AS name FROM pg_index i "
            "JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam "
            "WHERE a.amname = 'btree' AND c.relkind = 'i' AND i.indisready AND i.indisvalid AND c.relpersistence = 'p'"
        )
        for index in indexes:
            try:
                await connection.execute("SELECT opsplane_check.bt_index_check($1::oid::regclass, true)", index["oid"])
            except asyncpg.IndexCorruptedError as error:
                raise DataLoss(f"the index {index['name']} is damaged: {error}") from error
    finally:
        await transaction.rollback()
    return len(indexes)


@asynccontextmanager
async def _damage_is_told(database: str) -> AsyncIterator[None]:
    try:
        yield
    except (DataLoss, NotFound) as error:
        raise DataLoss(f"in the database {database}: {error.message}") from error
    except asyncpg.PostgresError as error:
        raise DataLoss(f"the database {database} can not be read: {error}") from error
