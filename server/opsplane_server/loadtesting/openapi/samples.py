"""Sample values for schemas: from their examples, default, enum, or made up from type and format.

The schemas of OpenAPI 2.0, 3.0 and 3.1 are read alike; where they differ (`nullable`, lists of types,
`exclusiveMinimum`) both forms are understood.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import JsonValue

from opsplane_server.loadtesting.openapi.loading import BrokenDocument
from opsplane_server.loadtesting.openapi.references import Node, References

# A body is a starting point for a person to edit: beyond these sizes only what the schema requires is filled in.
_OPTIONAL_DEPTH = 4
_OPTIONAL_NODES = 100
_MAX_DEPTH = 24
_MAX_NODES = 2_000
_MAX_EXAMPLE_NODES = 5_000
_MAX_EXAMPLE_CHARACTERS = 200_000

_STRINGS = {
    "date": "2024-01-15",
    "date-time": "2024-01-15T09:30:00Z",
    "time": "09:30:00Z",
    "duration": "PT30S",
    "uuid": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
    "email": "user@example.com",
    "idn-email": "user@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ip": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com",
    "url": "https://example.com",
    "uri-reference": "/example",
    "byte": "c2FtcGxl",
    "password": "password",
}


class Binary(str):
    """Sample content of a file: a string that form bodies send as a file."""

    __slots__ = ()


class _Omitted(Exception):
    """No value is made here: the schema contains itself, or the sample is large enough."""


class UnusableExample(Exception):
    """An example that is too large to be sent."""


def clean(value: Any) -> JsonValue:
    """`value` as JSON that every later stage can hold: finite numbers, no NUL and no lone surrogates.

    Raises UnusableExample when it is too large, as aliases within aliases are.
    """
    budget = [_MAX_EXAMPLE_NODES, _MAX_EXAMPLE_CHARACTERS]

    def walk(part: Any, depth: int) -> JsonValue:
        budget[0] -= 1
        if budget[0] < 0 or depth > 64:
            raise UnusableExample
        if isinstance(part, dict):
            return {clean_text(str(key)): walk(item, depth + 1) for key, item in part.items()}
        if isinstance(part, list):
            return [walk(item, depth + 1) for item in part]
        if isinstance(part, str):
            budget[1] -= len(part)
            if budget[1] < 0:
                raise UnusableExample
            return clean_text(part)
        if isinstance(part, float) and not math.isfinite(part):
            return None
        return part  # type: ignore[no-any-return]

    return walk(value, 0)


def clean_text(text: str) -> str:
    """`text` without NUL, which PostgreSQL cannot store, and lone surrogates, which UTF-8 cannot."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


class Samples:
    """Makes samples; what had to be passed over goes to `warnings`."""

    def __init__(self, references: References, warnings: list[str]) -> None:
        self._references = references
        self._warnings = warnings
        self._nodes = 0

    def of(self, schema: Node) -> JsonValue:
        """A sample of `schema`; None when none can be made."""
        self._nodes = 0
        try:
            return self._build(schema, frozenset(), 0)
        except _Omitted:
            return None
        except RecursionError:
            self._warnings.append(f"{schema.place}: no sample could be made: the schema is nested too deeply")
            return None
        except BrokenDocument as error:
            self._warnings.append(f"no sample could be made: {error}")
            return None

    def example(self, node: Node) -> JsonValue:
        """The example at `node`, or None when it is absent or too large."""
        try:
            return clean(node.value)
        except UnusableExample:
            self._warnings.append(f"{node.place}: the example is too large to be sent")
            return None

    def _build(self, schema: Node, seen: frozenset[int], depth: int) -> JsonValue:
        schema = self._references.follow(schema)
        if depth > _MAX_DEPTH:
            raise _Omitted
        parts = self._parts(schema, seen)
        seen = seen.union(id(part.value) for part in parts)
        own = self._given(parts[0])
        if own is not None:
            return own
        given = [value for part in parts[1:] if (value := self._given(part)) is not None]
        if given and not isinstance(given[0], dict):
            return given[0]
        match _type(parts):
            case "object":
                made = self._object(parts, seen, depth)
                for value in reversed(given):
                    if isinstance(value, dict):
                        made.update(value)
                return made
            case "array":
                return self._array(parts, seen, depth)
            case "integer" | "number" as kind:
                return _number(parts, kind)
            case "boolean":
                return True
            case "null":
                return None
            case "file":
                return Binary("sample")
            case _:
                return _string(parts)

    def _parts(self, schema: Node, seen: frozenset[int]) -> list[Node]:
        """The schemas that hold together: itself, all of its `allOf`, the first usable `oneOf` and `anyOf`."""
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise _Omitted
        if not isinstance(schema.value, dict):
            return [Node({}, schema.document, schema.pointer)]
        if id(schema.value) in seen:
            raise _Omitted
        seen = seen | {id(schema.value)}
        parts = [schema]
        for part in schema.child("allOf").elements("allOf"):
            try:
                parts += self._parts(self._references.follow(part), seen)
            except _Omitted:
                continue
        for choice in ("oneOf", "anyOf"):
            for option in schema.child(choice).elements(choice):
                target = self._references.follow(option)
                if isinstance(target.value, dict) and target.value.get("type") == "null":
                    continue
                try:
                    chosen = self._parts(target, seen)
                except _Omitted:
                    continue
                parts += [*chosen, *self._discriminator(schema, option)]
                break
        return parts

    def _discriminator(self, schema: Node, option: Node) -> list[Node]:
        """A schema that gives the discriminator the value which stands for `option`."""
        discriminator = schema.child("discriminator").value
        reference = option.value.get("$ref") if isinstance(option.value, dict) else None
        if not isinstance(discriminator, dict) or not isinstance(reference, str):
            return []
        mapping = discriminator.get("mapping")
        names = [name for name, target in mapping.items() if target == reference] if isinstance(mapping, dict) else []
        name = names[0] if names else reference.rsplit("/", 1)[-1]
        return [Node({"default": {str(discriminator.get("propertyName")): name}}, schema.document, schema.pointer)]

    def _given(self, schema: Node) -> JsonValue:
        """The value that the schema itself names."""
        value = schema.value
        candidates = [schema.child(key) for key in ("example", "x-example", "const", "default")]
        for key in ("examples", "enum"):
            if isinstance(value.get(key), list):
                candidates += schema.child(key).elements(key)
        for candidate in candidates:
            if candidate.value is not None and (found := self.example(candidate)) is not None:
                return found
        return None

    def _object(self, parts: list[Node], seen: frozenset[int], depth: int) -> dict[str, JsonValue]:
        required = {name for part in parts for name in _strings(part.value.get("required"))}
        properties = {name: node for part in parts for name, node in part.child("properties").entries("properties")}
        made: dict[str, JsonValue] = {}
        for name, node in properties.items():
            target = self._references.follow(node)
            flags = target.value if isinstance(target.value, dict) else {}
            large = depth >= _OPTIONAL_DEPTH or self._nodes > _OPTIONAL_NODES
            if flags.get("readOnly") is True or (name not in required and (large or flags.get("deprecated") is True)):
                continue
            try:
                made[clean_text(name)] = self._build(target, seen, depth + 1)
            except _Omitted:
                if name in required:
                    made[clean_text(name)] = None
        for name in sorted(required - properties.keys()):
            made[clean_text(name)] = "string"
        return made

    def _array(self, parts: list[Node], seen: frozenset[int], depth: int) -> list[JsonValue]:
        made: list[JsonValue] = []
        items = next((part.child("items") for part in parts if isinstance(part.value.get("items"), dict)), None)
        prefix = [item for part in parts for item in part.child("prefixItems").elements("prefixItems")]
        least = max((_whole(part.value.get("minItems")) for part in parts), default=0)
        try:
            made += [self._build(item, seen, depth + 1) for item in prefix]
            if items is not None:
                made += [self._build(items, seen, depth + 1) for _ in range(min(max(least, 1), 10) - len(made))]
        except _Omitted:
            return made
        return made


def _type(parts: list[Node]) -> str:
    for part in parts:
        kind = part.value.get("type")
        kinds = [kind] if isinstance(kind, str) else _strings(kind)
        for name in kinds:
            if name != "null" or len(kinds) == 1:
                return name
    for hint, name in (
        ("properties", "object"),
        ("required", "object"),
        ("additionalProperties", "object"),
        ("items", "array"),
        ("prefixItems", "array"),
        ("minimum", "number"),
        ("maximum", "number"),
    ):
        if any(hint in part.value for part in parts):
            return name
    return "string"


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e6 else 0


def _limit(parts: list[Node], key: str) -> float | None:
    for part in parts:
        value = part.value.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
            return value
    return None


def _number(parts: list[Node], kind: str) -> int | float:
    """1, or the number nearest to it that the limits allow."""
    step = _limit(parts, "multipleOf") or 1
    value: float = step
    least, most = _limit(parts, "minimum"), _limit(parts, "maximum")
    above, below = _limit(parts, "exclusiveMinimum"), _limit(parts, "exclusiveMaximum")
    if any(part.value.get("exclusiveMinimum") is True for part in parts):
        above, least = least, None
    if any(part.value.get("exclusiveMaximum") is True for part in parts):
        below, most = most, None
    if step > 0:
        if least is not None and value < least:
            value = math.ceil(least / step) * step
        if above is not None and value <= above:
            value = (math.floor(above / step) + 1) * step
        if most is not None and value > most:
            value = math.floor(most / step) * step
        if below is not None and value >= below:
            value = (math.ceil(below / step) - 1) * step
    return int(value) if kind == "integer" or float(value).is_integer() else value


def _string(parts: list[Node]) -> str:
    formats = [part.value["format"] for part in parts if isinstance(part.value.get("format"), str)]
    if "binary" in formats or any("contentMediaType" in part.value for part in parts):
        return Binary("sample")
    for name in formats:
        if name in _STRINGS:
            return _STRINGS[name]
    text = "string"
    least, most = _limit(parts, "minLength"), _limit(parts, "maxLength")
    if least is not None and len(text) < least:
        text = (text * (int(min(least, 10_000)) // len(text) + 1))[: int(min(least, 10_000))]
    return text[: int(most)] if most is not None and 0 <= most < len(text) else text
