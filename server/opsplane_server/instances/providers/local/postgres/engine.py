"""PostgreSQL on this machine: one server at a time. Replication, copies and upgrades are in modules of their own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import shutil
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from opsplane_server.errors import AlreadyExists, FailedPrecondition, Unavailable
from opsplane_server.instances.engines.postgres import databases, users
from opsplane_server.instances.engines.postgres.verifier import scram_verifier
from opsplane_server.instances.model import ADMIN_USER, Access, Engine, InstanceSpec, Notice
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import certificates, logs, processes, programs
from opsplane_server.instances.providers.local.engine import (
    Copies,
    LocalNode,
    NodeView,
    Replicas,
    Upgrades,
)
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.postgres import (
    archiving,
    building,
    config,
    fencing,
    queries,
    replication,
    shared_memory,
)
from opsplane_server.instances.providers.local.postgres import parameters as settings
from opsplane_server.instances.providers.local.postgres.installations import Installations
from opsplane_server.instances.sql import NewDatabase, NewUser, Privilege
from opsplane_server.storage import postmaster
from opsplane_server.storage.accounts import require_passable, sync_folder

_STOPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0))  # fast, immediate; what is left then is fenced
_STOPS_AT_ONCE = ((signal.SIGQUIT, 10.0),)
_PREFIX = re.compile(r".*?\b(FATAL|PANIC):\s+")
_STARTERS = ("postmaster", "startup")
_RELOAD_SECONDS = 10.0
_LOG_BYTES = 16 * 1024 * 1024
_SLOW_LOG_BYTES = 4 * 1024 * 1024
_BUILTIN_LOCALES = 17  # first major version that has them: the same order of texts on every machine, for ever
# What a replica must have at least as large as its primary had when it wrote the log that is replayed.
_NOT_BELOW_PRIMARY = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}


class PostgresEngine:
    """See `LocalEngine`; replicas, copies and upgrades are set by whoever puts the provider together."""

    replicas: Replicas | None = None
    copies: Copies | None = None
    upgrades: Upgrades | None = None

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.installations = Installations(machine.settings.programs, machine.layout.binaries)

    # What there is, and what can be asked for.

    def versions(self, engine: Engine) -> Sequence[str]:
        """See LocalEngine."""
        return list(self.installations.all)

    def check(self, spec: InstanceSpec) -> None:
        """See LocalEngine."""
        self.installations.of(spec.version)
        settings.check(self.installations, spec)

    def settable(self, spec: InstanceSpec, parameters: Collection[str]) -> Collection[str]:
        """See LocalEngine."""
        return settings.settable(self.installations, spec, parameters)

    def notices(self, spec: InstanceSpec) -> Sequence[Notice]:
        """See LocalEngine: nothing."""
        return ()

    def tls(self, node: LocalNode) -> bool:
        """See LocalEngine."""
        return self.installations.tls(node.version)

    # Making and configuring.

    async def initialise(self, node: LocalNode, progress: Progress) -> None:
        """See LocalEngine."""
        if node.folder.data.exists():
            return
        await progress("initialising the data directory", 10)
        await self.create_data(node, node.folder.scratch)
        node.folder.scratch.rename(node.folder.data)
        sync_folder(node.folder.path)

    async def create_data(self, node: LocalNode, folder: Path, *, options: Sequence[str] = ()) -> None:
        """Runs initdb for the node's version into `folder`, in place of what a killed one left there.

        options: more of them, which win, such as the locale of data that are to be upgraded.
        """
        await processes.kill(await asyncio.to_thread(processes.working_on, folder, node.account))
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        require_passable(node.folder.path.parent, node.account)
        installation = await asyncio.to_thread(self.installation, node)
        if int(installation.major) >= _BUILTIN_LOCALES:
            locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        else:
            locale = ["--locale=C.UTF-8", "--locale-provider=libc"]
        command = [
            installation.program("initdb"), f"--pgdata={folder}", f"--username={ADMIN_USER}",
            "--encoding=UTF8", "--data-checksums", "--no-instructions",
            # Its own access rules are never read: ours are beside the data.
            "--auth=reject", *locale, *options,
        ]  # fmt: skip
        await programs.run(node.account, command)

    async def configure(self, node: LocalNode) -> None:
        """See LocalEngine."""
        await asyncio.to_thread(self._configure, node)

    def _configure(self, node: LocalNode) -> None:
        self._machine.create_node_folder(node)
        tls = self.tls(node)
        if tls:
            certificates.ensure(node.instance_folder, node.folder.conf, node.account, [self._machine.endpoint_host])
        config.write(node, self.settings(node))

    def settings(self, node: LocalNode) -> Mapping[str, str]:
        """Every setting that this server is configured with. Blocks for a moment."""
        result = config.settings(
            node,
            listen_host=self._machine.settings.listen_host,
            tls=self.tls(node),
            preload=self.installations.library(node.version, settings.PRELOADED),
            replication=replication.settings(node),
            archiving=archiving.parameters(self._machine.layout, node.spec, node.folder.data, node.account),
        )
        if not node.is_primary:
            result |= self._raised(node, result)
        return result

    def _raised(self, node: LocalNode, wanted: Mapping[str, str]) -> dict[str, str]:
        """The settings that a replica must not have below its primary, as its data say the primary has them."""
        told = self.control_data(node, node.folder.data)
        result = {}
        for name, line in _NOT_BELOW_PRIMARY.items():
            if line in told and name in wanted and wanted[name].strip().isdigit():
                result[name] = str(max(int(wanted[name]), int(told[line])))
        return result

    def control_data(self, node: LocalNode, data: Path) -> Mapping[str, str]:
        """What pg_controldata says of this data, by its own words; empty if there is nothing to read. Blocks."""
        command = [self.installations.of(node.version).program("pg_controldata"), str(data)]
        said = programs.output(command)
        return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}

    # Running.

    def find(self, node: LocalNode) -> psutil.Process | None:
        """See LocalEngine."""
        found = postmaster.find(node.folder.data)
        return found.process if found is not None and processes.alive(found.process) else None

    def installation(self, node: LocalNode) -> programs.Installation:
        """The programs of this node's version, where its account can run them. Blocks the first time."""
        return self.installations.reachable(node.version, node.account)

    async def clear(self, node: LocalNode) -> None:
        """See LocalEngine."""
        await fencing.fence(node)

    def launch(self, node: LocalNode) -> psutil.Process:
        """See LocalEngine."""
        if not node.is_primary and not building.is_replica(node):
            raise FailedPrecondition(
                f"{node.id} was the primary and must come back as a replica", reason="NODE_NEEDS_REJOIN"
            )
        installation = self.installation(node)
        for stale in node.folder.run.glob(".s.PGSQL.*"):
            stale.unlink()  # its lock file names a process too, and that number may be another's by now
        postmaster.disown(node.folder.data)
        start_log = node.folder.log / "start.log"
        start_log.unlink(missing_ok=True)
        # `--config-file` must be here, for it can not be in the file; nothing else is, so that a reload can change it.
        command = [
            installation.program("postgres"),
            "-D",
            str(node.folder.data),
            f"--config-file={node.folder.conf / config.SETTINGS}",
        ]
        return processes.launch(node.account, command, start_log)

    async def answers(self, node: LocalNode) -> bool:
        """See LocalEngine."""
        return await queries.answers(node)

    def failure(self, node: LocalNode) -> str:
        """See LocalEngine."""
        early = node.folder.log / "start.log"
        said = list(logs.newest_lines(early, 16384))
        fatal = [line for line in said if "FATAL:" in line or "PANIC:" in line]
        if fatal or not early.exists():
            return _PREFIX.sub("", (fatal or ["it has logged nothing"])[-1])
        # From there on it has logged in JSON, after what earlier starts did.
        since = datetime.fromtimestamp(early.stat().st_mtime, UTC) - timedelta(seconds=1)
        later = [
            f"{entry['error_severity']}: {entry['message']}"
            for entry in _entries(node.folder.log / config.LOG)
            if entry.get("backend_type") in _STARTERS and _logged_at(entry) >= since
        ]
        fatal = [line for line in later if _PREFIX.match(line)]
        return _PREFIX.sub("", (fatal or later or said or ["it has logged nothing"])[-1])

    def failure_passes(self, failure: str) -> bool:
        """See LocalEngine."""
        return "pre-existing shared memory block" in failure

    async def stop(self, node: LocalNode, *, at_once: bool = False) -> None:
        """See LocalEngine."""
        process = self.find(node)
        if process is not None:
            with contextlib.suppress(Unavailable):  # what follows is stronger
                await processes.end(process, _STOPS_AT_ONCE if at_once else _STOPS)
        await fencing.fence(node)
        await asyncio.to_thread(shared_memory.discard, node.folder.data)

    async def prepare(self, node: LocalNode) -> None:
        """See LocalEngine."""
        spec, secrets = node.spec, node.manifest.secrets
        first = NewUser(spec.username, secrets.users[spec.username], Privilege.OWNER)
        try:
            async with queries.connected(node) as connection:
                await queries.set_own_passwords(
                    connection, scram_verifier(secrets.admin), scram_verifier(secrets.replication)
                )
                try:
                    await users.create_user(connection, first)
                except AlreadyExists:
                    await users.update_user(connection, first)
                with contextlib.suppress(AlreadyExists):  # it came with a copy, or an earlier attempt made it
                    await databases.create_database(connection, NewDatabase(spec.database, owner=spec.username))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise Unavailable(f"{node.id} can not be prepared: {error}", reason="SERVER_UNAVAILABLE") from error

    async def reload(self, node: LocalNode) -> None:
        """See LocalEngine."""
        try:
            async with asyncio.timeout(_RELOAD_SECONDS):
                async with queries.connected(node) as connection:
                    before = await connection.fetchval("SELECT pg_conf_load_time()")
                    await connection.execute("SELECT pg_reload_conf()")
                # A session sees what its main process had when it was forked: a new one tells whether that has it.
                while True:
                    async with queries.connected(node) as connection:
                        if await connection.fetchval("SELECT pg_conf_load_time()") != before:
                            return
                    await asyncio.sleep(0.01)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise Unavailable(f"{node.id} does not reload: {error}", reason="SERVER_UNAVAILABLE") from error

    async def inspect(self, node: LocalNode) -> NodeView:
        """See LocalEngine."""
        view = await queries.view(node)
        names = {replication.standby_name(entry.id): entry.id for entry in node.manifest.nodes}
        return dataclasses.replace(
            view, synchronous=frozenset(names[name] for name in view.synchronous if name in names)
        )

    def access(self, node: LocalNode) -> Access:
        """See LocalEngine. Over the unix socket: nobody can listen in, and no certificates are needed."""
        return Access(host=str(node.folder.run), port=node.port, user=ADMIN_USER, password=node.manifest.secrets.admin)

    def slow_log(self, node: LocalNode) -> Sequence[str]:
        """See LocalEngine. The lines are JSON objects in PostgreSQL's own form."""
        lines = logs.newest_lines(node.folder.log / config.LOG, _SLOW_LOG_BYTES)
        return [line for line in lines if '"message":"duration: ' in line]

    def bound_logs(self, node: LocalNode) -> None:
        """See LocalEngine."""
        for name in (config.LOG, "start.log"):
            logs.bound(node.folder.log / name, _LOG_BYTES)


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    """The newest of a log in JSON, oldest first; what is no whole entry is left out."""
    for line in logs.newest_lines(log, 65536):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and {"timestamp", "error_severity", "message"} <= entry.keys():
                yield entry


def _logged_at(entry: Mapping[str, Any]) -> datetime:
    return datetime.strptime(entry["timestamp"], "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)
