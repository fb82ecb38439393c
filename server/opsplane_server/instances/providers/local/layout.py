"""Where the files of instances lie.

INSTANCES/leader.lock                  held by the process that supervises this machine's instances
         /ports.lock                   held while ports are chosen
         /ID/lock                      held by whoever changes the instance
            /manifest.json             what it is, see `manifest`; secrets encrypted
            /tls/ca.key, ca.crt        its own authority, for the eyes of this process alone
            /nodes/NODE/data           the engine's own
                       /conf           written by us at each start: settings, access rules, certificates
                       /log            of the server
                       /run            its socket, unless that path would be too long
COPIES/COPY/...                        copies of instances' data
ARCHIVE/UID/...                        archived write-ahead log
EXPORTS/...                            archives for people
BINARIES/binaries-18.4                 a copy, where the servers' account can not reach the wheel
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SOCKET_PATH_LIMIT = 107  # bytes, without the closing zero: sun_path of Linux
_LONGEST_SOCKET_NAME = ".s.PGSQL.65535.lock"


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """The files of one server. All but `path` itself may be missing."""

    path: Path

    @property
    def data(self) -> Path:
        """The engine's own."""
        return self.path / "data"

    @property
    def scratch(self) -> Path:
        """Data that is being made: renamed to `data` when it is whole."""
        return self.path / "data.new"

    @property
    def conf(self) -> Path:
        """Settings, outside of `data`, so that copies and pg_rewind neither carry nor overwrite them."""
        return self.path / "conf"

    @property
    def log(self) -> Path:
        """The server's logs: `start.log` is what it says before its own logging works."""
        return self.path / "log"

    @property
    def run(self) -> Path:
        """The folder of its unix socket: `run`, or a short one where that is too long for a socket."""
        run = self.path / "run"
        if len(os.fsencode(run / _LONGEST_SOCKET_NAME)) <= _SOCKET_PATH_LIMIT and "," not in str(run):
            return run
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"opsplane-{digest}"


@dataclass(frozen=True, slots=True)
class InstanceFolder:
    """The files of an instance."""

    path: Path

    @property
    def lock(self) -> Path:
        """See `locks`."""
        return self.path / "lock"

    @property
    def manifest(self) -> Path:
        """See `manifest`."""
        return self.path / "manifest.json"

    @property
    def tls(self) -> Path:
        """The instance's own authority."""
        return self.path / "tls"

    @property
    def nodes(self) -> Path:
        """The folders of its servers; it belongs to the account that runs them."""
        return self.path / "nodes"

    def node(self, node_id: str) -> NodeFolder:
        """The files of one server."""
        return NodeFolder(self.nodes / node_id)


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of the local provider, all absolute."""

    instances: Path
    copies: Path
    archive: Path
    exports: Path
    binaries: Path

    @classmethod
    def below(cls, data_dir: Path) -> Layout:
        """All of them in one data directory."""
        folder = data_dir.absolute()
        return cls(
            instances=folder / "instances",
            copies=folder / "backups",
            archive=folder / "archive",
            exports=folder / "exports",
            binaries=folder / "binaries",
        )

    @property
    def leader_lock(self) -> Path:
        """Held by the process that supervises."""
        return self.instances / "leader.lock"

    def instance(self, name: str) -> InstanceFolder:
        """The files of `instances/{instance}`."""
        return InstanceFolder(self.instances / name.removeprefix("instances/"))

    def copy(self, copy_id: str) -> Path:
        """The folder of a copy."""
        return self.copies / copy_id

    def archived_log(self, uid: str) -> Path:
        """The folder of the archived log of the instance with this uid."""
        return self.archive / uid
