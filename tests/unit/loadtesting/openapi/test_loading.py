"""JSON and YAML to plain values: types, places of errors, and bombs."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.loadtesting.openapi.loading import MAX_DEPTH, BrokenDocument, load


def json_values(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    return st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda children: st.lists(children, max_size=4) | st.dictionaries(text, children, max_size=4),
        max_leaves=20,
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the document is empty"),
        (" \n\t", "the document is empty"),
        ('{"a": 1,}', "line 1, column "),
        ('{\n  "a": tru\n}', "line 2, column 8: invalid JSON"),
        ('{"a": 1,\n "b": {"c": 1, "c": 2}}', "line 2, column 16: the key 'c' appears twice"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' appears twice"),
        ("a:\n\t- b", "line 2, column 1: invalid YAML"),
        ("info:\n  title: a: b", "line 2, column 11: invalid YAML"),
        ("a: [1,", "line 2, column 1: invalid YAML"),
        ("ä: b\nc: \x01", "line 2, column 4: invalid YAML: control characters"),
        ("a: 1\n--- \nb: 2", "line 2, column 1: a second YAML document"),
        ("a: *x", "line 1, column 4: the alias *x"),
        ("a: &x [*x]", "line 1, column 8: the alias *x"),
        ("? [a]\n: b", "line 1, column 3: a key must be text"),
        ("a:\n  <<: 1", "line 2, column 7: << merges mappings only"),
        ("- " * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH}"),
        ("a: \ud800", "character 3: the document is not Unicode"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(BrokenDocument) as caught:
        load(text)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200:\n  on: yes\nno: off", {"200": {"on": "yes"}, "no": "off"}),
        ("2024-01-15: 2024-01-15T10:00:00Z", {"2024-01-15": "2024-01-15T10:00:00Z"}),
        ("a: 12:30:45\nb: 010\nc: 1_000", {"a": "12:30:45", "b": 10, "c": "1_000"}),
        (
            "a: true\nb: ~\nc:\nd: 1.5\ne: -3\nf: 0x1F",
            {"a": True, "b": None, "c": None, "d": 1.5, "e": -3, "f": 31},
        ),
        ("a: .nan\nb: .inf\nc: 1e999", {"a": ".nan", "b": ".inf", "c": "1e999"}),
        ("a: '1'\nb: !!str 1\nc: !custom x\nd: \"true\"", {"a": "1", "b": "1", "c": "x", "d": "true"}),
        ("openapi: 3.0\ninfo:\n  version: 1.10\nx:\n  version: 1.10", None),
        ("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3", {"a": {"b": 1, "c": 2}, "d": {"c": 3, "b": 1}}),
        ("a: &x 1\nb: *x", {"a": 1, "b": 1}),
        ("\ufeffa: 1", {"a": 1}),
        ('\ufeff{"a": "\t"}', {"a": "\t"}),
        ('{"a": NaN, "b": -Infinity}', {"a": None, "b": None}),
        ('{"a": ' + "9" * 5000 + "}", {"a": None}),
    ],
)
def test_types_are_those_that_the_document_means(text: str, value: Any) -> None:
    expected = value or {"openapi": "3.0", "info": {"version": "1.10"}, "x": {"version": 1.1}}
    assert load(text) == expected


def test_aliases_share_instead_of_multiplying() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    value = load("\n".join(levels))
    assert value["a29"][0] is value["a28"]


@given(json_values(st.text()))
def test_json_is_read_as_json(value: Any) -> None:
    document = {"value": value}
    assert load(json.dumps(document)) == document


@given(json_values(st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))))
def test_json_is_read_the_same_as_yaml(value: Any) -> None:
    # A comment first makes it YAML for the loader. libyaml does not know pairs of surrogates in escapes.
    document = {"value": value}
    assert load("# yaml\n" + json.dumps(document)) == document


@given(st.text() | st.text(alphabet="{}[]:,-&*!?|>'\"%@`# \n\tab1"))
def test_any_text_is_a_value_or_a_broken_document(text: str) -> None:
    with contextlib.suppress(BrokenDocument):
        load(text)
