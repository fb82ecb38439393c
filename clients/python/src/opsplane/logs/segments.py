"""A segment: a file of batches that could not be sent yet, appended and read back in order.

    segment = header, frames
    header  = magic "OPSLOGS1", salt u32, position acknowledged u64, crc32 of it u32
    frame   = marker F5 "LOG", length of the body u32, crc32 of the body started with the salt u32, body
    body    = records u16, length of the id u8, batch id, StreamLogsRequest       (integers are big-endian)

A frame that is not whole is cut at the end of the file (a process died while it wrote) and skipped elsewhere (the disk
is at fault); how many bytes were lost so is counted. Reading finds the next whole frame by its marker and checksum. The
salt is random, so that nothing that an application logs can look like a frame. The position acknowledged is overwritten
in place: it may be older than the truth, then batches are sent again under the same ids, which stores nothing twice.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"OPSLOGS1"
_MARKER = b"\xf5LOG"
_SALT = struct.Struct(">I")
_ACKNOWLEDGED = struct.Struct(">QI")
_FRAME = struct.Struct(">4sII")
_BODY = struct.Struct(">HB")
HEADER_BYTES = len(_MAGIC) + _SALT.size + _ACKNOWLEDGED.size
FRAME_BYTES = _FRAME.size + _BODY.size
_ACKNOWLEDGED_AT = len(_MAGIC) + _SALT.size
_SCAN_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """A batch of a segment and the position after it."""

    batch_id: str
    record_count: int
    payload: bytes
    """A StreamLogsRequest with the batch, serialized."""
    end: int


class Segment:
    """One file. Made by `create` or `open`; not thread-safe."""

    def __init__(self, path: Path, descriptor: int, salt: int, acknowledged: int, size: int) -> None:
        self.path = path
        self.size = size
        self.read_at = acknowledged
        self.acknowledged = acknowledged
        self.damaged_bytes = 0
        self._judged = acknowledged
        self._descriptor = descriptor
        self._salt = salt

    @classmethod
    def create(cls, path: Path) -> Segment:
        """A new file; OSError if that does not go."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        salt = secrets.randbits(32)
        try:
            _write(descriptor, _MAGIC + _SALT.pack(salt) + _position(HEADER_BYTES), 0)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return cls(path, descriptor, salt, HEADER_BYTES, HEADER_BYTES)

    @classmethod
    def open(cls, path: Path) -> Segment:
        """A file that is there; OSError if it is not readable, ValueError if it is no segment."""
        descriptor = os.open(path, os.O_RDWR)
        size = os.fstat(descriptor).st_size
        header = os.pread(descriptor, HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
            os.close(descriptor)
            raise ValueError(f"{path} is no segment")
        (salt,) = _SALT.unpack_from(header, len(_MAGIC))
        acknowledged, checksum = _ACKNOWLEDGED.unpack_from(header, _ACKNOWLEDGED_AT)
        if _position(acknowledged) != _ACKNOWLEDGED.pack(acknowledged, checksum) or acknowledged > size:
            acknowledged = HEADER_BYTES
        return cls(path, descriptor, salt, max(acknowledged, HEADER_BYTES), size)

    @property
    def finished(self) -> bool:
        """True when all that it holds is acknowledged."""
        return self.acknowledged >= self.size

    def append(self, batch_id: str, record_count: int, payload: bytes, *, sync: bool = False) -> None:
        """Adds a batch; `sync` waits for the disk. OSError leaves the segment as it was."""
        name = batch_id.encode()
        head = _BODY.pack(record_count, len(name)) + name
        checksum = zlib.crc32(payload, zlib.crc32(head, self._salt))
        size = len(head) + len(payload)
        try:
            # The payload is not copied, and the interpreter free for others while it is written.
            _write(self._descriptor, _FRAME.pack(_MARKER, size, checksum) + head, self.size)
            _write(self._descriptor, payload, self.size + _FRAME.size + len(head))
            if sync:
                os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += _FRAME.size + size

    def read(self) -> Frame | None:
        """The next batch, or None at the end."""
        start = self.read_at
        while self.read_at < self.size:
            frame = self._frame_at(self.read_at)
            if frame is not None:
                self._count_damage(start, self.read_at)
                self.read_at = frame.end
                return frame
            self.read_at = self._next_marker(self.read_at + 1)
        if start < self.read_at:  # a torn tail
            self._count_damage(start, self.read_at)
            self.size = start
            self.read_at = start
            os.ftruncate(self._descriptor, start)
        return None

    def acknowledge(self, frame: Frame) -> None:
        """Keeps that this batch, and all before it, need not be sent again."""
        self.acknowledged = frame.end
        _write(self._descriptor, _position(frame.end), _ACKNOWLEDGED_AT)

    def rewind(self) -> None:
        """Reads again what was not acknowledged."""
        self.read_at = self.acknowledged

    def sync(self) -> None:
        """Waits until all is on disk."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def delete(self) -> None:
        """Closes and removes the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _count_damage(self, start: int, end: int) -> None:
        # What was counted before a rewind is not counted again.
        self.damaged_bytes += max(end - max(start, self._judged), 0)
        self._judged = max(self._judged, end)

    def _frame_at(self, position: int) -> Frame | None:
        head = os.pread(self._descriptor, _FRAME.size, position)
        if len(head) < _FRAME.size:
            return None
        marker, length, checksum = _FRAME.unpack(head)
        end = position + _FRAME.size + length
        if marker != _MARKER or length < _BODY.size or end > self.size:
            return None
        body = os.pread(self._descriptor, length, position + _FRAME.size)
        if len(body) < length or zlib.crc32(body, self._salt) != checksum:
            return None
        record_count, id_length = _BODY.unpack_from(body)
        batch_id = body[_BODY.size : _BODY.size + id_length].decode()
        return Frame(batch_id, record_count, body[_BODY.size + id_length :], end)

    def _next_marker(self, position: int) -> int:
        while position < self.size:
            block = os.pread(self._descriptor, _SCAN_BYTES, position)
            found = block.find(_MARKER)
            if found >= 0:
                return position + found
            if len(block) < len(_MARKER):
                break
            position += len(block) - len(_MARKER) + 1
        return self.size


def _position(value: int) -> bytes:
    return _ACKNOWLEDGED.pack(value, zlib.crc32(value.to_bytes(8, "big")))


def _write(descriptor: int, data: bytes, position: int) -> None:
    """Writes all of it; a full disk may take a part only."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        view = view[written:]
        position += written
