"""LoadTesting: PostgreSQL for what is kept, k6 as a process of this machine."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import add_MetricsServiceServicer_to_server
from opsplane.loadtesting.v1.loadtesting_pb2_grpc import add_LoadTestingServicer_to_server

from opsplane_server.composition.foundation import Foundation, Service
from opsplane_server.composition.history import build_history
from opsplane_server.loadtesting.collector import METRICS_SERVICE, MetricsCollector
from opsplane_server.loadtesting.compaction import Compactor
from opsplane_server.loadtesting.datasets.data_sets import DataSets
from opsplane_server.loadtesting.datasets.pools import DataSetRows
from opsplane_server.loadtesting.datasets.reading import RowReader
from opsplane_server.loadtesting.openapi.analyzer import SpecAnalyzer
from opsplane_server.loadtesting.openapi.fetching import FetchLimits, SpecFetcher
from opsplane_server.loadtesting.projects import Projects
from opsplane_server.loadtesting.runners.local import LocalRunner
from opsplane_server.loadtesting.runs import RUN_KIND, Runs
from opsplane_server.loadtesting.servicer import SERVICE, LoadTestingServicer
from opsplane_server.loadtesting.specs import Specs
from opsplane_server.loadtesting.stores.postgres import (
    PostgresDataSetStore,
    PostgresProjectStore,
    PostgresRunStore,
    PostgresSpecStore,
    PostgresWindowCompaction,
)
from opsplane_server.loadtesting.supervise import RunSupervisor
from opsplane_server.loadtesting.tokens import RunTokens
from opsplane_server.loadtesting.watch import RunWatcher
from opsplane_server.rpc.server import Registration

# The end of a process on this machine is not told, it is looked for.
_RUN_POLL_SECONDS: Final = 0.25


async def build(foundation: Foundation, stack: AsyncExitStack) -> Service:
    """Builds the service."""
    settings = foundation.settings.loadtesting
    projects = PostgresProjectStore(foundation.database)
    specs = PostgresSpecStore(foundation.database)
    runs = PostgresRunStore(foundation.database)
    signal = foundation.signals.topic("loadtesting_runs")
    history = await build_history(foundation, stack, runs, signal)
    runner = LocalRunner(settings.script_folder or foundation.settings.data_dir / "k6-scripts", k6=settings.k6_path)
    fetcher = await stack.enter_async_context(SpecFetcher(FetchLimits(allow_private=settings.allow_private_addresses)))
    analyzer = await stack.enter_async_context(SpecAnalyzer(fetcher))
    data_sets = PostgresDataSetStore(foundation.database)
    reader = await stack.enter_async_context(RowReader())
    rows = DataSetRows(data_sets, foundation.secrets, reader)
    job_timeout = timedelta(hours=settings.job_timeout_hours)
    supervisor = RunSupervisor(
        runs,
        runner,
        foundation.secrets,
        signal,
        rows,
        endpoint=foundation.local_address,
        poll=timedelta(seconds=min(settings.poll_interval_seconds, _RUN_POLL_SECONDS)),
        max_retry=settings.max_retry,
        job_timeout=job_timeout,
        job_warning=timedelta(hours=settings.job_warning_hours),
        clean_up=settings.auto_delete_completed_jobs,
        places=max(1, settings.max_concurrent_runs // foundation.settings.server.workers),
    )
    await stack.enter_async_context(
        Compactor(PostgresWindowCompaction(foundation.database), age=timedelta(hours=settings.compact_after_hours))
    )
    servicer = LoadTestingServicer(
        foundation.changes,
        Projects(projects),
        Specs(projects, specs, fetcher, analyzer),
        Runs(
            runs,
            specs,
            foundation.operations,
            foundation.secrets,
            rows,
            node=foundation.node,
            job_timeout=job_timeout,
            inspect=runner.inspect,
            allow_scripts=settings.allow_custom_scripts,
        ),
        RunWatcher(runs, history, signal),
        DataSets(projects, data_sets, foundation.secrets, reader),
        project_store=projects,
        spec_store=specs,
        run_store=runs,
        data_set_store=data_sets,
        history=history,
        job_warning=timedelta(hours=settings.job_warning_hours),
    )
    collector = MetricsCollector(runs, signal)
    return Service(
        registrations=[
            Registration(SERVICE, lambda server: add_LoadTestingServicer_to_server(servicer, server)),
            Registration(METRICS_SERVICE, lambda server: add_MetricsServiceServicer_to_server(collector, server)),
        ],
        authenticators=[RunTokens(runs)],
        handlers={RUN_KIND: supervisor.handle},
        failure_hooks={RUN_KIND: supervisor.failed},
    )
