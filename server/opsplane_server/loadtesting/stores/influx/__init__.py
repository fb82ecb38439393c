"""A copy of what runs have measured, in InfluxDB 2."""

from __future__ import annotations

from opsplane_server.loadtesting.stores.influx.client import InfluxClient, InfluxTarget
from opsplane_server.loadtesting.stores.influx.store import InfluxMetricStore

__all__ = ["InfluxClient", "InfluxMetricStore", "InfluxTarget"]
