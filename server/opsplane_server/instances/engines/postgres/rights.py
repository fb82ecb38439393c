"""What users may do, as PostgreSQL keeps it.

- What a user may read and write are memberships of PostgreSQL's `pg_read_all_data` and `pg_write_all_data`, which hold
  for later tables too. Where it may do so is the right to connect: nobody has it by default.
- `opsplane_all_databases` may connect to every database. Members: users that are not limited to some, so that they
  reach later ones too.
- `opsplane_owners` marks the users with the privilege OWNER. Such a user is a member of the owner of each of its
  databases, and becomes it when it connects there: what it makes belongs to the database's owner, as if that had
  made it, and each can change what the other has made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.engines.postgres.connecting import Connection, quote_identifier
from opsplane_server.instances.sql import Privilege

ALL_DATABASES: Final = "opsplane_all_databases"
OWNERS: Final = "opsplane_owners"
_GROUPS: Final[dict[Privilege, tuple[str, ...]]] = {
    Privilege.READ_ONLY: ("pg_read_all_data",),
    Privilege.READ_WRITE: ("pg_read_all_data", "pg_write_all_data"),
    Privilege.OWNER: ("pg_read_all_data", "pg_write_all_data", OWNERS),
}
_OURS: Final = frozenset({"pg_read_all_data", "pg_write_all_data", OWNERS, ALL_DATABASES})
_INHERITS_BY_GRANT: Final = 16
"""From this version on a membership can be for SET ROLE alone; before, a role inherits from all or none."""

_DATABASES = """
SELECT d.datname AS name, pg_get_userbyid(d.datdba) AS owner,
    EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE a.grantee = 0) AS open
FROM pg_database d
WHERE NOT d.datistemplate AND d.datallowconn AND d.datname <> 'postgres' ORDER BY d.datname
"""
# Without those that came with the server or serve Opsplane itself.
_USERS = """
SELECT r.rolname AS name, greatest(r.rolconnlimit, 0) AS max_connections,
    ARRAY(SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
          WHERE m.member = r.oid) AS groups,
    ARRAY(SELECT d.datname::text FROM pg_database d WHERE d.datdba = r.oid ORDER BY 1) AS owned,
    ARRAY(SELECT d.datname::text FROM pg_database d
          WHERE NOT d.datistemplate AND d.datallowconn AND d.datname <> 'postgres'
              AND has_database_privilege(r.oid, d.oid, 'CONNECT') ORDER BY 1) AS reachable,
    ARRAY(SELECT d.datname::text FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
          WHERE s.setrole = r.oid AND EXISTS (SELECT FROM unnest(s.setconfig) c WHERE c LIKE 'role=%')) AS acting
FROM pg_roles r
WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolreplication AND r.rolname !~ '^(pg|opsplane)_'
ORDER BY r.rolname
"""
_RELATION = """
SELECT rolsuper AS super, pg_has_role(rolname, $2::name, 'MEMBER') AS circular FROM pg_roles WHERE rolname = $1
"""


@dataclass(frozen=True, slots=True)
class Account:
    """A user as the server has it. groups: roles that it is a member of. acting: databases where it acts as another."""

    name: str
    max_connections: int
    groups: Sequence[str]
    owned: Sequence[str]
    reachable: Sequence[str]
    acting: Sequence[str]

    @property
    def privilege(self) -> Privilege:
        """What it may do."""
        if OWNERS in self.groups or self.owned:
            return Privilege.OWNER
        return Privilege.READ_WRITE if "pg_write_all_data" in self.groups else Privilege.READ_ONLY


@dataclass(frozen=True, slots=True)
class _Database:
    name: str
    owner: str
    open: bool


async def accounts(connection: Connection) -> list[Account]:
    """All users, by name."""
    return [Account(**row) for row in await connection.fetch(_USERS)]


async def has_groups(connection: Connection) -> bool:
    """Whether this server's users are managed here already; if not, everybody may connect everywhere."""
    found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", ALL_DATABASES)
    return found


async def renew(connection: Connection) -> None:
    """Makes true what is kept, for users, databases and owners that came, went or changed since.

    The first time it takes in the users that are there: they may go on to connect to all databases.
    """
    async with connection.transaction():
        await _lock(connection)
        await _ensure_groups(connection)
        databases = await _close(connection)
        for account in await accounts(connection):
            if OWNERS in account.groups:
                await _act_as_owner(connection, account, databases)


async def set_rights(connection: Connection, user: str, privilege: Privilege, databases: Collection[str]) -> None:
    """Gives a user these rights in place of those that it has; without databases, in all. Joins a transaction.

    FailedPrecondition where its own databases or those of its like stand in the way.
    """
    await _lock(connection)
    await _ensure_groups(connection)
    present = await _close(connection)
    account = next(account for account in await accounts(connection) if account.name == user)
    _check_owned(account, privilege, databases)
    role = quote_identifier(user)
    groups = {*_GROUPS[privilege], *(() if databases else (ALL_DATABASES,))}
    owners = {database.owner for database in present}
    for group in account.groups:
        if group in (_OURS | owners) - groups:
            await connection.execute(f"REVOKE {quote_identifier(group)} FROM {role}")
    for group in sorted(groups):
        await connection.execute(f"GRANT {quote_identifier(group)} TO {role}")
    for database in present:
        name = quote_identifier(database.name)
        if database.name in account.acting:
            await connection.execute(f"ALTER ROLE {role} IN DATABASE {name} RESET role")
        if database.owner != user:
            await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM {role}")
            if database.name in databases:
                await connection.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {role}")
    narrow = privilege is Privilege.OWNER and databases and not _inherits_by_grant(connection)
    await connection.execute(f"ALTER ROLE {role} {'NOINHERIT' if narrow else 'INHERIT'}")
    if privilege is Privilege.OWNER:
        account = next(account for account in await accounts(connection) if account.name == user)
        await _act_as_owner(connection, account, present)


def _check_owned(account: Account, privilege: Privilege, databases: Collection[str]) -> None:
    outside = [name for name in account.owned if databases and name not in databases]
    if outside or (account.owned and privilege is not Privilege.OWNER):
        raise FailedPrecondition(
            f"{account.name} owns the database {(outside or account.owned)[0]}, and an owner has all rights there",
            reason="USER_OWNS_DATABASE",
        )


async def _lock(connection: Connection) -> None:
    """One at a time, or two would grant and revoke in each other's way."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('opsplane.rights', 0))")


async def _ensure_groups(connection: Connection) -> None:
    if await has_groups(connection):
        return
    await connection.execute(f"CREATE ROLE {ALL_DATABASES} NOLOGIN")
    await connection.execute(f"CREATE ROLE {OWNERS} NOLOGIN")
    for account in await accounts(connection):
        groups = [ALL_DATABASES, *(_GROUPS[Privilege.OWNER] if account.owned else ())]
        await connection.execute(f"GRANT {', '.join(groups)} TO {quote_identifier(account.name)}")


async def _close(connection: Connection) -> list[_Database]:
    """Opens the databases that everybody may use to those alone who may use all; returns all databases."""
    databases = [_Database(**row) for row in await connection.fetch(_DATABASES)]
    for database in databases:
        if database.open:
            name = quote_identifier(database.name)
            await connection.execute(f"REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC")
            await connection.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {ALL_DATABASES}")
    return databases


async def _act_as_owner(connection: Connection, account: Account, databases: Sequence[_Database]) -> None:
    role = quote_identifier(account.name)
    everywhere = ALL_DATABASES in account.groups
    for database in databases:
        name = quote_identifier(database.name)
        if database.owner == account.name and database.name in account.acting:  # it has become its own since
            await connection.execute(f"ALTER ROLE {role} IN DATABASE {name} RESET role")
        if database.owner == account.name or database.name not in account.reachable:
            continue
        owner = quote_identifier(database.owner)
        relation = await connection.fetchrow(_RELATION, database.owner, account.name)
        assert relation is not None
        if relation["circular"] and not everywhere:
            raise FailedPrecondition(
                f"{account.name} can not be OWNER in {database.name}: its owner {database.owner} is one in a database "
                f"of {account.name}",
                reason="OWNERS_OF_EACH_OTHER",
            )
        # Two who own would each act as the other, which PostgreSQL does not know: it reads and writes there. Nobody is
        # to act as the admin, should that own a database.
        if relation["circular"] or relation["super"]:
            continue
        inherit = f" WITH INHERIT {'TRUE' if everywhere else 'FALSE'}" if _inherits_by_grant(connection) else ""
        await connection.execute(f"GRANT {owner} TO {role}{inherit}")
        await connection.execute(f"ALTER ROLE {role} IN DATABASE {name} SET role = {owner}")


def _inherits_by_grant(connection: Connection) -> bool:
    return connection.get_server_version().major >= _INHERITS_BY_GRANT
