"""The databases of users: all but those that come with the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opsplane_server.errors import AlreadyExists, FailedPrecondition, NotFound
from opsplane_server.instances.engines.mysql.connecting import Session
from opsplane_server.instances.engines.mysql.names import (
    SYSTEM_DATABASE_LIST,
    SYSTEM_DATABASES,
    SYSTEM_USERS,
    database_of_pattern,
    quote_account,
    quote_database_pattern,
    quote_identifier,
)
from opsplane_server.instances.sql import DatabaseInfo, NewDatabase


async def list_databases(session: Session) -> Sequence[DatabaseInfo]:
    """By name. An engine of this family knows no owner: it is who has every right in just this database, the first by
    name if there are several.
    """
    sizes, owners = await sizes_by_database(session), await _owners(session)
    rows = await session.rows(
        "SELECT schema_name, default_character_set_name, default_collation_name FROM information_schema.schemata"
        " WHERE FIND_IN_SET(schema_name, %s) = 0",
        (SYSTEM_DATABASE_LIST,),
    )
    databases = [
        DatabaseInfo(name, owners.get(name, ""), charset, collation, sizes.get(name, 0))
        for name, charset, collation in rows
    ]
    return sorted(databases, key=lambda database: database.name)


async def sizes_by_database(session: Session) -> Mapping[str, int]:
    """Bytes of the files of InnoDB tables, free space in them included, and of the data of others."""
    tablespaces = "innodb_sys_tablespaces" if session.mariadb else "innodb_tablespaces"
    files = await session.rows(
        f"SELECT SUBSTRING_INDEX(name, '/', 1), SUM(file_size) FROM information_schema.{tablespaces}"  # noqa: S608
        " WHERE name LIKE '%/%' GROUP BY 1"
    )
    others = await session.rows(
        "SELECT table_schema, SUM(data_length + index_length) FROM information_schema.tables"
        " WHERE engine <> 'InnoDB' AND table_type NOT LIKE '%%VIEW' AND FIND_IN_SET(table_schema, %s) = 0 GROUP BY 1",
        (SYSTEM_DATABASE_LIST,),
    )
    sizes: dict[str, int] = {}
    for name, size in (*((_name_of_folder(folder), size) for folder, size in files), *others):
        if name not in SYSTEM_DATABASES:
            sizes[name] = sizes.get(name, 0) + int(size or 0)
    return sizes


async def create_database(session: Session, database: NewDatabase) -> None:
    """AlreadyExists, NotFound (owner), InvalidArgument (charset, collation). The owner gets every right in it."""
    if await database_exists(session, database.name):
        raise AlreadyExists(f"the database '{database.name}' exists already")
    if database.owner and not await user_hosts(session, database.owner):
        raise NotFound(f"there is no user '{database.owner}'")
    statement = f"CREATE DATABASE {quote_identifier(database.name)}"
    charset = database.charset or ("" if database.collation else "utf8mb4")
    if charset:
        statement += f" CHARACTER SET {quote_identifier(charset)}"
    if database.collation:
        statement += f" COLLATE {quote_identifier(database.collation)}"
    if database.owner:
        # Rights may come before their database; this way there is never one that its owner can not use.
        await session.execute(owner_grant(database.name, database.owner))
    await session.execute(statement)


async def delete_database(session: Session, database: str, *, force: bool) -> None:
    """NotFound; FailedPrecondition (DATABASE_IN_USE). The rights in it go as well: they would wake in a new one."""
    if not await database_exists(session, database) or database in SYSTEM_DATABASES:
        raise NotFound(f"there is no database '{database}'")
    connections = await session.rows(
        "SELECT id FROM information_schema.processlist WHERE db = %s AND id <> CONNECTION_ID()", (database,)
    )
    if connections and not force:
        raise FailedPrecondition(
            f"the database '{database}' has {len(connections)} connections",
            reason="DATABASE_IN_USE",
            metadata={"database": database, "connections": str(len(connections))},
        )
    await kill(session, [int(row[0]) for row in connections])
    await session.execute(f"DROP DATABASE {quote_identifier(database)}")
    for user, host, pattern in await session.rows("SELECT User, Host, Db FROM mysql.db"):
        if database_of_pattern(pattern) == database:
            await session.execute(
                f"REVOKE ALL PRIVILEGES ON {quote_identifier(pattern)}.* FROM {quote_account(user, host)}"
            )


async def database_exists(session: Session, database: str) -> bool:
    """Whether it is there, one of the engine's own too."""
    return await session.exists("SELECT 1 FROM information_schema.schemata WHERE BINARY schema_name = %s", (database,))


async def user_hosts(session: Session, user: str) -> Sequence[str]:
    """The hosts of the accounts with this name; empty if there are none."""
    return [row[0] for row in await session.rows("SELECT Host FROM mysql.user WHERE BINARY User = %s", (user,))]


async def kill(session: Session, connections: Sequence[int]) -> None:
    """Ends connections; those that ended meanwhile do not matter."""
    for connection in connections:
        if await session.exists("SELECT 1 FROM information_schema.processlist WHERE id = %s", (connection,)):
            await session.execute("KILL %s", (connection,))


def owner_grant(database: str, owner: str, host: str = "%") -> str:
    """The statement that makes a user the owner of a database."""
    return f"GRANT ALL PRIVILEGES ON {quote_database_pattern(database)}.* TO {quote_account(owner, host)}"


async def _owners(session: Session) -> Mapping[str, str]:
    rows = await session.rows(
        "SELECT Db, User FROM mysql.db WHERE Create_priv = 'Y' AND Drop_priv = 'Y' AND Alter_priv = 'Y' AND User <> ''"
    )
    owners: dict[str, str] = {}
    for pattern, user in sorted(rows, key=lambda row: row[1], reverse=True):
        database = database_of_pattern(pattern)
        if database is not None and user not in SYSTEM_USERS:
            owners[database] = user
    return owners


def _name_of_folder(folder: str) -> str:
    """InnoDB names tablespaces by files: `my@002dapp` is `my-app`. API names need no more; SQL could make others."""
    name, _, rest = folder.partition("@")
    while rest:
        try:
            name += chr(int(rest[:4], 16))
        except ValueError:
            return folder
        more, _, rest_of = rest[4:].partition("@")
        name, rest = name + more, rest_of
    return name
