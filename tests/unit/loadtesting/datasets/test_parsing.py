"""Uploaded files become rows, or say where they are wrong."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opsplane_server.loadtesting.datasets.model import RowFormat, Rows
from opsplane_server.loadtesting.datasets.parsing import parse
from opsplane_server.loadtesting.datasets.values import MAX_SAFE_INTEGER, RowsError

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


def read(form: RowFormat, text: str | bytes) -> list[dict[str, Any]]:
    return objects(parse(form, text if isinstance(text, bytes) else text.encode()))


def objects(rows: Rows) -> list[dict[str, Any]]:
    assert rows.sha256 == hashlib.sha256(rows.lines).hexdigest()
    found = json.loads(rows.file)
    assert len(found) == rows.row_count
    assert all(list(row) == list(rows.fields) for row in found)
    return list(found)


def test_csv_has_a_header_and_columns_of_numbers() -> None:
    text = 'id,case_no,price,note\n838,012345678,1.5,"a, ""b""\nc"\n-2,7,,\n'
    assert read(RowFormat.CSV, text) == [
        {"id": 838, "case_no": "012345678", "price": 1.5, "note": 'a, "b"\nc'},
        {"id": -2, "case_no": "7", "price": None, "note": ""},
    ]


@pytest.mark.parametrize("value", ["1.50", "007", "1e3", "+1", "1 ", "-0", "0.0000001", "9007199254740993", "١"])
def test_csv_keeps_text_that_would_not_be_written_the_same_as_a_number(value: str) -> None:
    assert read(RowFormat.CSV, f"a\n{value}\n1\n") == [{"a": value}, {"a": "1"}]


def test_csv_takes_a_byte_order_mark_blank_lines_and_any_line_ends() -> None:
    expected = [{"a": "x", "b": "ö"}, {"a": "y", "b": ""}]
    for end in ("\n", "\r\n", "\r"):
        text = f"a, b{end}x,ö{end}{end}y,{end}"
        assert read(RowFormat.CSV, text.encode("utf-8-sig")) == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "line 1: there is no header"),
        (b"\n\n", "line 1: there is no header"),
        (b"a,b\n", "there are no rows"),
        (b"a,b\n1,2\n\n1,2,3\n", "line 4: has 3 values, but the header has 2 names"),
        (b'a,b\n"x\ny",2\n1\n', "line 4: has 1 values, but the header has 2 names"),
        (b"a,a\n1,2\n", "line 1: column 'a' is there twice"),
        (b"a,\n1,2\n", "line 1: the name of column ''"),
        (b"a b\n1\n", "line 1: the name of column 'a b'"),
        (b"a;b\n1;2\n", "line 1: the name of column 'a;b'"),
        (b'a\nx\n"open\n', "line 3: unexpected end of data"),
        (b'a\n"x"y\n', "line 2: ',' expected after '\"'"),
        (b"a\nx\n\xff\n", "line 3: not UTF-8"),
        (b"a" * 65 + b"\n1\n", "line 1: the name of column"),
    ],
)
def test_broken_csv_is_refused_with_its_line(content: bytes, problem: str) -> None:
    with pytest.raises(RowsError) as refusal:
        parse(RowFormat.CSV, content)
    assert str(refusal.value).startswith(problem)


@given(
    st.lists(NAMES, min_size=1, max_size=4, unique=True).flatmap(
        lambda names: st.tuples(
            st.just(names),
            st.lists(
                st.lists(
                    st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1),
                    min_size=len(names),
                    max_size=len(names),
                ),
                min_size=1,
                max_size=5,
            ),
        )
    )
)
def test_csv_that_python_writes_is_read_as_it_was(table: tuple[list[str], list[list[str]]]) -> None:
    names, rows = table
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    found = read(RowFormat.CSV, out.getvalue())
    # Columns of numbers are numbers, which JavaScript writes as they stood there.
    assert [[str(value) for value in row.values()] for row in found] == rows


def test_json_keeps_nested_values_and_fills_what_rows_lack() -> None:
    text = '[{"a": 1, "b": {"c": [1, null]}},\n {"d": "x", "a": 1.5}]'
    expected = [{"a": 1, "b": {"c": [1, None]}, "d": None}, {"a": 1.5, "b": None, "d": "x"}]
    assert read(RowFormat.JSON, text) == expected
    lines = '\ufeff{"a": 1, "b": {"c": [1, null]}}\r\n\n{"d": "x", "a": 1.5}'
    assert read(RowFormat.JSON_LINES, lines) == expected


def test_whole_numbers_that_javascript_would_change_become_text() -> None:
    text = f'{{"a": {2**53 - 1}, "b": {2**53}, "c": -{10**400}, "d": [18446744073709551615]}}'
    assert read(RowFormat.JSON_LINES, text) == [
        {"a": 2**53 - 1, "b": str(2**53), "c": f"-{10**400}", "d": ["18446744073709551615"]}
    ]


@settings(max_examples=50)
@given(st.lists(st.dictionaries(NAMES, NESTED, min_size=1, max_size=4), min_size=1, max_size=4))
def test_json_is_read_as_python_reads_it(rows: list[dict[str, Any]]) -> None:
    fields = list(dict.fromkeys(name for row in rows for name in row))
    expected = [{name: row.get(name) for name in fields} for row in rows]
    assert read(RowFormat.JSON, json.dumps(rows)) == expected
    assert read(RowFormat.JSON, json.dumps(rows, ensure_ascii=False, indent=1)) == expected
    assert read(RowFormat.JSON_LINES, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)) == expected


@pytest.mark.parametrize(
    ("form", "content", "problem"),
    [
        (RowFormat.JSON, "", "line 1: Expecting value, at column 1"),
        (RowFormat.JSON, '[{"a": 1},\n {"a": }]', "line 2: Expecting value, at column 8"),
        (RowFormat.JSON, '{"a": 1}', "line 1: an array of objects is expected"),
        (RowFormat.JSON, "[]", "there are no rows"),
        (RowFormat.JSON, "[{}]", "the rows have no fields"),
        (RowFormat.JSON, '[{"a": 1}, 2]', "row 2: an object is expected"),
        (RowFormat.JSON, '[{"a": NaN}]', "NaN is no JSON"),
        (RowFormat.JSON, '[{"a": -Infinity}]', "-Infinity is no JSON"),
        (RowFormat.JSON, '[{"a": 1e999}]', "1e999 is beyond all numbers"),
        (RowFormat.JSON, '[{"a b": 1}]', "row 1: the name of field 'a b'"),
        (RowFormat.JSON, '[{"a": "\\ud800"}]', "row 1 cannot be written as JSON"),
        (RowFormat.JSON, "[" * 100_000, "values are nested more than 32 levels deep"),
        (RowFormat.JSON, f'[{{"a": {"[" * 32}{"]" * 32}}}]', "row 1: values are nested more than 32 levels deep"),
        (RowFormat.JSON_LINES, "\n\n", "there are no rows"),
        (RowFormat.JSON_LINES, '{"a": 1}\n\n{"a": 1', "line 3: Expecting ',' delimiter, at column 8"),
        (RowFormat.JSON_LINES, '{"a": 1}\n[1]', "line 2: an object is expected"),
        (RowFormat.JSON_LINES, '{"a": 1}\n{"a": Infinity}', "line 2: Infinity is no JSON"),
        (RowFormat.JSON_LINES, f'{{"a": {"[" * 100_000}', "line 1: values are nested more than 32 levels deep"),
    ],
)
def test_broken_json_is_refused_with_its_place(form: RowFormat, content: str, problem: str) -> None:
    with pytest.raises(RowsError) as refusal:
        parse(form, content.encode())
    assert str(refusal.value).startswith(problem)


def test_31_levels_below_a_row_are_not_too_deep() -> None:
    deep = f"{'[' * 31}{']' * 31}"
    assert read(RowFormat.JSON, f'[{{"a": {deep}}}]') == [{"a": json.loads(deep)}]


@given(st.binary(max_size=200) | st.text(string.printable).map(lambda text: b"a,b\n" + text.encode()))
def test_any_content_is_read_or_refused(content: bytes) -> None:
    for form in RowFormat:
        with contextlib.suppress(RowsError):
            objects(parse(form, content))


def test_rows_are_bounded() -> None:
    many = ",".join(f'"f{number}": 1' for number in range(1001))
    with pytest.raises(RowsError, match="1,001 fields"):
        parse(RowFormat.JSON, f"[{{{many}}}]".encode())
    with pytest.raises(RowsError, match="line 1000002: there are more than 1,000,000 rows"):
        parse(RowFormat.CSV, b"a\n" + b"1\n" * 1_000_001)
    header = ",".join(f"{number:_>64}" for number in range(200))
    content = f"{header}\n{(',' * 199 + chr(10)) * 5000}".encode()
    with pytest.raises(RowsError, match="the rows come to more than 64 MiB of JSON"):
        parse(RowFormat.CSV, content)


def test_the_first_rows_can_be_taken() -> None:
    rows = parse(RowFormat.CSV, b"a\n1\n2\n3\n")
    assert json.loads(rows.first(2).file) == [{"a": 1}, {"a": 2}]
    assert rows.first(0) is rows.first(3) is rows.first(9) is rows
