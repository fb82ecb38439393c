"""OTLP exports of k6 become rows.

What k6 sends, measured with 1.1.0 and read in the source of later ones: counters as sums of doubles, trends as
histograms in ms, gauges as gauges. A rate is two sums: `<name>.occurred` and `<name>.total` in 1.1, `<name>.total`
with the attribute `condition` (`nonzero` or `zero`) in later versions. Tags become attributes. Every instrument is
read at its own moment, all within a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.histograms import Histogram, merge
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series, capped

__all__ = ["INSTANCE_ATTRIBUTE", "MAX_SERIES", "ExportRow", "Series", "decode"]

INSTANCE_ATTRIBUTE = "service.instance.id"
MAX_SERIES = 500

_LONGEST = 3600 * SECOND
_COUNTERS = frozenset({"iterations", "dropped_iterations", "data_received", "data_sent"})

Key = tuple[str, str]


@dataclass(slots=True)
class _Calls:
    requests: int = 0
    failed: int = 0
    histograms: list[Histogram] = field(default_factory=list)


@dataclass(slots=True)
class _Export:
    """What is gathered of one export."""

    starts: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    calls: dict[Key, _Calls] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    checks: int = 0
    checks_passed: int = 0
    vus: int | None = None
    gauge_time: int = 0

    def calls_of(self, attributes: dict[str, str]) -> _Calls:
        scenario, name = attributes.get("scenario", ""), attributes.get("name", "")
        # PostgreSQL keeps no NUL, and scripts give calls any name.
        key = scenario.replace("\0", "\ufffd"), name.replace("\0", "\ufffd")
        return self.calls.setdefault(key, _Calls())


def decode(request: ExportMetricsServiceRequest) -> list[ExportRow]:
    """A row for each load generator in the export; none for one without figures of ours.

    Raises InvalidArgument when the load generator is set up wrongly: figures that are not deltas, histograms that
    are not exponential.
    """
    rows = []
    for resource in request.resource_metrics:
        attributes = _attributes(resource.resource.attributes)
        export = _Export()
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                _gather(export, metric)
        times = export.times or ([export.gauge_time] if export.gauge_time else [])
        if not times:
            continue
        time = min(times)
        rows.append(
            ExportRow(
                instance=attributes.get(INSTANCE_ATTRIBUTE, ""),
                start_unix_nano=min(export.starts, default=time),
                time_unix_nano=time,
                series=capped(
                    (
                        Series(scenario, name, calls.requests, calls.failed, merge(calls.histograms))
                        for (scenario, name), calls in export.calls.items()
                    ),
                    MAX_SERIES,
                ),
                iterations=export.counters.get("iterations", 0),
                dropped_iterations=export.counters.get("dropped_iterations", 0),
                received_bytes=export.counters.get("data_received", 0),
                sent_bytes=export.counters.get("data_sent", 0),
                checks=export.checks,
                checks_passed=export.checks_passed,
                vus=export.vus,
            )
        )
    return rows


def _gather(export: _Export, metric: Any) -> None:
    # By name first: two thirds of what k6 sends is of no use here, and decoding its points is what costs.
    name = metric.name
    match name:
        case "http_reqs":
            for point in _deltas(export, metric, "sum"):
                export.calls_of(_attributes(point.attributes)).requests += _count(point)
        case "http_req_duration":
            for point in _deltas(export, metric, "exponential_histogram"):
                export.calls_of(_attributes(point.attributes)).histograms.append(_histogram(point))
        case "http_req_failed.occurred" | "http_req_failed.total" | "http_req_failed":
            for point in _deltas(export, metric, "sum"):
                attributes = _attributes(point.attributes)
                if _occurred(name, attributes):
                    export.calls_of(attributes).failed += _count(point)
        case "checks.occurred" | "checks.total" | "checks":
            for point in _deltas(export, metric, "sum"):
                if _occurred(name, _attributes(point.attributes)):
                    export.checks_passed += _count(point)
                if not name.endswith(".occurred"):
                    export.checks += _count(point)
        case "vus":
            for point in metric.gauge.data_points:
                export.vus = _count(point)
                export.gauge_time = point.time_unix_nano
        case _ if name in _COUNTERS:
            total = sum(_count(point) for point in _deltas(export, metric, "sum"))
            export.counters[name] = export.counters.get(name, 0) + total


def _deltas(export: _Export, metric: Any, kind: str) -> Iterable[Any]:
    """The points of a metric that counts anew in each export, after noting their times."""
    if metric.WhichOneof("data") != kind:
        raise _wrong(f"{metric.name} must be exported as {kind}")
    data = getattr(metric, kind)
    if data.aggregation_temporality != AGGREGATION_TEMPORALITY_DELTA:
        raise _wrong(f"{metric.name} must be exported with delta temporality")
    for point in data.data_points:
        if not 0 < point.time_unix_nano - point.start_time_unix_nano < _LONGEST or point.time_unix_nano >= 2**63:
            raise _wrong(f"{metric.name} must cover more than no time and less than an hour")
        export.starts.append(point.start_time_unix_nano)
        export.times.append(point.time_unix_nano)
    points: Iterable[Any] = data.data_points
    return points


def _occurred(name: str, attributes: dict[str, str]) -> bool:
    return name.endswith(".occurred") or attributes.get("condition") == "nonzero"


def _count(point: Any) -> int:
    value: float = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
    if not (math.isfinite(value) and 0 <= value < 2**63):
        raise _wrong(f"a count of {value}")
    return round(value)


def _histogram(point: Any) -> Histogram:
    bounds = [getattr(point, name) if point.HasField(name) else None for name in ("min", "max")]
    if any(point.negative.bucket_counts) or not all(math.isfinite(x) for x in (point.sum, *bounds) if x is not None):
        raise _wrong("response times that are no times")
    try:
        return Histogram.of(
            point.scale,
            point.positive.offset,
            point.positive.bucket_counts,
            zero_count=point.zero_count,
            total=point.sum,
            min=bounds[0],
            max=bounds[1],
        )
    except ValueError as error:
        raise _wrong(str(error)) from error


def _attributes(attributes: Any) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in attributes}


def _wrong(problem: str) -> InvalidArgument:
    return InvalidArgument.of("resource_metrics", problem, reason="UNSUITABLE_METRICS")
