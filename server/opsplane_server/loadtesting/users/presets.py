"""The course of the number of users over a load: from a preset, from numbers, or from stages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from math import floor

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.loadtesting.definitions import Stage
from opsplane_server.loadtesting.users.model import Preset, UserLoad

_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
_DAY = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class _Size:
    """Users at the peak, users started a second until then, and how long the load lasts."""

    users: int
    spawn_rate: float
    run_time: timedelta


_SIZES = {
    Preset.SMOKE: _Size(5, 1, timedelta(seconds=60)),
    Preset.LOAD: _Size(25, 3, timedelta(minutes=10)),
    Preset.STRESS: _Size(100, 10, timedelta(minutes=30)),
    Preset.ANALYTICS: _Size(50, 5, timedelta(minutes=15)),
    Preset.SOAK: _Size(25, 1, timedelta(hours=3)),
}


def course(load: UserLoad) -> tuple[Stage, ...]:
    """Stages of the number of all users together, the first from 0 users; their targets are users.

    InvalidArgument naming every field of `run.user_load` that is missing, that contradicts another or that makes the
    load last less than 1 s or more than 24 h.
    """
    violations = [FieldViolation(f"run.user_load.{field}", problem) for field, problem in _problems(load)]
    if violations:
        raise InvalidArgument("; ".join(f"{each.field}: {each.description}" for each in violations), violations)
    return load.stages or _ramp(_size(load))


def _size(load: UserLoad) -> _Size:
    """The numbers of a load without stages that has all of them."""
    preset = _SIZES.get(load.preset) if load.preset else None
    run_time = load.run_time or (preset.run_time if preset else timedelta())
    return _Size(
        load.users or (preset.users if preset else 0),
        load.spawn_rate or (preset.spawn_rate if preset else 0.0),
        run_time,
    )


def _ramp(size: _Size) -> tuple[Stage, ...]:
    """Up to the peak at the spawn rate, then steady until the run time is over; fewer users where it ends before."""
    ramp = size.users / Fraction(size.spawn_rate)
    run_time = Fraction(size.run_time // _MICROSECOND, 1_000_000)
    if ramp > run_time:
        return (Stage(size.run_time, max(1, floor(run_time * Fraction(size.spawn_rate)))),)
    up = round(ramp * 1_000_000) * _MICROSECOND
    stages = (Stage(up, size.users), Stage(size.run_time - up, size.users))
    return tuple(stage for stage in stages if stage.duration or stage is stages[0])


def _problems(load: UserLoad) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    given = {"users": load.users, "spawn_rate": load.spawn_rate, "run_time": load.run_time}
    if load.stages:
        found += [(name, "says what stages say too; give one of them") for name, value in given.items() if value]
        length = sum((stage.duration for stage in load.stages), timedelta())
        if not _SECOND <= length <= _DAY:
            found.append(("stages", f"must last at least 1 s and at most 24 h together, and last {length}"))
        if not any(stage.target for stage in load.stages):
            found.append(("stages", "at least one must have users"))
    elif load.preset is None:
        found += [(name, "is needed without a preset and without stages") for name, value in given.items() if not value]
    if load.run_time is not None and not _SECOND <= load.run_time <= _DAY:
        found.append(("run_time", "must be at least 1 s and at most 24 h"))
    return found
