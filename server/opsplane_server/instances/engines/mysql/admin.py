"""The port `EngineAdmin` for MySQL and MariaDB."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from opsplane_server.instances.engines.mysql import checks, databases, parameters, sampling, users
from opsplane_server.instances.engines.mysql.connecting import connected
from opsplane_server.instances.engines.mysql.slow_queries import slow_queries
from opsplane_server.instances.model import Access
from opsplane_server.instances.monitoring import ServerSample
from opsplane_server.instances.sql import (
    DatabaseInfo,
    NewDatabase,
    NewUser,
    ParameterInfo,
    SlowQueries,
    SlowQueryOrder,
    UserInfo,
)


class MysqlAdmin:
    """Each call has a connection of its own. Which of the two engines it is, the server says."""

    async def list_databases(self, access: Access) -> Sequence[DatabaseInfo]:
        """See `EngineAdmin`, as for the others."""
        async with connected(access) as session:
            return await databases.list_databases(session)

    async def create_database(self, access: Access, database: NewDatabase) -> None:
        """The owner is who has every right in it."""
        async with connected(access) as session:
            await databases.create_database(session, database)

    async def delete_database(self, access: Access, database: str, *, force: bool) -> None:
        """The rights in it are revoked as well."""
        async with connected(access) as session:
            await databases.delete_database(session, database, force=force)

    async def list_users(self, access: Access) -> Sequence[UserInfo]:
        """Accounts of one name and several hosts are one user."""
        async with connected(access) as session:
            return await users.list_users(session)

    async def create_user(self, access: Access, user: NewUser) -> None:
        """For any host."""
        async with connected(access) as session:
            await users.create_user(session, user)

    async def update_user(self, access: Access, user: NewUser) -> None:
        """For all its hosts."""
        async with connected(access) as session:
            await users.update_user(session, user)

    async def delete_user(self, access: Access, user: str, heir: str) -> None:
        """FailedPrecondition (USER_OWNS_OBJECTS) while it is the definer of routines or triggers."""
        async with connected(access) as session:
            await users.delete_user(session, user, heir)

    async def list_parameters(self, access: Access) -> Sequence[ParameterInfo]:
        """`pending_value` is empty: the server does not know what waits in its files."""
        async with connected(access) as session:
            return await parameters.list_parameters(session)

    async def slow_queries(self, access: Access, log: Sequence[str], order: SlowQueryOrder, limit: int) -> SlowQueries:
        """From the performance schema where it is on."""
        async with connected(access) as session:
            return await slow_queries(session, log, order, limit)

    async def sample(self, access: Access) -> ServerSample:
        """Of the one server."""
        async with connected(access) as session:
            return await sampling.sample(session)

    async def count_rows(self, access: Access) -> Mapping[str, int]:
        """By `database.table`."""
        async with connected(access) as session:
            return await checks.count_rows(session)

    async def check_catalog(self, access: Access, databases: Collection[str], users: Collection[str]) -> str:
        """By CHECK TABLE."""
        async with connected(access) as session:
            return await checks.check_catalog(session, databases, users)
