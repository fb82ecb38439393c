"""The databases of users: all but those that come with the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from opsplane_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from opsplane_server.instances.engines.postgres import rights
from opsplane_server.instances.engines.postgres.connecting import Connection, quote_identifier, quote_literal
from opsplane_server.instances.sql import DatabaseInfo, NewDatabase

_RESERVED: Final = frozenset({"postgres", "template0", "template1"})
_DROP_SECONDS: Final = 60.0
# Of a character set and a collation, with each other or with this server.
_UNFIT: Final = (
    asyncpg.WrongObjectTypeError,
    asyncpg.InvalidParameterValueError,
    asyncpg.InvalidObjectDefinitionError,
    asyncpg.FeatureNotSupportedError,
)

# The column was renamed in version 17.
_LIST = """
SELECT d.datname AS name, pg_get_userbyid(d.datdba) AS owner, pg_encoding_to_char(d.encoding) AS charset,
    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datcollate) AS collation,
    coalesce(pg_database_size(d.oid), 0) AS size_bytes
FROM pg_database d
WHERE NOT d.datistemplate AND d.datallowconn AND d.datname <> 'postgres'
ORDER BY d.datname
"""

# By the name that the engine has for it, or as a database's own locale is listed.
_COLLATION = """
SELECT collprovider::text AS provider, collcollate, collctype,
    coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale') AS locale
FROM pg_collation c
WHERE collprovider <> 'd' AND collencoding IN (-1, pg_char_to_encoding($2))
    AND (collname = $1 OR (collprovider = 'c' AND collcollate = $1 AND collctype = $1)
        OR coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale') = $1)
ORDER BY collname <> $1, collprovider LIMIT 1
"""


async def list_databases(connection: Connection) -> Sequence[DatabaseInfo]:
    """See the port."""
    return [DatabaseInfo(**row) for row in await connection.fetch(_LIST)]


async def create_database(connection: Connection, database: NewDatabase) -> None:
    """See the port. NotFound when the owner is not there."""
    if database.name in _RESERVED:
        raise AlreadyExists(f"the database {database.name} belongs to the server itself")
    if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", database.owner):
        raise NotFound(f"there is no user {database.owner}", metadata={"user": database.owner})
    encoding = await _encoding(connection, database.charset)
    name = quote_identifier(database.name)
    # template0, for it alone can be copied with another character set or collation, and whoever is connected.
    statement = f"CREATE DATABASE {name} OWNER {quote_identifier(database.owner)} TEMPLATE template0"
    if database.charset:
        statement += f" ENCODING {quote_literal(encoding)}"
    if database.collation:
        statement += await _locale(connection, database.collation, encoding)
    try:
        await connection.execute(statement)
    except asyncpg.DuplicateDatabaseError:
        await rights.renew(connection)  # a process that was killed may have made it and come no further
        raise AlreadyExists(
            f"there is a database {database.name} already", metadata={"database": database.name}
        ) from None
    except (
        asyncpg.WrongObjectTypeError,
        asyncpg.InvalidParameterValueError,
        asyncpg.FeatureNotSupportedError,
    ) as error:
        field = "database.collation" if database.collation else "database.charset"
        raise InvalidArgument.of(field, str(error)) from error
    await rights.renew(connection)


async def delete_database(connection: Connection, database: str, *, force: bool) -> None:
    """See the port."""
    if database in _RESERVED:
        raise FailedPrecondition(f"the database {database} belongs to the server itself", reason="DATABASE_RESERVED")
    try:
        await connection.execute(
            f"DROP DATABASE {quote_identifier(database)}{' WITH (FORCE)' if force else ''}", timeout=_DROP_SECONDS
        )
    except asyncpg.ObjectInUseError as error:
        raise FailedPrecondition(
            f"the database {database} is in use: {error.detail or error}",
            reason="DATABASE_IN_USE",
            metadata={"database": database},
        ) from error
    except asyncpg.InvalidCatalogNameError:
        raise NotFound(f"there is no database {database}", metadata={"database": database}) from None


async def _encoding(connection: Connection, charset: str) -> str:
    """The engine's own name of a character set; of that of template0 without one."""
    encoding: str | None
    if charset:
        encoding = await connection.fetchval("SELECT nullif(pg_encoding_to_char(pg_char_to_encoding($1)), '')", charset)
        if encoding is None:
            raise InvalidArgument.of("database.charset", f"PostgreSQL has no character set {charset}")
    else:
        encoding = await connection.fetchval(
            "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'template0'"
        )
    assert encoding is not None
    return encoding


async def _locale(connection: Connection, collation: str, encoding: str) -> str:
    found = await connection.fetchrow(_COLLATION, collation, encoding)
    if found is None:
        raise InvalidArgument.of(
            "database.collation", f"this server has no collation {collation} for the character set {encoding}"
        )
    if found["provider"] == "c":
        return (
            f" LOCALE_PROVIDER libc LC_COLLATE {quote_literal(found['collcollate'])}"
            f" LC_CTYPE {quote_literal(found['collctype'])}"
        )
    locale = quote_literal(found["locale"])
    if found["provider"] == "i":
        return f" LOCALE_PROVIDER icu ICU_LOCALE {locale} LOCALE 'C'"
    return f" LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale} LOCALE 'C'"
