"""The HTTP request of a scenario: URL, headers, cookies, body, and the statuses that count as success."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import JsonValue

from opsplane_server.loadtesting.definitions import (
    ApiKey,
    BasicCredentials,
    BearerToken,
    Credentials,
    Endpoint,
    LoadTest,
    Parameter,
    ParameterLocation,
    ParameterStyle,
    Scenario,
)
from opsplane_server.loadtesting.k6.literals import Raw, is_exact, literal, string
from opsplane_server.loadtesting.openapi.bodies import is_json

TEMPLATE = re.compile(r"\{([^{}]+)\}")

# The script reads secrets from its environment: scripts are kept, shown and downloaded.
_AUTHORIZATION = "OPSPLANE_AUTHORIZATION"
_API_KEY = "OPSPLANE_API_KEY"

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_DELIMITERS = {
    ParameterStyle.SPACE_DELIMITED: "%20",
    ParameterStyle.PIPE_DELIMITED: "|",
    ParameterStyle.TAB_DELIMITED: "%09",
}
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class StatusRange:
    """Status codes from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a request. `url` and `body` are JavaScript expressions, the rest are values for literals."""

    url: str
    body: str
    headers: dict[str, JsonValue]
    cookies: dict[str, JsonValue]
    expected: list[int | StatusRange]


def credential_environment(credentials: Credentials | None) -> dict[str, str]:
    """The environment variables that a script with these credentials reads; give them to k6 and to nobody else."""
    match credentials:
        case BearerToken(token):
            return {_AUTHORIZATION: f"Bearer {token}"}
        case BasicCredentials(user, password):
            return {_AUTHORIZATION: "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
        case ApiKey(_, _, value):
            return {_API_KEY: value}
        case None:
            return {}


def build(test: LoadTest, scenario: Scenario) -> Request:
    """The request of a scenario, with samples where the scenario names no value of its own."""
    values = {parameter.name: scenario.parameters.get(parameter.name) for parameter in scenario.endpoint.parameters}
    sent = [
        parameter
        for parameter in scenario.endpoint.parameters
        if parameter.required or values[parameter.name] is not None
    ]
    headers: dict[str, JsonValue] = {}
    cookies: dict[str, JsonValue] = {}
    query: list[str] = []
    for parameter in sent:
        value = values[parameter.name]
        match parameter.location:
            case ParameterLocation.QUERY:
                query += _query(parameter, value)
            case ParameterLocation.HEADER if _HEADER_NAME.match(parameter.name):
                _set_header(headers, parameter.name, _plain(parameter, value))
            case ParameterLocation.COOKIE:
                cookies[parameter.name] = _plain(parameter, value)
    body, content_type = _body(scenario)
    if content_type:
        _set_header(headers, "Content-Type", content_type)
    _authenticate(test.credentials, headers, cookies)
    for name, given in scenario.headers.items():
        _set_header(headers, name, given)
    url = _url(scenario, query)
    expression = f"{_base(test, scenario)} + {string(url)}"
    if (key := query_key(test.credentials)) is not None:
        expression += f" + {string('&' if '?' in url else '?')} + {key}"
    return Request(expression, body, headers, cookies, _expected(scenario))


def base_url(test: LoadTest, scenario: Scenario) -> str:
    """The URL that the scenario's path is appended to; see LoadTest.base_url_overridden."""
    own = "" if test.base_url_overridden else scenario.endpoint.server_url
    return own or test.base_url


def _base(test: LoadTest, scenario: Scenario) -> str:
    url = base_url(test, scenario)
    return "BASE_URL" if url == test.base_url else string(url.rstrip("/"))


def _url(scenario: Scenario, query: list[str]) -> str:
    """Path and query, percent-encoded."""
    declared = {p.name: p for p in scenario.endpoint.parameters if p.location is ParameterLocation.PATH}
    # What follows a `#` tells operations apart in some documents, and is never sent.
    template = scenario.endpoint.path.partition("#")[0]
    parts = TEMPLATE.split(template)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = quote(part, safe="/:@!$&'()*+,;=-._~%?")
        elif part in declared:
            parts[index] = _path(declared[part], scenario.parameters.get(part))
        else:
            parts[index] = _encode(scenario.parameters.get(part, "1"))
    path = "".join(parts)
    if not query:
        return path
    return path + ("&" if "?" in path else "?") + "&".join(query)


def query_key(credentials: Credentials | None) -> str | None:
    """The expression of what credentials add to a query; None where they add nothing."""
    match credentials:
        case ApiKey(ParameterLocation.HEADER | ParameterLocation.COOKIE):
            return None
        case ApiKey(_, name, _):
            return f"{string(quote(name, safe='') + '=')} + encodeURIComponent(__ENV.{_API_KEY})"
        case _:
            return None


def _authenticate(
    credentials: Credentials | None, headers: dict[str, JsonValue], cookies: dict[str, JsonValue]
) -> None:
    """Adds the credentials, but for a key in the query."""
    match credentials:
        case ApiKey(ParameterLocation.HEADER, name, _):
            _set_header(headers, name, Raw(f"__ENV.{_API_KEY}"))
        case ApiKey(ParameterLocation.COOKIE, name, _):
            cookies[name] = Raw(f"__ENV.{_API_KEY}")
        case BearerToken() | BasicCredentials():
            _set_header(headers, "Authorization", Raw(f"__ENV.{_AUTHORIZATION}"))


def _set_header(headers: dict[str, JsonValue], name: str, value: str) -> None:
    """Sets a header whatever the case of a name that is there already; header values are one line."""
    for known in [known for known in headers if known.lower() == name.lower()]:
        del headers[known]
    headers[name] = value if isinstance(value, Raw) else re.sub(r"[\r\n\0]+", " ", value)


def _body(scenario: Scenario) -> tuple[str, str]:
    """The expression of the body, and its media type."""
    described = scenario.endpoint.body
    if scenario.body:
        # Sent exactly as it was typed.
        fallback = described.content_type if described else "application/json"
        return string(scenario.body), scenario.content_type or fallback
    if described is None or not (described.required or scenario.endpoint.method in _BODY_METHODS):
        return "null", ""
    content_type = scenario.content_type or described.content_type
    return (_json_body(described.sample) if is_json(content_type) else None) or string(described.sample), content_type


def _json_body(text: str) -> str | None:
    """A JSON body as an object that people can read and edit; None where JavaScript cannot hold it exactly."""
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list) or not is_exact(value):
        return None
    return f"JSON.stringify({literal(value, '  ')})"


def _expected(scenario: Scenario) -> list[int | StatusRange]:
    codes = scenario.expected_statuses or scenario.endpoint.success_statuses
    return list(codes) if codes else [StatusRange(200, 399)]


# --- how parameters are written ---


def _text(value: JsonValue) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _encode(value: JsonValue) -> str:
    return quote(_text(value).encode("utf-8", "replace"), safe="")


def _query(parameter: Parameter, override: str | None) -> list[str]:
    """The `name=value` parts of a query parameter, percent-encoded."""
    name, value, style = _encode(parameter.name), parameter.sample, parameter.style
    if override is not None:
        return [f"{name}={_encode(override)}"]
    if style is ParameterStyle.JSON or not isinstance(value, dict | list):
        return [f"{name}={_encode(value)}"]
    if isinstance(value, dict):
        if style is ParameterStyle.DEEP_OBJECT:
            return [f"{name}%5B{_encode(key)}%5D={_encode(item)}" for key, item in value.items()]
        if parameter.explode:
            return [f"{_encode(key)}={_encode(item)}" for key, item in value.items()]
        return [f"{name}=" + ",".join(f"{_encode(key)},{_encode(item)}" for key, item in value.items())]
    if parameter.explode:
        return [f"{name}={_encode(item)}" for item in value]
    return [f"{name}=" + _DELIMITERS.get(style, ",").join(_encode(item) for item in value)]


def _path(parameter: Parameter, override: str | None) -> str:
    """A path parameter, percent-encoded."""
    if override is not None:
        return _encode(override)
    value, explode = parameter.sample, parameter.explode
    name = _encode(parameter.name)
    match parameter.style:
        case ParameterStyle.LABEL:
            return "." + _joined(value, explode, "." if explode else ",")
        case ParameterStyle.MATRIX:
            if explode and isinstance(value, list):
                return "".join(f";{name}={_encode(item)}" for item in value)
            if explode and isinstance(value, dict):
                return ";" + _joined(value, explode, ";")
            return f";{name}={_joined(value, explode, ',')}"
        case _:
            return _joined(value, explode, ",")


def _joined(value: JsonValue, explode: bool, delimiter: str) -> str:
    if isinstance(value, list):
        return delimiter.join(_encode(item) for item in value)
    if isinstance(value, dict):
        between = "=" if explode else delimiter
        return delimiter.join(f"{_encode(key)}{between}{_encode(item)}" for key, item in value.items())
    return _encode(value)


def _plain(parameter: Parameter, override: str | None) -> str:
    """A header or cookie parameter."""
    value = parameter.sample
    if override is not None:
        return override
    if isinstance(value, list) and parameter.style is not ParameterStyle.JSON:
        return ",".join(_text(item) for item in value)
    if isinstance(value, dict) and parameter.style is not ParameterStyle.JSON:
        between = "=" if parameter.explode else ","
        return ",".join(f"{key}{between}{_text(item)}" for key, item in value.items())
    return _text(value)


def parameter_names(endpoint: Endpoint) -> Mapping[str, ParameterLocation]:
    """The parameters of an endpoint that can be given values."""
    names = dict.fromkeys(TEMPLATE.findall(endpoint.path), ParameterLocation.PATH)
    return names | {parameter.name: parameter.location for parameter in endpoint.parameters}
