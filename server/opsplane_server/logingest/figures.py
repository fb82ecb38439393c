"""Figures of log ingestion for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opsplane.logingest.v1 import records_pb2
from prometheus_client import Counter, Gauge, Histogram

_BATCHES: Final = Counter("opsplane_logs_batches", "Batches of logs that were answered", ["outcome"])
_RECORDS: Final = Counter("opsplane_logs_records", "Log records that were answered", ["outcome"])
_GROUP: Final = Histogram(
    "opsplane_logs_group_seconds",
    "Time from taking a group of batches to its commit",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 10),
)
_PENDING: Final = Gauge("opsplane_logs_pending_bytes", "Bytes of logs that wait to be stored")

_STORED_BATCHES: Final = _BATCHES.labels("stored")
_DUPLICATE_BATCHES: Final = _BATCHES.labels("duplicate")
_REFUSED_BATCHES: Final = _BATCHES.labels("refused")
_STORED_RECORDS: Final = _RECORDS.labels("stored")
_REJECTED_RECORDS: Final = _RECORDS.labels("rejected")


def count(results: Sequence[records_pb2.BatchResult]) -> None:
    """Counts what was answered."""
    for result in results:
        if result.HasField("refusal"):
            _REFUSED_BATCHES.inc()
        elif result.duplicate:
            _DUPLICATE_BATCHES.inc()
        else:
            _STORED_BATCHES.inc()
            _STORED_RECORDS.inc(result.stored_count)
            if result.rejected_records:
                _REJECTED_RECORDS.inc(len(result.rejected_records))


def stored_group(seconds: float) -> None:
    """Notes how long a group took."""
    _GROUP.observe(seconds)


def pending(count_bytes: int) -> None:
    """Notes what waits now."""
    _PENDING.set(count_bytes)
