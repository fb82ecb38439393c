"""A provider and an engine without servers, which keep the contracts of their ports in memory, and obey tests.

provider.refuse("create", FailedPrecondition("no"))     # the next call raises
provider.hold("create")                                 # calls wait until the test lets them go on
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NoReturn

from opsplane_server.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound, Unavailable
from opsplane_server.instances.model import (
    Access,
    Copy,
    CopySource,
    Engine,
    FailoverKind,
    FailoverReport,
    InstanceSpec,
    Manifest,
    Node,
    NodeRole,
    NodeState,
    Notice,
    ProviderKind,
    Secrets,
    Status,
)
from opsplane_server.instances.monitoring import NodeUsage, ServerSample
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.sql import (
    DatabaseInfo,
    NewDatabase,
    NewUser,
    ParameterInfo,
    Privilege,
    SlowQueries,
    SlowQueryOrder,
    UserInfo,
)

VERSIONS = ("18.1", "18.0", "16.9")


@dataclass
class Server:
    """An instance as it would be on a machine."""

    spec: InstanceSpec
    secrets: Secrets
    stopped: bool = False
    primary: int = 1
    source: CopySource | None = None
    last_failover: FailoverReport | None = None
    kept: InstanceSpec | None = None
    databases: dict[str, DatabaseInfo] = field(default_factory=dict)
    users: dict[str, UserInfo] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)


class _Obedient:
    """Counts calls, and does what a test wants of them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._refusals: dict[str, list[Exception]] = {}
        self._held: dict[str, asyncio.Event] = {}

    def forgive(self) -> None:
        """Forgets calls and all that tests wanted."""
        self.calls.clear()
        self._refusals.clear()
        self._held.clear()

    def refuse(self, method: str, *errors: Exception) -> None:
        """The next calls raise these, one each."""
        self._refusals.setdefault(method, []).extend(errors)

    def hold(self, method: str) -> asyncio.Event:
        """Calls wait in the middle until the event is set."""
        self._held[method] = asyncio.Event()
        return self._held[method]

    async def _begin(self, method: str) -> None:
        self.calls.append(method)
        if method in self._held:
            await self._held[method].wait()
        if self._refusals.get(method):
            raise self._refusals[method].pop(0)


class FakeProvider(_Obedient):
    """`ports.Provider` in memory."""

    kind: ProviderKind = ProviderKind.LOCAL

    def __init__(self) -> None:
        super().__init__()
        self.servers: dict[str, Server] = {}
        self.copies: dict[str, tuple[Copy, Server]] = {}
        self.archives: set[str] = set()
        self.exported: dict[str, str] = {}

    def versions(self, engine: Engine) -> Sequence[str]:
        return VERSIONS

    def notices(self, spec: InstanceSpec) -> Sequence[Notice]:
        return ()

    def check(self, spec: InstanceSpec) -> None:
        """Takes everything."""

    def settable(self, spec: InstanceSpec, parameters: Collection[str]) -> Collection[str]:
        return parameters

    async def create(
        self, spec: InstanceSpec, secrets: Secrets, source: CopySource | None, progress: Progress
    ) -> Status:
        await progress("making", 10)
        if spec.name in self.servers and self.servers[spec.name].spec.uid != spec.uid:
            raise AlreadyExists(f"{spec.name} has data", reason="INSTANCE_DATA_EXISTS")
        server = self.servers[spec.name] = Server(spec, secrets, source=source)
        server.passwords.update(secrets.users)
        server.databases[spec.database] = DatabaseInfo(spec.database, spec.username, "UTF8", "C", 7)
        server.users[spec.username] = UserInfo(spec.username, Privilege.OWNER)
        if source is not None and source.location in self.copies:
            server.rows = dict(self.copies[source.location][1].rows)
        await self._begin("create")
        await progress("starting", 90)
        return await self.status(spec.name)

    async def start(self, name: str, progress: Progress) -> Status:
        await self._begin("start")
        self._server(name).stopped = False
        return await self.status(name)

    async def stop(self, name: str, progress: Progress) -> Status:
        await self._begin("stop")
        self._server(name).stopped = True
        return await self.status(name)

    async def restart(self, name: str, node: str, progress: Progress) -> Status:
        await self._begin("restart")
        return await self.status(name)

    async def update(self, spec: InstanceSpec, progress: Progress) -> Status:
        self._server(spec.name).spec = spec
        await self._begin("update")
        return await self.status(spec.name)

    async def delete(self, name: str, progress: Progress) -> None:
        await self._begin("delete")
        self.servers.pop(name, None)

    async def failover(
        self, name: str, target: str, kind: FailoverKind, reason: str, progress: Progress
    ) -> FailoverReport:
        await self._begin("failover")
        server = self._server(name)
        before, now = server.primary, datetime.now(UTC)
        if target == f"{server.spec.id}-{before}":
            if server.last_failover is None or server.last_failover.new_primary != target:
                raise FailedPrecondition("it is the primary already", reason="NO_CANDIDATE")
            return server.last_failover
        server.primary = int(target.rsplit("-", 1)[1]) if target else before % server.spec.node_count + 1
        short = server.spec.id
        server.last_failover = FailoverReport(
            kind, f"{short}-{before}", f"{short}-{server.primary}", reason, now, now, now, 0
        )
        await self._begin("failover done")
        return server.last_failover

    async def upgrade(self, spec: InstanceSpec, progress: Progress) -> Status:
        await self._begin("upgrade")
        server = self._server(spec.name)
        if server.spec.version != spec.version:
            server.kept, server.spec = server.spec, spec
        return await self.status(spec.name)

    async def roll_back(self, spec: InstanceSpec, progress: Progress) -> Status:
        await self._begin("roll_back")
        server = self._server(spec.name)
        if server.spec.version != spec.version:
            if server.kept is None:
                raise FailedPrecondition("nothing is kept", reason="ROLLBACK_EXPIRED")
            server.spec, server.kept = server.kept, None
        return await self.status(spec.name)

    async def forget_upgrade(self, name: str) -> None:
        await self._begin("forget_upgrade")
        self._server(name).kept = None

    async def set_password(self, name: str, user: str, password: str) -> None:
        await self._begin("set_password")
        server = self._server(name)
        users = {**server.secrets.users, user: password}
        if not password:
            del users[user]
        server.secrets = replace(server.secrets, users=users)

    async def status(self, name: str) -> Status:
        await self._begin("status")
        server = self._server(name)
        short = server.spec.id
        nodes = tuple(
            Node(
                f"{short}-{number}",
                NodeRole.PRIMARY if number == server.primary else NodeRole.REPLICA,
                NodeState.STOPPED if server.stopped else NodeState.READY,
                "127.0.0.1",
                41000 + number,
            )
            for number in range(1, server.spec.node_count + 1)
        )
        return Status(
            nodes=nodes,
            primary=f"{short}-{server.primary}",
            running_version=server.spec.version,
            last_failover=server.last_failover,
        )

    async def usage(self, name: str) -> Sequence[NodeUsage]:
        return ()

    async def supervise(self, changed: Callable[[str], None]) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def slow_log(self, name: str) -> Sequence[str]:
        return ()

    async def access(self, name: str, node: str = "") -> Access:
        await self._begin("access")
        if self._server(name).stopped:
            raise Unavailable("no primary", reason="NO_PRIMARY")
        return Access(name, 0, "admin", "secret")

    async def find(self, name: str, *, namespace: str = "") -> Manifest:
        server = self._server(name)
        return Manifest(server.spec, server.secrets, server.stopped)

    async def copy(self, name: str, copy_id: str, base: str, progress: Progress) -> Copy:
        server, now = self._server(name), datetime.now(UTC)
        made = Copy(
            location=copy_id,
            engine=server.spec.engine,
            engine_version=server.spec.version,
            method="PHYSICAL",
            consistency="TRANSACTION",
            node=f"{server.spec.id}-1",
            databases=tuple(server.databases),
            users=tuple(server.users),
            tables=dict(server.rows),
            size_bytes=10,
            restore_size_bytes=2**28,
            start_time=now,
            cut_time=now,
            complete_time=now,
            base=base,
        )
        self.copies[copy_id] = made, replace(server, rows=dict(server.rows))
        await progress("copying", 50)
        await self._begin("copy")
        return made

    async def delete_copy(self, location: str) -> None:
        await self._begin("delete_copy")
        self.copies.pop(location, None)

    async def archive_copy(
        self, location: str, path: str, packing: str, progress: Progress, *, overwrite: bool
    ) -> tuple[int, str]:
        if path in self.exported and not overwrite:
            raise AlreadyExists(f"{path} is there")
        await self._begin("archive_copy")
        self.exported[path] = location
        return 10, "0" * 64

    async def check_files(self, location: str, progress: Progress) -> str:
        await self._begin("check_files")
        return "2 files are as they were"

    async def check_checksums(self, name: str, progress: Progress) -> str:
        await self._begin("check_checksums")
        if not self._server(name).stopped:
            raise DataLoss("it runs")
        return "3 pages"

    async def delete_archive(self, uid: str, keep_from: str) -> None:
        await self._begin("delete_archive")
        self.archives.discard(uid)

    def _server(self, name: str) -> Server:
        if name not in self.servers:
            raise NotFound.resource(name)
        return self.servers[name]


class FakeAdmin(_Obedient):
    """`ports.EngineAdmin` for the servers of a fake provider."""

    def __init__(self, provider: FakeProvider) -> None:
        super().__init__()
        self._provider = provider

    async def list_databases(self, access: Access) -> Sequence[DatabaseInfo]:
        return list(self._server(access).databases.values())

    async def create_database(self, access: Access, database: NewDatabase) -> None:
        databases = self._server(access).databases
        if database.name in databases:
            raise AlreadyExists.resource(database.name)
        databases[database.name] = DatabaseInfo(database.name, database.owner, database.charset, database.collation, 7)
        await self._begin("create_database")

    async def delete_database(self, access: Access, database: str, *, force: bool) -> None:
        if self._server(access).databases.pop(database, None) is None:
            raise NotFound.resource(database)
        await self._begin("delete_database")

    async def list_users(self, access: Access) -> Sequence[UserInfo]:
        return list(self._server(access).users.values())

    async def create_user(self, access: Access, user: NewUser) -> None:
        if user.name in self._server(access).users:
            raise AlreadyExists.resource(user.name)
        await self._write(access, user, "create_user")

    async def update_user(self, access: Access, user: NewUser) -> None:
        if user.name not in self._server(access).users:
            raise NotFound.resource(user.name)
        await self._write(access, user, "update_user")

    async def delete_user(self, access: Access, user: str, heir: str) -> None:
        if self._server(access).users.pop(user, None) is None:
            raise NotFound.resource(user)
        await self._begin("delete_user")

    async def list_parameters(self, access: Access) -> Sequence[ParameterInfo]:
        return ()

    async def slow_queries(self, access: Access, log: Sequence[str], order: SlowQueryOrder, limit: int) -> SlowQueries:
        return SlowQueries((), statistics=False)

    async def sample(self, access: Access) -> ServerSample:
        return ServerSample(datetime.now(UTC), 1, 0, 100)

    async def count_rows(self, access: Access) -> Mapping[str, int]:
        await self._begin("count_rows")
        return dict(self._server(access).rows)

    async def check_catalog(self, access: Access, databases: Collection[str], users: Collection[str]) -> str:
        await self._begin("check_catalog")
        return "as it should be"

    async def _write(self, access: Access, user: NewUser, method: str) -> None:
        server = self._server(access)
        server.users[user.name] = UserInfo(user.name, user.privilege, user.databases, user.max_connections)
        if user.password:
            server.passwords[user.name] = user.password
        await self._begin(method)

    def _server(self, access: Access) -> Server:
        return self._provider.servers[access.host]
