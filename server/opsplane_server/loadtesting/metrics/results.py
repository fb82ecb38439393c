"""The final figures of a run, folded from its rows one by one: memory does not grow with the length of the run.

Sums, means and percentiles are over all rows. Extremes are over slots of about a second (`metrics.slots`), the same
that watchers see as windows:

- Calls a second: the first and the last slot with calls are covered by load only in part, and say nothing about how
  few calls a second there were; they count only where there are no others. A slot without calls between two with
  calls counts as 0: the API stood still. Time of which no figures came does not count.
- Error ratio: every slot with calls.
- Virtual users: the slots with calls, without the last, at whose end they may be gone already. The mean is over time.

A load lasts from the start of its first slot with calls to the end of its last. k6 exports by its own clock, up to a
second after the load has ended: the last slot counts as far as its calls fill it at the rate of the slot before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from opsplane_server.loadtesting.metrics.figures import SECOND, ResponseTimes, Tally, error_ratio, response_times
from opsplane_server.loadtesting.metrics.histograms import EMPTY, Histogram, merge
from opsplane_server.loadtesting.metrics.otlp import MAX_SERIES
from opsplane_server.loadtesting.metrics.rows import OTHER, ExportRow
from opsplane_server.loadtesting.metrics.slots import AlignedSlots, SingleSlots, Slot, start_of

# Shorter ones hold too few calls to be read as a rate.
_SHORTEST = 0.5  # seconds
_LOST = SECOND // 2


class Verdict(StrEnum):
    """Whether a run kept its targets; the names are those of the API without their prefix."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True)
class MissedTarget:
    """A target that was not kept, in words and numbers; `scenario` is empty for the whole run."""

    target: str
    scenario: str
    limit: float
    actual: float


@dataclass(frozen=True, slots=True)
class Range:
    """Least, mean and most of a figure."""

    min: float
    avg: float
    max: float


@dataclass(frozen=True, slots=True)
class ResultStats:
    """Final figures of a set of calls. What needs calls is None without."""

    requests: int
    failed_requests: int
    tps: Range | None
    response_time: ResponseTimes | None
    error_ratio: Range | None


@dataclass(frozen=True, slots=True)
class SeriesResults:
    """Final figures of a scenario or an endpoint: its name, how long its load lasted, its calls."""

    name: str
    duration: timedelta
    stats: ResultStats


@dataclass(frozen=True, slots=True)
class RunResults:
    """The final figures of a run. `vus` is None when k6 never said."""

    duration: timedelta
    total: ResultStats
    scenarios: tuple[SeriesResults, ...]
    endpoints: tuple[SeriesResults, ...]
    vus: Range | None
    iterations: int
    dropped_iterations: int
    received_bytes: int
    sent_bytes: int
    checks_passed: int
    checks_failed: int
    incomplete_reason: str
    percentile_error_ratio: float


@dataclass(slots=True)
class _Extremes:
    """Least, most and mean over time of a figure."""

    least: float = float("inf")
    most: float = float("-inf")
    area: float = 0.0
    seconds: float = 0.0

    def add(self, value: float, seconds: float) -> None:
        self.least = min(self.least, value)
        self.most = max(self.most, value)
        self.area += value * seconds
        self.seconds += seconds

    def range(self, mean: float | None = None) -> Range | None:
        """None when there was nothing. `mean` replaces the mean over time."""
        if not self.seconds:
            return None
        return Range(self.least, self.area / self.seconds if mean is None else mean, self.most)


@dataclass(slots=True)
class _Sums:
    """What is only added up."""

    iterations: int = 0
    dropped_iterations: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    checks: int = 0
    checks_passed: int = 0

    def add(self, row: ExportRow) -> None:
        self.iterations += row.iterations
        self.dropped_iterations += row.dropped_iterations
        self.received_bytes += row.received_bytes
        self.sent_bytes += row.sent_bytes
        self.checks += row.checks
        self.checks_passed += row.checks_passed


@dataclass(slots=True, eq=False)
class _Course:
    """How a set of calls went, slot by slot."""

    requests: int = 0
    failed: int = 0
    histogram: Histogram = EMPTY
    start: int = 0
    rates: _Extremes = field(default_factory=_Extremes)
    errors: _Extremes = field(default_factory=_Extremes)
    # The last slot with calls and the one with calls before it: only a later one shows that a slot was covered whole.
    last: tuple[int, int, float] | None = None  # start, end, calls a second
    before: float = 0.0  # calls a second
    stalled: bool = False

    def add_calls(self, requests: int, failed: int, histogram: Histogram) -> None:
        self.requests += requests
        self.failed += failed
        self.histogram = merge((self.histogram, histogram))

    def add_slot(self, slot: Slot, tallies: Sequence[Tally]) -> None:
        """A slot of the run, with these calls or without."""
        requests = sum(tally.requests for tally in tallies)
        failed = sum(tally.failed for tally in tallies)
        rate = sum(tally.rate for tally in tallies)
        if requests:
            self.errors.add(error_ratio(failed, requests), slot.seconds)
        if not rate:
            self.stalled = self.last is not None
            return
        if self.last is None:
            self.start = slot.start
        else:
            start, end, its_rate = self.last
            seconds = (end - start) / SECOND
            if start > self.start and seconds >= _SHORTEST:
                self.rates.add(its_rate, seconds)
            if self.stalled:
                self.rates.add(0.0, 1.0)
            self.before = its_rate
        self.stalled = False
        self.last = (slot.start, slot.end, rate)

    @property
    def seconds(self) -> float:
        """How long the load lasted."""
        if self.last is None:
            return 0.0
        start, end, rate = self.last
        length = end - start
        if self.before:
            length = round(length * min(1.0, rate / self.before))
        return (start + length - self.start) / SECOND

    def stats(self) -> ResultStats:
        """The final figures."""
        tps = None
        if self.requests and self.seconds:
            mean = self.requests / self.seconds
            tps = self.rates.range(mean) or Range(mean, mean, mean)
        return ResultStats(
            requests=self.requests,
            failed_requests=self.failed,
            tps=tps,
            response_time=response_times(self.histogram),
            error_ratio=self.errors.range(error_ratio(self.failed, self.requests)),
        )


class RunFold:
    """Folds the rows of a run, in the order in which they were committed, into its results.

    `origin` is the start of the run in nanoseconds since 1970, `generators` how many load generators it has.
    """

    def __init__(self, origin: int, generators: int = 1) -> None:
        self._slots = SingleSlots() if generators == 1 else AlignedSlots(origin, generators)
        self._now = 0
        self._total = _Course()
        # By scenario, and by name.
        self._courses: tuple[dict[str, _Course], dict[str, _Course]] = ({}, {})
        self._vus = _Extremes()
        self._last_vus: tuple[int, float] | None = None
        self._sums = _Sums()
        self._ends: dict[str, int] = {}
        self._lost = 0

    def add(self, row: ExportRow) -> None:
        """Adds a row."""
        self._now = max(self._now, row.time_unix_nano)
        for one in row.series:
            for course in self._courses_of(one.scenario, one.name):
                course.add_calls(one.requests, one.failed, one.response_time)
        self._sums.add(row)
        end = self._ends.get(row.instance)
        if end is not None and (gap := start_of(row, end) - end) > _LOST:
            self._lost += gap
        self._ends[row.instance] = max(end or 0, row.time_unix_nano)
        for slot in self._slots.feed("", row, self._now):
            self._add_slot(slot)

    def results(self, incomplete_reason: str = "") -> RunResults:
        """The figures of all that was added; nothing may be added after it.

        `incomplete_reason` says in words why figures may lack a part. Exports that were lost are noticed here.
        """
        for slot in self._slots.finish():
            self._add_slot(slot)
        reasons = [incomplete_reason] if incomplete_reason else []
        if self._lost:
            reasons.append(f"no figures came of {self._lost / SECOND:.1f} s")
        if not self._vus.seconds and self._last_vus:
            self._vus.add(self._last_vus[0], self._last_vus[1])
        sums = self._sums
        return RunResults(
            duration=timedelta(seconds=self._total.seconds),
            total=self._total.stats(),
            scenarios=_series(self._courses[0]),
            endpoints=_series(self._courses[1]),
            vus=self._vus.range(),
            iterations=sums.iterations,
            dropped_iterations=sums.dropped_iterations,
            received_bytes=sums.received_bytes,
            sent_bytes=sums.sent_bytes,
            checks_passed=sums.checks_passed,
            checks_failed=max(sums.checks - sums.checks_passed, 0),
            incomplete_reason="; ".join(reasons),
            percentile_error_ratio=self._total.histogram.relative_error,
        )

    def _courses_of(self, scenario: str, name: str) -> list[_Course]:
        found = [self._total]
        for courses, key in zip(self._courses, (scenario, name), strict=True):
            if key:
                if key not in courses and len(courses) >= MAX_SERIES:
                    key = OTHER
                found.append(courses.setdefault(key, _Course()))
        return found

    def _add_slot(self, slot: Slot) -> None:
        tallies: dict[_Course, list[Tally]] = {}
        for (scenario, name), tally in slot.series.items():
            for course in self._courses_of(scenario, name):
                tallies.setdefault(course, []).append(tally)
        for course in (self._total, *self._courses[0].values(), *self._courses[1].values()):
            course.add_slot(slot, tallies.get(course, ()))
        if slot.series and slot.vus is not None:
            if self._last_vus:
                self._vus.add(*self._last_vus)
            self._last_vus = (slot.vus, slot.seconds)


def _series(courses: dict[str, _Course]) -> tuple[SeriesResults, ...]:
    return tuple(
        SeriesResults(name, timedelta(seconds=course.seconds), course.stats())
        for name, course in sorted(courses.items())
        if course.requests
    )
