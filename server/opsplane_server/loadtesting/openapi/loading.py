"""Text -> plain Python values, for JSON and YAML, with the place of whatever is wrong.

YAML is read from libyaml's events instead of through a PyYAML constructor: mapping keys stay the text that they are
(`200:`, `on:`, `2024-01-01:`), plain scalars follow YAML 1.2's core schema (a date or `yes` is a string), duplicate
keys are refused instead of overwritten, aliases share one object so that they cannot multiply, and depth is
bounded.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

MAX_DEPTH = 200

_INT = re.compile(r"[-+]?[0-9]{1,100}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# Versions are text even where they look like numbers: 1.10 is not 1.1.
_TEXT_PLACES = frozenset({("openapi",), ("swagger",), ("info", "version")})
_STRING_TAGS = frozenset({"!", "tag:yaml.org,2002:str"})


class BrokenDocument(Exception):
    """The document cannot be used; `place` is a line and column, or a JSON pointer."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)


def load(text: str) -> Any:
    """The value that `text` holds: JSON when it starts like JSON, else YAML. Raises BrokenDocument."""
    text = text.removeprefix("\ufeff")
    start = text.lstrip()[:1]
    if not start:
        raise BrokenDocument("", "the document is empty")
    return _load_json(text) if start in "{[" else _load_yaml(text)


def _load_json(text: str) -> Any:
    try:
        return json.loads(
            text, strict=False, parse_constant=lambda _: None, parse_int=_parse_int, object_pairs_hook=_unique_pairs
        )
    except json.JSONDecodeError as error:
        raise BrokenDocument(f"line {error.lineno}, column {error.colno}", f"invalid JSON: {error.msg}") from error
    except RecursionError as error:
        raise BrokenDocument("", "the document is nested too deeply") from error
    except _DuplicateKey as error:
        # The JSON parser does not say where; reading the text as YAML, of which it is a part, does.
        _load_yaml(text)
        raise BrokenDocument("", f"the key {error.key!r} appears twice in one object") from error


class _DuplicateKey(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)
    return values


def _parse_int(digits: str) -> int | None:
    return int(digits) if len(digits) <= 100 else None


def _load_yaml(text: str) -> Any:
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            builder.add(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise BrokenDocument(_place(mark), f"invalid YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        before = text.encode()[: error.position].decode(errors="ignore")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise BrokenDocument(f"line {line}, column {column}", f"invalid YAML: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise BrokenDocument(f"character {error.start}", "the document is not Unicode text") from error
    return builder.root


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


@dataclass(slots=True)
class _Container:
    """A mapping or sequence that is still open."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    mark: Any
    key: str | None = None
    merged: list[dict[str, Any]] | None = None


class _Builder:
    """Builds the value from events, without recursion."""

    def __init__(self) -> None:
        self.root: Any = None
        self._documents = 0
        self._open: list[_Container] = []
        self._anchors: dict[str, Any] = {}

    def add(self, event: yaml.Event) -> None:
        match event:
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.MappingStartEvent():
                self._start({}, event)
            case yaml.SequenceStartEvent():
                self._start([], event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._end()
            case yaml.AliasEvent():
                # Anchors are known once their node is complete: an alias inside its own node has no meaning for us.
                if event.anchor not in self._anchors:
                    raise BrokenDocument(_place(event.start_mark), f"the alias *{event.anchor} has no anchor before it")
                self._put(self._anchors[event.anchor], event.start_mark)
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise BrokenDocument(_place(event.start_mark), "a second YAML document starts; one is expected")

    def _scalar(self, event: Any) -> None:
        top = self._open[-1] if self._open else None
        text: str = event.value
        plain = event.implicit[0] and event.tag not in _STRING_TAGS
        if top is not None and isinstance(top.value, dict) and top.key is None:
            if text == "<<" and plain:
                top.merged = top.merged or []
            elif text in top.value:
                raise BrokenDocument(_place(event.start_mark), f"the key {text!r} appears twice in one mapping")
            top.key = text
            value: Any = text
        else:
            as_text = len(self._open) <= 2 and tuple(container.key for container in self._open) in _TEXT_PLACES
            value = _resolve(text) if plain and not as_text else text
            self._put(value, event.start_mark)
        if event.anchor:
            self._anchors[event.anchor] = value

    def _start(self, value: dict[str, Any] | list[Any], event: Any) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise BrokenDocument(_place(event.start_mark), f"the document is nested deeper than {MAX_DEPTH}")
        if self._open and isinstance(self._open[-1].value, dict) and self._open[-1].key is None:
            raise BrokenDocument(_place(event.start_mark), "a key must be text")
        self._open.append(_Container(value, event.anchor, event.start_mark))

    def _end(self) -> None:
        done = self._open.pop()
        if done.merged and isinstance(done.value, dict):
            for source in done.merged:
                for key, value in source.items():
                    done.value.setdefault(key, value)
        if done.anchor:
            self._anchors[done.anchor] = done.value
        self._put(done.value, done.mark)

    def _put(self, value: Any, mark: Any) -> None:
        if not self._open:
            self.root = value
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            if not isinstance(value, str):
                raise BrokenDocument(_place(mark), "a key must be text")
            top.key = value
        elif top.key == "<<" and top.merged is not None:
            sources = value if isinstance(value, list) else [value]
            if not all(isinstance(source, dict) for source in sources):
                raise BrokenDocument(_place(mark), "<< merges mappings only")
            top.merged.extend(sources)
            top.key = None
        else:
            top.value[top.key] = value
            top.key = None


def _resolve(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema, without the numbers that JSON cannot hold."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        number = float(text)
        return number if math.isfinite(number) else text
    if text.startswith("0x") and len(text) < 20:
        try:
            return int(text, 16)
        except ValueError:
            return text
    return text
