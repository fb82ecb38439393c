"""The course of a load: presets, numbers that replace theirs, stages, and what contradicts itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import Stage
from opsplane_server.loadtesting.users.model import Preset, UserLoad
from opsplane_server.loadtesting.users.presets import course

from tests.unit.loadtesting.users.loads import SECOND, load, user_class

MINUTE = 60 * SECOND


def asked(**fields: Any) -> UserLoad:
    return UserLoad((user_class(),), **fields)


@pytest.mark.parametrize(
    ("preset", "users", "rate", "length"),
    [
        (Preset.SMOKE, 5, 1, 60 * SECOND),
        (Preset.LOAD, 25, 3, 600 * SECOND),
        (Preset.STRESS, 100, 10, 1800 * SECOND),
        (Preset.ANALYTICS, 50, 5, 900 * SECOND),
        (Preset.SOAK, 25, 1, 3 * 60 * MINUTE),
    ],
)
def test_presets(preset: Preset, users: int, rate: int, length: timedelta) -> None:
    up, steady = course(asked(preset=preset))
    assert up == Stage(timedelta(seconds=users / rate), users)
    assert steady == Stage(length - up.duration, users)


def test_numbers_replace_those_of_a_preset() -> None:
    assert course(asked(preset=Preset.SMOKE, users=8)) == (Stage(8 * SECOND, 8), Stage(52 * SECOND, 8))
    assert course(asked(preset=Preset.SMOKE, spawn_rate=2.5)) == (Stage(2 * SECOND, 5), Stage(58 * SECOND, 5))
    assert course(asked(preset=Preset.SMOKE, run_time=5 * SECOND)) == (Stage(5 * SECOND, 5),)


def test_a_run_time_shorter_than_the_ramp_reaches_fewer_users() -> None:
    assert course(asked(users=100, spawn_rate=10.0, run_time=3 * SECOND)) == (Stage(3 * SECOND, 30),)
    assert course(asked(users=10, spawn_rate=0.1, run_time=SECOND)) == (Stage(SECOND, 1),)


def test_stages_are_taken_as_they_are() -> None:
    stages = (Stage(SECOND, 3), Stage(2 * SECOND, 0))
    assert course(asked(stages=stages)) == stages
    assert course(asked(stages=stages, preset=Preset.SOAK)) == stages


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, {"users", "spawn_rate", "run_time"}),
        ({"users": 5, "run_time": MINUTE}, {"spawn_rate"}),
        ({"users": 5, "spawn_rate": 1.0}, {"run_time"}),
        ({"stages": (Stage(SECOND, 1),), "users": 5, "run_time": MINUTE}, {"users", "run_time"}),
        ({"stages": (Stage(SECOND, 1),), "spawn_rate": 5.0}, {"spawn_rate"}),
        ({"stages": (Stage(0.9 * SECOND, 1),)}, {"stages"}),
        ({"stages": (Stage(timedelta(hours=24), 1), Stage(SECOND, 0))}, {"stages"}),
        ({"stages": (Stage(SECOND, 0),)}, {"stages"}),
        ({"preset": Preset.SMOKE, "run_time": 0.5 * SECOND}, {"run_time"}),
        ({"preset": Preset.SMOKE, "run_time": timedelta(hours=25)}, {"run_time"}),
    ],
)
def test_what_is_missing_or_contradicts_is_named(fields: dict[str, Any], named: set[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        course(asked(**fields))
    assert {violation.field for violation in caught.value.violations} == {f"run.user_load.{name}" for name in named}


@given(
    st.integers(1, 100_000),
    st.floats(min_value=1e-6, max_value=100_000),
    st.integers(1_000_000, 86_400_000_000),
)
def test_a_load_lasts_its_run_time_and_never_spawns_faster_than_its_rate(
    users: int, rate: float, microseconds: int
) -> None:
    run_time = timedelta(microseconds=microseconds)
    stages = course(load(users=users, spawn_rate=rate, run_time=run_time))
    assert sum((stage.duration for stage in stages), timedelta()) == run_time
    assert 1 <= stages[0].target <= users
    if stages[0].target > 1:
        rounding = timedelta(microseconds=1)
        assert stages[0].target <= rate * (stages[0].duration + rounding).total_seconds() * (1 + 1e-9)
    assert stages[-1].target == users or len(stages) == 1
