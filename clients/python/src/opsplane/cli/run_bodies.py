"""Requests of user loads in people's words: `POST /orders?dry=true`, and bodies written as mappings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote_plus

from opsplane.cli.run_variables import VARIABLE, key_text

# A template such as {{pool.users.id}} or {{choice "a}b" c}}.
HOLE = re.compile(r"""\{\{(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\}(?!\})|[^"'}])*\}\}""")

_OF_REQUEST = {"query": "query", "headers": "headers", "body": "body", "content_type": "content_type"}
_OF_REQUEST |= {"contentType": "content_type"}
_KEPT = re.compile(rf"({HOLE.pattern}|{VARIABLE.pattern})")


def expand_task(task: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A task with its request as a mapping, where it was `POST /orders`, or had its body beside it."""
    request = task.get("request")
    if request is None:
        return dict(task)
    if isinstance(request, str):
        request = _short(request, place)
    if not isinstance(request, Mapping):
        raise ValueError(f"{place}.request: write POST /path, or a mapping with method and path")
    request = dict(request)
    for key, name in _OF_REQUEST.items():
        if key not in task:
            continue
        if name == "query" and isinstance(task[key], Mapping):
            request[name] = {**request.get(name, {}), **task[key]}
        elif name in request or key in request:
            raise ValueError(f"{place}: {name} is said twice, in the request and beside it")
        else:
            request[name] = task[key]
    return {**{key: value for key, value in task.items() if key not in _OF_REQUEST}, "request": request}


def json_text(value: Any, fill: Callable[[str], str], place: str) -> str:
    """JSON with templates, of a mapping or list of YAML.

    A text that is nothing but one template stands bare, so that its value's kind decides: a number stays a number.
    A text that is nothing but one `${VAR}` is a number, true, false or null where JSON reads it as one.
    """
    if isinstance(value, Mapping):
        pairs = (
            f"{_string(fill(key_text(key, place)))}: {json_text(part, fill, f'{place}.{key}')}"
            for key, part in value.items()
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        parts = (json_text(part, fill, f"{place}[{index}]") for index, part in enumerate(value))
        return "[" + ", ".join(parts) + "]"
    if isinstance(value, str):
        filled = fill(value)
        bare = HOLE.fullmatch(filled) or (VARIABLE.fullmatch(value) and _is_literal(filled))
        return filled if bare else _string(filled)
    if value is None or isinstance(value, (bool, int, float)):
        try:
            return json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(f"{place}: JSON has no {value}") from None
    raise ValueError(f"{place}: {value} is nothing that JSON has; quote it")


def _short(text: str, place: str) -> dict[str, Any]:
    method, _, target = text.strip().partition(" ")
    target = target.strip()
    if not target:
        raise ValueError(f"{place}.request: {text!r} is no request; write it like POST /api/orders")
    # What is inside of templates and variables separates nothing.
    path, question, rest = _cut(target, "?")
    request: dict[str, Any] = {"method": method.upper(), "path": path}
    query: dict[str, str] = {}
    while question:
        pair, question, rest = _cut(rest, "&")
        name, _, value = _cut(pair, "=")
        if name in query:
            raise ValueError(f"{place}.request: the query parameter {name} is said twice")
        if pair:
            query[name] = "".join(part if _KEPT.fullmatch(part) else unquote_plus(part) for part in _parts(value))
    return {**request, "query": query} if query else request


def _parts(text: str) -> list[str]:
    """The text cut into templates, variables and what is between."""
    parts, end = [], 0
    for found in _KEPT.finditer(text):
        parts += [text[end : found.start()], found[0]]
        end = found.end()
    return [*parts, text[end:]]


def _cut(text: str, separator: str) -> tuple[str, str, str]:
    """`str.partition` that looks beside templates and variables only."""
    end = 0
    for part in _parts(text):
        if not _KEPT.fullmatch(part) and separator in part:
            at = end + part.index(separator)
            return text[:at], separator, text[at + 1 :]
        end += len(part)
    return text, "", ""


def _string(text: str) -> str:
    """A JSON string in which templates stand as they are."""
    parts, end = [], 0
    for found in HOLE.finditer(text):
        parts += [json.dumps(text[end : found.start()], ensure_ascii=False)[1:-1], found[0]]
        end = found.end()
    return f'"{"".join(parts)}{json.dumps(text[end:], ensure_ascii=False)[1:-1]}"'


def _is_literal(text: str) -> bool:
    try:
        value = json.loads(text, parse_constant=lambda _: "")
    except ValueError:
        return False
    return value is None or isinstance(value, (bool, int, float))
