"""What is compared of two courses: response times, calls a second and failures, of the run and of its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from opsplane_server.loadtesting.comparison.decisions import beyond_chance
from opsplane_server.loadtesting.comparison.jackknife import Difference, Slices, difference, on_common_buckets
from opsplane_server.loadtesting.metrics.course import Calls, Point, names_of
from opsplane_server.loadtesting.metrics.histograms import Histogram, merge

MAX_SLICES: Final = 20
# The spread of fewer slices says nothing.
MIN_SLICES: Final = 6
# A percentile needs so many calls beyond it, in each run.
MIN_BEYOND: Final = 10

QUANTILES: Final[Mapping[str, float]] = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99}

# Of no failures any is infinitely many more: a tolerance is of this share of the calls at least.
_LEAST_ERROR_RATIO: Final = 0.01
_MAX_SERIES: Final = 100


class Change(StrEnum):
    """What a change means; the names are those of the API without their prefix."""

    UNSPECIFIED = "UNSPECIFIED"
    NONE = "NONE"
    BETTER = "BETTER"
    WORSE = "WORSE"


@dataclass(frozen=True, slots=True)
class FigureChange:
    """How a figure changed. `bounds` of the ratio are None where they are not to be said."""

    series: str
    figure: str
    baseline: float
    value: float
    ratio: float
    bounds: tuple[float, float] | None
    change: Change


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much a figure may change without that being a change; empty texts stand for all."""

    ratio: float
    figure: str = ""
    series: str = ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    series: str
    figure: str
    baseline: float
    value: float
    difference: Difference | None
    tolerance: float
    relative: bool  # the difference is one of logarithms

    @property
    def ratio(self) -> float:
        if self.baseline:
            return self.value / self.baseline - 1
        return math.inf if self.value else 0.0

    @property
    def chance(self) -> float:
        assert self.difference is not None
        return self.difference.chance(self.tolerance)

    @property
    def bounds(self) -> tuple[float, float] | None:
        if self.difference is None:
            return None
        low, high = self.difference.bounds()
        if self.relative:
            return math.expm1(low), math.expm1(min(high, 700.0))
        return (low / self.baseline, high / self.baseline) if self.baseline else None


def compare(baseline: Sequence[Point], run: Sequence[Point], tolerances: Sequence[Tolerance]) -> list[FigureChange]:
    """How the figures of a run differ from those of the baseline; the last tolerance that fits a figure counts.

    Scenarios and endpoints that only one of the two has are left out.
    """
    found = list(_candidates(baseline, run, tolerances))
    judged = [candidate for candidate in found if candidate.difference is not None]
    changed = {
        id(candidate): beyond
        for candidate, beyond in zip(judged, beyond_chance([one.chance for one in judged]), strict=True)
    }
    return [
        FigureChange(
            series=one.series,
            figure=one.figure,
            baseline=one.baseline,
            value=one.value,
            ratio=one.ratio,
            bounds=one.bounds,
            change=_meaning(one, changed.get(id(one))),
        )
        for one in found
    ]


def overall(figures: Sequence[FigureChange]) -> Change:
    """Worse when any figure is, better when any is and none is worse."""
    changes = {figure.change for figure in figures}
    for change in (Change.WORSE, Change.BETTER, Change.NONE):
        if change in changes:
            return change
    return Change.UNSPECIFIED


def _meaning(candidate: _Candidate, changed: bool | None) -> Change:
    if changed is None:
        return Change.UNSPECIFIED
    if not changed:
        return Change.NONE
    more = candidate.value > candidate.baseline
    return Change.BETTER if more == (candidate.figure == "tps") else Change.WORSE


def _candidates(
    baseline: Sequence[Point], run: Sequence[Point], tolerances: Sequence[Tolerance]
) -> Iterator[_Candidate]:
    slices = min(MAX_SLICES, len(baseline), len(run))
    if not slices:
        return
    for name, calls in _series(baseline, run):
        pair = _Pair(_Side(baseline, calls, slices), _Side(run, calls, slices))
        for figure, value, other, found in pair.figures():
            tolerance = next(
                (t.ratio for t in reversed(tolerances) if t.figure in ("", figure) and t.series in ("", name)), 0.0
            )
            relative = figure != "error_ratio"
            if relative:
                tolerance = math.log1p(tolerance)
            else:
                tolerance *= max(value, _LEAST_ERROR_RATIO)
            yield _Candidate(
                name, figure, value, other, found if pair.slices >= MIN_SLICES else None, tolerance, relative
            )


def _series(baseline: Sequence[Point], run: Sequence[Point]) -> Iterator[tuple[str, Callable[[Point], Calls]]]:
    """Each series with how its calls are taken of a point."""
    yield "", lambda point: point.total
    taken = set()
    for part in (0, 1):
        both = set(names_of(run, part))
        for name in [n for n in names_of(baseline, part) if n in both][:_MAX_SERIES]:
            if name not in taken:  # a script may call a scenario and an endpoint the same
                taken.add(name)
                yield name, _taker(part, name)


def _taker(part: int, name: str) -> Callable[[Point], Calls]:
    if part == 0:
        return lambda point: point.of_scenario(name)
    return lambda point: point.of_endpoint(name)


class _Side:
    """One run of a comparison, cut into slices of its time."""

    def __init__(self, points: Sequence[Point], calls: Callable[[Point], Calls], slices: int) -> None:
        every = [(point, calls(point)) for point in points]
        groups = [every[len(every) * i // slices : len(every) * (i + 1) // slices] for i in range(slices)]
        self.histograms = [merge(one.response_time for _, one in group) for group in groups]
        self.whole: Histogram = merge(self.histograms)
        self.requests = np.array([sum(one.requests for _, one in group) for group in groups], dtype=float)
        self.failed = np.array([sum(one.failed for _, one in group) for group in groups], dtype=float)
        # The load covers the first point and the last only in part.
        inner = every[1:-1] if len(every) > 2 * MIN_SLICES else every
        kept = {id(point) for point, _ in inner}
        inside = [[(p, one) for p, one in group if id(p) in kept] for group in groups]
        self.seconds = np.array([sum(point.seconds for point, _ in group) for group in inside])
        self.paced = np.array([sum(one.rate * point.seconds for point, one in group) for group in inside])

    @property
    def tps(self) -> float:
        return float(self.paced.sum() / self.seconds.sum()) if self.seconds.sum() else 0.0

    @property
    def error_ratio(self) -> float:
        return min(1.0, float(self.failed.sum() / self.requests.sum())) if self.requests.sum() else 0.0


class _Pair:
    """The same series of two runs."""

    def __init__(self, baseline: _Side, run: _Side) -> None:
        self._baseline = baseline
        self._run = run

    @property
    def slices(self) -> int:
        """In how many slices both runs have calls of it, at the least."""
        return min(int(np.count_nonzero(side.requests)) for side in (self._baseline, self._run))

    def figures(self) -> Iterator[tuple[str, float, float, Difference | None]]:
        """Each figure with its two values and their difference."""
        before, after = self._baseline, self._run
        if before.whole.count and after.whole.count:
            a, b = on_common_buckets(before.histograms, after.histograms)
            remaining = _logs(b.means_left_out()) - _logs(a.means_left_out())
            yield (
                "avg_ms",
                before.whole.mean,
                after.whole.mean,
                self._relative(before.whole.mean, after.whole.mean, remaining),
            )
            for figure, share in QUANTILES.items():
                yield self._quantile(figure, share, a, b)
        remaining = _logs(_ratios_left_out(after.paced, after.seconds)) - _logs(
            _ratios_left_out(before.paced, before.seconds)
        )
        yield "tps", before.tps, after.tps, self._relative(before.tps, after.tps, remaining)
        if before.requests.sum() and after.requests.sum():
            remaining = _ratios_left_out(after.failed, after.requests) - _ratios_left_out(
                before.failed, before.requests
            )
            ratios = before.error_ratio, after.error_ratio
            yield "error_ratio", *ratios, difference(ratios[1] - ratios[0], remaining)

    def _quantile(self, figure: str, share: float, a: Slices, b: Slices) -> tuple[str, float, float, Difference | None]:
        before, after = (
            min(max(slices.whole(share), side.whole.min), side.whole.max)
            for slices, side in ((a, self._baseline), (b, self._run))
        )
        calls = min(self._baseline.whole.count, self._run.whole.count)
        if calls * (1 - share) < MIN_BEYOND:
            return figure, before, after, None
        return figure, before, after, self._relative(before, after, _logs(b.left_out(share)) - _logs(a.left_out(share)))

    @staticmethod
    def _relative(before: float, after: float, remaining: np.ndarray) -> Difference | None:
        if before <= 0 or after <= 0 or not np.isfinite(remaining).all():
            return None
        return difference(math.log(after / before), remaining)


def _logs(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        logs: np.ndarray = np.log(values)
    return logs


def _ratios_left_out(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The ratio of sums with each slice left out."""
    ratios: np.ndarray = (above.sum() - above) / np.maximum(below.sum() - below, 1e-9)
    return ratios
