import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.loadtesting.comparison.decisions import beyond_chance
from opsplane_server.loadtesting.comparison.jackknife import (
    Difference,
    difference,
    on_common_buckets,
    student_cdf,
    student_quantile,
)
from opsplane_server.loadtesting.metrics.histograms import EMPTY

from tests.unit.loadtesting.comparison.courses import histogram


@pytest.mark.parametrize(
    ("freedom", "share", "t"),
    # From any table of the distribution.
    [
        (1, 0.975, 12.706),
        (2, 0.975, 4.303),
        (5, 0.95, 2.015),
        (9, 0.975, 2.262),
        (19, 0.995, 2.861),
        (120, 0.975, 1.980),
    ],
)
def test_students_distribution(freedom: int, share: float, t: float) -> None:
    assert student_cdf(t, freedom) == pytest.approx(share, abs=2e-5)
    assert student_quantile(share, freedom) == pytest.approx(t, abs=1e-3)
    assert student_cdf(-t, freedom) == pytest.approx(1 - share, abs=2e-5)


def test_the_error_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(1).normal(10, 2, 400)
    left_out = (values.sum() - values) / (len(values) - 1)
    found = difference(float(values.mean()), left_out)
    # Neighbours that go together by chance add a little.
    textbook = float(values.std(ddof=1)) / math.sqrt(len(values))
    assert textbook * 0.999 <= found.error <= textbook * 1.1
    low, high = found.bounds()
    assert low < 10 < high


def test_neighbours_that_go_together_make_it_less_sure() -> None:
    values = np.repeat(np.random.default_rng(2).normal(10, 2, 100), 2)
    left_out = (values.sum() - values) / (len(values) - 1)
    naive = float(values.std(ddof=1)) / math.sqrt(len(values))
    assert difference(float(values.mean()), left_out).error > 1.3 * naive


def test_what_does_not_vary_is_sure() -> None:
    same = difference(0.2, np.full(10, 0.2))
    assert same.chance(0.1) == 0.0
    assert same.chance(0.3) == 1.0
    assert same.bounds() == (0.2, 0.2)


def test_chance_is_of_a_difference_beyond_the_tolerance() -> None:
    found = Difference(0.2, 0.05, 19)
    assert found.chance(0.0) < found.chance(0.1) < 0.5 < found.chance(0.3)
    assert Difference(-0.2, 0.05, 19).chance(0.1) == found.chance(0.1)


def test_quantiles_are_those_of_the_values() -> None:
    random = np.random.default_rng(3)
    first, second = ([histogram(random.lognormal(3, 0.5, 500), scale) for _ in range(8)] for scale in (6, 4))
    fine, coarse = on_common_buckets(first, second)
    exact = math.exp(3 + 0.5 * 1.6449)
    for slices in (fine, coarse):
        assert slices.whole(0.95) == pytest.approx(exact, rel=0.05)
        assert slices.left_out(0.5) == pytest.approx(np.full(8, math.exp(3)), rel=0.06)
    assert np.array_equal(fine.edges, coarse.edges)


def test_the_same_values_at_different_scales_do_not_differ() -> None:
    values = np.random.default_rng(4).lognormal(3, 0.5, 500)
    # One value far off makes a sender's buckets wide.
    fine, coarse = on_common_buckets([histogram(values, 7)] * 6, [histogram(values, 3)] * 6)
    for share in (0.5, 0.9, 0.99):
        assert fine.whole(share) == pytest.approx(coarse.whole(share), rel=1e-9)


def test_slices_without_calls() -> None:
    some = histogram(np.array([10.0, 20.0]))
    first, second = on_common_buckets([EMPTY, some], [some, EMPTY])
    assert np.isnan(first.left_out(0.5)[1])
    assert second.left_out(0.5)[1] == pytest.approx(second.whole(0.5))


def test_many_figures_are_judged_together() -> None:
    # Alone 0.03 is beyond chance, among twenty it is not; three sure ones are.
    assert beyond_chance([0.03]) == [True]
    assert beyond_chance([0.03] + [0.5] * 19) == [False] * 20
    assert beyond_chance([0.001, 0.5, 0.002, 0.001] + [0.9] * 16)[:4] == [True, False, True, True]
    assert beyond_chance([]) == []


@given(st.lists(st.floats(0, 1), max_size=50))
def test_what_is_less_likely_by_chance_is_never_left_out(chances: list[float]) -> None:
    found = beyond_chance(chances)
    limit = max((chance for chance, beyond in zip(chances, found, strict=True) if beyond), default=-1.0)
    assert found == [chance <= limit for chance in chances]
    assert limit <= 0.05
