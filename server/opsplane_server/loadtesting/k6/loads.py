"""The load of scenarios as k6 executors, and the rules that need more than one field to check.

How a run's `target_tps` acts: arrival-rate scenarios with one stage and no target of their own share what is left
of it evenly; for virtual users it paces nothing, since how often they call follows from the response time, and the
run is judged by it afterwards. It is no threshold in the script: k6 divides by the whole run, set-up and teardown
included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from math import ceil
from urllib.parse import urlsplit

from pydantic import JsonValue

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.loadtesting.definitions import (
    Executor,
    LoadTest,
    ParameterLocation,
    Scenario,
    TargetMetric,
)
from opsplane_server.loadtesting.k6.requests import base_url, parameter_names

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
_SECOND = timedelta(seconds=1)
_DAY = timedelta(hours=24)
_MAX_VUS = 100_000

_THRESHOLDS = {
    TargetMetric.RESPONSE_TIME_P50: ("http_req_duration", "p(50)"),
    TargetMetric.RESPONSE_TIME_P90: ("http_req_duration", "p(90)"),
    TargetMetric.RESPONSE_TIME_P95: ("http_req_duration", "p(95)"),
    TargetMetric.RESPONSE_TIME_P99: ("http_req_duration", "p(99)"),
    TargetMetric.RESPONSE_TIME_AVG: ("http_req_duration", "avg"),
    TargetMetric.RESPONSE_TIME_MAX: ("http_req_duration", "max"),
    TargetMetric.ERROR_RATIO: ("http_req_failed", "rate"),
}


def check(test: LoadTest) -> None:
    """Raises InvalidArgument naming every field of a request's `run` that cannot be."""
    violations = [FieldViolation(f"run.{field}", problem) for field, problem in _violations(test)]
    if violations:
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:3])
        raise InvalidArgument(message, violations)


def planned_duration(test: LoadTest) -> timedelta | None:
    """How long the load lasts, without graceful stops; None where that depends on the response time."""
    if any(scenario.executor.iterations for scenario in test.scenarios):
        return None
    return max((s.start_time + _length(s) for s in test.scenarios), default=timedelta())


def executor_options(test: LoadTest, scenario: Scenario) -> dict[str, JsonValue]:
    """The scenario as an entry of k6's `options.scenarios`, but for `exec`. `test` has passed `check`."""
    executor = scenario.executor
    options: dict[str, JsonValue] = {"executor": executor.value}
    if executor.iterations:
        options |= {
            "vus": scenario.vus or 1,
            "iterations": scenario.iterations,
            # k6 would end the scenario after ten minutes; how long a run may take is the run's own setting.
            "maxDuration": "24h",
        }
    elif executor is Executor.CONSTANT_VUS:
        options["vus"] = scenario.stages[0].target
        options["duration"] = duration(scenario.stages[0].duration)
    elif executor is Executor.RAMPING_VUS:
        options |= {"startVUs": 0, "stages": _stages(scenario)}
    elif executor is Executor.CONSTANT_ARRIVAL_RATE:
        rate = _rate(test, scenario)
        options["rate"] = rate.numerator
        options["timeUnit"] = f"{rate.denominator}s"
        options["duration"] = duration(scenario.stages[0].duration)
        options |= _vus(scenario, ceil(rate))
    else:
        highest = max(stage.target for stage in scenario.stages)
        options |= {"startRate": 0, "timeUnit": "1s", "stages": _stages(scenario)}
        options |= _vus(scenario, highest)
    if scenario.start_time:
        options["startTime"] = duration(scenario.start_time)
    if scenario.graceful_stop is not None:
        options["gracefulStop"] = duration(scenario.graceful_stop)
        if executor is Executor.RAMPING_VUS:
            options["gracefulRampDown"] = duration(scenario.graceful_stop)
    return options


def thresholds(test: LoadTest) -> dict[str, JsonValue]:
    """k6's `options.thresholds`: the targets that k6 can judge, over the whole run, all but calls a second."""
    found: dict[str, JsonValue] = {}

    def add(scenario: str, metric: TargetMetric, limit: float) -> None:
        name, figure = _THRESHOLDS[metric]
        key = f"{name}{{scenario:{scenario}}}" if scenario else name
        expressions = found.setdefault(key, [])
        assert isinstance(expressions, list)
        expressions.append(f"{figure}<={_number(limit)}")

    for scenario in test.scenarios:
        if scenario.response_time_target is not None:
            limit = scenario.response_time_target / timedelta(milliseconds=1)
            add(scenario.name, TargetMetric.RESPONSE_TIME_P95, limit)
        if scenario.error_ratio_target is not None:
            add(scenario.name, TargetMetric.ERROR_RATIO, scenario.error_ratio_target)
    for target in test.targets:
        if target.sustained is None and target.metric is not TargetMetric.TPS:
            add(target.scenario, target.metric, target.limit)
    return found


def target_rate(test: LoadTest, scenario: Scenario) -> float:
    """Calls a second that an arrival rate asks for, mean over its course; 0 for other executors."""
    if scenario.executor is Executor.CONSTANT_ARRIVAL_RATE:
        return float(_rate(test, scenario))
    if scenario.executor is not Executor.RAMPING_ARRIVAL_RATE:
        return 0.0
    before, calls = 0, 0.0
    for stage in scenario.stages:
        calls += (before + stage.target) / 2 * stage.duration.total_seconds()
        before = stage.target
    return calls / _length(scenario).total_seconds()


def planned_calls(test: LoadTest) -> float | None:
    """How many calls arrival rates ask for; None where there are other executors too, whose calls nobody knows."""
    if not test.scenarios or not all(scenario.executor.arrival_rate for scenario in test.scenarios):
        return None
    return sum(target_rate(test, scenario) * _length(scenario).total_seconds() for scenario in test.scenarios)


def duration(span: timedelta) -> str:
    """A time span as k6 reads it: `30s`, or `1500ms` where it is no whole number of seconds."""
    milliseconds = round(span / timedelta(milliseconds=1))
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _stages(scenario: Scenario) -> list[JsonValue]:
    return [{"duration": duration(stage.duration), "target": stage.target} for stage in scenario.stages]


def _vus(scenario: Scenario, rate: int) -> dict[str, JsonValue]:
    ready = scenario.vus or min(max(rate, 1), scenario.max_vus or _MAX_VUS)
    return {"preAllocatedVUs": ready, "maxVUs": scenario.max_vus or min(2 * ready, _MAX_VUS)}


def _length(scenario: Scenario) -> timedelta:
    return sum((stage.duration for stage in scenario.stages), timedelta())


def _takes_share(scenario: Scenario) -> bool:
    stages = scenario.stages
    return scenario.executor is Executor.CONSTANT_ARRIVAL_RATE and len(stages) == 1 and stages[0].target == 0


def _rate(test: LoadTest, scenario: Scenario) -> Fraction:
    """Calls a second of a constant-arrival-rate scenario; k6 wants whole numbers, so 2.5 becomes 5 in 2 seconds."""
    if not _takes_share(scenario):
        return Fraction(scenario.stages[0].target)
    given = sum(
        other.stages[0].target
        for other in test.scenarios
        if other.executor is Executor.CONSTANT_ARRIVAL_RATE and other.stages
    )
    sharers = sum(_takes_share(other) for other in test.scenarios)
    return ((Fraction(test.target_tps) - given) / sharers).limit_denominator(60)


# --- rules ---


def _violations(test: LoadTest) -> Iterator[tuple[str, str]]:
    if not test.scenarios:
        yield "scenarios", "at least one is needed"
    names: set[str] = set()
    for index, scenario in enumerate(test.scenarios):
        at = f"scenarios[{index}]"
        if not _NAME.match(scenario.name):
            yield f"{at}.name", "must be 1 to 64 letters, digits, _ and -, and not start with a digit or -"
        if scenario.name in names:
            yield f"{at}.name", f"{scenario.name!r} is the name of another scenario"
        names.add(scenario.name)
        if not is_base_url(base_url(test, scenario)):
            yield "base_url", "an http or https URL is needed: the specification names no server"
        for field, problem in (*_load_violations(test, scenario), *_call_violations(scenario)):
            yield f"{at}.{field}", problem
    for index, target in enumerate(test.targets):
        if target.scenario and target.scenario not in names:
            yield f"targets[{index}].scenario", f"there is no scenario {target.scenario!r}"


def is_base_url(url: str) -> bool:
    """Whether paths can be appended to it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment


def _call_violations(scenario: Scenario) -> Iterator[tuple[str, str]]:
    known = parameter_names(scenario.endpoint)
    for name, value in scenario.parameters.items():
        if name not in known:
            yield f"parameters[{name!r}]", f"{scenario.endpoint.label} has no such parameter"
        elif known[name] is ParameterLocation.PATH and not value:
            yield f"parameters[{name!r}]", "a path parameter cannot be empty"


def _load_violations(test: LoadTest, scenario: Scenario) -> Iterator[tuple[str, str]]:
    executor, stages = scenario.executor, scenario.stages
    if executor.iterations:
        if stages:
            yield "stages", f"{executor.value} has none; iterations says how much, vus by how many"
        if scenario.iterations < 1:
            yield "iterations", f"{executor.value} needs at least 1"
        if executor is Executor.SHARED_ITERATIONS and 0 < scenario.iterations < scenario.vus:
            yield "iterations", "cannot be shared by more virtual users than there are iterations"
    else:
        if scenario.iterations:
            yield "iterations", f"{executor.value} has none; stages say how long"
        yield from _stage_violations(test, scenario)
    if executor.arrival_rate:
        if scenario.think_time:
            yield "think_time", "has no meaning with arrival rates: calls start by the clock"
        if scenario.max_vus and scenario.max_vus < scenario.vus:
            yield "max_vus", "cannot be less than vus"
    else:
        if scenario.vus and not executor.iterations:
            yield "vus", f"{executor.value} takes them from its stages"
        if scenario.max_vus:
            yield "max_vus", "is for arrival rates only"


def _stage_violations(test: LoadTest, scenario: Scenario) -> Iterator[tuple[str, str]]:
    executor, stages = scenario.executor, scenario.stages
    constant = executor in (Executor.CONSTANT_VUS, Executor.CONSTANT_ARRIVAL_RATE)
    if not stages:
        yield "stages", "at least one is needed"
        return
    if scenario.start_time + _length(scenario) > _DAY:
        yield "stages", "the scenario ends later than 24 hours after the start of the run"
    if constant and len(stages) > 1:
        instead = "ramping-arrival-rate" if executor.arrival_rate else "ramping-vus"
        yield "stages", f"{executor.value} takes one; {instead} takes several"
    elif constant:
        if stages[0].duration < _SECOND:
            yield "stages[0].duration", "must be at least 1 s"
        if stages[0].target < 1 and not (_takes_share(scenario) and _rate(test, scenario) > 0):
            yield "stages[0].target", "must be at least 1, or for an arrival rate 0 with a share of target_tps left"
    elif not _length(scenario):
        yield "stages", "must last longer than 0"
    elif max(stage.target for stage in stages) < 1:
        yield "stages", "at least one target must be above 0"
    if not executor.arrival_rate and any(stage.target > _MAX_VUS for stage in stages):
        yield "stages", f"at most {_MAX_VUS} virtual users"
