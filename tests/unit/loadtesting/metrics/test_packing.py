import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import DataLoss
from opsplane_server.loadtesting.metrics.packing import pack, unpack
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series

from tests.unit.loadtesting.metrics.samples import histogram_of, histograms, row

counts = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
series = st.builds(Series, scenario=texts, name=texts, requests=counts, failed=counts, response_time=histograms())
rows = st.builds(
    ExportRow,
    instance=texts,
    start_unix_nano=counts,
    time_unix_nano=counts,
    series=st.lists(series, max_size=5).map(tuple),
    iterations=counts,
    dropped_iterations=counts,
    received_bytes=counts,
    sent_bytes=counts,
    checks=counts,
    checks_passed=counts,
    vus=st.none() | st.integers(0, 2**31 - 1),
)


@given(rows)
def test_what_is_packed_comes_back(one: ExportRow) -> None:
    assert unpack(pack(one)) == one


def test_packed_rows_are_stable() -> None:
    one = row(0, 1, requests=3, failed=1, response_time=histogram_of([1.0, 2.0, 4.0], 0))

    assert zlib.decompress(pack(one)[1:]).hex() == (
        "00002a36fe9c9717"
        "00cac471fe9c9717"
        "0300000000000000" + "00" * 40 + "0a00000000000000"
        "01000000"
        "61"
        "01000000"
        "04000000"
        "6c6f6164"
        "05000000"
        "474554202f"
        "0300000000000000"
        "0100000000000000"
        "0300000000000000"
        "0000000000000000"
        "0000000000001c40"
        "000000000000f03f"
        "0000000000001040"
        "00000000"
        "ffffffff"
        "03000000"
        "0100000000000000"
        "0100000000000000"
        "0100000000000000"
    )
    assert pack(one)[:1] == b"\x01"


def test_a_row_is_small() -> None:
    busy = [
        Series("load", f"GET /pets/{i}", 500, 2, histogram_of([1 + (i * j * 37 % 997) / 10 for j in range(500)], 4))
        for i in range(10)
    ]

    assert len(pack(ExportRow("a", 1, 2, tuple(busy)))) < 400 * len(busy)


@given(st.binary(max_size=80))
def test_other_bytes_are_refused(data: bytes) -> None:
    for damaged in (data, b"\x01" + data, b"\x01" + zlib.compress(data)):
        with pytest.raises(DataLoss):
            unpack(damaged)


@given(rows, st.data())
def test_a_damaged_row_is_refused_or_another_row(one: ExportRow, data: st.DataObject) -> None:
    packed = bytearray(zlib.decompress(pack(one)[1:]))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))

    with suppress(DataLoss):
        assert unpack(b"\x01" + zlib.compress(bytes(packed))) != one
