"""Splitting messages by their framing alone, where a decoder refuses them as a whole or is not needed.

Protobuf's wire format: a field is a varint `number << 3 | type`, then a varint (type 0), 8 bytes (1), a varint length
and as many bytes (2), or 4 bytes (5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from opsplane_server.logingest.wire import Malformed

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5


@dataclass(slots=True)
class Parts:
    """A message in parts: its settings, its batch's id and the batch's records, undecoded."""

    settings: bytes = b""
    batch_id: bytes = b""
    records: list[bytes] = field(default_factory=list)


def split_message(message: bytes, *, most: int) -> Parts:
    """The parts of a `StreamLogsRequest`, and no further than the first `most` records.

    Malformed when its framing or that of its batch is broken before that.
    """
    parts = Parts()
    for number, value in fields(message):
        if number == 1:
            parts.settings += value  # a field given twice is merged, which for a message is concatenation
        elif number == 2:
            for inner, content in fields(value):
                if inner == 1:
                    parts.batch_id = content
                elif inner == 2:
                    parts.records.append(content)
                    if len(parts.records) == most:
                        return parts
    return parts


def split_top(message: bytes) -> dict[int, bytes]:
    """The submessages of a message by field number, those given twice merged; Malformed when its framing is broken."""
    found: dict[int, bytes] = {}
    for number, value in fields(message):
        found[number] = found.get(number, b"") + value
    return found


def join_message(batch: bytes) -> bytes:
    """A `StreamLogsRequest` with this serialized batch and without settings."""
    return b"\x12" + _varint(len(batch)) + batch


def join_batch(batch_id: bytes, records: list[bytes]) -> bytes:
    """A serialized `LogBatch` of serialized records."""
    head = b"\x0a" + _varint(len(batch_id)) + batch_id if batch_id else b""
    return head + b"".join([b"\x12" + _varint(len(record)) + record for record in records])


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message with their numbers; Malformed when the framing is broken."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0 or number > 0x1FFFFFFF:
            raise Malformed("a field has no number")
        if kind == _LENGTH:
            length, position = _read_varint(message, position)
            if length > end - position:
                raise Malformed("a field is longer than the message")
            yield number, message[position : position + length]
            position += length
        elif kind == _VARINT:
            _, position = _read_varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
            if position > end:
                raise Malformed("a field is longer than the message")
        else:
            raise Malformed("a field has an unknown wire type")


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise Malformed("a number is broken off")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
