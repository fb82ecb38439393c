"""What is decided about the batches of a group before it is stored: which records are kept, and why others are not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from opsplane.logingest.v1 import records_pb2

from opsplane_server.logingest import columns, framing, rules, suspects, wire
from opsplane_server.logingest.columns import Flags, Records
from opsplane_server.logingest.encoding import Encoded, encode
from opsplane_server.logingest.model import MAX_RECORDS
from opsplane_server.logingest.rules import Reason, Violation, Window

Refusal = records_pb2.BatchRefusal

_BATCH_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{0,64}")
_MALFORMED: Final = Violation("", Reason.REASON_MALFORMED, "the bytes are not a LogRecord")
# Counting records one by one costs as much as decoding them; what is shorter can not have enough to do harm.
_COUNT_FROM_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Batch:
    """One message of a group: its records are those from `start` to before `stop`.

    rejected: by index in the batch. refusal: why all of it is refused, and nothing is kept then.
    """

    batch_id: str
    start: int
    stop: int
    with_settings: bool = False
    refusal: Refusal | None = None
    rejected: dict[int, Violation] = field(default_factory=dict)

    @property
    def record_count(self) -> int:
        """How many records were sent."""
        return self.stop - self.start

    @property
    def stored_count(self) -> int:
        """How many of them are kept."""
        return 0 if self.refusal is not None else self.record_count - len(self.rejected)

    def result(self) -> records_pb2.BatchResult:
        """The answer, but for its place in the stream."""
        rejected = [
            records_pb2.RejectedRecord(index=index, field=why.field, reason=why.reason, message=why.message)
            for index, why in sorted(self.rejected.items())
        ]
        return records_pb2.BatchResult(
            batch_id=self.batch_id,
            stored_count=self.stored_count,
            rejected_records=rejected if self.refusal is None else (),
            refusal=self.refusal,
        )


@dataclass(slots=True)
class Prepared:
    """A group that can be stored: the batches in the order of their messages, and all their records."""

    batches: Sequence[Batch]
    records: Records
    received_us: int

    def encode(self, first_id: int, batches: Sequence[Batch] | None = None) -> Encoded | None:
        """The kept records of these batches (default: all) for COPY; None when there are none."""
        return encode(self.records, self._kept(batches), first_id, self.received_us)

    def encode_rows(self, first_id: int, rows: Sequence[int]) -> Encoded | None:
        """These records for COPY, by index in the group; None when there are none."""
        keep = np.zeros(self.records.count, np.bool_)
        keep[list(rows)] = True
        return encode(self.records, keep, first_id, self.received_us)

    def _kept(self, batches: Sequence[Batch] | None) -> Flags | None:
        chosen = self.batches if batches is None else batches
        if len(chosen) == len(self.batches) and not any(batch.refusal or batch.rejected for batch in chosen):
            return None
        keep = np.zeros(self.records.count, np.bool_)
        for batch in chosen:
            if batch.refusal is None:
                keep[batch.start : batch.stop] = True
                for index in batch.rejected:
                    keep[batch.start + index] = False
        return keep


def prepare(messages: Sequence[bytes], window: Window, received_us: int) -> Prepared:
    """Decodes and checks messages of streams; nothing that is wrong with one of them touches another."""
    mended: Mapping[int, _Mended] = {
        index: _mend(message)
        for index, message in enumerate(messages)
        if len(message) >= _COUNT_FROM_BYTES and _too_many(message)
    }
    try:
        group = columns.decode(_replaced(messages, mended))
    except wire.Malformed:
        mended = {**mended, **{i: _mend(m) for i, m in enumerate(messages) if i not in mended and not _decodes(m)}}
        group = columns.decode(_replaced(messages, mended))
    batches = [_batch(group, index) for index in range(len(messages))]
    for index, mending in mended.items():
        batches[index].refusal = mending.refusal or batches[index].refusal
        batches[index].rejected.update(dict.fromkeys(mending.malformed, _MALFORMED))
    _reject(batches, group.records, window)
    return Prepared(batches, group.records, received_us)


def refusal(reason: Refusal.Reason.ValueType, message: str) -> Refusal:
    """Why a batch is refused as a whole."""
    return Refusal(reason=reason, message=message)


@dataclass(frozen=True, slots=True)
class _Mended:
    """In place of a message that does not decode: one that does, and what is lost by that."""

    message: bytes = b""
    refusal: Refusal | None = None
    malformed: Sequence[int] = ()


def _decodes(message: bytes) -> bool:
    try:
        wire.decode([message])
    except wire.Malformed:
        return False
    return True


def _too_many(message: bytes) -> bool:
    try:
        return len(framing.split_message(message, most=MAX_RECORDS + 1).records) > MAX_RECORDS
    except wire.Malformed:
        return False


def _mend(message: bytes) -> _Mended:
    """Splits the message by its framing and empties the records that are none, so that their neighbours stay."""
    try:
        parts = framing.split_message(message, most=MAX_RECORDS + 1)
    except wire.Malformed as error:
        return _Mended(refusal=refusal(Refusal.REASON_MALFORMED, f"the message can not be split into records: {error}"))
    if len(parts.records) > MAX_RECORDS:
        return _Mended(framing.join_message(framing.join_batch(parts.batch_id, [])), _too_many_records())
    malformed = [index for index, record in enumerate(parts.records) if not wire.is_record(record)]
    records = [b"" if index in malformed else record for index, record in enumerate(parts.records)]
    whole = framing.join_message(framing.join_batch(parts.batch_id, records))
    if not _decodes(whole):
        return _Mended(refusal=refusal(Refusal.REASON_MALFORMED, "the message can not be decoded"))
    return _Mended(whole, malformed=malformed)


def _replaced(messages: Sequence[bytes], mended: Mapping[int, _Mended]) -> Sequence[bytes]:
    if not mended:
        return messages
    return [mended[index].message if index in mended else message for index, message in enumerate(messages)]


def _batch(group: columns.Group, index: int) -> Batch:
    batch_id = group.batch_ids[index] or b""
    batch = Batch("", int(group.starts[index]), int(group.starts[index + 1]), bool(group.with_settings[index]))
    if _BATCH_ID.fullmatch(batch_id) is None:
        batch.refusal = refusal(Refusal.REASON_INVALID_BATCH_ID, "batch_id: has up to 64 of A-Z a-z 0-9 . _ : -")
        return batch
    batch.batch_id = batch_id.decode()
    if batch.record_count == 0:
        batch.refusal = refusal(Refusal.REASON_EMPTY, "records: at least one is needed")
    elif batch.record_count > MAX_RECORDS:
        batch.refusal = _too_many_records()
    return batch


def _too_many_records() -> Refusal:
    return refusal(Refusal.REASON_TOO_MANY_RECORDS, f"records: has up to {MAX_RECORDS}")


def _reject(batches: Sequence[Batch], records: Records, window: Window) -> None:
    found = suspects.find(records, window)
    if not len(found):
        return
    owners = np.searchsorted([batch.stop for batch in batches], found, side="right")
    for row, owner in zip(found.tolist(), owners.tolist(), strict=True):
        batch = batches[owner]
        index = row - batch.start
        if batch.refusal is not None or index in batch.rejected:
            continue
        why = rules.violation(records.row(row), window)
        if why is not None:
            batch.rejected[index] = why
