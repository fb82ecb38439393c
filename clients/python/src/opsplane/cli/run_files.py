"""Run files: `CreateRunRequest.run` in YAML or JSON, in the words that people use.

Beyond the JSON form of the message a file may have
- `${VAR}` and `${VAR:-default}` in any text but `script`, where that is JavaScript's; `$${` stands for `${`,
- durations like `1m30s`,
- choices without their prefix: `executor: ramping-vus`,
- endpoints as `GET /pets` or by operation id, and scenarios on them without a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from opsplane.cli.durations import parse_duration
from opsplane.cli.endpoints import Catalog, is_resource_name, scenario_name
from opsplane.loadtesting.v1 import runs_pb2, scenarios_pb2, users_pb2

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def read_run_file(path: Path, environ: Mapping[str, str]) -> runs_pb2.Run:
    """Reads a run file; UsageError says what is wrong with it. Endpoints are still as the file names them."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise click.UsageError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise click.UsageError(f"{path}: this is no run: a mapping with title, scenarios and so on")
    try:
        return json_format.ParseDict(_message(data, runs_pb2.Run.DESCRIPTOR, environ), runs_pb2.Run())
    except (json_format.ParseError, ValueError) as error:
        raise click.UsageError(f"{path}: {error}") from None


def unresolved_endpoints(run: runs_pb2.Run) -> list[scenarios_pb2.Scenario | users_pb2.UserTask]:
    """The parts of a run that name an endpoint in people's words."""
    return [part for part in _parts(run) if part.endpoint and not is_resource_name(part.endpoint)]


def resolve_endpoints(run: runs_pb2.Run, catalog: Catalog) -> None:
    """Puts resource names in place of people's words, and names scenarios that have none."""
    taken = {scenario.name for scenario in run.scenarios}
    for part in unresolved_endpoints(run):
        endpoint = catalog.find(part.endpoint)
        part.endpoint = endpoint.name
        if isinstance(part, scenarios_pb2.Scenario) and not part.name:
            part.name = scenario_name(endpoint, taken)
            taken.add(part.name)


def _parts(run: runs_pb2.Run) -> Iterator[scenarios_pb2.Scenario | users_pb2.UserTask]:
    yield from run.scenarios
    for user_class in run.user_load.classes:
        yield from user_class.on_start
        yield from user_class.tasks


def _message(data: Mapping[str, Any], descriptor: Descriptor, environ: Mapping[str, str]) -> dict[str, Any]:
    fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    return {
        key: _value(value, fields[key], environ) if key in fields else value  # the parser refuses unknown ones
        for key, value in data.items()
    }


def _value(value: Any, field: FieldDescriptor, environ: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_value(item, field, environ) for item in value]
    if isinstance(value, dict) and field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            of_values = field.message_type.fields_by_name["value"]
            return {key: _value(item, of_values, environ) for key, item in value.items()}
        return _message(value, field.message_type, environ)
    if isinstance(value, str) and field.name != "script":
        return _text(_substitute(value, environ), field)
    return value


def _text(value: str, field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return _choice(value, field.enum_type)
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Duration":
        return f"{parse_duration(value).total_seconds():.9f}s"
    return value


def _choice(value: str, enum: EnumDescriptor) -> str:
    """The full name of `ramping-vus`, RAMPING_VUS and EXECUTOR_RAMPING_VUS alike."""
    names = [name for name in enum.values_by_name if not name.endswith("_UNSPECIFIED")]
    wanted = value.upper().replace("-", "_").replace(" ", "_")
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    for name in names:
        if wanted in (name, name.removeprefix(prefix)):
            return name
    choices = ", ".join(name.removeprefix(prefix).lower().replace("_", "-") for name in names)
    raise ValueError(f"{value!r} is none of {choices}")


def _substitute(text: str, environ: Mapping[str, str]) -> str:
    def one(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name is None:
            return "${"
        value = environ.get(name) or default
        if value is None:
            raise ValueError(f"the environment variable {name} is not set; ${{{name}:-...}} gives a default")
        return value

    return _VARIABLE.sub(one, text)
