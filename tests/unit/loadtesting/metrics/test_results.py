import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.histograms import merge
from opsplane_server.loadtesting.metrics.results import Range, RunFold, RunResults
from opsplane_server.loadtesting.metrics.rows import OTHER, ExportRow, Series
from pydantic import TypeAdapter

from tests.unit.loadtesting.metrics.samples import ORIGIN, histogram_of, row


def fold(rows: Sequence[ExportRow], generators: int = 1) -> RunResults:
    run = RunFold(ORIGIN, generators)
    for one in rows:
        run.add(one)
    return run.results()


def figures(one: Range | None) -> tuple[float, float, float]:
    assert one is not None
    return one.min, one.avg, one.max


def steady() -> list[ExportRow]:
    """A load of 100 calls a second from 0.2 s to 5.5 s; k6 exports at whole seconds, and at its end."""
    times = histogram_of([5.0, 10.0, 15.0, 20.0] * 25, 5)
    rows = [row(0.2, 1, requests=80, response_time=times, vus=None)]
    rows += [row(i, i + 1, requests=100, failed=i, response_time=times) for i in range(1, 5)]
    rows += [row(5, 6, requests=50, response_time=times, vus=0), row(6.2, 6.2, vus=0)]
    return rows


def test_every_figure_of_a_run() -> None:
    results = fold(steady())

    assert results.duration == timedelta(seconds=5.3)
    assert (results.total.requests, results.total.failed_requests) == (530, 10)
    assert figures(results.total.tps) == pytest.approx((100, 100, 100))
    assert results.total.error_ratio == Range(0, 10 / 530, 0.04)
    assert results.vus == Range(10, 10, 10)
    times = results.total.response_time
    assert times is not None
    assert (times.min_ms, times.avg_ms, times.max_ms) == pytest.approx((5, 12.5, 20))
    assert times.p50_ms == pytest.approx(12.5, rel=results.percentile_error_ratio)
    assert times.p95_ms == pytest.approx(20, rel=results.percentile_error_ratio)
    assert results.percentile_error_ratio == pytest.approx(2 ** (2**-5) - 1)
    assert results.iterations == 530
    assert results.incomplete_reason == ""


def test_partial_windows_make_no_extremes() -> None:
    rows = [
        row(0.8, 1, requests=40),  # 200 a second, of a fifth of a second
        row(1, 2, requests=90),
        row(2, 3, requests=110),
        row(3, 4, requests=1),  # the load ended at once
    ]

    tps = fold(rows).total.tps

    assert tps is not None
    assert (tps.min, tps.max) == (90, 110)


def test_a_standstill_is_the_least() -> None:
    rows = [row(0, 1, requests=50), row(1, 2, requests=50), row(3, 3), row(3, 4, requests=50), row(4, 5, requests=50)]

    assert figures(fold(rows).total.tps) == pytest.approx((0, 40, 50))


def test_lost_exports_are_no_standstill_but_told() -> None:
    rows = [row(0, 1, requests=50), row(1, 2, requests=50), row(5, 6, requests=50), row(6, 7, requests=50)]

    results = fold(rows)

    assert results.total.tps is not None
    assert results.total.tps.min == 50
    assert results.incomplete_reason == "no figures came of 3.0 s"


def test_a_blocked_exporter_has_lost_nothing() -> None:
    results = fold([row(0, 1, requests=50), row(1, 9, requests=400), row(9, 10, requests=50)])

    assert results.incomplete_reason == ""
    assert results.total.tps == Range(50, 50, 50)


def test_a_short_run_has_figures_too() -> None:
    results = fold([row(0.2, 0.7, requests=20, failed=20)])

    assert results.duration == timedelta(seconds=0.5)
    assert results.total.tps == Range(40, 40, 40)
    assert results.total.error_ratio == Range(1, 1, 1)
    assert results.vus == Range(10, 10, 10)


def test_a_run_without_calls() -> None:
    results = fold([row(1, 1, vus=0), row(2, 2, vus=0)])

    assert results.duration == timedelta()
    assert (results.total.tps, results.total.response_time, results.total.error_ratio) == (None, None, None)
    assert (results.scenarios, results.endpoints, results.vus) == ((), (), None)
    assert fold([]).total.requests == 0


def test_scenarios_and_endpoints_have_courses_of_their_own() -> None:
    rows = []
    for i in range(10):
        series = [Series("early", "GET /pets", 10, 1)] if i < 5 else [Series("late", "GET /pets", 30, 0)]
        series.append(Series("all", "POST /orders", 5, 0))
        rows.append(replace(row(i, i + 1), series=tuple(series)))

    results = fold(rows)

    scenarios = {s.name: s for s in results.scenarios}
    assert [*scenarios] == ["all", "early", "late"]
    assert [s.stats.requests for s in results.scenarios] == [50, 50, 150]
    assert [s.duration for s in results.scenarios] == [timedelta(seconds=n) for n in (10, 5, 5)]
    assert scenarios["late"].stats.tps == Range(30, 30, 30)
    assert scenarios["early"].stats.error_ratio == Range(0.1, 0.1, 0.1)
    assert [(e.name, e.stats.requests) for e in results.endpoints] == [("GET /pets", 200), ("POST /orders", 50)]


def test_checks_dropped_iterations_and_bytes_are_added_up() -> None:
    one = replace(
        row(0, 1, requests=9, dropped_iterations=3), received_bytes=100, sent_bytes=10, checks=9, checks_passed=10
    )
    two = replace(row(1, 2, requests=9), received_bytes=100, sent_bytes=10, checks=9, checks_passed=6)

    results = fold([one, two])

    assert (results.received_bytes, results.sent_bytes, results.dropped_iterations) == (200, 20, 3)
    # One check passed just before the first export and was counted just after it.
    assert (results.checks_passed, results.checks_failed) == (16, 2)


def test_figures_of_several_load_generators_are_those_of_all_samples() -> None:
    rng = random.Random(5)  # noqa: S311
    rows = []
    histograms = []
    for i in range(6):
        for instance in ("a", "b", "c"):
            phase = {"a": 0.0, "b": 0.31, "c": 0.77}[instance]
            times = histogram_of([rng.lognormvariate(3, 1) for _ in range(100)], rng.choice((4, 5)))
            histograms.append(times)
            rows.append(row(i + phase, i + 1 + phase, requests=100, instance=instance, response_time=times, vus=10))

    results = fold(rows, generators=3)

    pooled = merge(histograms)
    times_found = results.total.response_time
    assert times_found is not None
    assert results.total.requests == 1800
    assert [times_found.p50_ms, times_found.p95_ms, times_found.p99_ms] == pooled.quantiles(0.5, 0.95, 0.99)
    # The second and the third begin after the first.
    assert results.duration.total_seconds() == pytest.approx(6.36)
    assert figures(results.total.tps) == pytest.approx((300, 1800 / 6.36, 300))
    assert results.vus == Range(30, 30, 30)


def test_a_late_row_is_in_the_results() -> None:
    rows = [row(i, i + 1, requests=10) for i in range(10)]
    rows.append(row(1, 2, requests=7, instance="b"))

    assert fold(rows, generators=2).total.requests == 107


def test_names_without_end_are_gathered() -> None:
    rows = [
        replace(row(i, i + 1), series=tuple(Series("load", f"GET /{i}/{j}", 1) for j in range(100))) for i in range(20)
    ]

    results = fold(rows)

    assert len(results.endpoints) == 501
    assert sum(e.stats.requests for e in results.endpoints) == 2000
    assert next(e.stats.requests for e in results.endpoints if e.name == OTHER) == 1500
    assert [(s.name, s.stats.requests) for s in results.scenarios] == [("load", 2000)]


def test_memory_does_not_grow_with_the_run() -> None:
    """What is kept after a minute is as large as after ten."""
    times = histogram_of([5.0, 10.0, 500.0], 3)
    sizes = []
    for seconds in (60, 600):
        run = RunFold(ORIGIN, 2)
        for i in range(seconds):
            for instance in "ab":
                run.add(row(i, i + 1, requests=3, instance=instance, response_time=times))
        sizes.append(_reachable(run))

    assert sizes[1] <= sizes[0] + 5


def _reachable(root: object) -> int:
    """How many containers and objects of ours hang on it."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (str, int, float, type(None), type)):
            continue
        seen[id(one)] = one
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            waiting += one
        else:
            waiting += vars(one).values() if hasattr(one, "__dict__") else ()
            waiting += [getattr(one, name, None) for name in getattr(type(one), "__slots__", ())]
    return len(seen)


@pytest.mark.parametrize("rows", [[], steady(), [row(0, 1, requests=1)]])
def test_results_can_be_kept_as_json(rows: list[ExportRow]) -> None:
    adapter = TypeAdapter(RunResults)
    results = fold(rows)

    assert adapter.validate_json(adapter.dump_json(results)) == results


def test_origin_is_that_of_the_samples() -> None:
    assert row(1, 2).start_unix_nano == ORIGIN + SECOND
