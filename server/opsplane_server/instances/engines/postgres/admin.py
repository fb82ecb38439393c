"""`EngineAdmin` for PostgreSQL. Each call has a connection of its own: they are rare, and servers come and go."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from opsplane_server.instances.engines.postgres import checks, databases, figures, slow_queries, users
from opsplane_server.instances.engines.postgres.connecting import connected
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


class PostgresAdmin:
    """See `ports.EngineAdmin`. What users may do is explained in `rights`."""

    async def list_databases(self, access: Access) -> Sequence[DatabaseInfo]:
        """See the port, as for all methods below."""
        async with connected(access) as connection:
            return await databases.list_databases(connection)

    async def create_database(self, access: Access, database: NewDatabase) -> None:
        """NotFound when the owner is not there."""
        async with connected(access) as connection:
            await databases.create_database(connection, database)

    async def delete_database(self, access: Access, database: str, *, force: bool) -> None:
        """With `force` the connections to it are ended."""
        async with connected(access) as connection:
            await databases.delete_database(connection, database, force=force)

    async def list_users(self, access: Access) -> Sequence[UserInfo]:
        """Those made by SQL too."""
        async with connected(access) as connection:
            return await users.list_users(connection)

    async def create_user(self, access: Access, user: NewUser) -> None:
        """All or nothing. NotFound when one of its databases is not there."""
        async with connected(access) as connection:
            await users.create_user(connection, user)

    async def update_user(self, access: Access, user: NewUser) -> None:
        """All or nothing. FailedPrecondition for less than OWNER where it owns a database."""
        async with connected(access) as connection:
            await users.update_user(connection, user)

    async def delete_user(self, access: Access, user: str, heir: str) -> None:
        """Its connections are ended."""
        await users.delete_user(access, user, heir)

    async def list_parameters(self, access: Access) -> Sequence[ParameterInfo]:
        """Those of extensions too."""
        async with connected(access) as connection:
            return await figures.list_parameters(connection)

    async def slow_queries(self, access: Access, log: Sequence[str], order: SlowQueryOrder, limit: int) -> SlowQueries:
        """The log is PostgreSQL's own in JSON."""
        async with connected(access) as connection:
            return await slow_queries.slow_queries(connection, log, order, limit)

    async def sample(self, access: Access) -> ServerSample:
        """Statements are counted where pg_stat_statements is loaded."""
        async with connected(access) as connection:
            return await figures.sample(connection)

    async def count_rows(self, access: Access) -> Mapping[str, int]:
        """Materialized views count as tables."""
        return await checks.count_rows(access)

    async def check_catalog(self, access: Access, databases: Collection[str], users: Collection[str]) -> str:
        """Every system table by heap and index; with amcheck, where it is installed, every B-tree index too."""
        return await checks.check_catalog(access, databases, users)
