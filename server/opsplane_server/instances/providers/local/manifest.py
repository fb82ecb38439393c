"""The manifest of an instance: what it is and should be, beside its data, so that it can be found again without us.

Written whole to another name, synced and renamed: a reader sees the old one or the new one. The secrets are one
token of `SecretBox`, bound to the instance's name. Whoever writes holds the instance's lock.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from opsplane_server.errors import DataLoss, NotFound
from opsplane_server.instances.model import FailoverReport, InstanceSpec, NodeState, Secrets
from opsplane_server.instances.providers.local.layout import Layout
from opsplane_server.storage.accounts import sync_folder
from opsplane_server.storage.secrets import SecretBox

log = structlog.get_logger(__name__)

_FORMAT = 1


class Desired(StrEnum):
    """What an instance should be doing. CREATING and DELETING keep the supervisor's hands off it."""

    CREATING = "CREATING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    DELETING = "DELETING"


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A server of an instance. port: its own. version: exact one of its programs and data.

    condition: STARTING (it is being made), FENCED or REJOINING while it can not serve for that reason, else None.
    """

    id: str
    port: int
    version: str
    condition: NodeState | None = None


@dataclass(frozen=True, slots=True)
class KeptUpgrade:
    """Old data that an upgrade left beside the new: the way back. folder: its name beside `data`."""

    from_version: str
    to_version: str
    folder: str
    complete_time: datetime


@dataclass(frozen=True, slots=True)
class LocalManifest:
    """nodes: by number; the first may have been removed since. primary: id of the node that takes writes.

    ports: the stable ones by endpoint: `rw`, and for a highly available instance `ro`, `r` and `any`. A single
    server listens on `rw` itself. upgrade: target version while one is under way. begun_failover: what is known of a
    change to the present primary as long as it is not complete.
    """

    spec: InstanceSpec
    secrets: Secrets = field(repr=False)
    nodes: tuple[NodeEntry, ...]
    ports: Mapping[str, int]
    primary: str
    desired: Desired
    last_failover: FailoverReport | None = None
    kept_upgrade: KeptUpgrade | None = None
    upgrade: str = ""
    begun_failover: FailoverReport | None = None

    @property
    def name(self) -> str:
        """`instances/{instance}`."""
        return self.spec.name

    def entry(self, node_id: str) -> NodeEntry:
        """NotFound."""
        for entry in self.nodes:
            if entry.id == node_id:
                return entry
        raise NotFound(f"{self.name} has no node '{node_id}'", reason="NODE_NOT_FOUND", metadata={"node": node_id})

    def replace(self, **changes: Any) -> LocalManifest:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    def with_entry(self, entry: NodeEntry) -> LocalManifest:
        """A copy with this entry in place of the one of the same id."""
        return self.replace(nodes=tuple(entry if other.id == entry.id else other for other in self.nodes))

    def next_node_id(self) -> str:
        """Ids are kept for life, so the next one is beyond the highest."""
        numbers = [int(entry.id.rpartition("-")[2]) for entry in self.nodes]
        return f"{self.spec.id}-{max(numbers, default=0) + 1}"


_MANIFEST = TypeAdapter(LocalManifest)
_SECRETS = TypeAdapter(Secrets)


class Manifests:
    """The manifests of this machine. Reading and writing blocks for a moment; it is small."""

    def __init__(self, layout: Layout, box: SecretBox) -> None:
        self._layout = layout
        self._box = box

    def load(self, name: str) -> LocalManifest:
        """NotFound; DataLoss if it can not be read, FailedPrecondition without the key of its secrets."""
        path = self._layout.instance(name).manifest
        try:
            content = json.loads(path.read_bytes())
            content["secrets"] = json.loads(self._box.decrypt(base64.b64decode(content["secrets"]), name))
            return _MANIFEST.validate_python(content)
        except FileNotFoundError:
            raise NotFound.resource(name) from None
        # Neither error's own text: it may quote secrets.
        except (ValueError, KeyError, TypeError, ValidationError):
            raise DataLoss(f"{path} is damaged", reason="MANIFEST_DAMAGED") from None

    def save(self, manifest: LocalManifest) -> None:
        """Makes it durable. The instance's folder is there."""
        secrets = _SECRETS.dump_json(manifest.secrets).decode()
        content: dict[str, Any] = {"format": _FORMAT} | _MANIFEST.dump_python(manifest, mode="json")
        content["secrets"] = base64.b64encode(self._box.encrypt(secrets, manifest.name)).decode()
        write_durably(self._layout.instance(manifest.name).manifest, json.dumps(content, indent=1).encode() + b"\n")

    def names(self) -> list[str]:
        """Of every instance that has a manifest."""
        found = self._layout.instances.glob("*/manifest.json")
        return sorted(f"instances/{path.parent.name}" for path in found if not path.parent.name.startswith("."))

    def all(self) -> Iterator[LocalManifest]:
        """Every one that can be read; of the others the log tells."""
        for name in self.names():
            try:
                yield self.load(name)
            except NotFound:
                continue  # deleted meanwhile
            except Exception as error:
                log.error("manifest not readable", instance=name, error=str(error))


def write_durably(path: Path, content: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replaces a file in one step; it survives a loss of power. owner: user and group, by default ours."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if owner is not None and os.geteuid() == 0:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(scratch, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise
    sync_folder(path.parent)
