import math
import random
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from opsplane_server.loadtesting.metrics.histograms import EMPTY, MAX_BUCKETS, Histogram, merge

from tests.unit.loadtesting.metrics.samples import histogram_of, histograms

SHARES = (0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0)
latencies = st.floats(min_value=0.01, max_value=60_000)


def exact_quantile(values: list[float], share: float) -> float:
    """As k6 computes p(N): linear between the two next values."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    return ordered[low] + (ordered[math.ceil(position)] - ordered[low]) * (position - low)


def assert_alike(one: Histogram, other: Histogram) -> None:
    """Equal, but for the order in which doubles were summed up."""
    assert (one.scale, one.offset, one.counts, one.zero_count, one.count, one.min, one.max) == (
        other.scale,
        other.offset,
        other.counts,
        other.zero_count,
        other.count,
        other.min,
        other.max,
    )
    assert one.total == pytest.approx(other.total, rel=1e-9)


@given(st.lists(st.lists(latencies, max_size=40), max_size=6), st.integers(0, 4))
def test_merging_equals_pooling(parts: list[list[float]], scale: int) -> None:
    pooled = histogram_of([value for part in parts for value in part], scale)

    assert_alike(merge(histogram_of(part, scale) for part in parts), pooled)


@given(st.lists(latencies, min_size=1, max_size=40), st.lists(latencies, min_size=1, max_size=40))
def test_merging_goes_to_the_coarser_scale(fine: list[float], coarse: list[float]) -> None:
    merged = merge([histogram_of(fine, 4), histogram_of(coarse, 2)])

    assert_alike(merged, histogram_of(fine + coarse, 2))


@given(histograms(), histograms(), histograms())
def test_merging_is_associative_and_commutative(a: Histogram, b: Histogram, c: Histogram) -> None:
    assume(math.isfinite(a.total + b.total + c.total))
    whole = merge([a, b, c])

    assert_alike(merge([merge([a, b]), c]), whole)
    assert_alike(merge([a, merge([b, c])]), whole)
    assert_alike(merge([c, a, b]), whole)


@given(st.lists(st.one_of(st.just(0.0), latencies), min_size=1, max_size=200), st.integers(0, 6))
def test_a_quantile_is_within_a_bucket_of_the_exact_one(values: list[float], scale: int) -> None:
    histogram = histogram_of(values, scale)

    for share, found in zip(SHARES, histogram.quantiles(*SHARES), strict=True):
        assert found == pytest.approx(exact_quantile(values, share), rel=histogram.relative_error + 1e-9, abs=1e-12)


@given(histograms())
def test_quantiles_are_ordered_and_end_at_the_extremes(histogram: Histogram) -> None:
    assume(histogram.count)
    found = histogram.quantiles(*SHARES)

    assert found[0] == histogram.min
    assert found[-1] == histogram.max
    assert all(low <= high for low, high in pairwise(found))


def test_quantiles_of_a_merged_run_are_near_those_of_its_samples() -> None:
    rng = random.Random(7)  # noqa: S311
    windows = [[rng.lognormvariate(3, 1) for _ in range(400)] for _ in range(50)]
    merged = merge(histogram_of(window, rng.choice((3, 4, 5))) for window in windows)
    values = [value for window in windows for value in window]

    assert merged.scale == 3
    assert merged.count == 20_000
    assert merged.mean == pytest.approx(sum(values) / len(values))
    for share in (0.5, 0.95, 0.99):
        (found,) = merged.quantiles(share)
        # A bucket is 9% wide; with many values in each, places inside a bucket are known better.
        assert found == pytest.approx(exact_quantile(values, share), rel=0.02)


def test_without_values() -> None:
    assert merge([]) == EMPTY
    assert merge([EMPTY, EMPTY]) == EMPTY
    assert histogram_of([], 3) == EMPTY
    assert EMPTY.mean == 0
    with pytest.raises(ValueError, match="empty"):
        EMPTY.quantiles(0.5)


def test_zeros_alone_do_not_make_others_coarser() -> None:
    zeros = histogram_of([0.0, 0.0, 0.0], -5)
    merged = merge([zeros, histogram_of([8.0], 6)])

    assert zeros.quantiles(0, 0.5, 1) == [0, 0, 0]
    assert merged.scale == 6
    assert merged.quantiles(0, 0.5, 1) == [0, 0, 8.0]


@given(st.integers(0, 20), st.lists(st.floats(min_value=1e-300, max_value=1e300), min_size=2, max_size=20))
def test_huge_ranges_fit(scale: int, values: list[float]) -> None:
    merged = merge(histogram_of([value], scale) for value in values)

    assert len(merged.counts) <= MAX_BUCKETS
    assert merged.count == len(values)
    assert all(math.isfinite(value) for value in merged.quantiles(*SHARES))


def test_unknown_extremes_are_the_bounds_of_the_buckets() -> None:
    histogram = Histogram.of(0, 2, [1, 3], zero_count=0, total=30.0)

    assert (histogram.min, histogram.max) == (4.0, 16.0)


def test_empty_buckets_at_the_ends_do_not_matter() -> None:
    trimmed = Histogram.of(3, 9, [0, 0, 4, 1, 0], zero_count=1, total=12.0, min=0.0, max=3.0)

    assert trimmed == Histogram.of(3, 11, [4, 1], zero_count=1, total=12.0, min=0.0, max=3.0)


@pytest.mark.parametrize(("scale", "offset"), [(21, 0), (-11, 0), (0, 2000), (0, -2000), (20, 2**31 - 2), (-10, -9)])
def test_buckets_that_hold_no_numbers_are_refused(scale: int, offset: int) -> None:
    with pytest.raises(ValueError, match="histogram of"):
        Histogram.of(scale, offset, [1], zero_count=0, total=1.0)
