"""What runs have measured: PostgreSQL, and a copy in InfluxDB where one is set up."""

from __future__ import annotations

from contextlib import AsyncExitStack

from opsplane_server.composition.foundation import Foundation
from opsplane_server.loadtesting.history.port import MetricStore
from opsplane_server.loadtesting.history.reading import CopyFirst
from opsplane_server.loadtesting.history.writer import MetricWriter
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.loadtesting.stores.postgres import PostgresCopyLedger, PostgresMetricStore
from opsplane_server.storage.database import Database
from opsplane_server.storage.leadership import PostgresLeadership
from opsplane_server.storage.signals import Signal


async def build_history(foundation: Foundation, stack: AsyncExitStack, runs: RunStore, signal: Signal) -> MetricStore:
    """Where ended runs are read from. Keeps the copy up to date until the stack is left."""
    postgres = PostgresMetricStore(foundation.database, runs)
    settings = foundation.settings.influxdb
    if not settings.enabled:
        return postgres
    # Here, because it takes 50 MB of every worker that has no InfluxDB.
    from opsplane_server.loadtesting.stores.influx import InfluxClient, InfluxMetricStore, InfluxTarget

    assert settings.token is not None
    target = InfluxTarget(
        settings.address, settings.org, settings.bucket, settings.token.get_secret_value(), settings.ca_file
    )
    copy = InfluxMetricStore(await stack.enter_async_context(InfluxClient(target)), target)
    # The leader keeps a connection for good, which is none of those that calls wait for.
    own = await stack.enter_async_context(Database(foundation.dsn, min_size=0, max_size=1))
    leadership = PostgresLeadership(own, "loadtesting.metric_copy")
    writer = MetricWriter(PostgresCopyLedger(foundation.database), runs, copy, leadership, signal)
    await stack.enter_async_context(writer)
    return CopyFirst(copy, postgres) if foundation.settings.loadtesting.history == "influxdb" else postgres
