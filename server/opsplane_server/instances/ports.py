"""What instances need from outside: providers that run servers, engines that speak SQL, stores (`stores.ports`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NoReturn, Protocol, TypeAlias

from opsplane_server.instances.model import (
    Access,
    Copy,
    CopySource,
    Engine,
    FailoverKind,
    FailoverReport,
    InstanceSpec,
    Manifest,
    Notice,
    ProviderKind,
    Secrets,
    Status,
)
from opsplane_server.instances.monitoring import NodeUsage, ServerSample
from opsplane_server.instances.sql import (
    DatabaseInfo,
    NewDatabase,
    NewUser,
    ParameterInfo,
    SlowQueries,
    SlowQueryOrder,
    UserInfo,
)

Progress: TypeAlias = Callable[[str, int], Awaitable[None]]
"""Told what happens now, in words for people, and how much is done, in percent. May raise LeaseLost: then stop."""


class Provider(Protocol):
    """Runs instances. Every method may be called again after it was broken off anywhere, by `kill -9` too, and then
    goes on or begins anew; when it has returned nothing half-made is left. One call at a time changes an instance:
    providers hold a lock of their own meanwhile. Raises FailedPrecondition, ResourceExhausted, Unavailable, DataLoss.
    """

    kind: ProviderKind

    def versions(self, engine: Engine) -> Sequence[str]:
        """Exact versions that it offers, newest first; empty where the engine is not installed."""
        ...

    def notices(self, spec: InstanceSpec) -> Sequence[Notice]:
        """Settings that it can not make true, or not fully."""
        ...

    def settable(self, spec: InstanceSpec, parameters: Collection[str]) -> Collection[str]:
        """Which of these parameters of the engine `InstanceSpec.parameters` may set, whatever their values."""
        ...

    def check(self, spec: InstanceSpec) -> None:
        """Raises for what it can not run: InvalidArgument (a parameter), FailedPrecondition, ResourceExhausted."""
        ...

    async def create(
        self, spec: InstanceSpec, secrets: Secrets, source: CopySource | None, progress: Progress
    ) -> Status:
        """Makes it, empty or from a copy, and returns when its primary takes connections and the first user and
        database are there. From a copy the databases and users are those of the copy; the first user gets its password.
        """
        ...

    async def start(self, name: str, progress: Progress) -> Status:
        """Starts its servers; returns when the primary takes connections. Harmless when they run."""
        ...

    async def stop(self, name: str, progress: Progress) -> Status:
        """Stops its servers in good order, and keeps them stopped. Harmless when they are."""
        ...

    async def restart(self, name: str, node: str, progress: Progress) -> Status:
        """Restarts one node, or with "" all: replicas one by one, the primary last, by a switchover where it can."""
        ...

    async def update(self, spec: InstanceSpec, progress: Progress) -> Status:
        """Makes changed settings true without a restart: parameters that need one are in `Status.pending_restart`.
        Adds or removes replicas.
        """
        ...

    async def delete(self, name: str, progress: Progress) -> None:
        """Ends its processes and removes all that is its own, but for copies and the archived log."""
        ...

    async def failover(
        self, name: str, target: str, kind: FailoverKind, reason: str, progress: Progress
    ) -> FailoverReport:
        """Makes `target`, or with "" the best replica, the primary: with SWITCHOVER in good order, else at once."""
        ...

    async def upgrade(self, spec: InstanceSpec, progress: Progress) -> Status:
        """Changes it to `spec.version`, a newer major one, and keeps the old data; on failure the old version runs."""
        ...

    async def roll_back(self, spec: InstanceSpec, progress: Progress) -> Status:
        """Goes back to the data and version kept by `upgrade`. FailedPrecondition where there are none."""
        ...

    async def forget_upgrade(self, name: str) -> None:
        """Removes the old data."""
        ...

    async def set_password(self, name: str, user: str, password: str) -> None:
        """Keeps a user's new password beside the data, so that `find` still has it; "" forgets the user."""
        ...

    async def status(self, name: str) -> Status:
        """How it stands now. NotFound."""
        ...

    async def usage(self, name: str) -> Sequence[NodeUsage]:
        """Processor, memory and storage that its nodes use now."""
        ...

    async def supervise(self, changed: Callable[[str], None]) -> NoReturn:
        """Keeps the instances of this machine as they should be, until it is cancelled: starts what died, fails over,
        brings old primaries back. Tells `changed` whose status is another. One process of a machine calls it.
        """
        ...

    async def slow_log(self, name: str) -> Sequence[str]:
        """The newest lines, some megabytes at most, of the primary's log of slow statements, oldest first."""
        ...

    async def access(self, name: str, node: str = "") -> Access:
        """How to reach a node, or with "" the primary, by the admin account. Unavailable while there is none."""
        ...

    async def find(self, name: str, *, namespace: str = "") -> Manifest:
        """What it still knows of an instance. NotFound."""
        ...

    async def copy(self, name: str, copy_id: str, base: str, progress: Progress) -> Copy:
        """Copies the data of an instance that serves; `base` is the location of a copy to build on, "" for none."""
        ...

    async def delete_copy(self, location: str) -> None:
        """Removes a copy, whole or half-made. Harmless when there is none."""
        ...

    async def archive_copy(
        self, location: str, path: str, packing: str, progress: Progress, *, overwrite: bool
    ) -> tuple[int, str]:
        """Writes a copy, with all that it builds on, as one archive (TAR, TAR_GZIP, TAR_ZSTD) to `path` below the
        export folder; its bytes and SHA-256. AlreadyExists, ResourceExhausted.
        """
        ...

    async def check_files(self, location: str, progress: Progress) -> str:
        """Compares a copy's files with its manifest; what was found, in words. Raises DataLoss."""
        ...

    async def check_checksums(self, name: str, progress: Progress) -> str:
        """Reads every page of a stopped instance; what was found, in words. Raises DataLoss, FailedPrecondition
        where the engine has no such check.
        """
        ...

    async def delete_archive(self, uid: str, keep_from: str) -> None:
        """Removes the archived log of an instance that lies before what the copy at `keep_from` needs; "" for all."""
        ...


class EngineAdmin(Protocol):
    """Speaks an engine's SQL, as the admin. Names are quoted, values are bound; an engine's refusals become
    AlreadyExists, NotFound, FailedPrecondition and InvalidArgument, an engine out of reach Unavailable.
    """

    async def list_databases(self, access: Access) -> Sequence[DatabaseInfo]:
        """Those of users, by name, with their sizes."""
        ...

    async def create_database(self, access: Access, database: NewDatabase) -> None:
        """AlreadyExists; InvalidArgument for a charset or collation that is not there."""
        ...

    async def delete_database(self, access: Access, database: str, *, force: bool) -> None:
        """NotFound; FailedPrecondition (DATABASE_IN_USE) while there are connections, without `force`."""
        ...

    async def list_users(self, access: Access) -> Sequence[UserInfo]:
        """Those who can log in, but for the server's own, by name."""
        ...

    async def create_user(self, access: Access, user: NewUser) -> None:
        """With its rights, also in databases made later. The password goes over as a verifier where the engine can."""
        ...

    async def update_user(self, access: Access, user: NewUser) -> None:
        """Sets rights and limits anew; an empty password keeps the present one."""
        ...

    async def delete_user(self, access: Access, user: str, heir: str) -> None:
        """What it owns goes to `heir`. NotFound; FailedPrecondition."""
        ...

    async def list_parameters(self, access: Access) -> Sequence[ParameterInfo]:
        """All that the engine has, by name."""
        ...

    async def slow_queries(self, access: Access, log: Sequence[str], order: SlowQueryOrder, limit: int) -> SlowQueries:
        """From the engine's statistics where it keeps them, else from the lines of its log of slow statements."""
        ...

    async def sample(self, access: Access) -> ServerSample:
        """The engine's counters now."""
        ...

    async def count_rows(self, access: Access) -> Mapping[str, int]:
        """Rows of every table of users, by `database.schema.table`, each read to its end."""
        ...

    async def check_catalog(self, access: Access, databases: Collection[str], users: Collection[str]) -> str:
        """Looks through the system catalog, and for these databases and users; what was found, in words. DataLoss."""
        ...
