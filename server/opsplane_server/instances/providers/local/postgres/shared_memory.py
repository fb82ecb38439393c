"""Shared memory that a killed PostgreSQL leaves behind, removed as its next start on the same data would do.

A server that is not to start again, for its data are deleted or replaced, would leave it to the machine for good. The
number of its first segment is in `postmaster.pid`; that segment names the control segment of its dynamic shared memory
(`PGShmemHeader`, storage/pg_shmem.h), and this one all others (`dsm_control_header`, storage/ipc/dsm.c), the same in
every version from 15 to 18. What does not look like that is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_SEGMENTS: Final = Path("/proc/sysvipc/shm")
_NAMED: Final = Path("/dev/shm")  # noqa: S108
_IPC_RMID: Final = 0
_SHM_RDONLY: Final = 0o10000
_HEADER: Final = struct.Struct("=iiQQI")  # magic, process, size, offset, number of the control segment
_HEADER_MAGIC: Final = 679834894
_CONTROL: Final = struct.Struct("=III4x")  # magic, items in use, most items
_CONTROL_MAGIC: Final = 0x9A503D32
_ITEM: Final = struct.Struct("=II32x")  # number, references


@dataclass(frozen=True, slots=True)
class _Segment:
    key: int
    id: int
    size: int
    attached: int


def discard(data: Path) -> None:
    """Removes what the server of these data has left, if nobody is attached to it any more. Blocks for a moment.

    Harmless when it was stopped in good order, or runs.
    """
    segment = _segment_of(data)
    if segment is None or segment.attached or segment.size < _HEADER.size:
        return
    libc = _libc()
    content = _content(libc, segment)
    if content is None or content[0] != _HEADER_MAGIC:
        return
    names = list(_dynamic(content[4]))
    if libc.shmctl(segment.id, _IPC_RMID, None) != 0:
        log.warning("shared memory not removed", data=str(data), error=os.strerror(ctypes.get_errno()))
        return
    for name in names:
        (_NAMED / name).unlink(missing_ok=True)
    log.info("shared memory removed", data=str(data), dynamic=len(names))


def _segment_of(data: Path) -> _Segment | None:
    """The first segment, while it has the key that the file says: numbers are given again."""
    try:
        key, number = map(int, (data / "postmaster.pid").read_text().splitlines()[6].split())
        lines = _SEGMENTS.read_text().splitlines()[1:]
    except (OSError, IndexError, ValueError):
        return None
    for words in map(str.split, lines):
        if int(words[1]) == number and int(words[0]) & 0xFFFFFFFF == key & 0xFFFFFFFF:
            return _Segment(key, number, int(words[3]), int(words[6]))
    return None


def _content(libc: ctypes.CDLL, segment: _Segment) -> tuple[int, ...] | None:
    address = libc.shmat(segment.id, None, _SHM_RDONLY)
    if address is None or address == ctypes.c_void_p(-1).value:
        return None
    try:
        return _HEADER.unpack(ctypes.string_at(address, _HEADER.size))
    finally:
        libc.shmdt(ctypes.c_void_p(address))


def _dynamic(control: int) -> Iterator[str]:
    """Names of its dynamic segments, the control segment last."""
    if control == 0:
        return
    try:
        content = (_NAMED / f"PostgreSQL.{control}").read_bytes()
        magic, used, _ = _CONTROL.unpack_from(content)
    except (OSError, struct.error):  # the server was told to keep them elsewhere
        return
    if magic != _CONTROL_MAGIC:
        return
    for number in range(used):
        with contextlib.suppress(struct.error):
            handle, references = _ITEM.unpack_from(content, _CONTROL.size + number * _ITEM.size)
            if references:
                yield f"PostgreSQL.{handle}"
    yield f"PostgreSQL.{control}"


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    libc.shmctl.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    return libc
