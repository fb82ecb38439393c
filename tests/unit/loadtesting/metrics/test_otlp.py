from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, AGGREGATION_TEMPORALITY_DELTA
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.metrics.otlp import MAX_SERIES, decode
from opsplane_server.loadtesting.metrics.rows import OTHER, Series, capped

START, END = 1_700_000_000_000_000_000, 1_700_000_001_000_000_000
GET = {"scenario": "load", "name": "GET /pets"}


class Export:
    """Builds an export as k6 sends it."""

    def __init__(self) -> None:
        self.request = ExportMetricsServiceRequest()
        resource = self.request.resource_metrics.add()
        self._attributes(resource.resource, {"service.name": "k6", "service.instance.id": "generator-1"})
        self._metrics = resource.scope_metrics.add().metrics

    def counter(
        self, name: str, value: float, attributes: dict[str, str] = GET, *, start: int = START, end: int = END
    ) -> "Export":
        metric = self._metrics.add(name=name)
        metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
        point = metric.sum.data_points.add(start_time_unix_nano=start, time_unix_nano=end)
        if isinstance(value, int):
            point.as_int = value
        else:
            point.as_double = value
        self._attributes(point, attributes)
        return self

    def trend(self, values: list[float], attributes: dict[str, str] = GET) -> "Export":
        metric = self._metrics.add(name="http_req_duration", unit="ms")
        metric.exponential_histogram.aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
        point = metric.exponential_histogram.data_points.add(
            start_time_unix_nano=START + 50, time_unix_nano=END + 70, scale=0, count=len(values), sum=sum(values)
        )
        point.min, point.max = min(values), max(values)
        point.positive.offset = -1
        point.positive.bucket_counts.extend([0, len(values), 0])
        self._attributes(point, attributes)
        return self

    def vus(self, value: float) -> "Export":
        metric = self._metrics.add(name="vus")
        metric.gauge.data_points.add(start_time_unix_nano=START - 9, time_unix_nano=END + 90, as_double=value)
        return self

    @staticmethod
    def _attributes(message: Any, attributes: dict[str, str]) -> None:
        for key, value in attributes.items():
            message.attributes.add(key=key).value.string_value = value


def test_an_export_becomes_a_row() -> None:
    other = GET | {"name": "POST /pets"}
    export = (
        Export()
        .counter("http_reqs", 3.0)
        .counter("http_reqs", 1.0, other)
        .trend([1.5, 1.6, 2.0])
        .trend([1.7], other)
        .counter("http_req_tls_handshaking", 5.0)
        .counter("iterations", 4.0, {"scenario": "load"})
        .counter("dropped_iterations", 2.0, {"scenario": "load"})
        .counter("data_received", 100.0)
        .counter("data_received", 50.0, other)
        .counter("data_sent", 30.0)
        .vus(7.0)
    )

    (row,) = decode(export.request)

    assert (row.instance, row.start_unix_nano, row.time_unix_nano) == ("generator-1", START, END)
    assert [(s.scenario, s.name, s.requests, s.response_time.count, s.response_time.max) for s in row.series] == [
        ("load", "GET /pets", 3, 3, 2.0),
        ("load", "POST /pets", 1, 1, 1.7),
    ]
    assert (row.iterations, row.dropped_iterations, row.received_bytes, row.sent_bytes) == (4, 2, 150, 30)
    assert row.vus == 7


@pytest.mark.parametrize(
    "metrics",
    [
        pytest.param([(".occurred", 2, {}), (".total", 9, {})], id="k6 1.1"),
        pytest.param([(".total", 2, {"condition": "nonzero"}), (".total", 7, {"condition": "zero"})], id="later"),
        pytest.param([("", 2, {"condition": "nonzero"}), ("", 7, {"condition": "zero"})], id="as documented"),
    ],
)
def test_rates_of_all_versions(metrics: list[tuple[str, int, dict[str, str]]]) -> None:
    export = Export().counter("http_reqs", 9.0)
    for suffix, value, attributes in metrics:
        export.counter(f"http_req_failed{suffix}", value, GET | attributes)
        export.counter(f"checks{suffix}", value, GET | attributes)

    (row,) = decode(export.request)

    assert [(s.requests, s.failed) for s in row.series] == [(9, 2)]
    assert (row.checks, row.checks_passed) == (9, 2)


def test_tags_beyond_scenario_and_name_are_joined() -> None:
    export = Export()
    for status in ("200", "500"):
        export.counter("http_reqs", 2.0, GET | {"status": status}).trend([1.5, 1.9], GET | {"status": status})

    (row,) = decode(export.request)

    assert [(s.name, s.requests, s.response_time.count) for s in row.series] == [("GET /pets", 4, 4)]


def test_nul_in_a_name_is_replaced() -> None:
    (row,) = decode(Export().counter("http_reqs", 1.0, {"scenario": "lo\0ad", "name": "a\0b"}).request)

    assert [(s.scenario, s.name) for s in row.series] == [("lo\ufffdad", "a\ufffdb")]


def test_an_export_without_counts_covers_an_unknown_time() -> None:
    (row,) = decode(Export().vus(0.0).request)

    assert row.start_unix_nano == row.time_unix_nano == END + 90
    assert row.series == ()


def test_an_export_of_something_else_is_no_row() -> None:
    assert decode(Export().counter("process.cpu.time", 1.0).request) == []
    assert decode(ExportMetricsServiceRequest()) == []


def cumulative() -> ExportMetricsServiceRequest:
    export = Export().counter("http_reqs", 1.0)
    export.request.resource_metrics[0].scope_metrics[0].metrics[
        0
    ].sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
    return export.request


def explicit_buckets() -> ExportMetricsServiceRequest:
    export = Export()
    metric = export.request.resource_metrics[0].scope_metrics[0].metrics.add(name="http_req_duration")
    metric.histogram.data_points.add(start_time_unix_nano=START, time_unix_nano=END, count=1)
    return export.request


def broken_buckets() -> ExportMetricsServiceRequest:
    export = Export().trend([1.0])
    point = export.request.resource_metrics[0].scope_metrics[0].metrics[0].exponential_histogram.data_points[0]
    point.positive.offset = 5000
    return export.request


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (cumulative(), "delta"),
        (explicit_buckets(), "exponential_histogram"),
        (broken_buckets(), "no numbers"),
        (Export().trend([-1.0]).trend([float("nan")]).request, "no times"),
        (Export().counter("http_reqs", -1.0).request, "a count of -1"),
        (Export().counter("http_reqs", float("inf")).request, "a count of inf"),
        (Export().counter("iterations", 1.0, start=END, end=END).request, "no time"),
        (Export().counter("iterations", 1.0, start=1, end=END).request, "an hour"),
        (Export().counter("iterations", 1.0, start=2**64 - 9, end=2**64 - 1).request, "an hour"),
    ],
)
def test_unsuitable_exports_are_refused(request_: ExportMetricsServiceRequest, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        decode(request_)


def test_series_beyond_the_cap_are_joined_by_scenario() -> None:
    export = Export()
    for i in range(MAX_SERIES + 50):
        attributes = {"scenario": f"s{i % 2}", "name": f"GET /{i}"}
        export.counter("http_reqs", 1.0 + (i < MAX_SERIES), attributes).trend([1.5], attributes)

    (row,) = decode(export.request)

    assert len(row.series) == MAX_SERIES + 2
    rest = {s.scenario: s for s in row.series if s.name == OTHER}
    assert {name: (s.requests, s.response_time.count) for name, s in rest.items()} == {"s0": (25, 25), "s1": (25, 25)}
    assert sum(s.requests for s in row.series) == 2 * MAX_SERIES + 50


def test_scenarios_beyond_the_cap_are_joined_too() -> None:
    joined = capped([Series(f"s{i}", "GET /", 10 - i) for i in range(6)] + [Series("s9", OTHER, 99)], 2)

    assert [(s.scenario, s.name, s.requests) for s in joined] == [
        ("s9", OTHER, 99),
        ("s0", "GET /", 10),
        ("s1", OTHER, 9),
        ("s2", OTHER, 8),
        (OTHER, OTHER, 18),
    ]
