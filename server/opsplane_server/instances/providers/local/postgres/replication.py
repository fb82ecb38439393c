"""What PostgreSQL is told about replication, from the manifest alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from opsplane_server.instances.model import REPLICATION_USER, NodeState
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.manifest import LocalManifest
from opsplane_server.instances.providers.local.postgres.fencing import tag

_MIB = 1 << 20
_LONGEST_NAME = 63


@dataclass(frozen=True, slots=True)
class Quorum:
    """A commit waits until `count` of `members` have it on disk; 0 for none."""

    count: int
    members: tuple[str, ...]

    def is_safe(self, present: int) -> bool:
        """Whether among so many of the members one at least has every commit that was acknowledged."""
        return self.count == 0 or present > len(self.members) - self.count


def quorum(manifest: LocalManifest, primary: str) -> Quorum:
    """That of `primary`. Replicas that are being made do not count yet: commits would wait for them."""
    members = tuple(
        entry.id for entry in manifest.nodes if entry.id != primary and entry.condition is not NodeState.STARTING
    )
    asked = manifest.spec.high_availability.synchronous_replicas if manifest.spec.high_availability else 0
    return Quorum(min(asked, len(members)), members)


def settings(node: LocalNode) -> dict[str, str]:
    """The same on every node but for names, so that a promotion changes none of them. A single server has them too
    and can be copied and get replicas without a restart.
    """
    needed = quorum(node.manifest, node.id)
    return {
        "cluster_name": tag(node),
        "wal_level": "replica",
        "max_wal_senders": "20",
        # Instead of slots: a replica that is away for long must not fill the disk, it gets a new copy.
        "wal_keep_size": f"{_kept_log(node.spec.resources.storage_bytes) // _MIB}MB",
        # A replica that has lost its primary must be soon with the next one: commits may wait for it.
        "wal_retrieve_retry_interval": "100ms",
        "wal_receiver_status_interval": "1s",
        "wal_receiver_timeout": "10s",
        "wal_sender_timeout": "10s",
        "synchronous_standby_names": _standby_names(needed),
        "primary_conninfo": primary_conninfo(node) if node.manifest.primary != node.id else "",
    }


def primary_conninfo(node: LocalNode) -> str:
    """How this node reaches the primary: over its socket, which needs no certificates and no free port."""
    primary = node.instance_folder.node(node.manifest.primary)
    return conninfo(
        host=str(primary.run),
        port=str(node.manifest.entry(node.manifest.primary).port),
        user=REPLICATION_USER,
        application_name=standby_name(node.id),
        connect_timeout="5",
    )


def conninfo(**words: str) -> str:
    """libpq's notation."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in words.items())


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def standby_name(node_id: str) -> str:
    """What a replica calls itself to its primary: its id, unless that is longer than PostgreSQL's names are."""
    if len(node_id) <= _LONGEST_NAME:
        return node_id
    return f"{node_id[:48]}-{hashlib.sha256(node_id.encode()).hexdigest()[:12]}"


def _standby_names(needed: Quorum) -> str:
    names = ", ".join(f'"{standby_name(member)}"' for member in needed.members)
    return f"ANY {needed.count} ({names})" if needed.count else ""


def _kept_log(storage_bytes: int) -> int:
    """Little, for a rewound server gets all of it from its primary."""
    return max(64 * _MIB, min(256 * _MIB, storage_bytes // 32))
