"""The local provider, put together of its engines and what each of them can do."""

from __future__ import annotations

from opsplane_server.instances.model import Engine
from opsplane_server.instances.providers.local.engine import LocalEngine
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.mysql.copying import MysqlCopies
from opsplane_server.instances.providers.local.mysql.engine import MysqlEngine
from opsplane_server.instances.providers.local.postgres.copying import PostgresCopies
from opsplane_server.instances.providers.local.postgres.engine import PostgresEngine
from opsplane_server.instances.providers.local.postgres.replicas import PostgresReplicas
from opsplane_server.instances.providers.local.postgres.upgrading import PostgresUpgrades
from opsplane_server.instances.providers.local.provider import LocalProvider


def local_provider(machine: Machine) -> LocalProvider:
    """Of all engines. Nothing is looked for or opened yet."""
    return LocalProvider(machine, local_engines(machine))


def local_engines(machine: Machine) -> dict[Engine, LocalEngine]:
    """By kind."""
    postgres = PostgresEngine(machine)
    postgres.copies = PostgresCopies(machine, postgres.installations)
    postgres.replicas = PostgresReplicas(machine, postgres)
    postgres.upgrades = PostgresUpgrades(machine, postgres)
    mysql = MysqlEngine(machine)
    mysql.copies = MysqlCopies(machine, mysql)
    return {Engine.POSTGRESQL: postgres, Engine.MARIADB: mysql, Engine.MYSQL: mysql}
