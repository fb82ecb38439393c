"""Uploaded files as rows: CSV with a header, a JSON array of objects, or a JSON object a line.

A column of CSV whose values are all plain numbers (or empty) becomes numbers, its empty values null; all others stay
text, `007` and `1.50` for example. Of JSON, values are kept as they are, nested ones too, and what a row lacks is null.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from opsplane_server.loadtesting.datasets.model import MAX_ROWS, RowFormat, Rows
from opsplane_server.loadtesting.datasets.values import (
    MAX_DEPTH,
    MAX_FIELDS,
    RowsError,
    Writer,
    check_fields,
    whole_number,
)

# Written the same way again, by JSON and by JavaScript: up to 15 digits, no needless ones.
_NUMBER: Final = re.compile(r"0|-?[1-9][0-9]{0,14}|-?(?:0|[1-9][0-9]{0,8})\.[0-9]{0,5}[1-9]")

# The whole file may be one value.
_CSV_VALUE_LIMIT: Final = 16 * 1024 * 1024


def parse(form: RowFormat, content: bytes) -> Rows:
    """The rows of a file. Raises RowsError that names the line, or the row of a JSON array."""
    text = _decode(content)
    match form:
        case RowFormat.CSV:
            return _csv(text)
        case RowFormat.JSON:
            return _objects(_array(text))
        case RowFormat.JSON_LINES:
            return _objects(_lines(text))


def _decode(content: bytes) -> str:
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RowsError(f"line {line}: not UTF-8") from None


# --- CSV


def _csv(text: str) -> Rows:
    csv.field_size_limit(_CSV_VALUE_LIMIT)
    records = _records(text)
    line, header = next(records, (0, []))
    if not line:
        raise RowsError("line 1: there is no header")
    fields = [name.strip() for name in header]
    try:
        check_fields(fields, "column")
    except RowsError as error:
        raise RowsError(f"line {line}: {error}") from None
    rows: list[list[str]] = []
    for line, record in records:
        if len(record) != len(fields):
            raise RowsError(f"line {line}: has {len(record):,} values, but the header has {len(fields):,} names")
        if len(rows) >= MAX_ROWS:
            raise RowsError(f"line {line}: there are more than {MAX_ROWS:,} rows")
        rows.append(record)
    numeric = [_is_numeric(rows, column) for column in range(len(fields))]
    writer = Writer(fields)
    for row in rows:
        writer.add(_number(value) if is_number else value for value, is_number in zip(row, numeric, strict=True))
    return writer.rows()


def _records(text: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RowsError(f"line {line}: {error}") from None
        if record:
            yield line, record


def _is_numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    some = False
    for row in rows:
        if row[column]:
            some = True
            if not _NUMBER.fullmatch(row[column]):
                return False
    return some


def _number(value: str) -> int | float | None:
    if not value:
        return None
    return float(value) if "." in value else int(value)


# --- JSON


def _array(text: str) -> Iterator[tuple[str, Any]]:
    try:
        found = _loads(text)
    except json.JSONDecodeError as error:
        raise RowsError(f"line {error.lineno}: {error.msg}, at column {error.colno}") from None
    if not isinstance(found, list):
        raise RowsError("line 1: an array of objects is expected")
    return ((f"row {number}", row) for number, row in enumerate(found, start=1))


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines: text may hold other characters that end lines, and JSON need not escape them.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = _loads(line)
            except json.JSONDecodeError as error:
                raise RowsError(f"line {number}: {error.msg}, at column {error.colno}") from None
            except RowsError as error:
                raise RowsError(f"line {number}: {error}") from None
            yield f"line {number}", row


def _objects(found: Iterator[tuple[str, Any]]) -> Rows:
    rows: list[dict[str, Any]] = []
    fields: dict[str, None] = {}
    for place, row in found:
        if not isinstance(row, dict):
            raise RowsError(f"{place}: an object is expected")
        if len(rows) >= MAX_ROWS:
            raise RowsError(f"{place}: there are more than {MAX_ROWS:,} rows")
        if _is_deep(row):
            raise RowsError(f"{place}: values are nested more than {MAX_DEPTH} levels deep")
        if new := [name for name in row if name not in fields]:
            try:
                check_fields(new, "field")
            except RowsError as error:
                raise RowsError(f"{place}: {error}") from None
            fields |= dict.fromkeys(new)
            if len(fields) > MAX_FIELDS:
                raise RowsError(f"{place}: the rows have more than {MAX_FIELDS:,} fields")
        rows.append(row)
    if not rows:
        raise RowsError("there are no rows")
    if not fields:
        raise RowsError("the rows have no fields")
    writer = Writer(list(fields))
    for row in rows:
        writer.add(row.get(name) for name in fields)
    return writer.rows()


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_constant)
    except RecursionError:
        raise RowsError(f"values are nested more than {MAX_DEPTH} levels deep") from None


def _integer(digits: str) -> int | str:
    return digits if len(digits) > 20 else whole_number(int(digits))


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowsError(f"{text[:50]} is beyond all numbers")
    return value


def _constant(name: str) -> Any:
    raise RowsError(f"{name} is no JSON")


def _is_deep(row: dict[str, Any]) -> bool:
    """Level by level, so that depth costs no stack."""
    level: list[Any] = [row]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True
