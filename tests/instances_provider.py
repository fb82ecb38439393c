"""An instance of each engine that is installed here, shared by the tests of a module: `shared`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from opsplane_server.instances.model import (
    Endpoints,
    Engine,
    InstanceSpec,
    Secrets,
    Status,
)
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.provider import LocalProvider

from tests import instances_harness as harness
from tests.instances_clients import query
from tests.instances_harness import silent
from tests.mysql_servers import programs

PASSWORD = 'it\'s a "pass\\word" $HOME %s ünïcode'


@dataclass(frozen=True)
class Dialect:
    """What differs between engines: parameters to play with, and a statement that takes its time."""

    reloaded: tuple[str, str]
    restarted: tuple[str, str]
    unknown: str
    own: str
    invalid: tuple[str, str]
    show: str
    slow: dict[str, str]
    sleep: str
    named: str = "sleep"
    impossible: dict[str, str] = field(default_factory=dict)


_MYSQL = Dialect(
    reloaded=("long_query_time", "3"),
    restarted=("max_digest_length", "2048"),
    unknown="shared_buffers",
    own="datadir",
    invalid=("max_connections", "many"),
    show="SELECT @@GLOBAL.{name}",
    slow={"long_query_time": "0.01"},
    sleep="SELECT sleep(0.05)",
)
DIALECTS = {
    Engine.POSTGRESQL: Dialect(
        reloaded=("work_mem", "3MB"),
        restarted=("max_connections", "41"),
        unknown="innodb_buffer_pool_size",
        own="Data_Directory",
        invalid=("work_mem", "much"),
        show="SHOW {name}",
        slow={"log_min_duration_statement": "10ms"},
        sleep="SELECT pg_sleep(0.05)",
        impossible={"huge_pages": "on", "huge_page_size": "1GB"},
    ),
    Engine.MARIADB: _MYSQL,
    Engine.MYSQL: _MYSQL,
}


@dataclass(frozen=True)
class Shared:
    """An instance that serves, and the machine that it is on."""

    folder: Path
    machine: Machine
    provider: LocalProvider
    spec: InstanceSpec
    secrets: Secrets

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.spec.engine]

    @property
    def password(self) -> str:
        return self.secrets.users[self.spec.username]

    async def query(self, statement: str, status: Status | None = None) -> object:
        """The first value of what the owner is answered; None without rows."""
        status = status or await self.provider.status(self.spec.name)
        rows = await query(self.spec, rw(status).rw, self.password, statement)
        return rows[0][0] if rows else None

    async def shown(self, name: str) -> str:
        """A parameter's value as a new connection sees it."""
        return str(await self.query(self.dialect.show.format(name=name)))


def rw(status: Status) -> Endpoints:
    """The endpoints, which every instance has."""
    assert status.endpoints is not None
    return status.endpoints


def newest(provider: LocalProvider, engine: Engine) -> str:
    """The newest version, or a skipped test."""
    versions = provider.versions(engine)
    if not versions:
        pytest.skip(f"{engine} is not installed")
    return versions[0]


def machine_with(engine: Engine, folder: Path) -> Machine:
    """A machine that has this engine."""
    return harness.machine(folder, programs=() if engine is Engine.POSTGRESQL else (programs(engine, folder),))


def secrets_with(password: str, username: str) -> Secrets:
    return dataclasses.replace(harness.passwords(), users={username: password})


@pytest.fixture(scope="module", params=list(Engine))
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    engine: Engine = request.param
    with harness.machine_folder() as folder:
        machine = machine_with(engine, folder)
        provider = harness.provider(machine)
        spec = harness.spec(
            "orders", engine=engine, version=newest(provider, engine), database="My-Data", username="Ow-ner"
        )
        secrets = secrets_with(PASSWORD, spec.username)
        provider.check(spec)
        asyncio.run(provider.create(spec, secrets, None, silent))
        yield Shared(folder, machine, provider, spec, secrets)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those with a path below `folder` in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found
