"""Which records of a group the rules must look at one by one: all that break one, and perhaps some that do not.

In a group without any, which is nearly every group, this is all that validation costs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from opsplane_server.logingest.columns import Flags, Records, Texts
from opsplane_server.logingest.rules import (
    END_OF_TIME,
    KEY,
    LEVELS,
    MAX_NANOS,
    MAX_PAIRS,
    STATUS,
    TEXTS,
    VALUE,
    TextRule,
    Window,
)

_LEAST_LEVEL: Final = min(LEVELS)
_MOST_LEVEL: Final = max(LEVELS)
assert len(LEVELS) == _MOST_LEVEL - _LEAST_LEVEL + 1, "the levels have no gap"


def find(records: Records, window: Window) -> npt.NDArray[np.intp]:
    """The indices of the records to look at, ascending."""
    suspect = np.zeros(records.count, np.bool_)
    _times(records, window, suspect)
    suspect |= (records.levels < _LEAST_LEVEL) | (records.levels > _MOST_LEVEL)
    statuses = records.statuses
    if statuses.any():
        suspect |= (statuses != 0) & ((statuses < STATUS.start) | (statuses >= STATUS.stop))
    if records.durations.null_count < records.count:
        durations = pc.fill_null(records.durations, 0.0).to_numpy()
        suspect |= ~(np.isfinite(durations) & (durations >= 0))
    for name, rule in TEXTS.items():
        _texts(records.texts[name], rule, suspect)
    _metadata(records, suspect)
    # Every JSON text is parsed: PostgreSQL would refuse the whole group for one that is none.
    suspect |= records.texts["metadata_json"].lengths > 0
    return np.flatnonzero(suspect)


def _times(records: Records, window: Window, suspect: Flags) -> None:
    nanos, seconds = records.nanos, records.seconds
    wrong = (nanos < 0) | (nanos > MAX_NANOS)
    wrong |= (seconds < max(0, window.start)) | (seconds >= min(window.end, END_OF_TIME))
    suspect |= wrong & records.timed


def _texts(texts: Texts, rule: TextRule, suspect: Flags) -> None:
    if texts.empty:
        if rule.min_length:
            suspect[:] = True
        return
    lengths = texts.lengths
    if int(lengths.max()) > rule.safe_bytes:
        suspect |= lengths > rule.safe_bytes
    if int(lengths.min()) < rule.min_length:
        suspect |= lengths < rule.min_length
    if not texts.clean():
        suspect |= _unclean(texts)


def _metadata(records: Records, suspect: Flags) -> None:
    pairs = np.diff(records.entries)
    if not pairs.any():
        return
    suspect |= pairs > MAX_PAIRS
    entries = np.zeros(len(records.keys.array), np.bool_)
    _texts(records.keys, KEY, entries)
    _texts(records.values, VALUE, entries)
    if entries.any():
        owners = np.repeat(np.arange(records.count), pairs)
        suspect[owners[entries]] = True


def _unclean(texts: Texts) -> Flags:
    flags = np.zeros(len(texts.array), np.bool_)
    for index, value in enumerate(texts.array.to_pylist()):
        if b"\0" in value:
            flags[index] = True
        elif not value.isascii():
            try:
                value.decode()
            except UnicodeDecodeError:
                flags[index] = True
    return flags
