"""What databases give, as JSON."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.loadtesting.datasets.values import Writer, plain, rfc3339

ID = uuid.UUID("61f0c404-5cb3-11e7-907b-a6006ad3dba0")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        ("ö", "ö"),
        (2**53 - 1, 2**53 - 1),
        (2**53, "9007199254740992"),
        (-(2**63), "-9223372036854775808"),
        (1.5, 1.5),
        (float("nan"), None),
        (float("-inf"), None),
        (Decimal("12.5000"), 12.5),
        (Decimal("100.00"), 100),
        (Decimal("123456789012345.6789"), "123456789012345.6789"),
        (Decimal("1E-20"), "0.00000000000000000001"),
        (Decimal("NaN"), None),
        (date(2024, 1, 15), "2024-01-15"),
        (datetime(2024, 1, 15, 10), "2024-01-15T10:00:00Z"),
        (datetime(2024, 1, 15, 10, 0, 0, 120_000, timezone(timedelta(hours=9))), "2024-01-15T01:00:00.12Z"),
        (b"plain", "plain"),
        (b"\xff\x00", "ff00"),
        (ID, str(ID)),
        (IPv4Address("10.0.0.1"), "10.0.0.1"),
        ([(1, 2**60), {"a": [b"\xff"]}], [[1, str(2**60)], {"a": ["ff"]}]),
        ({1: date(2024, 1, 15)}, {"1": "2024-01-15"}),
    ],
)
def test_values_become_json(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.datetimes() | st.dates()
    | st.binary() | st.uuids() | st.text(st.characters(codec="utf-8")) | st.timedeltas(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
))  # fmt: skip
def test_any_value_can_be_written(value: Any) -> None:
    writer = Writer(["a"])
    writer.add([plain(value)])
    line = writer.rows().lines
    assert json.loads(line) == orjson.loads(line)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_read_back(moment: datetime) -> None:
    text = rfc3339(moment)
    assert datetime.fromisoformat(text) == moment
    assert text.endswith("Z")
