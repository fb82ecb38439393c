"""Templates in what users send, such as `{{pool.bundles.id}}` and `{{int 1 100}}`: which can be, and which not."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.loadtesting.openapi.bodies import is_json
from opsplane_server.loadtesting.users.holes import Captured, Filling, Part, PoolField, RowField, UserField, parse
from opsplane_server.loadtesting.users.model import EndpointCall, RequestTemplate, Script, UserClass, UserLoad, UserTask
from opsplane_server.loadtesting.users.parsing import TemplateError, json_path

_NAMED = 10
_SINGLE_BRACES = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class _Scope:
    """What templates at a place can take. `captured` is None where nobody knows what there is."""

    captured: Collection[str] | None
    user: Collection[UserField] = tuple(UserField)


def check(load: UserLoad, fields: Mapping[str, Sequence[str]]) -> Mapping[str, set[str]]:
    """The fields that templates take of every pool, by pool (empty sets for pools that they do not use).

    `fields` are those that each pool's rows have; where they are not there or empty, nobody knows them yet, and they
    are not checked. Raises InvalidArgument with one violation for every template that cannot be,
    `run.user_load.classes[0].tasks[2].request.body` for example, saying where in the text and what there is instead.
    Own code may take more than these fields.
    """
    checker = _Checker({pool.name: fields.get(pool.name, ()) for pool in load.pools})
    for index, user_class in enumerate(load.classes):
        checker.check_class(user_class, f"run.user_load.classes[{index}]")
    if checker.violations:
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in checker.violations[:3])
        raise InvalidArgument(message, checker.violations, reason="TEMPLATE_WRONG")
    return checker.needed


def body_type(user_class: UserClass, action: EndpointCall | RequestTemplate) -> str:
    """The media type that a task's body is sent with; empty where a template says it, or nothing."""
    own = {name.lower(): value for name, value in headers(user_class, action).items()}.get("content-type")
    if own is not None:
        return "" if "{{" in own else own
    described = _described_type(action)
    return described or "application/json"


def headers(user_class: UserClass, action: EndpointCall | RequestTemplate) -> dict[str, str]:
    """The headers that a task has from its class and of its own; its own type of content goes before the class's."""
    found = dict(user_class.headers)
    if _described_type(action):
        found = {name: value for name, value in found.items() if name.lower() != "content-type"}
    if isinstance(action, RequestTemplate):
        own = {name.lower() for name in action.headers}
        found = {name: value for name, value in found.items() if name.lower() not in own} | dict(action.headers)
    return found


def in_strings(parts: Sequence[Part]) -> list[bool]:
    """For every part of a JSON text, whether it begins inside of a string."""
    inside = escaped = False
    found = []
    for part in parts:
        found.append(inside)
        for character in part if isinstance(part, str) else "":
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = inside
            elif character == '"':
                inside = not inside
    return found


def _described_type(action: EndpointCall | RequestTemplate) -> str:
    if isinstance(action, RequestTemplate):
        return action.content_type
    return action.endpoint.body.content_type if action.endpoint.body else ""


class _Checker:
    """Walks over the templates of a load and collects what is wrong with them."""

    def __init__(self, pools: Mapping[str, Sequence[str]]) -> None:
        self._pools = pools
        self.needed: dict[str, set[str]] = {name: set() for name in pools}
        self.violations: list[FieldViolation] = []

    def check_class(self, user_class: UserClass, at: str) -> None:
        tasks = [(f"{at}.tasks[{index}]", task) for index, task in enumerate(user_class.tasks)]
        tasks += [(f"{at}.on_start[{index}]", step) for index, step in enumerate(user_class.on_start)]
        own_code = any(isinstance(task.action, Script) for _, task in tasks)
        captured = None if own_code else {name for _, task in tasks for name in task.captures}
        scope = _Scope(captured)
        self._text(user_class.user_id, f"{at}.user_id", _Scope((), (UserField.NUMBER,)))
        self._text(user_class.session_id, f"{at}.session_id", _Scope((), (UserField.NUMBER, UserField.ID)))
        self._texts(user_class.headers, f"{at}.headers", scope)
        for field, task in tasks:
            self._task(user_class, task, field, scope)

    def _task(self, user_class: UserClass, task: UserTask, at: str, scope: _Scope) -> None:
        for name, path in task.captures.items():
            try:
                json_path(path)
            except TemplateError as error:
                self._add(f"{at}.captures[{name!r}]", str(error))
        match task.action:
            case EndpointCall(parameters=parameters, body=body) as action:
                self._texts(parameters, f"{at}.parameters", scope)
                self._body(body, f"{at}.body", scope, body_type(user_class, action))
            case RequestTemplate(path=path, query=query, headers=own, body=body) as action:
                self._path(path, f"{at}.request.path", scope)
                self._texts(query, f"{at}.request.query", scope)
                self._texts(own, f"{at}.request.headers", scope)
                self._body(body, f"{at}.request.body", scope, body_type(user_class, action))

    def _texts(self, texts: Mapping[str, str], at: str, scope: _Scope) -> None:
        for name, text in texts.items():
            self._text(text, f"{at}[{name!r}]", scope)

    def _path(self, text: str, at: str, scope: _Scope) -> None:
        for part in self._text(text, at, scope):
            if isinstance(part, str) and (found := _SINGLE_BRACES.search(part)):
                self._add(at, f"{found.group()!r} is nothing that is filled in; templates stand in two braces")

    def _body(self, text: str, at: str, scope: _Scope, content_type: str) -> None:
        parts = self._text(text, at, scope)
        if is_json(content_type) and any(isinstance(part, Filling) for part in parts):
            problem = _json_problem(parts)
            if problem:
                self._add(at, problem)

    def _text(self, text: str, at: str, scope: _Scope) -> tuple[Part, ...]:
        """The parts of a text; none when it cannot be read, so that nothing else is said of it."""
        try:
            parts = parse(text)
        except TemplateError as error:
            self._add(at, str(error))
            return ()
        for part in parts:
            if isinstance(part, Filling):
                for problem in self._problems(part, scope):
                    self._add(at, f"at character {part.position}: {problem}")
        return parts

    def _problems(self, filling: Filling, scope: _Scope) -> Iterator[str]:
        match filling.value:
            case PoolField(pool, field):
                if pool not in self._pools:
                    yield f"there is no pool {pool!r}; {_there_are(self._pools)}"
                elif (known := self._pools[pool]) and field not in known:
                    yield f"rows of pool {pool!r} have no field {field!r}; {_there_are(known)}"
                else:
                    self.needed[pool].add(field)
            case Captured(name) if scope.captured is not None and name not in scope.captured:
                yield f"nothing captures {name!r}; {_there_are(scope.captured)}"
            case UserField() as field if field not in scope.user:
                yield f"user.{field} is not known here yet; {_there_are([f'user.{known}' for known in scope.user])}"
            case RowField():
                yield "row is for the templates of generators; a pool's rows are {{pool.NAME.FIELD}}"

    def _add(self, field: str, problem: str) -> None:
        self.violations.append(FieldViolation(field, problem))


def _there_are(names: Collection[str]) -> str:
    if not names:
        return "there are none"
    known = sorted(names)
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return f"there are {', '.join(known[:_NAMED])}{more}"


def _json_problem(parts: Sequence[Part]) -> str:
    """Why a body is no JSON whatever fills its holes; empty when it is."""
    inside = in_strings(parts)
    # Lists may be empty, so they have to be right with no row too.
    for bare_list in ("null", ""):
        pieces: list[str] = []
        for part, in_string in zip(parts, inside, strict=True):
            if isinstance(part, str):
                pieces.append(part)
            elif in_string:
                pieces.append("x")
            else:
                pieces.append(bare_list if _may_be_empty(part) else "null")
        try:
            json.loads("".join(pieces), parse_constant=_refuse)
        except RecursionError:
            return "is nested too deeply"
        except ValueError as error:
            return f"is no JSON once its templates are filled in, as values or in strings: {error}"
    return ""


def _may_be_empty(part: Filling) -> bool:
    return isinstance(part.value, PoolField) and part.value.low == 0


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no value of JSON")
