"""Figures of an instance: what its engine counts, what its nodes use, and the metrics made of two of each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What a node uses. cpu_seconds: since it started. memory_bytes: what processes share is counted once."""

    node: str
    time: datetime
    cpu_seconds: float
    memory_bytes: int
    storage_used_bytes: int


@dataclass(frozen=True, slots=True)
class ServerSample:
    """Counters and gauges of one server. The counters grow from its start; None is what the engine does not tell."""

    time: datetime
    connections: int
    active_connections: int
    max_connections: int
    transactions: int | None = None
    queries: int | None = None
    buffer_hits: int | None = None
    buffer_reads: int | None = None
    deadlocks: int | None = None
    database_size_bytes: int = 0
