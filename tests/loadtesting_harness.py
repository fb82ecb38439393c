"""LoadTesting over a real database and a real channel, wired as the server wires it, for tests."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA as DELTA
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opsplane.loadtesting.v1 import loadtesting_pb2_grpc
from opsplane_server.loadtesting.collector import METRICS_SERVICE, MetricsCollector
from opsplane_server.loadtesting.datasets.data_sets import DataSets
from opsplane_server.loadtesting.datasets.pools import DataSetRows
from opsplane_server.loadtesting.datasets.reading import RowReader
from opsplane_server.loadtesting.openapi.analyzer import SpecAnalyzer
from opsplane_server.loadtesting.openapi.fetching import FetchLimits, SpecFetcher
from opsplane_server.loadtesting.projects import Projects
from opsplane_server.loadtesting.runners.local import LocalRunner
from opsplane_server.loadtesting.runs import Runs
from opsplane_server.loadtesting.servicer import LoadTestingServicer
from opsplane_server.loadtesting.specs import Specs
from opsplane_server.loadtesting.stores.postgres import (
    PostgresDataSetStore,
    PostgresMetricStore,
    PostgresProjectStore,
    PostgresRunStore,
    PostgresSpecStore,
)
from opsplane_server.loadtesting.tokens import RunTokens
from opsplane_server.loadtesting.watch import RunWatcher
from opsplane_server.rpc.identity import Anonymous, Chain
from opsplane_server.rpc.interceptors import standard
from opsplane_server.rpc.server import Registration
from opsplane_server.storage.migrations import Migrations, migrate
from opsplane_server.storage.secrets import SecretBox

from tests.platform_harness import Platform, connect, prepare
from tests.rpc_harness import registration, serving

MIGRATIONS = Migrations("loadtesting", "opsplane_server.loadtesting")

SECOND = 1_000_000_000
START_NANO = 1_800_000_000 * SECOND

PETS = Path(__file__).parent / "data" / "pets.yaml"


@dataclass(frozen=True, slots=True)
class LoadTesting:
    """The service as its callers see it, and its stores."""

    stub: loadtesting_pb2_grpc.LoadTestingStub
    metrics: metrics_service_pb2_grpc.MetricsServiceStub
    platform: Platform
    projects: PostgresProjectStore
    specs: PostgresSpecStore
    runs: PostgresRunStore
    data_sets: PostgresDataSetStore
    secrets: SecretBox
    reader: RowReader
    address: str


@pytest.fixture
async def loadtesting(dsn: str, tmp_path: Path) -> AsyncIterator[LoadTesting]:
    """LoadTesting without load generators: runs stay PENDING until a test plays their part."""
    await prepare(dsn)
    await migrate(dsn, [MIGRATIONS])
    key_file = tmp_path / "secrets.key"
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(connect(dsn))
        fetcher = await stack.enter_async_context(SpecFetcher(FetchLimits(allow_private=True)))
        analyzer = await stack.enter_async_context(SpecAnalyzer(fetcher))
        projects = PostgresProjectStore(platform.database)
        specs = PostgresSpecStore(platform.database)
        runs = PostgresRunStore(platform.database)
        data_sets = PostgresDataSetStore(platform.database)
        reader = await stack.enter_async_context(RowReader())
        secrets = SecretBox.from_key_file(key_file, create=True)
        history = PostgresMetricStore(platform.database, runs)
        signal = platform.signals.topic("loadtesting_runs")
        servicer = LoadTestingServicer(
            platform.changes,
            Projects(projects),
            Specs(projects, specs, fetcher, analyzer),
            Runs(
                runs,
                specs,
                platform.operations,
                secrets,
                DataSetRows(data_sets, secrets, reader),
                node="here",
                job_timeout=timedelta(hours=4),
                inspect=LocalRunner(tmp_path / "k6").inspect,
                allow_scripts=True,
            ),
            RunWatcher(runs, history, signal),
            DataSets(projects, data_sets, secrets, reader),
            project_store=projects,
            spec_store=specs,
            run_store=runs,
            data_set_store=data_sets,
            history=history,
            job_warning=timedelta(hours=1),
        )
        collector = MetricsCollector(runs, signal)
        served = await stack.enter_async_context(
            serving(
                [
                    registration(loadtesting_pb2_grpc.add_LoadTestingServicer_to_server, servicer),
                    Registration(
                        METRICS_SERVICE,
                        lambda server: metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server),
                    ),
                ],
                standard(Chain(RunTokens(runs), Anonymous())),
            )
        )
        channel = await stack.enter_async_context(served.channel())
        yield LoadTesting(
            stub=loadtesting_pb2_grpc.LoadTestingStub(channel),
            metrics=metrics_service_pb2_grpc.MetricsServiceStub(channel),
            platform=platform,
            projects=projects,
            specs=specs,
            runs=runs,
            data_sets=data_sets,
            secrets=secrets,
            reader=reader,
            address=served.address,
        )


def export(
    instance: str, second: int, *, requests: int = 10, failed: int = 0, ms: float = 5.0
) -> ExportMetricsServiceRequest:
    """What k6 exports of one second, counted from a fixed start: calls of one endpoint, each of `ms` milliseconds."""
    start, end = START_NANO + second * SECOND, START_NANO + (second + 1) * SECOND
    tags = [
        KeyValue(key="scenario", value=AnyValue(string_value="browse")),
        KeyValue(key="name", value=AnyValue(string_value="GET /pets")),
    ]

    def count(name: str, value: int) -> Metric:
        point = NumberDataPoint(attributes=tags, as_double=value, start_time_unix_nano=start, time_unix_nano=end)
        return Metric(name=name, sum=Sum(data_points=[point], aggregation_temporality=DELTA, is_monotonic=True))

    durations = ExponentialHistogramDataPoint(
        attributes=tags,
        count=requests,
        sum=ms * requests,
        scale=3,
        min=ms,
        max=ms,
        start_time_unix_nano=start,
        time_unix_nano=end,
    )
    durations.positive.offset = math.ceil(math.log2(ms) * 8) - 1
    durations.positive.bucket_counts.append(requests)
    histogram = ExponentialHistogram(data_points=[durations], aggregation_temporality=DELTA)
    metrics = [
        count("http_reqs", requests),
        count("http_req_failed.occurred", failed),
        count("http_req_failed.total", requests),
        count("iterations", requests),
        Metric(name="http_req_duration", unit="ms", exponential_histogram=histogram),
        Metric(name="vus", gauge=Gauge(data_points=[NumberDataPoint(as_double=3, time_unix_nano=end)])),
    ]
    who = KeyValue(key="service.instance.id", value=AnyValue(string_value=instance))
    return ExportMetricsServiceRequest(
        resource_metrics=[
            ResourceMetrics(resource=Resource(attributes=[who]), scope_metrics=[ScopeMetrics(metrics=metrics)])
        ]
    )
