"""The load that the options of `opsplane loadtest run` describe: the same on every endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration

from opsplane.cli.durations import DURATION, parse_duration
from opsplane.cli.endpoints import label, scenario_name
from opsplane.cli.names import Command
from opsplane.loadtesting.v1 import runs_pb2, scenarios_pb2, specs_pb2

_STAGE = re.compile(r"(?P<duration>[^:]+):(?P<target>[0-9]+)(?P<rate>/s)?")
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(%?)")
_DEFAULT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class StageText:
    """`30s:10` or `30s:100/s`."""

    duration: timedelta
    target: int
    is_rate: bool


class StageType(click.ParamType[StageText]):
    """A stage: its duration, and its target in virtual users, or in calls a second with `/s`."""

    name = "duration:target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> StageText:
        """Fails with an example."""
        found = _STAGE.fullmatch(str(value).strip())
        if not found:
            self.fail(f"{value!r} is no stage; write 30s:10 for users, 30s:100/s for calls a second", param, ctx)
        try:
            return StageText(parse_duration(found["duration"]), int(found["target"]), found["rate"] is not None)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class RatioType(click.ParamType[float]):
    """A share, `1%` or `0.01`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Fails outside of 0 to 1."""
        found = _PERCENT.fullmatch(str(value).strip())
        share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is no share; write 1% or 0.01", param, ctx)
        return share


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the options say; None and empty are "not given"."""

    vus: int | None = None
    duration: timedelta | None = None
    stages: tuple[StageText, ...] = ()
    rate: int | None = None
    think_time: timedelta | None = None
    target_p95: timedelta | None = None
    target_errors: float | None = None

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        values = {
            "--vus": self.vus,
            "--duration": self.duration,
            "--stage": self.stages or None,
            "--rate": self.rate,
            "--think-time": self.think_time,
            "--target-p95": self.target_p95,
            "--target-errors": self.target_errors,
        }
        return [name for name, value in values.items() if value is not None]

    def check(self) -> None:
        """UsageError where options exclude each other."""
        rates = self.rate is not None or any(stage.is_rate for stage in self.stages)
        if self.stages and (self.duration is not None or self.rate is not None):
            raise click.UsageError("--stage says duration and target; it goes with neither --duration nor --rate")
        if self.stages and any(stage.is_rate for stage in self.stages) != all(stage.is_rate for stage in self.stages):
            raise click.UsageError("stages are all in users (30s:10) or all in calls a second (30s:100/s)")
        if self.stages and self.vus is not None and not rates:
            raise click.UsageError("--stage says the number of users; it does not go with --vus")
        if rates and self.think_time is not None:
            raise click.UsageError("--think-time has no meaning with a rate of calls")


_OPTIONS = (
    click.option(
        "--vus",
        type=click.IntRange(1, 100_000),
        help="Virtual users on each endpoint; with a rate, those kept ready. [default: 1]",
    ),
    click.option("--duration", type=DURATION, help="How long, for example 30s or 1m30s. [default: 30s]"),
    click.option(
        "--stage",
        "stages",
        type=StageType(),
        multiple=True,
        help="A step, repeatable: 30s:10 goes to 10 users in 30 s, 30s:100/s to 100 calls a second.",
    ),
    click.option(
        "--rate", type=click.IntRange(1, 1_000_000), help="Calls a second on each endpoint, however long they take."
    ),
    click.option("--think-time", type=DURATION, help="How long a virtual user rests after a call."),
    click.option("--target-p95", type=DURATION, help="Most that the 95th percentile may be, for example 500ms."),
    click.option("--target-errors", type=RatioType(), help="Most calls that may fail, 1% or 0.01."),
)


def load_options(command: Command) -> Command:
    """Adds the options that describe a load to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def build_run(title: str, endpoints: Sequence[specs_pb2.Endpoint], options: LoadOptions) -> runs_pb2.Run:
    """A run with one scenario an endpoint. `options` are checked before."""
    run = runs_pb2.Run(title=title or " + ".join(label(endpoint) for endpoint in endpoints)[:200])
    for endpoint in endpoints:
        scenario = run.scenarios.add()
        scenario.name = scenario_name(endpoint, {other.name for other in run.scenarios})
        scenario.endpoint = endpoint.name
        _shape(scenario, options)
        if options.think_time is not None:
            scenario.think_time.FromTimedelta(options.think_time)
        if options.target_p95 is not None:
            scenario.response_time_target.FromTimedelta(options.target_p95)
        if options.target_errors is not None:
            scenario.error_ratio_target = options.target_errors
    return run


def _shape(scenario: scenarios_pb2.Scenario, options: LoadOptions) -> None:
    if options.stages:
        scenario.executor = (
            scenarios_pb2.EXECUTOR_RAMPING_ARRIVAL_RATE
            if options.stages[0].is_rate
            else scenarios_pb2.EXECUTOR_RAMPING_VUS
        )
        for stage in options.stages:
            scenario.stages.add(target=stage.target).duration.FromTimedelta(stage.duration)
    else:
        duration = Duration(seconds=_DEFAULT_SECONDS)
        if options.duration is not None:
            duration.FromTimedelta(options.duration)
        if options.rate is not None:
            scenario.executor = scenarios_pb2.EXECUTOR_CONSTANT_ARRIVAL_RATE
            scenario.stages.add(duration=duration, target=options.rate)
        else:
            scenario.executor = scenarios_pb2.EXECUTOR_CONSTANT_VUS
            scenario.stages.add(duration=duration, target=options.vus or 1)
    if options.vus is not None and scenario.executor in (
        scenarios_pb2.EXECUTOR_CONSTANT_ARRIVAL_RATE,
        scenarios_pb2.EXECUTOR_RAMPING_ARRIVAL_RATE,
    ):
        scenario.vus = options.vus
