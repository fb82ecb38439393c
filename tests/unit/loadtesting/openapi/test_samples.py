"""Sample values: where they come from, and that hostile schemas stay small."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.loadtesting.openapi.references import References
from opsplane_server.loadtesting.openapi.samples import Binary, Samples


def sample(schema: Any, schemas: dict[str, Any] | None = None) -> tuple[Any, list[str]]:
    warnings: list[str] = []
    references = References({"schema": schema, "schemas": schemas or {}}, "", {}, {})
    return Samples(references, warnings).of(references.root.child("schema")), warnings


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer", "example": 5, "default": 6}, 5),
        ({"type": "integer", "default": 6, "enum": [7]}, 6),
        ({"enum": [None, "a"]}, "a"),
        ({"const": "c", "examples": ["d"]}, "c"),
        ({"type": "string", "examples": ["e"]}, "e"),
        ({"type": "string", "format": "date-time"}, "2024-01-15T09:30:00Z"),
        ({"type": "string", "format": "unheard-of", "minLength": 8}, "stringst"),
        ({"type": "string", "maxLength": 3}, "str"),
        ({"type": "integer", "minimum": 10}, 10),
        ({"type": "integer", "exclusiveMinimum": 10}, 11),
        ({"type": "integer", "minimum": 10, "exclusiveMinimum": True}, 11),
        ({"type": "integer", "maximum": -5}, -5),
        ({"type": "integer", "maximum": 0, "exclusiveMaximum": True}, -1),
        ({"type": "integer", "minimum": 7, "multipleOf": 5}, 10),
        ({"type": "number", "maximum": 0.5, "multipleOf": 0.25}, 0.25),
        ({"type": "boolean"}, True),
        ({"type": ["null", "boolean"]}, True),
        ({"type": "null"}, None),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, ["string", "string"]),
        ({"type": "array"}, []),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]}, [1, 2]),
        ({"properties": {"a": {"readOnly": True}, "b": {}}}, {"b": "string"}),
        (
            {"properties": {"a": {"deprecated": True}, "b": {"deprecated": True}}, "required": ["b", "c"]},
            {"b": "string", "c": "string"},
        ),
        (
            {"allOf": [{"properties": {"a": {"const": 1}}}, {"required": ["b"]}], "properties": {"b": {"const": 2}}},
            {"a": 1, "b": 2},
        ),
        ({"allOf": [{"properties": {"a": {}}}, {"example": {"a": 5}}]}, {"a": 5}),
        ({"oneOf": [{"type": "null"}, {"const": 2}]}, 2),
        ({"anyOf": [{"properties": {"a": {"const": 1}}}, {"const": 2}]}, {"a": 1}),
        (
            {"oneOf": [{"$ref": "#/schemas/Cat"}], "discriminator": {"propertyName": "kind"}},
            {"kind": "Cat", "meow": True},
        ),
        (
            {
                "oneOf": [{"$ref": "#/schemas/Cat"}],
                "discriminator": {"propertyName": "kind", "mapping": {"c": "#/schemas/Cat"}},
            },
            {"kind": "c", "meow": True},
        ),
        ({"$ref": "#/schemas/Node"}, {"name": "string", "children": []}),
        ({"$ref": "#/schemas/Needy"}, {"self": None}),
        (True, "string"),
        ({}, "string"),
    ],
)
def test_a_sample_comes_from_the_schema(schema: Any, value: Any) -> None:
    schemas = {
        "Cat": {"type": "object", "properties": {"kind": {"type": "string"}, "meow": {"type": "boolean"}}},
        "Node": {
            "properties": {
                "name": {"type": "string"},
                "parent": {"$ref": "#/schemas/Node"},
                "children": {"type": "array", "items": {"$ref": "#/schemas/Node"}},
            }
        },
        "Needy": {"required": ["self"], "properties": {"self": {"$ref": "#/schemas/Needy"}}},
    }
    assert sample(schema, schemas) == (value, [])


def test_files_are_marked() -> None:
    assert isinstance(sample({"type": "string", "format": "binary"})[0], Binary)
    assert isinstance(sample({"type": "string", "contentMediaType": "image/png"})[0], Binary)


def test_a_broken_reference_is_a_warning() -> None:
    value, warnings = sample({"properties": {"a": {"$ref": "#/gone"}}})
    assert value is None
    assert warnings == ["no sample could be made: #/schema/properties/a: the $ref '#/gone' leads to nothing"]


def test_schemas_that_multiply_stay_small() -> None:
    wide = {f"S{n}": {"properties": {f"p{i}": {"$ref": f"#/schemas/S{n + 1}"} for i in range(10)}} for n in range(30)}
    wide["S30"] = {}
    value, _ = sample({"$ref": "#/schemas/S0"}, wide)
    assert len(json.dumps(value)) < 10_000
    needed = {name: {**schema, "required": list(schema.get("properties", {}))} for name, schema in wide.items()}
    value, _ = sample({"$ref": "#/schemas/S0"}, needed)
    assert len(json.dumps(value)) < 300_000
    diamonds: dict[str, Any] = {f"S{n}": {"allOf": [{"$ref": f"#/schemas/S{n + 1}"}] * 10} for n in range(30)}
    diamonds["S30"] = {"properties": {"a": {}}}
    sample({"$ref": "#/schemas/S0"}, diamonds)


def test_examples_that_multiply_are_passed_over() -> None:
    example: list[Any] = ["x"] * 10
    for _ in range(30):
        example = [example] * 10
    value, warnings = sample({"type": "string", "example": example})
    assert value == "string"
    assert warnings == ["#/schema/example: the example is too large to be sent"]


KEYWORDS = st.sampled_from(
    [
        "type",
        "enum",
        "items",
        "properties",
        "required",
        "allOf",
        "oneOf",
        "anyOf",
        "minimum",
        "maximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "minItems",
        "example",
        "examples",
        "default",
        "format",
        "$ref",
        "discriminator",
        "prefixItems",
        "exclusiveMinimum",
        "additionalProperties",
        "readOnly",
    ]
)
SCHEMAS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.sampled_from(["object", "array", "integer", "null", "#/schema", "#/schema/items", "#", "date", "\0"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(KEYWORDS, children, max_size=5),
    max_leaves=25,
)


@given(SCHEMAS)
def test_no_schema_breaks_the_analysis(schema: Any) -> None:
    value, _ = sample(schema)
    json.dumps(value, allow_nan=False).encode()
