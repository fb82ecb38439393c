"""A shipper whose records are looked at instead of sent."""

from __future__ import annotations

from typing import Any

from opsplane.logingest.v1 import records_pb2
from opsplane.logs import Shipper


class Collecting(Shipper):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"service": "svc", "host": "h", "spool": None, **settings})
        self.records: list[records_pb2.LogRecord] = []

    def _put(self, record: bytes, wait: float) -> bool:
        self.records.extend(records_pb2.LogBatch.FromString(record).records)
        return True

    @property
    def last(self) -> records_pb2.LogRecord:
        return self.records[-1]
