"""MariaDB and MySQL on this machine: single servers. Copies are in a module of their own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import psutil
import structlog

from opsplane_server.errors import AlreadyExists, FieldViolation, InvalidArgument, OpsplaneError, Unavailable
from opsplane_server.instances.engines.mysql import databases, users
from opsplane_server.instances.engines.mysql.connecting import connected
from opsplane_server.instances.engines.mysql.names import SYSTEM_DATABASES, SYSTEM_USERS
from opsplane_server.instances.engines.mysql.parameters import apply
from opsplane_server.instances.model import ADMIN_USER, Access, Engine, InstanceSpec, NodeRole, Notice
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import certificates, logs, processes, programs
from opsplane_server.instances.providers.local.engine import Copies, LocalNode, NodeView, Replicas, Upgrades
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.mysql import config, handed_over
from opsplane_server.instances.providers.local.mysql import parameters as settings
from opsplane_server.instances.providers.local.mysql.installations import Installation, Installations
from opsplane_server.instances.sql import NewDatabase, NewUser, Privilege
from opsplane_server.storage.accounts import private_folder, require_passable, sync_folder

log = structlog.get_logger(__name__)

_SERVERS: Final = frozenset({"mariadbd", "mysqld"})
_LONGEST_MYSQL_NAME: Final = 32
_STOPS: Final = ((signal.SIGTERM, 120.0), (signal.SIGKILL, 30.0))
_STOPS_AT_ONCE: Final = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 30.0))
_ANSWER_SECONDS: Final = 5.0
_SLOW_LOG_BYTES: Final = 4 * 1024 * 1024
_LOG_BYTES: Final = 16 * 1024 * 1024
_READ_OF_LOG: Final = 65536
_ERROR: Final = re.compile(r"\[ERROR\](?: \[MY-\d+\])?(?: \[\w+\])? (.*)")
# Words of a server that finds another one, or the rest of a killed one, at work on its data.
_PASSING: Final = ("Unable to lock", "Can't lock", "Another process with pid", "lock the file")


class MysqlEngine:
    """See `LocalEngine`; one object for both engines, which differ in a few programs and options. Copies are set by
    whoever puts the provider together. There are no replicas: a commit of MariaDB waits for one of them at most, and a
    primary that died with a commit that no replica has can not be rewound, so no failover would be as safe as
    PostgreSQL's.
    """

    replicas: Replicas | None = None
    copies: Copies | None = None
    upgrades: Upgrades | None = None

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.installations = Installations(machine.settings.programs, machine.layout.binaries)

    # What there is, and what can be asked for.

    def versions(self, engine: Engine) -> Sequence[str]:
        """See LocalEngine."""
        return list(self.installations.all(engine))

    def check(self, spec: InstanceSpec) -> None:
        """See LocalEngine."""
        installation = self.installations.of(spec.engine, spec.version)
        violations = []
        if spec.database.lower() in SYSTEM_DATABASES:
            violations.append(FieldViolation("instance.database", f"{spec.engine} has '{spec.database}' for itself"))
        if spec.username in SYSTEM_USERS:
            violations.append(FieldViolation("instance.username", f"{spec.engine} reserves '{spec.username}'"))
        if spec.engine is Engine.MYSQL and len(spec.username) > _LONGEST_MYSQL_NAME:
            problem = f"MySQL takes names of at most {_LONGEST_MYSQL_NAME} characters"
            violations.append(FieldViolation("instance.username", problem))
        if violations:
            raise InvalidArgument(
                f"{violations[0].field}: {violations[0].description}", violations, reason="NAME_RESERVED"
            )
        settings.check(installation, spec)

    def settable(self, spec: InstanceSpec, parameters: Collection[str]) -> Collection[str]:
        """See LocalEngine."""
        installation = self.installations.of(spec.engine, spec.version)
        return [name for name in parameters if settings.problem(installation, name) is None]

    def notices(self, spec: InstanceSpec) -> Sequence[Notice]:
        """See LocalEngine."""
        if spec.engine is Engine.MYSQL and spec.resources.memory_bytes < settings.MYSQL_OWN_MEMORY * 4 // 3:
            return [Notice("resources.memory_bytes", "MySQL takes some 190 MiB before it has any buffers")]
        return ()

    def tls(self, node: LocalNode) -> bool:
        """See LocalEngine."""
        return "ssl_cert" in self._installation(node).options

    # Making and configuring.

    async def initialise(self, node: LocalNode, progress: Progress) -> None:
        """See LocalEngine."""
        if node.folder.data.exists():
            return
        await progress("initialising the data directory", 10)
        scratch = node.folder.scratch
        await processes.kill(await asyncio.to_thread(processes.working_on, scratch))
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        require_passable(node.folder.path.parent, node.account)
        installation = await self._reachable(node)
        private_folder(config.temporary(node), node.account)
        await programs.run(node.account, _initialising(installation, scratch, config.temporary(node)))
        scratch.rename(node.folder.data)
        sync_folder(node.folder.path)

    async def configure(self, node: LocalNode) -> None:
        """See LocalEngine."""
        installation = await self._reachable(node)
        await asyncio.to_thread(self._configure, node, installation)

    def _configure(self, node: LocalNode, installation: Installation) -> None:
        self._machine.create_node_folder(node)
        private_folder(config.temporary(node), node.account)
        certificates.ensure(node.instance_folder, node.folder.conf, node.account, [self._machine.endpoint_host])
        config.write(node, self._settings(node, installation))

    def _settings(self, node: LocalNode, installation: Installation) -> dict[str, str]:
        return config.settings(node, installation, self._machine.settings.listen_host)

    # Running.

    def find(self, node: LocalNode) -> psutil.Process | None:
        """See LocalEngine."""
        # The file is there from when the server is ready; before that, the command line alone tells.
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(config.pid_file(node).read_text()))
            if _is_server(process, node) and processes.alive(process):
                return process
        for process in processes.working_on(node.folder.conf / config.SETTINGS):
            if _is_server(process, node) and processes.alive(process):
                return process
        return None

    async def clear(self, node: LocalNode) -> None:
        """See LocalEngine: nothing, for these servers are one process."""

    def launch(self, node: LocalNode) -> psutil.Process:
        """See LocalEngine."""
        installation = self.installations.reachable(node.spec.engine, node.version, node.account)
        config.pid_file(node).unlink(missing_ok=True)
        handed_over.clear(node.folder.conf)
        config.keep_running(node, self._settings(node, installation))
        log_file = node.folder.log / config.LOG
        if log_file.exists():
            log_file.rename(log_file.with_name(f"{config.LOG}.1"))
        # All else is in the file, so that everybody may see the command line.
        command = [installation.server, f"--defaults-file={node.folder.conf / config.SETTINGS}"]
        return processes.launch(node.account, command, log_file)

    async def answers(self, node: LocalNode) -> bool:
        """See LocalEngine."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS), connected(self.access(node)) as session:
                return await session.exists("SELECT 1")
        except (OpsplaneError, OSError):
            return False

    def failure(self, node: LocalNode) -> str:
        """See LocalEngine."""
        lines = [line for line in logs.newest_lines(node.folder.log / config.LOG, _READ_OF_LOG) if line.strip()]
        errors = [match[1] for line in lines if (match := _ERROR.search(line)) and match[1].strip(" .") != "Aborting"]
        # The first says why, those after it what came of it.
        return (errors or lines[-1:] or ["it has logged nothing"])[0]

    def failure_passes(self, failure: str) -> bool:
        """See LocalEngine."""
        return any(words in failure for words in _PASSING)

    async def stop(self, node: LocalNode, *, at_once: bool = False) -> None:
        """See LocalEngine."""
        process = await asyncio.to_thread(self.find, node)
        if process is not None:
            await processes.end(process, _STOPS_AT_ONCE if at_once else _STOPS)

    async def prepare(self, node: LocalNode) -> None:
        """See LocalEngine. Our own account has its password from the statements that the server runs at its start."""
        spec, secrets = node.spec, node.manifest.secrets
        first = NewUser(spec.username, secrets.users[spec.username], Privilege.OWNER)
        async with connected(self.access(node)) as session:
            try:
                await users.create_user(session, first)
            except AlreadyExists:
                await users.update_user(session, first)
            with contextlib.suppress(AlreadyExists):  # it came with a copy, or an earlier attempt made it
                await databases.create_database(session, NewDatabase(spec.database, owner=spec.username))

    async def reload(self, node: LocalNode) -> None:
        """See LocalEngine."""
        installation = await self._reachable(node)
        wanted, has = self._settings(node, installation), config.running(node)
        changed = sorted(name for name in wanted.keys() | has.keys() if wanted.get(name) != has.get(name))
        if not changed:
            return
        try:
            async with connected(self.access(node)) as session:
                for name in changed:
                    if await apply(session, name, wanted.get(name)):
                        has = {key: value for key, value in has.items() if key != name}
                        has |= {name: wanted[name]} if name in wanted else {}
        finally:
            config.keep_running(node, has)

    async def inspect(self, node: LocalNode) -> NodeView:
        """See LocalEngine."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS), connected(self.access(node)) as session:
                version = session.version
        except TimeoutError:
            raise Unavailable(f"{node.id} does not answer", reason="SERVER_UNAVAILABLE") from None
        match = re.search(r"(\d+\.\d+\.\d+)(?=-MariaDB|-\d|$|[^.\d])", version.removeprefix("5.5.5-"))
        return NodeView(
            role=NodeRole.PRIMARY,
            version=match[1] if match else version,
            pending_restart=await asyncio.to_thread(self._pending, node),
        )

    def _pending(self, node: LocalNode) -> tuple[str, ...]:
        wanted, has = self._settings(node, self._installation(node)), config.running(node)
        names = wanted.keys() | has.keys() if has else set()
        return tuple(sorted(name for name in names - {"basedir"} if wanted.get(name) != has.get(name)))

    def access(self, node: LocalNode) -> Access:
        """See LocalEngine. Over the unix socket: nobody can listen in, and no certificates are needed."""
        return Access(host=str(node.folder.run), port=node.port, user=ADMIN_USER, password=node.manifest.secrets.admin)

    def slow_log(self, node: LocalNode) -> Sequence[str]:
        """See LocalEngine. In the server's own form."""
        return logs.newest_lines(node.folder.log / config.SLOW_LOG, _SLOW_LOG_BYTES)

    def bound_logs(self, node: LocalNode) -> None:
        """See LocalEngine."""
        for name in (config.LOG, config.SLOW_LOG):
            logs.bound(node.folder.log / name, _LOG_BYTES)

    def _installation(self, node: LocalNode) -> Installation:
        return self.installations.of(node.spec.engine, node.version)

    async def _reachable(self, node: LocalNode) -> Installation:
        return await asyncio.to_thread(self.installations.reachable, node.spec.engine, node.version, node.account)


def _initialising(installation: Installation, data: Path, temporary: Path) -> list[str]:
    """The command that makes empty data, with no account that has a password."""
    if installation.engine is Engine.MYSQL:
        small_log = ["--innodb-redo-log-capacity=16M"] if "innodb_redo_log_capacity" in installation.options else []
        return [
            installation.server, "--no-defaults", f"--basedir={installation.folder}", f"--datadir={data}",
            f"--tmpdir={temporary}", "--secure-file-priv=NULL", "--auto-generate-certs=OFF", "--skip-log-bin",
            "--initialize-insecure", "--innodb-buffer-pool-size=64M", "--log-error-verbosity=1", *small_log,
        ]  # fmt: skip
    return [
        installation.program("mariadb-install-db", "mysql_install_db"), "--no-defaults",
        f"--basedir={installation.folder}", f"--datadir={data}", f"--tmpdir={temporary}",
        # One account, of the system's root, that our statements remove at the first start.
        "--auth-root-authentication-method=socket", "--auth-root-socket-user=root", "--skip-test-db",
        "--skip-name-resolve", "--innodb-log-file-size=16M", "--innodb-buffer-pool-size=32M",
    ]  # fmt: skip


def _is_server(process: psutil.Process, node: LocalNode) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    wanted = f"--defaults-file={node.folder.conf / config.SETTINGS}"
    return len(words) > 1 and Path(words[0]).name in _SERVERS and wanted in words
