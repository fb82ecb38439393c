"""Runs of a made-up server: what varies by chance is no change, and what is slower is found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from opsplane_server.loadtesting.comparison.figures import Change, FigureChange, Tolerance, compare, overall

from tests.unit.loadtesting.comparison.courses import course

TOLERANCE = [Tolerance(0.05)]
PAIRS = 20
STEADY = 0.02  # how much whole seconds of the server vary


def changed(figures: Sequence[FigureChange], change: Change) -> set[tuple[str, str]]:
    return {(one.series, one.figure) for one in figures if one.change is change}


def test_runs_of_an_unchanged_server_do_not_differ() -> None:
    pairs = [(course(2 * i, wobble=STEADY), course(2 * i + 1, wobble=STEADY)) for i in range(PAIRS)]
    changes = [overall(compare(first, second, TOLERANCE)) for first, second in pairs]
    assert changes.count(Change.NONE) >= PAIRS - 1


def test_an_endpoint_that_is_a_fifth_slower_is_found() -> None:
    found, others = 0, 0
    for i in range(PAIRS):
        slower = course(2 * i + 1, wobble=STEADY, slower={"GET /3": 1.2})
        figures = compare(course(2 * i, wobble=STEADY), slower, TOLERANCE)
        worse = changed(figures, Change.WORSE)
        found += any(series == "GET /3" for series, _ in worse)
        others += any(series.startswith("GET ") and series != "GET /3" for series, _ in worse)
    assert found >= PAIRS - 1
    assert others <= 2


def test_a_faster_endpoint_is_better_and_failures_are_worse() -> None:
    before = course(1, wobble=STEADY)
    better = compare(before, course(2, wobble=STEADY, slower={"GET /3": 0.6}), TOLERANCE)
    assert ("GET /3", "p50_ms") in changed(better, Change.BETTER)
    assert overall(better) is Change.BETTER
    failing = compare(before, course(2, wobble=STEADY, failing={"GET /3": 0.2}), TOLERANCE)
    assert ("GET /3", "error_ratio") in changed(failing, Change.WORSE)
    [ratio] = [one for one in failing if (one.series, one.figure) == ("GET /3", "error_ratio")]
    assert (ratio.baseline, math.isinf(ratio.ratio), ratio.bounds) == (0.0, True, None)


def test_fewer_calls_a_second_are_worse() -> None:
    found = compare(course(1, calls=40), course(2, calls=20), TOLERANCE)
    assert ("", "tps") in changed(found, Change.WORSE)
    assert ("", "tps") in changed(compare(course(2, calls=20), course(1, calls=40), TOLERANCE), Change.BETTER)


def test_a_ramp_does_not_hide_a_change() -> None:
    before = course(1, ramp=True, wobble=STEADY, seconds=40)
    after = course(2, ramp=True, wobble=STEADY, seconds=40, slower={"GET /3": 1.25})
    assert ("GET /3", "avg_ms") in changed(compare(before, after, TOLERANCE), Change.WORSE)


def test_a_run_is_equal_to_itself() -> None:
    same = course(1)
    figures = compare(same, same, TOLERANCE)
    assert {one.change for one in figures} <= {Change.NONE, Change.UNSPECIFIED}
    assert {one.ratio for one in figures} == {0.0}


def test_too_little_data_is_not_judged() -> None:
    short = compare(course(1, seconds=5), course(2, seconds=5, slower={"GET /3": 3.0}), TOLERANCE)
    assert {one.change for one in short} == {Change.UNSPECIFIED}
    assert overall(short) is Change.UNSPECIFIED
    assert overall([]) is Change.UNSPECIFIED
    few = compare(course(1, calls=2), course(2, calls=2), TOLERANCE)
    assert ("GET /3", "p99_ms") in changed(few, Change.UNSPECIFIED)


def test_what_only_one_run_has_is_left_out() -> None:
    figures = compare(course(1, endpoints=3), course(2, endpoints=2), TOLERANCE)
    assert {one.series for one in figures} == {"", "Light", "Heavy", "GET /0", "GET /1"}
    assert compare([], course(1), TOLERANCE) == []


def test_the_last_tolerance_that_fits_counts() -> None:
    before, after = course(1, wobble=STEADY), course(2, wobble=STEADY, slower={"GET /3": 1.5})
    wide = [*TOLERANCE, Tolerance(1.0, series="GET /3")]
    assert not any(series == "GET /3" for series, _ in changed(compare(before, after, wide), Change.WORSE))
    only = [*wide, Tolerance(0.1, "p50_ms", "GET /3")]
    worse = {figure for series, figure in changed(compare(before, after, only), Change.WORSE) if series == "GET /3"}
    assert worse == {"p50_ms"}


@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_around_the_change(seed: int) -> None:
    for one in compare(course(seed), course(seed + 100, slower={"GET /1": 1.3}), TOLERANCE):
        if one.bounds is not None:
            assert one.bounds[0] <= one.ratio + 0.02
            assert one.bounds[1] >= one.ratio - 0.02
