"""Those who can log in, but for the server's own."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

import asyncpg

from opsplane_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from opsplane_server.instances.engines.postgres import rights
from opsplane_server.instances.engines.postgres.connecting import (
    Connection,
    connected,
    quote_identifier,
    quote_literal,
)
from opsplane_server.instances.engines.postgres.verifier import scram_verifier
from opsplane_server.instances.model import Access
from opsplane_server.instances.sql import NewUser, UserInfo

_RESERVED: Final = re.compile(r"(pg|opsplane)_.*|public|none|postgres", re.IGNORECASE)


async def list_users(connection: Connection) -> Sequence[UserInfo]:
    """See the port."""
    managed = await rights.has_groups(connection)
    return [
        UserInfo(
            account.name,
            account.privilege,
            () if not managed or rights.ALL_DATABASES in account.groups else tuple(account.reachable),
            account.max_connections,
        )
        for account in await rights.accounts(connection)
    ]


async def create_user(connection: Connection, user: NewUser) -> None:
    """See the port. NotFound when one of its databases is not there."""
    if _RESERVED.fullmatch(user.name):
        raise InvalidArgument.of("user_id", f"the name {user.name} is reserved")
    try:
        async with connection.transaction():
            await _require_databases(connection, user.databases)
            await connection.execute(f"CREATE ROLE {quote_identifier(user.name)} LOGIN {_attributes(user)}")
            await rights.set_rights(connection, user.name, user.privilege, user.databases)
    except asyncpg.DuplicateObjectError:
        raise AlreadyExists(f"there is a user {user.name} already", metadata={"user": user.name}) from None


async def update_user(connection: Connection, user: NewUser) -> None:
    """See the port."""
    async with connection.transaction():
        await _require_user(connection, user.name)
        await _require_databases(connection, user.databases)
        await connection.execute(f"ALTER ROLE {quote_identifier(user.name)} {_attributes(user)}")
        await rights.set_rights(connection, user.name, user.privilege, user.databases)


async def delete_user(access: Access, user: str, heir: str) -> None:
    """See the port. May be called again after it was broken off anywhere."""
    role, inheritor = quote_identifier(user), quote_identifier(heir)
    async with connected(access) as connection:
        await _require_user(connection, user)
        await _require_user(connection, heir)
        if user == heir:
            raise FailedPrecondition(f"{user} can not inherit from itself", reason="FIRST_USER")
        # From here on nothing new of it comes up.
        await connection.execute(f"ALTER ROLE {role} NOLOGIN")
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", user)
        databases = await connection.fetch("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")
    for (database,) in databases:
        async with connected(access, database) as connection, connection.transaction():
            await connection.execute(f"REASSIGN OWNED BY {role} TO {inheritor}")
            await connection.execute(f"DROP OWNED BY {role}")
    async with connected(access) as connection:
        await connection.execute(f"DROP ROLE IF EXISTS {role}")
        await rights.renew(connection)


def _attributes(user: NewUser) -> str:
    limit = f"CONNECTION LIMIT {user.max_connections or -1}"
    return f"{limit} PASSWORD {quote_literal(scram_verifier(user.password))}" if user.password else limit


async def _require_user(connection: Connection, user: str) -> None:
    found = await connection.fetchval(
        "SELECT true FROM pg_roles WHERE rolname = $1 AND NOT rolsuper AND NOT rolreplication", user
    )
    if not found or _RESERVED.fullmatch(user):
        raise NotFound(f"there is no user {user}", metadata={"user": user})


async def _require_databases(connection: Connection, databases: Collection[str]) -> None:
    there = {
        row["datname"]
        for row in await connection.fetch(
            "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
        )
    }
    for database in databases:
        if database not in there:
            raise NotFound(f"there is no database {database}", metadata={"database": database})
