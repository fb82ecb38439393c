"""One instance of each engine for all tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from opsplane_server.instances.engines.mysql.connecting import connected
from opsplane_server.instances.engines.mysql.names import (
    SYSTEM_DATABASES,
    SYSTEM_USERS,
    quote_account,
    quote_identifier,
)
from opsplane_server.instances.model import Engine

from tests import instances_harness as harness
from tests.contract.instances.mysql.serving import Serving
from tests.instances_harness import silent
from tests.mysql_servers import programs


@pytest.fixture(scope="session", params=[Engine.MARIADB, Engine.MYSQL])
def instance(request: pytest.FixtureRequest) -> Iterator[Serving]:
    engine: Engine = request.param
    with harness.machine_folder() as folder:
        machine = harness.machine(folder, programs=(programs(engine, folder),))
        provider = harness.provider(machine)
        memory = 512 * harness.MIB
        spec = harness.spec("orders", engine=engine, version=provider.versions(engine)[0], memory_bytes=memory)
        secrets = harness.passwords()
        status = asyncio.run(provider.create(spec, secrets, None, silent))
        access = asyncio.run(provider.access(spec.name))
        assert status.endpoints is not None
        ports = {spec.name: status.endpoints.rw.port}
        yield Serving(folder, machine, provider, spec, {spec.name: secrets}, access, ports)


@pytest.fixture
async def server(instance: Serving) -> AsyncIterator[Serving]:
    """With the first user and the first database, and nothing else; what a test adds goes with it."""
    yield instance
    async with connected(instance.access) as session:
        for user, host in await session.rows("SELECT User, Host FROM mysql.user"):
            if user not in (*SYSTEM_USERS, "app"):
                await session.execute(f"DROP USER {quote_account(user, host)}")
        for (name,) in await session.rows("SELECT schema_name FROM information_schema.schemata"):
            if name not in (*SYSTEM_DATABASES, "app"):
                await session.execute(f"DROP DATABASE {quote_identifier(name)}")
        for kind, name in await session.rows(
            "SELECT table_type, table_name FROM information_schema.tables WHERE table_schema = 'app'"
        ):
            what = "VIEW" if kind == "VIEW" else "TABLE"
            await session.execute(f"DROP {what} app.{quote_identifier(name)}")
