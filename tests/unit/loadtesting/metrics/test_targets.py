from collections.abc import Sequence
from datetime import timedelta

import pytest
from opsplane_server.loadtesting.definitions import (
    Endpoint,
    Executor,
    LoadTest,
    Scenario,
    Stage,
    Target,
    TargetMetric,
)
from opsplane_server.loadtesting.metrics.results import MissedTarget, RunFold, RunResults, Verdict
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.metrics.targets import SustainedTargets, judge
from opsplane_server.loadtesting.metrics.windows import WindowAssembler

from tests.unit.loadtesting.metrics.samples import ORIGIN, histogram_of, row


def load_test(
    *targets: Target,
    target_tps: float = 0,
    response_time: timedelta | None = None,
    error_ratio: float | None = None,
) -> LoadTest:
    scenario = Scenario(
        name="load",
        endpoint=Endpoint("GET", "/"),
        executor=Executor.CONSTANT_VUS,
        stages=(Stage(timedelta(seconds=5), 10),),
        response_time_target=response_time,
        error_ratio_target=error_ratio,
    )
    return LoadTest("test", "http://api", (scenario,), target_tps=target_tps, targets=targets)


def results(rows: Sequence[ExportRow] | None = None) -> RunResults:
    """By default 100 calls a second of 100 ms, 2% of which fail."""
    times = histogram_of([100.0] * 100, 5)
    run = RunFold(ORIGIN)
    for one in rows or [row(i, i + 1, requests=100, failed=2, response_time=times) for i in range(5)]:
        run.add(one)
    return run.results()


def words(missed: Sequence[MissedTarget]) -> list[str]:
    return [one.target for one in missed]


def test_a_run_without_targets_passes() -> None:
    assert judge(results(), load_test()) == (Verdict.PASSED, ())


def test_targets_that_are_kept() -> None:
    test = load_test(
        Target(TargetMetric.RESPONSE_TIME_P99, 100, "load"),
        Target(TargetMetric.RESPONSE_TIME_MAX, 100),
        Target(TargetMetric.ERROR_RATIO, 0.02),
        Target(TargetMetric.TPS, 100),
        target_tps=100.5,  # within what can be known
        response_time=timedelta(milliseconds=100),
        error_ratio=0.02,
    )

    assert judge(results(), test) == (Verdict.PASSED, ())


@pytest.mark.parametrize(
    ("test", "target"),
    [
        (load_test(response_time=timedelta(milliseconds=99)), "p95 of load <= 99 ms"),
        (load_test(error_ratio=0.01), "error_ratio of load <= 0.01"),
        (load_test(target_tps=102), "tps >= 102 calls/s"),
        (load_test(Target(TargetMetric.TPS, 10, "missing")), "tps of missing >= 10 calls/s"),
        (load_test(Target(TargetMetric.RESPONSE_TIME_P50, 99.5)), "p50 <= 99.5 ms"),
        (load_test(Target(TargetMetric.RESPONSE_TIME_P90, 1)), "p90 <= 1 ms"),
        (load_test(Target(TargetMetric.RESPONSE_TIME_AVG, 1, "load")), "avg of load <= 1 ms"),
        (load_test(Target(TargetMetric.RESPONSE_TIME_MAX, 99)), "max <= 99 ms"),
    ],
)
def test_targets_that_are_missed(test: LoadTest, target: str) -> None:
    verdict, missed = judge(results(), test)

    assert verdict is Verdict.FAILED
    assert words(missed) == [target]


def test_a_missed_target_says_what_was_measured() -> None:
    _, missed = judge(results(), load_test(error_ratio=0.01))

    assert missed == (MissedTarget("error_ratio of load <= 0.01", "load", 0.01, 0.02),)


def test_dropped_iterations_make_a_run_invalid() -> None:
    at_the_limit = [row(i, i + 1, requests=99, dropped_iterations=1) for i in range(5)]
    beyond = [*at_the_limit, row(5, 6, dropped_iterations=1)]

    assert judge(results(at_the_limit), load_test())[0] is Verdict.PASSED
    verdict, missed = judge(results(beyond), load_test(target_tps=1000))
    assert verdict is Verdict.INVALID
    assert words(missed) == ["tps >= 1000 calls/s"]


def test_a_run_that_did_nothing_is_invalid() -> None:
    assert judge(results([row(1, 1)]), load_test())[0] is Verdict.INVALID


def test_without_calls_no_response_time_was_exceeded() -> None:
    verdict, missed = judge(results(), load_test(Target(TargetMetric.RESPONSE_TIME_P95, 1, "other")))

    assert (verdict, missed) == (Verdict.PASSED, ())


# --- sustained ---

SLOW = Target(TargetMetric.RESPONSE_TIME_P95, 50, sustained=timedelta(seconds=3), abort_on_fail=True)


def watched(target: Target, rows: Sequence[ExportRow]) -> list[tuple[int, MissedTarget]]:
    """The windows in which the target was found missed."""
    targets = SustainedTargets(load_test(target))
    found = []
    windows = WindowAssembler(ORIGIN).feed([(str(i), one) for i, one in enumerate(rows)], now=0)
    for window in windows:
        for its_target, missed in targets.watch(window):
            assert its_target is target
            found.append((window.index, missed))
    return found


def seconds(latencies: Sequence[float], requests: int = 10) -> list[ExportRow]:
    """A row a second; 0 stands for one without calls."""
    return [
        row(i, i + 1, requests=requests, response_time=histogram_of([ms] * requests, 5)) if ms else row(i + 1, i + 1)
        for i, ms in enumerate(latencies)
    ]


def test_a_target_is_missed_when_beyond_for_long_enough_once() -> None:
    ((window, missed),) = watched(SLOW, seconds([10, 80, 60, 70, 90, 99]))

    assert window == 3
    assert missed == MissedTarget("p95 <= 50 ms for 3 s", "", 50, 80)


@pytest.mark.parametrize("latencies", [[80, 80, 10, 80, 80], [80, 80, 0, 80, 80], [10, 10, 10, 80, 80]])
def test_a_break_begins_anew(latencies: list[float]) -> None:
    assert watched(SLOW, seconds(latencies)) == []


def test_missing_figures_are_a_break() -> None:
    rows = seconds([80] * 8)

    assert watched(SLOW, rows[:2] + rows[5:7]) == []
    assert [window for window, _ in watched(SLOW, rows[:2] + rows[5:])] == [4]


def test_sustained_errors() -> None:
    target = Target(TargetMetric.ERROR_RATIO, 0.1, "load", sustained=timedelta(seconds=2))
    rows = [row(i, i + 1, requests=10, failed=2) for i in range(3)]

    assert [window for window, _ in watched(target, rows)] == [1]
    assert watched(Target(TargetMetric.ERROR_RATIO, 0.1, "other", sustained=timedelta(seconds=2)), rows) == []


def test_a_rate_is_judged_while_the_load_is_on() -> None:
    target = Target(TargetMetric.TPS, 100, sustained=timedelta(seconds=2))
    waiting = [row(i + 1, i + 1, vus=10) for i in range(5)]
    load = [row(i, i + 1, requests=100, vus=10) for i in range(5, 10)]
    ending = [row(10, 11, requests=3, vus=10), row(12, 12, vus=0), row(13, 13, vus=0), row(14, 14, vus=0)]

    assert watched(target, waiting + load + ending) == []

    slow = [row(i, i + 1, requests=60, vus=10) for i in range(8, 11)]
    ((window, missed),) = watched(target, waiting + load[:3] + slow)
    assert window == 10
    assert (missed.target, missed.actual) == ("tps >= 100 calls/s for 2 s", 60)
