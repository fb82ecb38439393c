"""Rules of loads by users that need the whole run to check.

Those of the course are in `users.presets`, of templates in `users.templates`, of data in `datasets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.loadtesting.definitions import LoadTest, ParameterLocation
from opsplane_server.loadtesting.k6.loads import is_base_url
from opsplane_server.loadtesting.k6.requests import parameter_names
from opsplane_server.loadtesting.users.model import (
    EndpointCall,
    RequestTemplate,
    Script,
    UserLoad,
    UserTask,
)


def check(test: LoadTest, load: UserLoad) -> None:
    """Raises InvalidArgument naming every field of a request's `run` that cannot be."""
    violations = [FieldViolation(f"run.{field}", problem) for field, problem in _violations(test, load)]
    if violations:
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in violations[:3])
        raise InvalidArgument(message, violations)


def tasks(load: UserLoad) -> Iterator[tuple[str, UserTask]]:
    """Every task and step of every class, with its field in a request's `run`."""
    for i, one in enumerate(load.classes):
        yield from ((f"user_load.classes[{i}].tasks[{j}]", task) for j, task in enumerate(one.tasks))
        yield from ((f"user_load.classes[{i}].on_start[{j}]", step) for j, step in enumerate(one.on_start))


def scripts(load: UserLoad) -> list[tuple[str, str]]:
    """The k6 code of tasks, with its field in a request."""
    return [(f"run.{field}.script", task.action.code) for field, task in tasks(load) if isinstance(task.action, Script)]


def _violations(test: LoadTest, load: UserLoad) -> Iterator[tuple[str, str]]:
    names = [one.name for one in load.classes]
    yield from _repeated("user_load.classes", names, "class")
    yield from _repeated("user_load.pools", [pool.name for pool in load.pools], "pool")
    for field, task in tasks(load):
        yield from ((f"{field}.{name}", problem) for name, problem in _task_violations(task))
    yield from _base_url_violations(test, load)
    for i, target in enumerate(test.targets):
        if target.scenario and target.scenario not in names:
            yield f"targets[{i}].scenario", f"there is no class of users {target.scenario!r}"


def _repeated(field: str, names: Sequence[str], kind: str) -> Iterator[tuple[str, str]]:
    for i, name in enumerate(names):
        if name in names[:i]:
            yield f"{field}[{i}].name", f"{name!r} is the name of another {kind}"


def _task_violations(task: UserTask) -> Iterator[tuple[str, str]]:
    if not isinstance(task.action, EndpointCall):
        return
    known = parameter_names(task.action.endpoint)
    for name, value in task.action.parameters.items():
        if name not in known:
            yield f"parameters[{name!r}]", f"{task.action.endpoint.label} has no such parameter"
        elif known[name] is ParameterLocation.PATH and not value:
            yield f"parameters[{name!r}]", "a path parameter cannot be empty"


def _base_url_violations(test: LoadTest, load: UserLoad) -> Iterator[tuple[str, str]]:
    """At most one: all tasks go to the base URL of the run, or each endpoint to that of its specification."""
    if test.base_url_overridden:
        if not is_base_url(test.base_url):
            yield "base_url", "must be an http or https URL without query and fragment"
        return
    for field, task in tasks(load):
        match task.action:
            case RequestTemplate():
                yield "base_url", f"is required: {field} has only a path"
                return
            case EndpointCall() as call if not is_base_url(call.endpoint.server_url or call.base_url):
                yield "base_url", f"is required: the specification of {field}.endpoint names no server"
                return
