"""Changes of a run file without editing it: `-u 50`, `--preset smoke`, `--set user_load.classes[Heavy].weight=5`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import click
import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from opsplane.cli.durations import DURATION
from opsplane.cli.names import Command
from opsplane.cli.run_words import Words, find_field, is_map, is_single, message_of, value_field
from opsplane.loadtesting.v1 import runs_pb2, users_pb2

_STEP = re.compile(r"(?P<name>[^.\[\]]+)|\.(?P<next>[^.\[\]]+)|\[(?P<item>[^\]]+)\]")
_VARIABLES = "variables"
_IN_REQUEST = ("query", "headers", "body", "content_type")
_PRESETS = [name.removeprefix("LOAD_PRESET_").lower() for name in users_pb2.LoadPreset.keys()[1:]]


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a path: a field by its name, or what stands in brackets."""

    text: str
    in_brackets: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """`PATH=VALUE`; the value is what YAML makes of it."""

    path: tuple[Step, ...]
    value: Any
    text: str

    @property
    def variable(self) -> str | None:
        """The variable that it sets, where it sets one."""
        steps = [step.text for step in self.path]
        return steps[1] if len(steps) == 2 and steps[0] == _VARIABLES else None


class SettingType(click.ParamType[Setting]):
    """An option `PATH=VALUE`."""

    name = "path=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Setting:
        """Fails with what is wrong."""
        path, equals, text = str(value).partition("=")
        while equals and path.count("[") > path.count("]"):  # tasks[GET /a?b=c]
            more, equals, text = text.partition("=")
            path = f"{path}={more}"
        steps, end = [], 0
        while found := _STEP.match(path, end):
            if (found["name"] is None) == (end == 0):
                break
            steps.append(Step(found["item"] or found["next"] or found["name"], found["item"] is not None))
            end = found.end()
        if not equals or not steps or end != len(path):
            self.fail(f"{value!r} is no setting; write it like user_load.classes[Heavy].weight=5", param, ctx)
        try:
            return Setting(tuple(steps), yaml.safe_load(text), str(value))
        except yaml.YAMLError as error:
            self.fail(f"{value!r}: {' '.join(str(error).split())}", param, ctx)


@dataclass(frozen=True, slots=True)
class RunChanges:
    """What the options change in a run file; None and empty are "not given"."""

    preset: str | None = None
    users: int | None = None
    spawn_rate: float | None = None
    run_time: timedelta | None = None
    settings: tuple[Setting, ...] = ()

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        return [*self._of_users, *(["--set"] if self.settings else [])]

    @property
    def _of_users(self) -> list[str]:
        values = {
            "--preset": self.preset,
            "--users": self.users,
            "--spawn-rate": self.spawn_rate,
            "--run-time": self.run_time,
        }
        return [name for name, value in values.items() if value is not None]

    @property
    def variables(self) -> dict[str, str]:
        """Values of the file's variables."""
        return {
            setting.variable: "" if setting.value is None else str(setting.value)
            for setting in self.settings
            if setting.variable is not None
        }

    def apply(self, run: dict[str, Any], words: Words) -> None:
        """Changes the JSON form of a run; ValueError says what does not go. Settings go last."""
        if self._of_users:
            self._resize(run)
        for setting in self.settings:
            if setting.variable is None:
                try:
                    _assign(run, runs_pb2.Run.DESCRIPTOR, setting.path, setting.value, words, "")
                except ValueError as error:
                    raise ValueError(f"--set {setting.text}: {error}") from None

    def _resize(self, run: dict[str, Any]) -> None:
        load = run.get("user_load")
        if load is None:
            raise ValueError(f"there is no user_load for {', '.join(self._of_users)}")
        if self.preset is not None:  # all of its numbers
            for name in ("users", "spawn_rate", "run_time", "stages"):
                load.pop(name, None)
            load["preset"] = f"LOAD_PRESET_{self.preset.upper()}"
        elif load.get("stages"):
            raise ValueError(f"the stages say how many users; they do not go with {', '.join(self._of_users)}")
        if self.users is not None:
            load["users"] = self.users
        if self.spawn_rate is not None:
            load["spawn_rate"] = self.spawn_rate
        if self.run_time is not None:
            load["run_time"] = f"{self.run_time.total_seconds():.9f}s"


_OPTIONS = (
    click.option("--preset", type=click.Choice(_PRESETS, case_sensitive=False),
                 help="Users, spawn rate and run time at once, in place of those of the file."),
    click.option("--users", "-u", type=click.IntRange(1, 100_000), help="Users at the peak."),
    click.option("--spawn-rate", "-r", type=click.FloatRange(0, 100_000, min_open=True),
                 help="Users started a second."),
    click.option("--run-time", "-t", type=DURATION, help="How long the load lasts, for example 300s or 5m."),
    click.option("--set", "settings", type=SettingType(), multiple=True,
                 help="Change a value of the file, repeatable: user_load.classes[Heavy].weight=5."),
)  # fmt: skip


def change_options(command: Command) -> Command:
    """Adds the options that change a run file; the command takes them as `changes`."""

    @functools.wraps(command)
    def with_changes(
        *args: Any,
        preset: str | None,
        users: int | None,
        spawn_rate: float | None,
        run_time: timedelta | None,
        settings: tuple[Setting, ...],
        **others: Any,
    ) -> Any:
        return command(*args, changes=RunChanges(preset, users, spawn_rate, run_time, settings), **others)

    result: Any = with_changes
    for option in reversed(_OPTIONS):
        result = option(result)
    return cast(Command, result)


def _assign(
    holder: dict[str, Any], descriptor: Descriptor, path: tuple[Step, ...], value: Any, words: Words, place: str
) -> None:
    """Puts a value where the path leads in the message `holder`."""
    step, *rest = path
    field = find_field(descriptor, step.text, place)
    if descriptor.name == "UserTask" and field.name in _IN_REQUEST and "request" in holder:
        holder, descriptor, place = holder["request"], users_pb2.RequestTemplate.DESCRIPTOR, f"{place}.request"
        field = descriptor.fields_by_name[field.name]
    elif descriptor.name == "UserTask" and not rest and isinstance(value, str) and field.name == "request":
        value = words.message({"request": value}, descriptor, place)["request"]
    for other in field.containing_oneof.fields if field.containing_oneof else ():
        if other is not field:
            holder.pop(other.name, None)
    place = f"{place}.{field.name}".lstrip(".")
    if not rest:
        _put(holder, field.name, words.value(value, field, place))
    elif is_map(field):
        if len(rest) > 1:
            raise ValueError(f"{place}.{rest[0].text} is a single value")
        _put(
            holder.setdefault(field.name, {}),
            rest[0].text,
            words.item(value, value_field(field), f"{place}.{rest[0].text}"),
        )
    elif field.is_repeated:
        _assign_item(holder.get(field.name, []), field, tuple(rest), value, words, place)
    elif is_single(field):
        raise ValueError(f"{place} is a single value")
    else:
        _assign(holder.setdefault(field.name, {}), message_of(field), tuple(rest), value, words, place)


def _assign_item(
    items: list[Any], field: FieldDescriptor, path: tuple[Step, ...], value: Any, words: Words, place: str
) -> None:
    step, *rest = path
    index = _locate(items, step, place)
    place = f"{place}[{index}]"
    if not rest:
        made = words.item(value, field, place)
        if made is None:
            raise ValueError(f"{place}: a value is needed")
        items[index] = made
    elif is_single(field):
        raise ValueError(f"{place} is a single value")
    else:
        _assign(items[index], message_of(field), tuple(rest), value, words, place)


def _locate(items: list[Any], step: Step, place: str) -> int:
    """The place of an item that is meant by number or name."""
    names = [_names(item) for item in items]
    listed = ", ".join(next(iter(one), str(index)) for index, one in enumerate(names))
    if not step.in_brackets:
        raise ValueError(f"{place} is a list; write {place}[{listed.partition(', ')[0] or 0}].{step.text}")
    named = [index for index, one in enumerate(names) if step.text in one]
    if named:
        return named[0]
    if step.text.isascii() and step.text.isdigit() and int(step.text) < len(items):
        return int(step.text)
    raise ValueError(f"{place} has no {step.text!r}; it has {len(items)}: {listed}" if items else f"{place} is empty")


def _names(item: Any) -> list[str]:
    """How an item of a list can be called: by its name, or by what it calls."""
    if not isinstance(item, dict):
        return []
    request = item.get("request") or {}
    called = f"{request.get('method')} {request.get('path')}" if request else ""
    return [name for name in (item.get("name"), called, item.get("endpoint")) if name]


def _put(holder: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        holder.pop(name, None)
    else:
        holder[name] = value
