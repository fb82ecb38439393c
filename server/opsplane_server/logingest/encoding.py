"""Records of a group as PostgreSQL's binary COPY, and counts of them by minute, service and level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder

from opsplane_server.logingest import metadata
from opsplane_server.logingest.columns import Flags, Ints, Records, Texts
from opsplane_server.logingest.rules import TEXTS

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# PostgreSQL counts microseconds from 2000-01-01.
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000
_DAY_US: Final = 86_400_000_000
_MINUTE_US: Final = 60_000_000
_PIECE_BYTES: Final = 256 << 10

_TEXT_COLUMNS: Final = [name for name in TEXTS if name != "metadata_json"]
COLUMNS: Final[Sequence[str]] = (
    "id",
    "received_at",
    "timestamp",
    "level",
    "http_status",
    "duration_ms",
    *_TEXT_COLUMNS,
    "metadata",
)
"""The columns of the table, in the order of the encoded rows."""

_SCHEMA: Final = pa.schema(
    [
        # Each in the binary form of its type in PostgreSQL: a time is 8 bytes, a text its bytes.
        pa.field("id", pa.int64()),
        pa.field("received_at", pa.int64()),
        pa.field("timestamp", pa.int64()),
        pa.field("level", pa.int16()),
        pa.field("http_status", pa.int16()),
        pa.field("duration_ms", pa.float64()),
        *(pa.field(name, pa.binary()) for name in _TEXT_COLUMNS),
        pa.field("metadata", pa.binary()),
    ]
)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many records of which minute (since 1970), service and level; parallel lists."""

    minutes: Sequence[int]
    services: Sequence[str]
    levels: Sequence[int]
    counts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Records ready for COPY. copy: its data in pieces, to be sent in turn. days: of their times, ascending."""

    copy: Sequence[bytes | memoryview]
    record_count: int
    first_time: datetime
    last_time: datetime
    days: Sequence[date]
    counts: Counts


def encode(records: Records, keep: Flags | None, first_id: int, received_us: int) -> Encoded | None:
    """Encodes the records that `keep` marks (None: all), with identities from `first_id`; None when there are none.

    A record without a time gets that of its arrival, `received_us` microseconds since 1970.
    """
    times = records.seconds * 1_000_000 + records.nanos // 1_000
    if not records.timed.all():
        times = np.where(records.timed, times, received_us)
    levels, statuses = records.levels, records.statuses
    services = records.texts["service"].array
    document = metadata.jsonb(records)
    arrays = [_text(records.texts[name]) for name in _TEXT_COLUMNS]
    durations = records.durations
    if keep is not None:
        if not keep.any():
            return None
        times, levels, statuses = times[keep], levels[keep], statuses[keep]
        mask = pa.array(keep)
        services = services.filter(mask)
        arrays = [array.filter(mask) for array in arrays]
        durations = durations.filter(mask)
        document = None if document is None else document.filter(mask)
    count = len(times)
    if not count:
        return None
    columns = [
        pa.array(np.arange(first_id, first_id + count)),
        pa.array(np.full(count, received_us - _POSTGRES_EPOCH_US)),
        pa.array(times - _POSTGRES_EPOCH_US),
        pa.array(levels.astype(np.int16)),
        pa.array(statuses.astype(np.int16), mask=statuses == 0),
        durations,
        *arrays,
        pa.nulls(count, pa.binary()) if document is None else document,
    ]
    encoder = ArrowToPostgresBinaryEncoder(_SCHEMA)
    rows = pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)
    first, last = int(times.min()), int(times.max())
    return Encoded(
        copy=[encoder.write_header(), *_pieces(encoder.write_batch(rows)), encoder.finish()],
        record_count=count,
        first_time=_EPOCH + timedelta(microseconds=first),
        last_time=_EPOCH + timedelta(microseconds=last),
        days=_days(times, first, last),
        counts=_count(times, services, levels, first, last),
    )


def _pieces(data: bytes) -> Sequence[memoryview]:
    """The data in pieces that a socket takes at once: sent whole, it would be copied twice on its way."""
    view = memoryview(data)
    return [view[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]


def _text(texts: Texts) -> pa.Array:
    """The texts with null in place of empty ones."""
    if texts.empty:
        return pa.nulls(len(texts.array), pa.binary())
    if texts.lengths.all():
        return texts.array
    empty = texts.lengths == 0
    missing = int(np.count_nonzero(empty))
    validity = pa.py_buffer(np.packbits(~empty, bitorder="little"))
    offsets = pa.py_buffer(texts.offsets)
    return pa.Array.from_buffers(pa.binary(), len(empty), [validity, offsets, texts.data], missing)


def _days(times: Ints, first: int, last: int) -> Sequence[date]:
    if first // _DAY_US == last // _DAY_US:
        return [_day(first // _DAY_US)]
    return [_day(int(number)) for number in np.unique(times // _DAY_US)]


def _day(number: int) -> date:
    return date(1970, 1, 1) + timedelta(days=int(number))


def _count(times: Ints, services: pa.Array, levels: np.ndarray, first: int, last: int) -> Counts:
    names = services.dictionary_encode()
    base = first // _MINUTE_US
    cells = names.indices.to_numpy() * 8 + levels  # levels are below 8
    width = len(names.dictionary) * 8
    if base != last // _MINUTE_US:
        cells = (times // _MINUTE_US - base) * width + cells
    numbers, counts = np.unique(cells, return_counts=True)
    minutes, rest = np.divmod(numbers, width)
    return Counts(
        minutes=(minutes + base).tolist(),
        services=[names.dictionary[int(index)].as_py().decode() for index in rest // 8],
        levels=(rest % 8).tolist(),
        counts=counts.tolist(),
    )
