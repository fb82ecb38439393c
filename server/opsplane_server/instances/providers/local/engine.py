"""What the local provider needs of each family of engines. `postgres` and `mysql` have it.

The methods take a LocalNode, a server with all that running it takes, made by `Machine.node` from the manifest as it is
at that moment. Whatever changes an instance is called with its lock held (`Machine.locked`), unless said otherwise, and
may be called again after it was broken off anywhere: it then goes on or begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import psutil

from opsplane_server.instances.model import (
    Access,
    Copy,
    CopySource,
    Engine,
    FailoverKind,
    FailoverReport,
    InstanceSpec,
    NodeRole,
    Notice,
)
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local.layout import InstanceFolder, NodeFolder
from opsplane_server.instances.providers.local.manifest import LocalManifest, NodeEntry
from opsplane_server.storage.accounts import Account


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A server of an instance. account: the system account that runs it. host: address to reach it from here."""

    manifest: LocalManifest
    entry: NodeEntry
    instance_folder: InstanceFolder
    folder: NodeFolder
    account: Account
    host: str

    @property
    def id(self) -> str:
        """Such as `orders-1`."""
        return self.entry.id

    @property
    def port(self) -> int:
        """Its own port."""
        return self.entry.port

    @property
    def version(self) -> str:
        """Exact version of its programs and data."""
        return self.entry.version

    @property
    def spec(self) -> InstanceSpec:
        """The instance as it should be."""
        return self.manifest.spec

    @property
    def is_primary(self) -> bool:
        """Whether the manifest has it as the primary."""
        return self.manifest.primary == self.id


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a server that answers says of itself.

    position: of the primary the end of its log, of a replica the end of what it has replayed. received: end of what
    a replica has on disk. lag: age of the last change replayed while it is behind. synchronous: ids of the replicas
    that commits wait for, told by the primary.
    """

    role: NodeRole
    version: str
    pending_restart: tuple[str, ...] = ()
    position: int = 0
    received: int = 0
    lag: timedelta = timedelta()
    synchronous: frozenset[str] = field(default_factory=frozenset)


class LocalEngine(Protocol):
    """One family of engines: single servers, and what else it can do."""

    replicas: Replicas | None
    copies: Copies | None
    upgrades: Upgrades | None

    def versions(self, engine: Engine) -> Sequence[str]:
        """Exact versions that are installed, newest first."""
        ...

    def check(self, spec: InstanceSpec) -> None:
        """Raises InvalidArgument for parameters that can not be, FailedPrecondition (ENGINE_NOT_INSTALLED); blocks for
        some milliseconds.
        """
        ...

    def settable(self, spec: InstanceSpec, parameters: Collection[str]) -> Collection[str]:
        """See `Provider.settable`; blocks for some milliseconds."""
        ...

    def notices(self, spec: InstanceSpec) -> Sequence[Notice]:
        """Settings with no or less effect with this engine; those of every engine are the provider's."""
        ...

    async def initialise(self, node: LocalNode, progress: Progress) -> None:
        """Makes empty data in `folder.scratch` and renames it to `folder.data`; nothing to do where that is there."""
        ...

    async def configure(self, node: LocalNode) -> None:
        """Writes the files in `folder.conf` anew from the manifest. A running server sees them after `reload`."""
        ...

    def find(self, node: LocalNode) -> psutil.Process | None:
        """The live main process on this data, by its pid file and its command line together."""
        ...

    async def clear(self, node: LocalNode) -> None:
        """Ends what a killed server of this node has left behind; `find` returned None just before."""
        ...

    def launch(self, node: LocalNode) -> psutil.Process:
        """Starts the server, which is cleared and configured. Blocks for a moment. FailedPrecondition
        (NODE_NEEDS_REJOIN) for an old primary, which must not come up beside the new one.
        """
        ...

    async def answers(self, node: LocalNode) -> bool:
        """Whether it takes connections of its users now. A replica counts as well. Never raises."""
        ...

    def failure(self, node: LocalNode) -> str:
        """Why its last start failed, one line of what it has logged."""
        ...

    def failure_passes(self, failure: str) -> bool:
        """Whether the next attempt may do better, for example when rests of a killed server are still there."""
        ...

    async def stop(self, node: LocalNode, *, at_once: bool = False) -> None:
        """Ends the server, in good order or as fast as is safe, and returns when all its processes are gone."""
        ...

    async def prepare(self, node: LocalNode) -> None:
        """On a primary that answers: sets the passwords of our accounts and of the first user, and makes the first
        user and database where they are missing.
        """
        ...

    async def reload(self, node: LocalNode) -> None:
        """Has a running server take its configuration anew, as far as it can without a restart."""
        ...

    async def inspect(self, node: LocalNode) -> NodeView:
        """Asks the server. Unavailable."""
        ...

    def access(self, node: LocalNode) -> Access:
        """How to connect to it as the admin."""
        ...

    def slow_log(self, node: LocalNode) -> Sequence[str]:
        """See `Provider.slow_log`; blocks for a moment."""
        ...

    def bound_logs(self, node: LocalNode) -> None:
        """Keeps its logs from growing without end: to be called now and then. Blocks for a moment."""
        ...

    def tls(self, node: LocalNode) -> bool:
        """Whether its build takes TLS connections."""
        ...


class Replicas(Protocol):
    """Replication and changes of primary. These take the instance's lock themselves, for short phases: neither a new
    replica's copying nor a failover may wait for the other.
    """

    async def apply(self, name: str, progress: Progress) -> None:
        """Makes the nodes those that the manifest's spec asks for: adds and starts what is missing, removes what is
        too many, arranges endpoints and synchronous replicas. The primary serves. Called after create, start, update.
        """
        ...

    async def fail_over(
        self, name: str, target: str, kind: FailoverKind, reason: str, progress: Progress
    ) -> FailoverReport:
        """See `Provider.failover`; the manifest is updated and saved."""
        ...


class Copies(Protocol):
    """Copies of an engine's data, below `Layout.copies`."""

    async def copy(self, name: str, copy_id: str, base: str, progress: Progress) -> Copy:
        """See `Provider.copy`. The one method that is called without the lock: failovers must not wait for it."""
        ...

    async def restore(self, node: LocalNode, source: CopySource, progress: Progress) -> None:
        """Makes `folder.data` from a copy, `node` being the only one of a new instance; nothing to do where that is
        whole. When it returns, a normal start gives a primary with the data asked for.
        """
        ...

    async def check_files(self, location: str, progress: Progress) -> str:
        """See `Provider.check_files`."""
        ...

    async def check_checksums(self, node: LocalNode, progress: Progress) -> str:
        """See `Provider.check_checksums`; the server is stopped."""
        ...

    def archived(self, manifest: LocalManifest) -> tuple[datetime | None, datetime | None]:
        """The first and the last moment that can be restored, None for none; blocks for a moment."""
        ...


class Upgrades(Protocol):
    """Changes of the major version."""

    async def upgrade(self, name: str, spec: InstanceSpec, progress: Progress) -> None:
        """See `Provider.upgrade`; updates the manifest (spec, versions of the nodes, `kept_upgrade`)."""
        ...

    async def roll_back(self, name: str, spec: InstanceSpec, progress: Progress) -> None:
        """See `Provider.roll_back`."""
        ...

    async def forget(self, name: str) -> None:
        """See `Provider.forget_upgrade`."""
        ...
