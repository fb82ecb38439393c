"""Literals: whatever a user types comes back unchanged from k6's own JavaScript engine."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opsplane_server.loadtesting.k6.literals import Raw, is_exact, literal, string
from pydantic import JsonValue

from tests.unit.loadtesting.k6.k6_binary import evaluate

NASTY = [
    "",
    '"',
    "'",
    "`",
    "\\",
    '\\"',
    '"); throw new Error("out"); ("',
    "${1 + 1}",
    "*/ throw 1 /*",
    "// \n throw 1",
    "\u2028throw 1\u2029",
    "\r\nthrow 1",
    "</script>",
    "<!--",
    "\0\x01\x1f\x7f\x85\ufeff",
    "\u202e\u2066reversed",
    "부하 테스트 😀",
    "__proto__",
    "constructor",
]
TEXT = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda children: st.lists(children, max_size=5) | st.dictionaries(TEXT, children, max_size=5),
    max_leaves=15,
)
# Each example starts k6 once, for many values; shrinking a failure would start it hundreds of times.
FEW = settings(
    max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)


@FEW
@given(st.lists(VALUES, min_size=60, max_size=60))
def test_values_come_back_unchanged(values: list[Any]) -> None:
    values = [*NASTY, {text: text for text in NASTY}, *values]
    script = "\n".join(f"const v{n} = {literal(value)};" for n, value in enumerate(values))
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate(script, Path(folder), {f"v{n}": f"JSON.stringify(v{n})" for n in range(len(values))})
    for n, value in enumerate(values):
        # JavaScript writes a number such as 5e16 without its exponent; it is the same double.
        assert json.loads(found[f"v{n}"], parse_int=float) == value


@FEW
@given(st.lists(TEXT, min_size=60, max_size=60))
def test_text_cannot_leave_its_line_or_comment(texts: list[str]) -> None:
    texts += NASTY
    lines = [f"// {string(text)}\nconst v{n} = {string(text)};" for n, text in enumerate(texts)]
    assert all(len(line.splitlines()) == 2 for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate("\n".join(lines), Path(folder), {f"v{n}": f"v{n}" for n in range(len(texts))})
    assert [found[f"v{n}"] for n in range(len(texts))] == texts


@given(st.text())
def test_any_text_can_be_written_to_a_file(text: str) -> None:
    written = string(text)
    written.encode()
    assert json.loads(written) == text
    assert written.isprintable() or all(not ord(c) < 32 and c not in "\u2028\u2029\ufeff" for c in written)


def test_long_values_are_broken_into_lines() -> None:
    value: JsonValue = {"name": "x" * 60, "tags": ["y" * 60, "z"], "empty": {}, "none": []}
    assert literal(value) == (
        f'{{\n  name: "{"x" * 60}",\n  tags: ["{"y" * 60}", "z"],\n  empty: {{}},\n  none: [],\n}}'
    )


def test_raw_code_stays_code() -> None:
    assert literal({"a": Raw("__ENV.A"), "b-c": "__ENV.A"}) == '{ a: __ENV.A, "b-c": "__ENV.A" }'


@pytest.mark.parametrize("value", [2**53, -(2**53), [2**60], {"a": float("inf")}, float("nan")])
def test_what_javascript_cannot_hold_is_known(value: Any) -> None:
    assert not is_exact(value)


def test_what_javascript_can_hold_is_known() -> None:
    assert is_exact({"a": [2**53 - 1, 1.5, True, None, "9007199254740993"]})
