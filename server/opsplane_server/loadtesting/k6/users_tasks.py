"""Tasks of users as JavaScript objects for the runtime: what is sent, what is expected, what is kept of the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import JsonValue

from opsplane_server.loadtesting.definitions import (
    Endpoint,
    Executor,
    LoadTest,
    Parameter,
    ParameterLocation,
    ParameterStyle,
    Scenario,
)
from opsplane_server.loadtesting.k6 import requests
from opsplane_server.loadtesting.k6.literals import Raw, literal, string
from opsplane_server.loadtesting.k6.requests import Request
from opsplane_server.loadtesting.k6.script import expected_statuses, redirects, status_check
from opsplane_server.loadtesting.k6.users_values import Place, Values, draws, rows_of
from opsplane_server.loadtesting.openapi.bodies import essence, is_json
from opsplane_server.loadtesting.users.holes import Filling, Part, UserField, parse
from opsplane_server.loadtesting.users.model import EndpointCall, RequestTemplate, Script, UserClass, UserTask
from opsplane_server.loadtesting.users.parsing import json_path
from opsplane_server.loadtesting.users.templates import body_type, headers

ON_START_SUFFIX: Final = " (on start)"


def task(test: LoadTest, user_class: UserClass, task: UserTask, values: Values, *, on_start: bool, index: int) -> str:
    """A task as an object, on lines of its own."""
    name = task_name(user_class, task, index) + (ON_START_SUFFIX if on_start else "")
    action = task.action
    if isinstance(action, Script):
        lines: list[JsonValue] = [*action.code.split("\n")]
        code = f"own({string(name)}, {literal(lines, '      ')})"
        return f"    {{\n      name: {string(name)},\n      run: {code},\n    }},\n"
    sent = _Sent(test, user_class, action, task.expected_statuses)
    params: dict[str, JsonValue] = {
        **redirects(sent.request),
        "tags": {"name": name},
        "responseCallback": expected_statuses(sent.request),
    }
    if task.captures:
        params["responseType"] = "text"
    captures: list[JsonValue] = [
        {"name": captured, "path": list(json_path(path))} for captured, path in task.captures.items()
    ]
    return (
        "    {\n"
        f"      name: {string(name)},\n"
        f"      method: {string(action.method if isinstance(action, RequestTemplate) else action.endpoint.method)},\n"
        "      request(user) {\n"
        f"{sent.statements(values)}"
        "      },\n"
        f"      params: {literal(params, '      ')},\n"
        f"      checks: {{ {status_check(sent.request)} }},\n"
        + (f"      captures: {literal(captures, '      ')},\n" if captures else "")
        + "    },\n"
    )


def calls(test: LoadTest, user_class: UserClass, values: Values) -> str:
    """The member `call` of a class: what every call of its own code carries."""
    sent = _Sent(test, user_class, RequestTemplate("GET", "/"), ())
    key = requests.query_key(test.credentials)
    more = f"        query: {key},\n" if key else ""
    return f"  call(user) {{\n{sent.statements(values, common=True, more=more)}  }},\n"


def task_name(user_class: UserClass, task: UserTask, index: int) -> str:
    """Under which name a task's calls are counted: method and path template where it has none of its own."""
    match task.action:
        case EndpointCall(endpoint=endpoint):
            return task.name or endpoint.label
        case RequestTemplate(method, path):
            return task.name or f"{method} {_label(path)}"
        case Script():
            return task.name or f"{user_class.name} {index + 1}"


def _label(path: str) -> str:
    """A path without its query, with `{pool.cases.id}` for its templates."""
    found = ""
    for part in parse(path):
        if isinstance(part, str):
            before, query, _ = part.partition("?")
            found += before
            if query:
                break
        else:
            found += "{" + path[part.position + 1 : path.index("}}", part.position)].strip() + "}"
    return found


@dataclass(slots=True)
class _Sent:
    """A task's request, made by the rules of `requests.build` with marks in place of holes."""

    test: LoadTest
    user_class: UserClass
    action: EndpointCall | RequestTemplate
    expected: tuple[int, ...]
    request: Request = field(init=False)
    _body: tuple[Part, ...] = field(init=False)
    _fillings: list[Filling] = field(default_factory=list)
    _mark: str = field(init=False)

    def __post_init__(self) -> None:
        # A mark is letters and digits, which nothing escapes or encodes, and is in no text of the task.
        self._mark = "hole"
        while self._mark in repr((self.action, self.user_class.headers)):
            self._mark += "e"
        self._body = parse(self.action.body)
        self.request = requests.build(self.test, self._scenario())

    def statements(self, values: Values, *, common: bool = False, more: str = "") -> str:
        """The body of a function that returns the request; without URL and body where it is `common` to calls."""
        indent = "    " if common else "        "
        used = self._used(common=common)
        parts: list[str] = []
        if not common:
            parts += [
                f"url: {self._expression(self.request.url, values)}",
                f"body: {self._body_expression(values, indent + '  ')}",
            ]
        for name, given in (("headers", self.request.headers), ("cookies", self.request.cookies)):
            if given:
                written: dict[str, JsonValue] = {key: self._value(value, values) for key, value in given.items()}
                parts.append(f"{name}: {literal(written, indent + '  ')}")
        members = "".join(f"{indent}  {part},\n" for part in parts)
        return f"{draws(rows_of([used]), indent)}{indent}return {{\n{members}{more}{indent}}};\n"

    def _used(self, *, common: bool) -> list[Part]:
        """Every part whose rows have to be drawn."""
        return [*self._fillings, *(() if common else self._body)]

    def _scenario(self) -> Scenario:
        action = self.action
        given = {name: self._marked(value) for name, value in headers(self.user_class, action).items()}
        if self.user_class.session_header:
            given = {self.user_class.session_header: self._session_id()} | given
        if isinstance(action, EndpointCall):
            # The server of the operation, or else of its own specification: tasks can be of several.
            endpoint = replace(action.endpoint, server_url=action.endpoint.server_url or action.base_url)
            parameters = {name: self._marked(value) for name, value in action.parameters.items()}
            content_type = ""
        else:
            endpoint = Endpoint(
                action.method,
                self._marked(action.path),
                parameters=tuple(
                    Parameter(ParameterLocation.QUERY, name, True, "", ParameterStyle.FORM, True)
                    for name in action.query
                ),
            )
            parameters = {name: self._marked(value) for name, value in action.query.items()}
            content_type = action.content_type
        return Scenario(
            name="",
            endpoint=endpoint,
            executor=Executor.RAMPING_VUS,
            parameters=parameters,
            headers=given,
            body=action.body,
            content_type=content_type,
            expected_statuses=self.expected,
        )

    def _marked(self, text: str) -> str:
        return "".join(part if isinstance(part, str) else self._mark_of(part) for part in parse(text))

    def _session_id(self) -> str:
        return self._mark_of(Filling(UserField.SESSION_ID, 0))

    def _mark_of(self, filling: Filling) -> str:
        self._fillings.append(filling)
        return f"{self._mark}{len(self._fillings) - 1}x"

    def _split(self, text: str) -> list[str]:
        """Text, the number of a mark, text, the number of a mark, text, ..."""
        return re.split(rf"{self._mark}(\d+)x", text)

    def _expression(self, url: str, values: Values) -> str:
        """The expression of the URL: its marks stand in string literals, which are ended around each."""
        parts = self._split(url)
        for index in range(1, len(parts), 2):
            parts[index] = f'" + {values.expression(self._fillings[int(parts[index])].value, Place.URL)} + "'
        return "".join(parts).removesuffix(' + ""').replace(' + "" +', " +")

    def _value(self, value: JsonValue, values: Values) -> JsonValue:
        """A header or cookie."""
        if not isinstance(value, str) or isinstance(value, Raw) or self._mark not in value:
            return value
        split = self._split(value)
        parts: list[Part] = [
            self._fillings[int(part)] if index % 2 else part for index, part in enumerate(split) if index % 2 or part
        ]
        return Raw(values.concatenation(parts, Place.HEADER))

    def _body_expression(self, values: Values, indent: str) -> str:
        if not self._body:
            return self.request.body
        kind = body_type(self.user_class, self.action)
        place = Place.TEXT
        if is_json(kind):
            place = Place.JSON
        elif essence(kind) == "application/x-www-form-urlencoded":
            place = Place.URL
        return values.concatenation(self._body, place, indent)
