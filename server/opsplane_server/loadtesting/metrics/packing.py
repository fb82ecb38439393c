"""A row as bytes, as it is stored: a byte that tells the version, then compressed numbers and texts.

Numbers are little-endian. Buckets are written with eight bytes each, since compression takes the zeros away again
and a fixed width is read in one step. A reader of a later version goes on reading version 1.

    row     times <2q>, iterations, dropped, received, sent, checks, passed <6Q>, vus or -1 <q>, instance, <I> series
    series  scenario, name, requests, failed <2Q>, histogram
    text    length <I>, UTF-8
    histogram  count <Q>; where it is not 0: zeros <Q>, total, min, max <3d>, scale, offset <2i>, <I> buckets, each <Q>
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

from opsplane_server.errors import DataLoss
from opsplane_server.loadtesting.metrics.histograms import EMPTY, Histogram
from opsplane_server.loadtesting.metrics.rows import ExportRow, Series

_VERSION = b"\x01"
_LEVEL = 1  # higher ones take thrice the time for a few per cent

_ROW = struct.Struct("<2q6Qq")
_CALLS = struct.Struct("<2Q")
_HISTOGRAM = struct.Struct("<Q3d2iI")
_LENGTH = struct.Struct("<I")
_COUNT = struct.Struct("<Q")


def pack(row: ExportRow) -> bytes:
    """The row as bytes."""
    parts = [
        _ROW.pack(
            row.start_unix_nano,
            row.time_unix_nano,
            row.iterations,
            row.dropped_iterations,
            row.received_bytes,
            row.sent_bytes,
            row.checks,
            row.checks_passed,
            -1 if row.vus is None else row.vus,
        ),
        _text(row.instance),
        _LENGTH.pack(len(row.series)),
    ]
    for series in row.series:
        parts += (_text(series.scenario), _text(series.name), _CALLS.pack(series.requests, series.failed))
        parts += _histogram(series.response_time)
    return _VERSION + zlib.compress(b"".join(parts), _LEVEL)


def unpack(data: bytes) -> ExportRow:
    """The row of the bytes. Raises DataLoss when they are none that `pack` made."""
    if data[:1] != _VERSION:
        raise DataLoss("stored figures are of an unknown version", reason="WINDOW_DAMAGED")
    try:
        reader = _Reader(zlib.decompress(data[1:]))
        start, time, iterations, dropped, received, sent, checks, passed, vus = reader.numbers(_ROW)
        row = ExportRow(
            instance=reader.text(),
            start_unix_nano=start,
            time_unix_nano=time,
            series=tuple(reader.series() for _ in range(reader.number(_LENGTH))),
            iterations=iterations,
            dropped_iterations=dropped,
            received_bytes=received,
            sent_bytes=sent,
            checks=checks,
            checks_passed=passed,
            vus=None if vus == -1 else vus,
        )
        reader.end()
    except (struct.error, zlib.error, UnicodeDecodeError, ValueError) as error:
        raise DataLoss("stored figures are damaged", reason="WINDOW_DAMAGED") from error
    return row


def _text(text: str) -> bytes:
    data = text.encode()
    return _LENGTH.pack(len(data)) + data


def _histogram(histogram: Histogram) -> list[bytes]:
    count = _COUNT.pack(histogram.count)
    if not histogram.count:
        return [count]
    h = histogram
    head = _HISTOGRAM.pack(h.zero_count, h.total, h.min, h.max, h.scale, h.offset, len(h.counts))
    return [count, head, struct.pack(f"<{len(h.counts)}Q", *h.counts)]


class _Reader:
    """Reads what `pack` wrote, front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def numbers(self, form: struct.Struct) -> tuple[Any, ...]:
        values = form.unpack_from(self._data, self._at)
        self._at += form.size
        return values

    def number(self, form: struct.Struct) -> int:
        (value,) = self.numbers(form)
        return int(value)

    def text(self) -> str:
        length = self.number(_LENGTH)
        data = self._data[self._at : self._at + length]
        if len(data) != length:
            raise ValueError("a text beyond the end")
        self._at += length
        return data.decode()

    def series(self) -> Series:
        scenario, name = self.text(), self.text()
        requests, failed = self.numbers(_CALLS)
        return Series(scenario, name, requests, failed, self.histogram())

    def histogram(self) -> Histogram:
        count = self.number(_COUNT)
        if not count:
            return EMPTY
        zero_count, total, low, high, scale, offset, buckets = self.numbers(_HISTOGRAM)
        if buckets > len(self._data):
            raise ValueError("buckets beyond the end")
        counts = self.numbers(struct.Struct(f"<{buckets}Q"))
        return Histogram(scale, offset, counts, zero_count, count, total, low, high)

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("bytes after the end")
