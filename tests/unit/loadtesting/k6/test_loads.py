"""Loads as k6 executors, thresholds, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import (
    Endpoint,
    Executor,
    LoadTest,
    Parameter,
    ParameterLocation,
    ParameterStyle,
    Scenario,
    Stage,
    Target,
    TargetMetric,
)
from opsplane_server.loadtesting.k6 import loads

SECOND = timedelta(seconds=1)
STAGE = Stage(30 * SECOND, 10)
PET = Endpoint(
    "GET",
    "/pets/{id}",
    parameters=(Parameter(ParameterLocation.PATH, "id", True, 1, ParameterStyle.SIMPLE, False),),
)


def scenario(executor: Executor = Executor.CONSTANT_VUS, *stages: Stage, **more: Any) -> Scenario:
    return Scenario(more.pop("name", "s"), PET, executor, stages, **more)


def load_test(*scenarios: Scenario, **more: Any) -> LoadTest:
    return LoadTest("t", more.pop("base_url", "http://127.0.0.1:8080"), scenarios, **more)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (
            scenario(Executor.CONSTANT_VUS, STAGE),
            {"executor": "constant-vus", "vus": 10, "duration": "30s"},
        ),
        (
            scenario(Executor.RAMPING_VUS, STAGE, Stage(timedelta(milliseconds=1500), 0), graceful_stop=timedelta()),
            {
                "executor": "ramping-vus",
                "startVUs": 0,
                "stages": [{"duration": "30s", "target": 10}, {"duration": "1500ms", "target": 0}],
                "gracefulStop": "0s",
                "gracefulRampDown": "0s",
            },
        ),
        (
            scenario(Executor.CONSTANT_ARRIVAL_RATE, STAGE),
            {
                "executor": "constant-arrival-rate",
                "rate": 10,
                "timeUnit": "1s",
                "duration": "30s",
                "preAllocatedVUs": 10,
                "maxVUs": 20,
            },
        ),
        (
            scenario(Executor.RAMPING_ARRIVAL_RATE, STAGE, Stage(SECOND, 3), vus=4, max_vus=5, start_time=2 * SECOND),
            {
                "executor": "ramping-arrival-rate",
                "startRate": 0,
                "timeUnit": "1s",
                "stages": [{"duration": "30s", "target": 10}, {"duration": "1s", "target": 3}],
                "preAllocatedVUs": 4,
                "maxVUs": 5,
                "startTime": "2s",
            },
        ),
        (
            scenario(Executor.CONSTANT_ARRIVAL_RATE, Stage(SECOND, 1000), max_vus=50),
            {
                "executor": "constant-arrival-rate",
                "rate": 1000,
                "timeUnit": "1s",
                "duration": "1s",
                "preAllocatedVUs": 50,
                "maxVUs": 50,
            },
        ),
        (
            scenario(Executor.PER_VU_ITERATIONS, iterations=5),
            {"executor": "per-vu-iterations", "vus": 1, "iterations": 5, "maxDuration": "24h"},
        ),
        (
            scenario(Executor.SHARED_ITERATIONS, iterations=5, vus=5),
            {"executor": "shared-iterations", "vus": 5, "iterations": 5, "maxDuration": "24h"},
        ),
    ],
)
def test_executors(given: Scenario, options: dict[str, Any]) -> None:
    test = load_test(given)
    loads.check(test)
    assert loads.executor_options(test, given) == options


@pytest.mark.parametrize(
    ("tps", "targets", "expected"),
    [
        (10, [0], [(10, "1s")]),
        (10, [0, 0], [(5, "1s"), (5, "1s")]),
        (10, [0, 0, 4], [(3, "1s"), (3, "1s"), (4, "1s")]),
        (10, [0, 0, 0], [(10, "3s")] * 3),
        (0.5, [0], [(1, "2s")]),
        (2.5, [0], [(5, "2s")]),
    ],
)
def test_arrival_rates_without_a_target_share_the_target_tps(
    tps: float, targets: list[int], expected: list[tuple[int, str]]
) -> None:
    scenarios = [
        scenario(Executor.CONSTANT_ARRIVAL_RATE, Stage(SECOND, target), name=f"s{n}")
        for n, target in enumerate(targets)
    ]
    test = load_test(*scenarios, scenario(Executor.CONSTANT_VUS, STAGE, name="vus"), target_tps=tps)
    loads.check(test)
    found = [loads.executor_options(test, given) for given in scenarios]
    assert [(options["rate"], options["timeUnit"]) for options in found] == expected


@pytest.mark.parametrize(
    ("given", "field", "problem"),
    [
        (scenario(), "stages", "at least one"),
        (scenario(Executor.CONSTANT_VUS, STAGE, STAGE), "stages", "ramping-vus takes several"),
        (scenario(Executor.CONSTANT_ARRIVAL_RATE, STAGE, STAGE), "stages", "ramping-arrival-rate takes several"),
        (scenario(Executor.CONSTANT_VUS, Stage(SECOND / 2, 1)), "stages[0].duration", "at least 1 s"),
        (scenario(Executor.CONSTANT_VUS, Stage(SECOND, 0)), "stages[0].target", "at least 1"),
        (scenario(Executor.CONSTANT_ARRIVAL_RATE, Stage(SECOND, 0)), "stages[0].target", "target_tps"),
        (scenario(Executor.RAMPING_VUS, Stage(SECOND, 0)), "stages", "above 0"),
        (scenario(Executor.RAMPING_VUS, Stage(timedelta(), 5)), "stages", "last longer"),
        (scenario(Executor.RAMPING_VUS, Stage(SECOND, 100_001)), "stages", "at most 100000"),
        (scenario(Executor.CONSTANT_VUS, Stage(timedelta(hours=24), 1), start_time=SECOND), "stages", "24 hours"),
        (scenario(Executor.CONSTANT_VUS, STAGE, iterations=5), "iterations", "has none"),
        (scenario(Executor.CONSTANT_VUS, STAGE, vus=5), "vus", "from its stages"),
        (scenario(Executor.CONSTANT_VUS, STAGE, max_vus=5), "max_vus", "arrival rates only"),
        (scenario(Executor.CONSTANT_ARRIVAL_RATE, STAGE, vus=5, max_vus=4), "max_vus", "less than vus"),
        (scenario(Executor.CONSTANT_ARRIVAL_RATE, STAGE, think_time=SECOND), "think_time", "no meaning"),
        (scenario(Executor.SHARED_ITERATIONS), "iterations", "at least 1"),
        (scenario(Executor.SHARED_ITERATIONS, iterations=2, vus=3), "iterations", "shared by more"),
        (scenario(Executor.PER_VU_ITERATIONS, STAGE, iterations=2), "stages", "has none"),
        (scenario(Executor.CONSTANT_VUS, STAGE, parameters={"idd": "1"}), "parameters['idd']", "no such parameter"),
        (scenario(Executor.CONSTANT_VUS, STAGE, parameters={"id": ""}), "parameters['id']", "cannot be empty"),
        (scenario(Executor.CONSTANT_VUS, STAGE, name="a b"), "name", "letters"),
    ],
)
def test_a_load_that_cannot_be_is_refused(given: Scenario, field: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        loads.check(load_test(given))
    found = {violation.field: violation.description for violation in caught.value.violations}
    assert problem in found[f"run.scenarios[0].{field}"]


def test_every_bad_field_is_named_at_once() -> None:
    bad = scenario(Executor.CONSTANT_VUS)
    test = load_test(bad, bad, base_url="", targets=(Target(TargetMetric.TPS, 1, scenario="x"),))
    with pytest.raises(InvalidArgument) as caught:
        loads.check(test)
    assert {violation.field for violation in caught.value.violations} == {
        "run.base_url",
        "run.scenarios[0].stages",
        "run.scenarios[1].stages",
        "run.scenarios[1].name",
        "run.targets[0].scenario",
    }
    with pytest.raises(InvalidArgument, match=r"run\.scenarios"):
        loads.check(load_test())


@pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com", "http://", "http://[", "http://h/?a=b"])
def test_the_base_url_must_be_one(url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"run\.base_url"):
        loads.check(load_test(scenario(Executor.CONSTANT_VUS, STAGE), base_url=url))


def test_targets_become_thresholds() -> None:
    first = scenario(
        Executor.CONSTANT_VUS,
        STAGE,
        name="a",
        response_time_target=timedelta(milliseconds=500.5),
        error_ratio_target=0.01,
    )
    targets = (
        Target(TargetMetric.RESPONSE_TIME_P99, 800, scenario="a"),
        Target(TargetMetric.RESPONSE_TIME_AVG, 0.25),
        Target(TargetMetric.ERROR_RATIO, 0),
        Target(TargetMetric.TPS, 100),
        Target(TargetMetric.RESPONSE_TIME_MAX, 1, sustained=SECOND),
    )
    assert loads.thresholds(load_test(first, targets=targets)) == {
        "http_req_duration{scenario:a}": ["p(95)<=500.5", "p(99)<=800"],
        "http_req_failed{scenario:a}": ["rate<=0.01"],
        "http_req_duration": ["avg<=0.25"],
        "http_req_failed": ["rate<=0"],
    }


def test_how_long_a_load_is_planned_to_last() -> None:
    one = scenario(Executor.CONSTANT_VUS, STAGE)
    two = scenario(Executor.RAMPING_VUS, STAGE, STAGE, start_time=5 * SECOND)
    assert loads.planned_duration(load_test(one, two)) == 65 * SECOND
    assert loads.planned_duration(load_test(one, replace(one, executor=Executor.SHARED_ITERATIONS))) is None
