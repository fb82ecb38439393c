"""PostgreSQL's `EngineAdmin` with servers as the local provider runs them: with passwords and, where they can, TLS."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import asyncpg
import pytest
from opsplane_server.errors import FailedPrecondition, Unavailable
from opsplane_server.instances.engines.postgres import PostgresAdmin
from opsplane_server.instances.engines.postgres.connecting import connected
from opsplane_server.instances.model import ADMIN_USER, Access
from opsplane_server.instances.sql import NewDatabase, NewUser, Privilege, SlowQueryOrder, UserInfo

from tests.contract.instances.engine_servers import versions
from tests.instances_harness import local_provider, passwords, silent, spec
from tests.waiting import until

ADMIN = PostgresAdmin()
PASSWORD = "reader's pässword"


@pytest.mark.parametrize("version", versions())
async def test_a_server_of_the_local_provider(version: str) -> None:
    async with local_provider() as provider:
        parameters = {"log_min_duration_statement": "0"}
        wanted, secrets = spec("orders", version=version, parameters=parameters), passwords()
        status = await provider.create(wanted, secrets, None, silent)
        access = await provider.access(wanted.name)

        assert await ADMIN.list_users(access) == [UserInfo("app", Privilege.OWNER)]
        (first,) = await ADMIN.list_databases(access)
        assert (first.name, first.owner) == ("app", "app")
        await ADMIN.create_user(access, NewUser("reader", PASSWORD, Privilege.READ_ONLY, ("app",)))
        await ADMIN.create_database(access, NewDatabase("shop", "app"))

        assert status.endpoints is not None
        rw = status.endpoints.rw
        tls: Literal["require", "disable"] = "require" if status.tls else "disable"
        app = await asyncpg.connect(
            host=rw.host, port=rw.port, user="app", password=secrets.users["app"], database="app", ssl=tls
        )
        try:
            await app.execute("CREATE TABLE t AS SELECT generate_series(1, 100) AS a")
            await app.execute("SELECT pg_sleep(0.1), 'a constant'")
        finally:
            await app.close()
        reader = await asyncpg.connect(
            host=rw.host, port=rw.port, user="reader", password=PASSWORD, database="app", ssl=tls
        )
        try:
            assert await reader.fetchval("SELECT count(*) FROM t") == 100
        finally:
            await reader.close()
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(host=rw.host, port=rw.port, user="reader", password=PASSWORD, database="shop")

        async def slept() -> bool:
            log = await provider.slow_log(wanted.name)
            found = await ADMIN.slow_queries(access, log, SlowQueryOrder.MAX_TIME, 1)
            return bool(found.queries) and found.queries[0].query == "SELECT pg_sleep(?), ?"

        await until(slept)  # a log is written by a process of its own
        sample = await ADMIN.sample(access)
        assert sample.database_size_bytes > 0
        assert sample.connections == 0
        assert await ADMIN.count_rows(access) == {"app.public.t": 100}
        assert "are in the catalog" in await ADMIN.check_catalog(access, ["app", "shop"], ["app", "reader"])
        settings = {parameter.name: parameter.value for parameter in await ADMIN.list_parameters(access)}
        assert settings["log_min_duration_statement"] == "0"
        assert settings["ssl"] == ("on" if status.tls else "off")

        by_tcp = Access(rw.host, rw.port, ADMIN_USER, secrets.admin, status.ca_certificate)
        async with connected(by_tcp) as connection:
            encrypted = await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert encrypted is bool(status.ca_certificate) is status.tls
        with pytest.raises(FailedPrecondition) as refused:
            await ADMIN.sample(replace(by_tcp, password="not the password"))
        assert refused.value.reason == "ADMIN_REFUSED"
        await provider.stop(wanted.name, silent)
        with pytest.raises(Unavailable):
            await ADMIN.sample(access)
