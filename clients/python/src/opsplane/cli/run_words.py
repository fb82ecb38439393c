"""Runs in people's words, turned into the JSON form of the message `Run`, guided by its description.

Everything is told where it stands: `user_load.classes[0].wait_time.between: '1' is no duration`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from opsplane.cli.durations import parse_duration
from opsplane.cli.run_bodies import expand_task, json_text
from opsplane.cli.run_variables import Variables, key_text, scalar_text

_PACKAGE = "opsplane.loadtesting.v1"
_TASK = f"{_PACKAGE}.UserTask"
_BODIES = (_TASK, f"{_PACKAGE}.RequestTemplate")
_SEQUENCE = f"{_PACKAGE}.GeneratedField.sequence"
_DURATION = "google.protobuf.Duration"
# Written like `0.5s..1s`.
_RANGES = {
    f"{_PACKAGE}.DurationRange": ("min", "max"),
    f"{_PACKAGE}.IntegerRange": ("min", "max"),
    f"{_PACKAGE}.RelativeTimeRange": ("from_ago", "to_ago"),
}
_YES_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_WHOLE = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
_REAL = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field holds values by name."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_single(field: FieldDescriptor) -> bool:
    """Whether a value of the field has no fields of its own."""
    return field.message_type is None or field.message_type.full_name == _DURATION


def message_of(field: FieldDescriptor) -> Descriptor:
    """The description of a field that holds messages."""
    assert field.message_type is not None
    return field.message_type


def value_field(field: FieldDescriptor) -> FieldDescriptor:
    """The description of a map's values."""
    return message_of(field).fields_by_name["value"]


def find_field(descriptor: Descriptor, name: str, place: str) -> FieldDescriptor:
    """The field by the name that the protos or JSON give it; ValueError says which there are."""
    for field in descriptor.fields:
        if name in (field.name, field.json_name):
            return field
    names = [field.name for field in descriptor.fields]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    raise ValueError(f"{place or 'a run'} has no field {name!r}; {hint}")


class Words:
    """Turns values into the JSON form. Fields that are left out, or empty where text is not expected, are not there."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables

    def message(self, data: Any, descriptor: Descriptor, place: str = "") -> dict[str, Any]:
        """The fields of a message by their names in the protos; ValueError says what is wrong and where."""
        if isinstance(data, str) and descriptor.full_name in _RANGES:
            data = self._range(data, descriptor, place)
        if not isinstance(data, Mapping):
            raise ValueError(
                f"{place}: a mapping is needed, with {', '.join(field.name for field in descriptor.fields)}"
            )
        if descriptor.full_name == _TASK:
            data = expand_task(data, place)
        result: dict[str, Any] = {}
        for key, value in data.items():
            field = find_field(descriptor, key_text(key, place), place)
            if field.name in result:
                raise ValueError(f"{place}: {field.name} is said twice")
            made = self.value(value, field, f"{place}.{field.name}".lstrip("."))
            if made is not None:
                result[field.name] = made
        return result

    def value(self, value: Any, field: FieldDescriptor, place: str) -> Any:
        """What a field holds, all of it; None where that is nothing."""
        if value is None:
            return None
        if is_map(field):
            if not isinstance(value, Mapping):
                raise ValueError(f"{place}: a mapping is needed")
            of_values = value_field(field)
            return {key_text(key, place): self.item(item, of_values, f"{place}.{key}") for key, item in value.items()}
        if field.is_repeated:
            if not isinstance(value, list):
                raise ValueError(f"{place}: a list is needed")
            made = [self.item(item, field, f"{place}[{index}]") for index, item in enumerate(value)]
            return [item for item in made if item is not None]
        return self.item(value, field, place)

    def item(self, value: Any, field: FieldDescriptor, place: str) -> Any:
        """One value: a single field's, or one of those of a list or map; None for a text that comes to nothing."""
        holder = field.containing_type
        assert holder is not None  # no field is an extension
        if value is None and not holder.GetOptions().map_entry:
            raise ValueError(f"{place}: a value is needed")
        if not is_single(field):
            return self.message(value, message_of(field), place)
        if field.name == "body" and holder.full_name in _BODIES and isinstance(value, (Mapping, list)):
            return json_text(value, self._filled(place), place)
        if holder.GetOptions().map_entry:
            value = scalar_text(value, place)
        if not isinstance(value, str):
            return self._plain(value, field, place)
        if field.name == "script":  # `${}` is JavaScript's there
            return value
        text = self._filled(place)(value)
        return self._text(text, field, place) if text or _holds_text(field) else None

    def _text(self, text: str, field: FieldDescriptor, place: str) -> Any:
        """The value that a text stands for in a field."""
        try:
            if field.message_type is not None:
                return f"{parse_duration(text).total_seconds():.9f}s"
            if field.enum_type is not None:
                return _choice(text, field.enum_type)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            if text.strip().lower() not in _YES_NO:
                raise ValueError(f"{place}: {text!r} is neither true nor false")
            return _YES_NO[text.strip().lower()]
        if field.full_name == _SEQUENCE and ".." in text:
            return text
        if field.cpp_type in (*_WHOLE, *_REAL):
            return _number(text, place, whole=field.cpp_type in _WHOLE)
        return text

    def _plain(self, value: Any, field: FieldDescriptor, place: str) -> Any:
        """A value that YAML has read as something else than text, as the field wants it."""
        if field.message_type is not None:
            raise ValueError(f"{place}: {value!r} is no duration; write it like 30s, 1m30s or 500ms")
        if _holds_text(field):
            raise ValueError(f"{place}: a text is needed; quote {value}")
        if field.cpp_type in (*_WHOLE, *_REAL) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{place}: {value!r} is no number")
        return value

    def _range(self, text: str, descriptor: Descriptor, place: str) -> dict[str, str]:
        low, dots, high = self._filled(place)(text).partition("..")
        if not dots:
            example = "800..1000" if descriptor.name == "IntegerRange" else "0.5s..1s"
            raise ValueError(f"{place}: {text!r} is no range; write it like {example}")
        return dict(zip(_RANGES[descriptor.full_name], (low.strip(), high.strip()), strict=True))

    def _filled(self, place: str) -> Any:
        def fill(text: str) -> str:
            try:
                return self._variables.fill(text)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None

        return fill


def _holds_text(field: FieldDescriptor) -> bool:
    return field.cpp_type == FieldDescriptor.CPPTYPE_STRING


def _number(text: str, place: str, *, whole: bool) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{place}: {text!r} is no number") from None
    if whole and not number.is_integer():
        raise ValueError(f"{place}: {text!r} is no whole number")
    return int(number) if whole else number


def _choice(value: str, enum: EnumDescriptor) -> str:
    """The full name of `ramping-vus`, RAMPING_VUS and EXECUTOR_RAMPING_VUS alike."""
    names = [name for name in enum.values_by_name if not name.endswith("_UNSPECIFIED")]
    wanted = value.strip().upper().replace("-", "_").replace(" ", "_")
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    for name in names:
        if wanted in (name, name.removeprefix(prefix)):
            return name
    choices = ", ".join(name.removeprefix(prefix).lower().replace("_", "-") for name in names)
    raise ValueError(f"{value!r} is none of {choices}")
