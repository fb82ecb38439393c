"""Run files: `CreateRunRequest.run` in YAML or JSON, in the words that people use.

Beyond the JSON form of the message a file may have
- `${VAR}`, `${VAR:-default}` and `${VAR:+text}` in any value but `script`, where that is JavaScript's; `$${` stands for
  `${`; the mapping `variables` declares defaults,
- durations like `1m30s`, ranges like `0.5s..1s`,
- choices without their prefix: `executor: ramping-vus`,
- endpoints as `GET /pets` or by operation id, and scenarios on them without a name,
- requests like `POST /orders?dry=true`, and bodies as mappings,
- data sets by their id, a pool's `fallback` alone where its `data_set` is empty, sequences with an end, which say how
  many rows there are, and classes of weight 0, which are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from google.protobuf import json_format

from opsplane.cli.endpoints import Catalog, is_resource_name, scenario_name
from opsplane.cli.names import data_set_name
from opsplane.cli.run_changes import RunChanges
from opsplane.cli.run_variables import Variables
from opsplane.cli.run_words import Words
from opsplane.loadtesting.v1 import runs_pb2, scenarios_pb2, users_pb2


def read_run_file(path: Path, environ: Mapping[str, str], changes: RunChanges | None = None) -> runs_pb2.Run:
    """Reads a run file; UsageError says what is wrong with it. Endpoints and data sets are as the file names them."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise click.UsageError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise click.UsageError(f"{path}: this is no run: a mapping with title, scenarios and so on")
    changes = changes or RunChanges()
    try:
        variables = Variables(environ).with_defaults(data.pop("variables", None) or {}, changes.variables)
        words = Words(variables)
        run = words.message(data, runs_pb2.Run.DESCRIPTOR)
        changes.apply(run, words)
        _finish(run.get("user_load", {}))
        return json_format.ParseDict(run, runs_pb2.Run())
    except (json_format.ParseError, ValueError) as error:
        raise click.UsageError(f"{path}: {error}") from None
    except RecursionError:
        raise click.UsageError(f"{path}: an anchor stands for something that it is part of") from None


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


def resolve_data_sets(run: runs_pb2.Run, project: str) -> None:
    """Puts resource names in place of ids of the project's data sets; UsageError for what is none."""
    for pool in run.user_load.pools:
        if pool.data_set:
            pool.data_set = data_set_name(pool.data_set, project)


def _parts(run: runs_pb2.Run) -> Iterator[scenarios_pb2.Scenario | users_pb2.UserTask]:
    yield from run.scenarios
    for user_class in run.user_load.classes:
        yield from user_class.on_start
        yield from user_class.tasks


def _finish(load: dict[str, Any]) -> None:
    """What follows from the whole of a user load, when all changes are made."""
    if "classes" in load:
        load["classes"] = [user_class for user_class in load["classes"] if user_class.get("weight") != 0]
    for index, pool in enumerate(load.get("pools", ())):
        if not pool.get("data_set"):
            pool.pop("data_set", None)
            if "fallback" in pool and "generator" not in pool:
                pool["generator"] = pool.pop("fallback")
                pool.pop("limit", None)  # of what comes from a data set
        for name in ("generator", "fallback"):
            if name in pool:
                _end_sequences(pool[name], f"user_load.pools[{index}].{name}")


def _end_sequences(generator: dict[str, Any], place: str) -> None:
    """Sequences with an end, `800..1000`, say how many rows there are, unless `rows` does."""
    lengths = []
    for index, field in enumerate(generator.get("fields", ())):
        first, dots, last = str(field.get("sequence", "")).partition("..")
        if dots:
            try:
                field["sequence"] = int(first)
                lengths.append(int(last) - int(first) + 1)
            except ValueError:
                raise ValueError(f"{place}.fields[{index}].sequence: {first}..{last} is no range of numbers") from None
            if lengths[-1] < 1:
                raise ValueError(f"{place}.fields[{index}].sequence: {last} is below {first}")
    if lengths:
        generator.setdefault("rows", min(lengths))
