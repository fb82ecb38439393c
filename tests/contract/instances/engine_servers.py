"""PostgreSQL servers of several versions, with nobody in them but the admin, for the tests of engines."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from opsplane_server.instances.model import ADMIN_USER, Access
from opsplane_server.instances.providers.local import processes
from opsplane_server.instances.providers.local.postgres.installations import Installations
from opsplane_server.storage.accounts import choose_account, private_folder
from opsplane_server.storage.binaries import run_as

from tests.postgres_fixtures import reachable_folder
from tests.waiting import until

STATISTICS = "pg_stat_statements"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. statistics: whether pg_stat_statements is loaded; without, it logs what is slow."""

    access: Access
    version: str
    statistics: bool
    data: Path

    def log(self) -> list[str]:
        """Its log in JSON."""
        return [line for file in sorted((self.data / "log").glob("*.json")) for line in file.read_text().splitlines()]

    def access_of(self, user: str, password: str) -> Access:
        """How another user reaches it."""
        return Access(self.access.host, self.access.port, user, password)


def versions() -> list[str]:
    """The newest and the oldest that is installed: the wheel's has no contrib modules, that of a system has."""
    found = list(Installations((), Path("/nowhere")).all)
    return list(dict.fromkeys((found[0], found[-1])))


@contextmanager
def running(version: str) -> Iterator[Server]:
    """A new server of this version, ended after the block."""
    with reachable_folder() as folder:
        installations = Installations((), folder / "binaries")
        account = choose_account(None, folder / "data")
        installation = installations.reachable(version, account)
        home = folder / "server"
        private_folder(home, account)
        data = home / "data"
        run_as(
            account,
            [installation.program("initdb"), f"--pgdata={data}", f"--username={ADMIN_USER}", "--auth-local=trust",
             "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"],
        ).check_returncode()  # fmt: skip
        statistics = installations.library(version, STATISTICS)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(home),
            "fsync": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "logging_collector": "on",
            "log_destination": "jsonlog",
            "log_min_duration_statement": "0",
            "log_parameter_max_length": "0",
        }
        if statistics:
            settings["shared_preload_libraries"] = STATISTICS
        command = [installation.program("postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        process = processes.launch(account, command, folder / "output")
        try:
            asyncio.run(until(lambda: _answers(str(home))))
            access = Access(str(home), 5432, ADMIN_USER, "")
            yield Server(access, version, statistics, data)
        finally:
            asyncio.run(processes.end(process, [(signal.SIGQUIT, 20.0), (signal.SIGKILL, 5.0)]))


async def _answers(host: str) -> bool:
    try:
        connection = await asyncpg.connect(host=host, user=ADMIN_USER, database="postgres")
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True
