"""Figures of the copy for Prometheus. What only the leader knows is told by it alone: processes are added up."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

_ROWS: Final = Counter("opsplane_metric_copy_rows", "Rows of figures for the copy", ["outcome"])
_FAILURES: Final = Counter("opsplane_metric_copy_failures", "Times that copying had to be put off")
_WORKS: Final = Gauge("opsplane_metric_copy_up", "1 while figures are being copied")
_PENDING: Final = Gauge("opsplane_metric_copy_pending_runs", "Runs that are not wholly copied, 100 at most")
_READS: Final = Counter("opsplane_history_reads", "Reads of ended runs by the store that answered", ["store"])


def copied(rows: int) -> None:
    """Counts rows that the copy has."""
    _ROWS.labels("copied").inc(rows)


def rejected(rows: int) -> None:
    """Counts rows of which the copy has not taken all."""
    _ROWS.labels("rejected").inc(rows)


def pending(runs: int) -> None:
    """Notes how many runs are to be copied."""
    _PENDING.set(runs)


def works() -> None:
    """Notes that this process copies."""
    _WORKS.set(1)


def failed() -> None:
    """Notes that it does not, and counts why."""
    _FAILURES.inc()
    _WORKS.set(0)
    _PENDING.set(0)


def read(store: str) -> None:
    """Counts a run that was read."""
    _READS.labels(store).inc()
