"""The users of an instance: who they are and what they may do.

A right in all databases, later ones too, is one on the pattern `%`, not a global one: that would hold in `mysql` too,
where the verifiers of all passwords are. The pattern matches it as well, but where several patterns match, the server
takes the most exact one alone. So such users get a right without use, LOCK TABLES, in each of the engine's databases.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pymysql.err import MySQLError

from opsplane_server.errors import AlreadyExists, InvalidArgument, NotFound
from opsplane_server.instances.engines.mysql.connecting import Session
from opsplane_server.instances.engines.mysql.databases import database_exists, kill, user_hosts
from opsplane_server.instances.engines.mysql.names import (
    SYSTEM_USERS,
    database_of_pattern,
    quote_account,
    quote_database_pattern,
    quote_identifier,
)
from opsplane_server.instances.engines.mysql.ownership import pass_on
from opsplane_server.instances.engines.mysql.verifiers import identified
from opsplane_server.instances.sql import NewUser, Privilege, UserInfo

_READ: Final = ("SELECT", "SHOW VIEW")
_WRITE: Final = (*_READ, "INSERT", "UPDATE", "DELETE", "EXECUTE", "CREATE TEMPORARY TABLES", "LOCK TABLES")
_ALL: Final = (
    *_WRITE, "ALTER", "ALTER ROUTINE", "CREATE", "CREATE ROUTINE", "CREATE VIEW", "DROP", "EVENT", "INDEX",
    "REFERENCES", "TRIGGER",
)  # fmt: skip
_RIGHTS: Final = {Privilege.READ_ONLY: _READ, Privilege.READ_WRITE: _WRITE, Privilege.OWNER: _ALL}
_LEVELS: Final = (Privilege.READ_ONLY, Privilege.READ_WRITE, Privilege.OWNER)

_GRANT_OPTION: Final = "GRANT OPTION"
_GUARD: Final = "LOCK TABLES"
_EVERY_DATABASE: Final = quote_identifier("%")
_GUARDED: Final = ("mysql", "performance_schema", "sys")
_LONGEST_MYSQL_NAME: Final = 32


@dataclass(frozen=True, slots=True)
class _Account:
    """A row of `mysql.user`."""

    user: str
    host: str
    privilege: Privilege | None  # the one in all databases; None if there is none
    max_connections: int


async def list_users(session: Session) -> Sequence[UserInfo]:
    """By name. Of a name with several hosts, the account for any host counts, else the first."""
    accounts: dict[str, _Account] = {}
    for account in await _accounts(session):
        if account.user not in SYSTEM_USERS and (account.user not in accounts or account.host == "%"):
            accounts[account.user] = account
    rights = await _database_rights(session)
    return [_user(account, rights.get((account.user, account.host), {})) for _, account in sorted(accounts.items())]


async def create_user(session: Session, user: NewUser) -> None:
    """AlreadyExists, NotFound (a database), InvalidArgument (a name that can not be)."""
    _require_name(session, user.name)
    if await user_hosts(session, user.name):
        raise AlreadyExists(f"the user '{user.name}' exists already")
    await _require_databases(session, user.databases)
    account = quote_account(user.name)
    clause = identified(user.password, mariadb=session.mariadb)
    await session.execute(f"CREATE USER {account} {clause} WITH MAX_USER_CONNECTIONS {user.max_connections:d}")
    try:
        await _grant(session, account, user)
    except BaseException:
        # There are no transactions for this. What is left by a crash, the caller sees as an existing user.
        with suppress(MySQLError, OSError):
            await session.execute(f"DROP USER {account}")
        raise


async def update_user(session: Session, user: NewUser) -> None:
    """NotFound (the user, a database)."""
    hosts = await user_hosts(session, user.name)
    if not hosts or user.name in SYSTEM_USERS:
        raise NotFound(f"there is no user '{user.name}'")
    await _require_databases(session, user.databases)
    clause = identified(user.password, mariadb=session.mariadb) if user.password else ""
    for host in hosts:
        account = quote_account(user.name, host)
        await session.execute(f"ALTER USER {account} {clause} WITH MAX_USER_CONNECTIONS {user.max_connections:d}")
        await _grant(session, account, user)
        await _revoke_rest(session, user, host)


async def set_password(session: Session, user: str, password: str) -> None:
    """Changes nothing but the password. NotFound."""
    hosts = await user_hosts(session, user)
    if not hosts:
        raise NotFound(f"there is no user '{user}'")
    clause = identified(password, mariadb=session.mariadb)
    for host in hosts:
        await session.execute(f"ALTER USER {quote_account(user, host)} {clause}")


async def delete_user(session: Session, user: str, heir: str) -> None:
    """NotFound; FailedPrecondition (USER_OWNS_OBJECTS). Its connections end."""
    hosts = await user_hosts(session, user)
    if not hosts or user in SYSTEM_USERS:
        raise NotFound(f"there is no user '{user}'")
    for host in hosts:
        await pass_on(session, user, host, heir)
    accounts = ", ".join(quote_account(user, host) for host in hosts)
    await session.execute(f"DROP USER {accounts}")
    connections = await session.rows("SELECT id FROM information_schema.processlist WHERE BINARY user = %s", (user,))
    await kill(session, [int(row[0]) for row in connections])


def _require_name(session: Session, name: str) -> None:
    if name in SYSTEM_USERS:
        raise InvalidArgument.of("user_id", f"'{name}' is a name of the server's own")
    if not session.mariadb and len(name) > _LONGEST_MYSQL_NAME:
        raise InvalidArgument.of("user_id", f"MySQL takes names of at most {_LONGEST_MYSQL_NAME} characters")


async def _require_databases(session: Session, databases: Collection[str]) -> None:
    for database in databases:
        if not await database_exists(session, database):
            raise NotFound(f"there is no database '{database}'")


# What they may do.


async def _grant(session: Session, account: str, user: NewUser) -> None:
    rights = ", ".join(_rights(session, user.privilege))
    if not user.databases:
        for database in _GUARDED:  # first, so that the pattern never holds there
            await session.execute(f"GRANT {_GUARD} ON {quote_identifier(database)}.* TO {account}")
    for target in _targets(user):
        await session.execute(f"GRANT {rights} ON {target}.* TO {account}")


async def _revoke_rest(session: Session, user: NewUser, host: str) -> None:
    """What the user had beyond its new rights; those are granted before, so that what it keeps never lapses."""
    account = quote_account(user.name, host)
    wanted = set(_targets(user))
    rights = (*_every_right(session), _GRANT_OPTION)
    columns = ", ".join(_column(right) for right in rights)
    for pattern, *flags in await session.rows(
        f"SELECT Db, {columns} FROM mysql.db WHERE BINARY User = %s AND Host = %s",  # noqa: S608 names from here
        (user.name, host),
    ):
        target = quote_identifier(pattern)
        allowed: Collection[str] = ()
        if target in wanted:
            allowed = _rights(session, user.privilege)
        elif pattern in _GUARDED and not user.databases:
            allowed = (_GUARD,)
        held = [right for right, flag in zip(rights, flags, strict=True) if flag == "Y"]
        surplus = ", ".join(right for right in held if right not in allowed)
        if surplus:
            await session.execute(f"REVOKE {surplus} ON {target}.* FROM {account}")
    for row in await _accounts(session):
        if (row.user, row.host) == (user.name, host) and row.privilege is not None:
            # Given by SQL, in every database and the engine's own: now the patterns hold instead.
            await session.execute(f"REVOKE ALL PRIVILEGES ON *.* FROM {account}")


def _column(right: str) -> str:
    """Its column in the tables of rights."""
    return {"CREATE TEMPORARY TABLES": "Create_tmp_table_priv", _GRANT_OPTION: "Grant_priv"}.get(
        right, f"{right.replace(' ', '_').capitalize()}_priv"
    )


def _targets(user: NewUser) -> Sequence[str]:
    return [quote_database_pattern(name) for name in user.databases] or [_EVERY_DATABASE]


def _rights(session: Session, privilege: Privilege) -> Sequence[str]:
    if privilege is Privilege.OWNER:
        return _every_right(session)
    return _RIGHTS[privilege]


def _every_right(session: Session) -> Sequence[str]:
    return (*_ALL, "DELETE HISTORY") if session.mariadb else _ALL


# What is read.


async def _accounts(session: Session) -> Sequence[_Account]:
    """Those who can log in."""
    if session.mariadb:
        locked = (
            "is_role = 'Y' OR EXISTS (SELECT 1 FROM mysql.global_priv p WHERE p.User = u.User AND p.Host = u.Host"
            " AND JSON_VALUE(p.Priv, '$.account_locked') = 1)"
        )
    else:
        locked = "account_locked = 'Y'"
    rows = await session.rows(
        "SELECT User, Host, Select_priv, Insert_priv, Create_priv, max_user_connections"  # noqa: S608
        f" FROM mysql.user u WHERE User <> '' AND NOT ({locked})"
    )
    return [
        _Account(user, host, _level(select, insert, create), int(limit))
        for user, host, select, insert, create, limit in rows
    ]


async def _database_rights(session: Session) -> dict[tuple[str, str], dict[str, Privilege]]:
    rows = await session.rows("SELECT User, Host, Db, Select_priv, Insert_priv, Create_priv FROM mysql.db")
    found: dict[tuple[str, str], dict[str, Privilege]] = {}
    for user, host, pattern, select, insert, create in rows:
        level = _level(select, insert, create)
        if level is not None:
            found.setdefault((user, host), {})[pattern] = level
    return found


def _level(select: str, insert: str, create: str) -> Privilege | None:
    if create == "Y":
        return Privilege.OWNER
    if insert == "Y":
        return Privilege.READ_WRITE
    return Privilege.READ_ONLY if select == "Y" else None


def _user(account: _Account, rights: dict[str, Privilege]) -> UserInfo:
    """The highest right there is counts, where SQL has given different ones."""
    found = [level for level in (account.privilege, *rights.values()) if level is not None]
    privilege = max(found, key=_LEVELS.index, default=Privilege.READ_ONLY)
    databases = [database_of_pattern(pattern) for pattern in rights]
    if account.privilege is not None or None in databases:
        named: tuple[str, ...] = ()
    else:
        named = tuple(sorted(name for name in databases if name is not None))
    return UserInfo(account.user, privilege, named, account.max_connections)
