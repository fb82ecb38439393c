"""The course of a run in a bounded number of points, however long it was: for charts and comparison.

Points are the slots that watchers see as windows (`metrics.slots`); when there are too many, neighbours are joined.
Counts, sums and histograms of joined points stay exact, rates and virtual users become those of the longer time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from opsplane_server.loadtesting.metrics.figures import SECOND, Tally, joined
from opsplane_server.loadtesting.metrics.histograms import Histogram, merge
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.metrics.slots import AlignedSlots, Key, SingleSlots, Slot

MAX_POINTS = 240

# How far load generators may be apart before slots close without the slowest. Nobody waits for an ended run.
_PATIENCE = 60 * SECOND


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of a point. `rate` is calls a second."""

    requests: int
    failed: int
    rate: float
    response_time: Histogram


@dataclass(slots=True)
class Point:
    """What was measured between two moments, in nanoseconds since 1970. `vus` is at its end, None while unknown."""

    start: int
    end: int
    calls: dict[Key, Calls]
    vus: int | None
    iterations: int
    dropped_iterations: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end - self.start) / SECOND

    @property
    def total(self) -> Calls:
        """All its calls."""
        return _sum(self.calls.values())

    def of_scenario(self, name: str) -> Calls:
        """Its calls of one scenario."""
        return _sum(calls for (scenario, _), calls in self.calls.items() if scenario == name)

    def of_endpoint(self, name: str) -> Calls:
        """Its calls of one endpoint."""
        return _sum(calls for (_, endpoint), calls in self.calls.items() if endpoint == name)


@dataclass(slots=True)
class CourseFold:
    """Folds the rows of a run, in the order in which they were committed, into points.

    `origin` is the start of the run in nanoseconds since 1970, `generators` how many load generators it has.
    """

    origin: int
    generators: int = 1
    max_points: int = MAX_POINTS
    _points: list[Point] = field(default_factory=list)
    _slots: SingleSlots | AlignedSlots = field(init=False)
    _now: int = 0
    _shortest: int = 0  # nanoseconds

    def __post_init__(self) -> None:
        self._slots = SingleSlots() if self.generators == 1 else AlignedSlots(self.origin, self.generators)

    def add(self, rows: Iterable[ExportRow]) -> None:
        """Adds rows."""
        for row in rows:
            self._now = max(self._now, row.time_unix_nano)
            if self.generators > 1:
                # The counts of a long row, joined after its run, are in one slot of the many that it covers.
                self._shortest = max(self._shortest, row.time_unix_nano - row.start_unix_nano)
            self._take(self._slots.feed("", row, self._now - _PATIENCE))

    def points(self) -> list[Point]:
        """The points from the first calls to the last; nothing may be added after it."""
        self._take(self._slots.finish())
        while any(point.end - point.start < self._shortest - SECOND for point in self._points[:-1]):
            self._halve()
        called = [i for i, point in enumerate(self._points) if any(c.requests for c in point.calls.values())]
        return self._points[called[0] : called[-1] + 1] if called else []

    def _take(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            self._points.append(_point(slot))
            if len(self._points) >= 2 * self.max_points:
                self._halve()

    def _halve(self) -> None:
        pairs = zip(self._points[::2], self._points[1::2], strict=False)
        odd = self._points[-1:] if len(self._points) % 2 else []
        self._points = [_join(first, second) for first, second in pairs] + odd


def _point(slot: Slot) -> Point:
    return Point(
        start=slot.start,
        end=slot.end,
        calls={key: _calls(tally) for key, tally in slot.series.items()},
        vus=slot.vus,
        iterations=slot.iterations,
        dropped_iterations=slot.dropped_iterations,
    )


def _calls(tally: Tally) -> Calls:
    whole = joined((tally,))
    return Calls(whole.requests, whole.failed, whole.rate, merge(whole.histograms))


def _sum(parts: Iterable[Calls]) -> Calls:
    parts = list(parts)
    return Calls(
        sum(part.requests for part in parts),
        sum(part.failed for part in parts),
        sum(part.rate for part in parts),
        merge(part.response_time for part in parts),
    )


def _join(first: Point, second: Point) -> Point:
    seconds = first.seconds + second.seconds
    calls: dict[Key, Calls] = {}
    for key in first.calls.keys() | second.calls.keys():
        parts = [(point, point.calls[key]) for point in (first, second) if key in point.calls]
        rate = sum(part.rate * point.seconds for point, part in parts) / seconds if seconds else 0.0
        whole = _sum([part for _, part in parts])
        calls[key] = Calls(whole.requests, whole.failed, rate, whole.response_time)
    return Point(
        start=first.start,
        end=second.end,
        calls=calls,
        vus=first.vus if second.vus is None else second.vus,
        iterations=first.iterations + second.iterations,
        dropped_iterations=first.dropped_iterations + second.dropped_iterations,
    )


def names_of(points: Sequence[Point], part: int) -> list[str]:
    """Names of the scenarios (`part` 0) or endpoints (1) of a course, the busiest first."""
    requests: dict[str, int] = {}
    for point in points:
        for key, calls in point.calls.items():
            if key[part]:
                requests[key[part]] = requests.get(key[part], 0) + calls.requests
    return sorted(requests, key=lambda name: (-requests[name], name))
