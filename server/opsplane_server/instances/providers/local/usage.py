"""What servers use of this machine: processor, memory, storage."""

from __future__ import annotations

from datetime import UTC, datetime

import psutil

from opsplane_server.instances.monitoring import NodeUsage
from opsplane_server.instances.providers.local.bulk import storage_of
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.processes import tree


def of(node: LocalNode, process: psutil.Process | None) -> NodeUsage:
    """process: its main one, None while it does not run. Blocks for as long as listing its files takes."""
    family = tree(process) if process is not None else []
    return NodeUsage(
        node=node.id,
        time=datetime.now(UTC),
        cpu_seconds=_cpu_seconds(family),
        memory_bytes=_memory_bytes(family),
        storage_used_bytes=storage_of(node.folder.data),
    )


def _cpu_seconds(family: list[psutil.Process]) -> float:
    """Of the living, and of those of their children that have ended."""
    total = 0.0
    for process in family:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory_bytes(family: list[psutil.Process]) -> int:
    """What each has for itself, and once the largest part that one shares: the buffers, as far as they are in use.

    Not the proportional set size: reading it takes a right over other users' processes that containers do not give.
    """
    own = shared = 0
    for process in family:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        own += memory.rss - memory.shared
        shared = max(shared, memory.shared)
    return own + shared
