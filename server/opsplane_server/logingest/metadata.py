"""Metadata as the binary form of jsonb, for all records of a group at once."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from opsplane_server.logingest.columns import Records, Texts

_VERSION: Final = b"\x01"  # before the text in jsonb's binary form
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_FIRST_PRINTABLE: Final = 0x20


def jsonb(records: Records) -> pa.Array | None:
    """The metadata of each record, null for none; None when no record has any. What JSON can not hold is escaped."""
    documents = records.texts["metadata_json"]
    given = documents.lengths > 0
    flat = np.diff(records.entries) > 0
    if not given.any():
        return _objects(records, flat) if flat.any() else None
    texts = pc.binary_join_element_wise(_scalar(_VERSION), documents.array, _scalar(b""))
    if flat.any():
        texts = pc.if_else(pa.array(given), texts, _objects(records, flat))
    return pc.if_else(pa.array(given | flat), texts, pa.scalar(None, pa.binary()))


def _objects(records: Records, flat: np.ndarray) -> pa.Array:
    pairs = pc.binary_join_element_wise(_escaped(records.keys), _escaped(records.values), _scalar(b'":"'))
    lists = pa.ListArray.from_arrays(pa.array(records.entries), pairs)
    texts = pc.binary_join(lists, _scalar(b'","'))
    objects = pc.binary_join_element_wise(_scalar(_VERSION + b'{"'), texts, _scalar(b'"}'), _scalar(b""))
    if flat.all():
        return objects
    return pc.if_else(pa.array(flat), objects, pa.scalar(None, pa.binary()))


def _escaped(texts: Texts) -> pa.Array:
    """The texts as they stand between the quotes of JSON."""
    array = texts.array
    content = np.frombuffer(texts.content(), np.uint8)
    if not len(content):
        return array
    present = np.bincount(content, minlength=256).astype(bool) if _special(content) else None
    if present is None:
        return array
    if present[_BACKSLASH]:  # first: the other escapes have one in them
        array = pc.replace_substring(array, b"\\", b"\\\\")
    if present[_QUOTE]:
        array = pc.replace_substring(array, b'"', b'\\"')
    for code in np.flatnonzero(present[:_FIRST_PRINTABLE]):
        array = pc.replace_substring(array, bytes([int(code)]), b"\\u%04x" % int(code))
    return array


def _special(content: np.ndarray) -> bool:
    return bool(((content < _FIRST_PRINTABLE) | (content == _QUOTE) | (content == _BACKSLASH)).any())


def _scalar(value: bytes) -> pa.BinaryScalar:
    return pa.scalar(value, pa.binary())
