"""Durations as people write them: `30s`, `1m30s`, `500ms`, `1.5h`."""

from __future__ import annotations

import re
from datetime import timedelta

import click

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST_SECONDS = 315_576_000_000.0  # what google.protobuf.Duration holds


def parse_duration(text: str) -> timedelta:
    """ValueError if `text` is not a duration; `0` alone needs no unit."""
    text = text.strip()
    if text == "0":
        return timedelta()
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is no duration; write it like 30s, 1m30s or 500ms")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if seconds > _MOST_SECONDS:
        raise ValueError(f"{text!r} is too long")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """The shortest form that says it to the second, or to the millisecond below ten seconds."""
    milliseconds = round(duration / timedelta(milliseconds=1))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    if milliseconds < 10_000 and milliseconds % 1000:
        return f"{milliseconds / 1000:.10g}s"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


class DurationType(click.ParamType[timedelta]):
    """An option whose value is a duration."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Fails with what is wrong."""
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()
