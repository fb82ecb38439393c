"""Figures of a set of calls, as people read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from opsplane_server.loadtesting.metrics.histograms import Histogram, merge

SECOND = 1_000_000_000  # nanoseconds


@dataclass(frozen=True, slots=True)
class ResponseTimes:
    """How long calls took, in milliseconds."""

    min_ms: float
    avg_ms: float
    max_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class CallStats:
    """Figures of a set of calls over a time; `tps` is calls a second. `response_time` is None without calls."""

    requests: int
    failed_requests: int
    tps: float
    error_ratio: float
    response_time: ResponseTimes | None


@dataclass(slots=True)
class Tally:
    """A set of calls being gathered. `rate` is calls a second."""

    requests: int = 0
    failed: int = 0
    rate: float = 0.0
    histograms: list[Histogram] = field(default_factory=list)

    def stats(self) -> CallStats:
        """The figures of what was gathered."""
        return CallStats(
            requests=self.requests,
            failed_requests=self.failed,
            tps=self.rate,
            error_ratio=error_ratio(self.failed, self.requests),
            response_time=response_times(merge(self.histograms)),
        )


def joined(tallies: Iterable[Tally]) -> Tally:
    """All their calls in one."""
    whole = Tally()
    for tally in tallies:
        whole.requests += tally.requests
        whole.failed += tally.failed
        whole.rate += tally.rate
        whole.histograms += tally.histograms
    return whole


def response_times(histogram: Histogram) -> ResponseTimes | None:
    """What people read of a histogram in milliseconds; None of an empty one."""
    if not histogram.count:
        return None
    p50, p90, p95, p99 = histogram.quantiles(0.5, 0.9, 0.95, 0.99)
    return ResponseTimes(histogram.min, histogram.mean, histogram.max, p50, p90, p95, p99)


def error_ratio(failed: int, requests: int) -> float:
    """Share of failed calls, 0 without calls. A failure may be exported just before its call: never above 1."""
    return min(failed / requests, 1.0) if requests else float(failed > 0)
