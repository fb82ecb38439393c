"""How much two runs differ in a figure, and how sure that is.

Calls of a run are not independent: a slow second slows all its calls. So the unit is a slice of the run's time, not
a call. Both runs are cut into as many slices; each slice is left out once, of both runs at the same place, and the
spread of what remains tells how much chance there is in the difference (the delete-a-group jackknife). Leaving the
same place out of both takes away what both have by plan, such as a ramp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opsplane_server.loadtesting.metrics.histograms import Histogram, merge

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference with its standard error; `freedom` is one less than the number of slices."""

    value: float
    error: float
    freedom: int

    def chance(self, tolerance: float) -> float:
        """How likely a difference this large is where the real one is only `tolerance`, 0 to 1."""
        beyond = abs(self.value) - tolerance
        if not self.error:
            return 0.0 if beyond > 0 else 1.0
        return 1 - student_cdf(beyond / self.error, self.freedom)

    def bounds(self) -> tuple[float, float]:
        """Between which the real difference lies with 95% confidence."""
        reach = student_quantile(0.975, self.freedom) * self.error
        return self.value - reach, self.value + reach


def difference(value: float, remaining: Vector) -> Difference:
    """`value` is the difference of the whole runs, `remaining` it with each slice left out."""
    slices = len(remaining)
    deviations = remaining - remaining.mean()
    squares = float(np.sum(deviations**2))
    # What is slow often stays so for longer than a slice: then neighbours tell less than slices apart would.
    together = max(0.0, 2 * float(np.sum(deviations[1:] * deviations[:-1])))
    error = math.sqrt((slices - 1) / slices * (squares + together))
    # Rounding of equal numbers is no spread.
    return Difference(value, error if error > 1e-12 else 0.0, slices - 1)


@dataclass(frozen=True, slots=True)
class Slices:
    """Response times of a run's slices on buckets that another run shares: a row a slice.

    `edges` are the bounds of the buckets, one more than there are buckets; zeros are in the first.
    """

    counts: Vector
    totals: Vector
    edges: Vector

    def left_out(self, share: float) -> Vector:
        """A quantile of what remains when each slice is left out."""
        return _quantiles(self.counts.sum(axis=0) - self.counts, self.edges, share)

    def whole(self, share: float) -> float:
        """A quantile of all slices."""
        return float(_quantiles(self.counts.sum(axis=0)[None, :], self.edges, share)[0])

    def means_left_out(self) -> Vector:
        """The mean of what remains when each slice is left out."""
        counts = self.counts.sum(axis=1)
        remaining: Vector = (self.totals.sum() - self.totals) / np.maximum(counts.sum() - counts, 1)
        return remaining


def on_common_buckets(first: Sequence[Histogram], second: Sequence[Histogram]) -> tuple[Slices, Slices]:
    """The histograms of the slices of two runs on the same buckets: the coarsest among them.

    On buckets of different widths the same response times would give different percentiles.
    """
    whole = merge((*first, *second))
    # Each slice together with nothing but the whole's scale and range.
    edges = np.exp2(np.ldexp(np.arange(whole.offset, whole.offset + len(whole.counts) + 1, dtype=float), -whole.scale))
    return _slices(first, whole, edges), _slices(second, whole, edges)


def _slices(histograms: Sequence[Histogram], whole: Histogram, edges: Vector) -> Slices:
    counts = np.zeros((len(histograms), len(whole.counts) + 1))
    for row, histogram in enumerate(histograms):
        counts[row, 0] = histogram.zero_count
        if histogram.counts:
            buckets = (np.arange(histogram.offset, histogram.offset + len(histogram.counts))) >> (
                histogram.scale - whole.scale
            )
            np.add.at(counts[row], buckets - whole.offset + 1, histogram.counts)
    low = edges[:1] / 2 if len(edges) else np.zeros(1)
    return Slices(counts, np.array([h.total for h in histograms]), np.concatenate((low, edges)))


def _quantiles(counts: Vector, edges: Vector, share: float) -> Vector:
    """The quantile of each row, between the edges of its bucket on a logarithmic scale; NaN of an empty row."""
    before = np.cumsum(counts, axis=1)
    total = before[:, -1]
    wanted = share * total
    bucket = np.minimum((before < wanted[:, None]).sum(axis=1), counts.shape[1] - 1)
    rows = np.arange(len(counts))
    inside = counts[rows, bucket]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (wanted - (before[rows, bucket] - inside)) / inside
        values: Vector = edges[bucket] * (edges[bucket + 1] / edges[bucket]) ** part
    return np.where(total > 0, values, np.nan)


def student_cdf(t: float, freedom: int) -> float:
    """Student's distribution function for a whole number of degrees of freedom (Abramowitz and Stegun 26.7.3, .4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2:
        series, term = 0.0, cosine
        for k in range(1, (freedom - 1) // 2 + 1):
            series += term
            term *= cosine * cosine * (2 * k) / (2 * k + 1)
        both = 2 / math.pi * (angle + sine * series)
    else:
        series, term = 0.0, 1.0
        for k in range(1, freedom // 2 + 1):
            series += term
            term *= cosine * cosine * (2 * k - 1) / (2 * k)
        both = sine * series
    return min(1.0, max(0.0, 0.5 + both / 2))


def student_quantile(share: float, freedom: int) -> float:
    """The inverse of `student_cdf` for shares from 0.5 to below 1."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
    return high
