"""When figures of a run prove nothing, because they are of another load than asked for."""

from dataclasses import replace
from datetime import timedelta

import pytest
from opsplane_server.loadtesting.definitions import Endpoint, Executor, LoadTest, Scenario, Stage
from opsplane_server.loadtesting.k6.loads import planned_calls, target_rate
from opsplane_server.loadtesting.metrics.results import RunFold, RunResults, Verdict
from opsplane_server.loadtesting.metrics.targets import judge, why_invalid

from tests.unit.loadtesting.metrics.samples import ORIGIN, histogram_of, row

GET = Endpoint("GET", "/")


def scenario(executor: Executor, *stages: tuple[int, int], name: str = "load") -> Scenario:
    """Each stage is its seconds and its target."""
    return Scenario(name, GET, executor, tuple(Stage(timedelta(seconds=s), target) for s, target in stages))


CONSTANT = scenario(Executor.CONSTANT_ARRIVAL_RATE, (10, 100))
RAMP = scenario(Executor.RAMPING_ARRIVAL_RATE, (10, 100), (20, 100), (10, 0), name="ramp")
USERS = scenario(Executor.CONSTANT_VUS, (10, 5), name="users")


def load_test(*scenarios: Scenario, target_tps: float = 0.0) -> LoadTest:
    return LoadTest("test", "http://api", scenarios, target_tps=target_tps)


def results(*, iterations: int, dropped: int = 0) -> RunResults:
    fold = RunFold(ORIGIN)
    times = histogram_of([10.0] * 100, 5)
    for second in range(10):
        fold.add(row(second, second + 1, requests=100, response_time=times))
    return replace(fold.results(), iterations=iterations, dropped_iterations=dropped)


def test_target_rates() -> None:
    test = load_test(CONSTANT, RAMP, USERS)
    assert [target_rate(test, one) for one in test.scenarios] == [100.0, 75.0, 0.0]
    sharing = scenario(Executor.CONSTANT_ARRIVAL_RATE, (10, 0), name="rest")
    assert target_rate(load_test(CONSTANT, sharing, target_tps=150.0), sharing) == 50.0


def test_planned_calls_are_known_of_arrival_rates_alone() -> None:
    assert planned_calls(load_test(CONSTANT, RAMP)) == 1000 + 3000
    assert planned_calls(load_test(CONSTANT, USERS)) is None
    assert planned_calls(load_test()) is None


@pytest.mark.parametrize(
    ("iterations", "dropped", "words"),
    [
        (1000, 0, ""),
        (960, 0, ""),
        (995, 5, ""),
        (980, 20, "2.0% of the iterations could not start"),
        (900, 0, "only 900 of 1,000 calls were made in time"),
        (0, 1000, "100.0% of the iterations could not start"),
    ],
)
def test_why_a_run_is_invalid(iterations: int, dropped: int, words: str) -> None:
    why = why_invalid(results(iterations=iterations, dropped=dropped), load_test(CONSTANT))
    assert why.startswith(words)
    assert bool(why) == bool(words)


def test_calls_under_way_at_the_end_are_not_missing() -> None:
    with_users = replace(results(iterations=920), vus=results(iterations=1).total.tps)
    assert with_users.vus is not None
    assert with_users.vus.max == 100
    assert why_invalid(with_users, load_test(CONSTANT)) == ""


def test_virtual_users_have_no_number_of_calls_to_reach() -> None:
    assert why_invalid(results(iterations=3), load_test(USERS)) == ""
    assert why_invalid(RunFold(ORIGIN).results(), load_test(USERS)) == "nothing was called"


def test_an_invalid_run_is_neither_passed_nor_failed() -> None:
    verdict, missed = judge(results(iterations=500), load_test(CONSTANT, target_tps=1000.0))
    assert verdict is Verdict.INVALID
    assert [one.target for one in missed] == ["tps >= 1000 calls/s"]
