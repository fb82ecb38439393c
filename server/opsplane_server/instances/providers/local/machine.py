"""The machine that instances run on, as the parts of the local provider share it: folders, manifests, locks, ports."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from opsplane_server.errors import NotFound, ResourceExhausted
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.layout import Layout
from opsplane_server.instances.providers.local.locks import locked
from opsplane_server.instances.providers.local.manifest import LocalManifest, Manifests
from opsplane_server.storage.accounts import Account, choose_account, create_folder, private_folder
from opsplane_server.storage.secrets import SecretBox


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """listen_host: address or name that servers listen on. advertised_host: what clients are told instead; "" for the
    same, or the machine's name where that is every address. first_port, last_port: the range that they take ports of,
    which should not be one that the kernel takes ports for outgoing connections of (from 32768 on, on Linux).

    user: system account that runs servers when this process is root; None for the first there is of opsplane,
    postgres and nobody. start_timeout: seconds until a start counts as failed; a recovering server goes on meanwhile.
    programs: install trees to look for engines in besides the usual ones.
    """

    listen_host: str = "127.0.0.1"
    advertised_host: str = ""
    first_port: int = 21000
    last_port: int = 21999
    user: str | None = None
    start_timeout: float = 60.0
    programs: tuple[Path, ...] = ()


class Machine:
    """Shared by the provider, the engines and the supervisor. Constructing it touches nothing."""

    def __init__(self, layout: Layout, settings: LocalSettings, box: SecretBox) -> None:
        self.layout = layout
        self.settings = settings
        self.manifests = Manifests(layout, box)

    @property
    def host(self) -> str:
        """The address by which programs of this machine reach the servers."""
        host = self.settings.listen_host
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host  # a name
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
        return host

    @property
    def endpoint_host(self) -> str:
        """The address that clients are told."""
        if self.settings.advertised_host:
            return self.settings.advertised_host
        loopback = self.host != self.settings.listen_host
        return socket.getfqdn() if loopback else self.host

    def account(self, name: str) -> Account:
        """The account that runs this instance's servers: the owner of its files, else the one for new ones."""
        return choose_account(self.settings.user, self.layout.instance(name).nodes)

    def node(self, manifest: LocalManifest, node_id: str) -> LocalNode:
        """A server of this instance. NotFound."""
        folder = self.layout.instance(manifest.name)
        return LocalNode(
            manifest=manifest,
            entry=manifest.entry(node_id),
            instance_folder=folder,
            folder=folder.node(node_id),
            account=self.account(manifest.name),
            host=self.host,
        )

    def nodes(self, manifest: LocalManifest) -> list[LocalNode]:
        """All of them, by number."""
        return [self.node(manifest, entry.id) for entry in manifest.nodes]

    def create_node_folder(self, node: LocalNode) -> None:
        """Makes the folders of a new server, closed to all but its account. Harmless when they are there."""
        create_folder(node.instance_folder.path)
        for path in (
            node.instance_folder.nodes,
            node.folder.path,
            node.folder.conf,
            node.folder.log,
            node.folder.run,
        ):
            _private(path, node.account)

    @asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[LocalManifest]:
        """Holds the instance's lock, and gives the manifest as it is then. Not reentrant. NotFound."""
        try:
            async with locked(self.layout.instance(name).lock):
                yield self.manifests.load(name)
        except FileNotFoundError as error:
            if str(error.filename) == str(self.layout.instance(name).lock):
                raise NotFound.resource(name) from None
            raise

    @asynccontextmanager
    async def choosing_ports(self) -> AsyncIterator[PortChoice]:
        """Gives free ports, which stay this caller's once a manifest with them is saved, before this ends."""
        create_folder(self.layout.instances)
        async with locked(self.layout.instances / "ports.lock"):
            taken = await asyncio.to_thread(self._taken_ports)
            yield PortChoice(self.settings, taken)

    def _taken_ports(self) -> set[int]:
        taken: set[int] = set()
        for manifest in self.manifests.all():
            taken.update(manifest.ports.values())
            taken.update(entry.port for entry in manifest.nodes)
        return taken


class PortChoice:
    """Hands out ports that no instance has and nobody listens on."""

    def __init__(self, settings: LocalSettings, taken: Collection[int]) -> None:
        self._settings = settings
        self._taken = set(taken)

    def next(self) -> int:
        """ResourceExhausted when the range is used up."""
        for port in range(self._settings.first_port, self._settings.last_port + 1):
            if port not in self._taken and _free(self._settings.listen_host, port):
                self._taken.add(port)
                return port
        raise ResourceExhausted(
            f"every port from {self._settings.first_port} to {self._settings.last_port} is in use",
            reason="NO_FREE_PORT",
        )


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            # Listening fails where binding does not, when another socket that allows reuse listens already.
            probe.listen(1)
        except OSError:
            return False
    return True


def _private(path: Path, account: Account) -> None:
    """Makes a private folder in one step: a process that is killed must not leave one of the wrong owner."""
    if not path.exists():
        scratch = path.with_name(f".{path.name}-new")
        if scratch.exists():
            scratch.rmdir()  # of one who was killed before
        scratch.mkdir(mode=0o700)
        if os.geteuid() != account.uid:
            os.chown(scratch, account.uid, account.gid)
        scratch.rename(path)
    private_folder(path, account)
