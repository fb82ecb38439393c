"""A group of messages as columns: one array a field, over all records of all its batches.

Nothing here looks at a single record: that is what makes it fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from opsplane_server.logingest import wire
from opsplane_server.logingest.rules import TEXTS

Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

_CONTINUATION: Final = 0xC0  # mask; a byte within a character of UTF-8 is 10xxxxxx
_CONTINUES: Final = 0x80


@dataclass(frozen=True, slots=True)
class Texts:
    """A column of texts as bytes: where each begins (one more than there are), all in a row, how long each is."""

    array: pa.Array
    offsets: npt.NDArray[np.int32]
    data: pa.Buffer | None
    lengths: npt.NDArray[np.int32]

    @classmethod
    def of(cls, array: pa.Array) -> Texts:
        """The texts of a binary array without nulls."""
        _, offsets, data = array.buffers()
        if offsets is None:
            return cls(array, np.zeros(1, np.int32), None, np.zeros(0, np.int32))
        starts = np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4)
        return cls(array, starts, data, starts[1:] - starts[:-1])

    @property
    def empty(self) -> bool:
        """Whether there is no byte in all of them."""
        return bool(self.offsets[0] == self.offsets[-1])

    def content(self) -> bytes:
        """All texts in a row."""
        if self.data is None:
            return b""
        start, end = int(self.offsets[0]), int(self.offsets[-1])
        content: bytes = self.data.slice(start, end - start).to_pybytes()
        return content

    def clean(self) -> bool:
        """Whether every text is UTF-8 without NUL, as far as can be told at once: all of them in a row are, and none
        begins within a character.
        """
        content = self.content()
        if b"\0" in content:
            return False
        if content.isascii():
            return True
        try:
            content.decode()
        except UnicodeDecodeError:
            return False
        starts = self.offsets[:-1] - self.offsets[0]
        starts = starts[starts < len(content)]
        first = np.frombuffer(content, np.uint8)[starts]
        return not bool(((first & _CONTINUATION) == _CONTINUES).any())


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a group, field by field.

    seconds, nanos: the time, meaningless where `timed` is false. entries: where the metadata of each record begins in
    `keys` and `values` (one more than there are records).
    """

    count: int
    seconds: Ints
    nanos: npt.NDArray[np.int32]
    timed: Flags
    levels: npt.NDArray[np.int32]
    statuses: npt.NDArray[np.int32]
    durations: pa.Array
    texts: Mapping[str, Texts]
    entries: npt.NDArray[np.int32]
    keys: Texts
    values: Texts
    struct: pa.StructArray

    def row(self, index: int) -> Mapping[str, Any]:
        """One record as Python values, for the rules."""
        row: Mapping[str, Any] = self.struct[index].as_py()
        return row


@dataclass(frozen=True, slots=True)
class Group:
    """Messages of streams, decoded together.

    batch_ids: of each message. starts: index of each message's first record, and at the end the number of records.
    with_settings: whether a message carries settings.
    """

    batch_ids: Sequence[bytes]
    starts: npt.NDArray[np.int32]
    with_settings: Flags
    records: Records


def decode(messages: Sequence[bytes]) -> Group:
    """Decodes messages; wire.Malformed when any of them is none."""
    rows = wire.decode(messages)
    batch = rows.column("batch")
    records = batch.field("records")
    # An absent batch has an empty list: the offsets stay right without its validity.
    starts = np.frombuffer(records.buffers()[1], np.int32, len(messages) + 1, records.offset * 4)
    return Group(
        batch_ids=batch.field("batch_id").to_pylist(),
        starts=starts,
        with_settings=Texts.of(rows.column("settings")).lengths > 0,
        records=_records(records.values),
    )


def _records(struct: pa.StructArray) -> Records:
    time = struct.field("timestamp")
    metadata = struct.field("metadata")
    count = len(struct)
    return Records(
        count=count,
        seconds=_numbers(time.field("seconds"), np.int64),
        nanos=_numbers(time.field("nanos"), np.int32),
        timed=_valid(time),
        levels=_numbers(struct.field("level"), np.int32),
        statuses=_numbers(struct.field("http_status"), np.int32),
        durations=struct.field("duration_ms"),
        texts={name: Texts.of(struct.field(name)) for name in TEXTS},
        entries=_offsets(metadata, count),
        keys=Texts.of(metadata.values.field("key")),
        values=Texts.of(metadata.values.field("value")),
        struct=struct,
    )


def _numbers(array: pa.Array, kind: type[np.generic]) -> npt.NDArray[Any]:
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), kind)
    return np.frombuffer(buffer, kind, len(array), array.offset * np.dtype(kind).itemsize)


def _offsets(array: pa.ListArray, count: int) -> npt.NDArray[np.int32]:
    buffer = array.buffers()[1]
    if buffer is None or not count:
        return np.zeros(count + 1, np.int32)
    return np.frombuffer(buffer, np.int32, count + 1, array.offset * 4)


def _valid(array: pa.Array) -> Flags:
    if array.null_count == 0:
        return np.ones(len(array), np.bool_)
    valid: Flags = array.is_valid().to_numpy(zero_copy_only=False)
    return valid
