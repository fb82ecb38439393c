"""PostgreSQL's backup manifest: which files a copy has, their sizes and checksums, and the log that it needs.

The check is that of pg_verifybackup, made here because one copy of that program is broken (the wheel's for
PostgreSQL 18 ends with a segmentation fault), because this one uses all cores and tells how far it is, and because it
needs no program of the copy's version.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from opsplane_server.errors import DataLoss
from opsplane_server.instances.providers.local.bulk import Stopped, Tally, files_below

_NAME = "backup_manifest"
_BLOCK = 1024 * 1024
_PAGE = 8192
_SHOWN = 5
# Not in the manifest: itself, the log, which has checksums of its own, and what is made for a restore.
_BESIDE = ("backup_manifest", "postgresql.auto.conf", "recovery.signal", "standby.signal")
_INCREMENTAL = "INCREMENTAL."
_INCREMENTAL_MAGIC = 0xD3AE1F0D


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of a copy. path: below the data folder. checksum: in hexadecimal, empty for none."""

    path: str
    size: int
    algorithm: str
    checksum: str


@dataclass(frozen=True, slots=True)
class LogRange:
    """Log that a copy needs to be whole, from position to position, such as `0/2000028`."""

    timeline: int
    start: str
    end: str


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """What a copy must be."""

    files: Sequence[ManifestFile]
    log: Sequence[LogRange]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def read(data: Path) -> BackupManifest:
    """DataLoss when it is missing or damaged. Blocks."""
    path = data / _NAME
    try:
        content = path.read_bytes()
        manifest: dict[str, Any] = json.loads(content)
        # The checksum is of all lines but the last, which holds it.
        body = content[: content.rindex(b'"Manifest-Checksum"')]
        if hashlib.sha256(body).hexdigest() != manifest["Manifest-Checksum"]:
            raise DataLoss(f"{path} does not have its checksum", reason="COPY_DAMAGED")
        return BackupManifest(
            files=[_file(entry) for entry in manifest["Files"]],
            log=[
                LogRange(int(entry["Timeline"]), entry["Start-LSN"], entry["End-LSN"])
                for entry in manifest["WAL-Ranges"]
            ],
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DataLoss(f"{path} can not be read: {error}", reason="COPY_DAMAGED") from error


def _file(entry: dict[str, Any]) -> ManifestFile:
    # Names that are no UTF-8 come in hexadecimal.
    path = entry["Path"] if "Path" in entry else os.fsdecode(bytes.fromhex(entry["Encoded-Path"]))
    if path.startswith("/") or ".." in Path(path).parts:
        raise ValueError(f"{path} leads out of the copy")
    return ManifestFile(path, int(entry["Size"]), entry.get("Checksum-Algorithm", ""), entry.get("Checksum", ""))


def check(data: Path, manifest: BackupManifest, tally: Tally) -> None:
    """Compares the files with the manifest, on all cores. DataLoss that names the first that differ. Blocks."""
    expected = {file.path for file in manifest.files}
    found = {str(path.relative_to(data)) for path, _ in files_below(data)}
    faults = [
        f"{path} is not in the manifest"
        for path in sorted(found - expected)
        if path not in _BESIDE and not path.startswith("pg_wal/")
    ]
    # The large ones first, so that no core is left with one in the end.
    files = sorted(manifest.files, key=lambda file: file.size, reverse=True)
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="check") as pool:
        try:
            faults += [fault for fault in pool.map(lambda file: _fault(data, file, tally), files) if fault]
        except Stopped:
            pool.shutdown(cancel_futures=True)
            raise
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataLoss(f"files of the copy are damaged: {'; '.join(faults[:_SHOWN])}{more}", reason="COPY_DAMAGED")


def _fault(data: Path, file: ManifestFile, tally: Tally) -> str:
    try:
        descriptor = os.open(data / file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return f"{file.path} is missing"
    try:
        size = os.fstat(descriptor).st_size
        if size != file.size:
            return f"{file.path} has {size:,} bytes instead of {file.size:,}"
        if not file.algorithm:
            return ""
        checksum = _checksum(file.algorithm)
        while block := os.read(descriptor, _BLOCK):
            checksum.update(block)
            tally.add(len(block))
        return "" if checksum.hexdigest() == file.checksum else f"{file.path} does not have its checksum"
    except OSError as error:  # a disk that can not read it any more
        return f"{file.path} can not be read: {error.strerror}"
    finally:
        os.close(descriptor)


class _Crc32c:
    def __init__(self) -> None:
        self._value = 0

    def update(self, block: bytes) -> None:
        self._value = google_crc32c.extend(self._value, block)

    def hexdigest(self) -> str:
        return self._value.to_bytes(4, sys.byteorder).hex()  # as it lies in the server's memory


def _checksum(algorithm: str) -> Any:
    return _Crc32c() if algorithm == "CRC32C" else hashlib.new(algorithm.lower())


def restored_size(data: Path, manifest: BackupManifest) -> int:
    """Bytes that a data folder restored from this copy and those that it builds on has, with the log. Blocks."""
    size = sum(status.st_size for _, status in files_below(data / "pg_wal"))
    for file in manifest.files:
        name = Path(file.path).name
        size += _whole_size(data / file.path) if name.startswith(_INCREMENTAL) else file.size
    return size


def _whole_size(path: Path) -> int:
    """Of a file of which an incremental copy has only the blocks that changed.

    Its head: magic, how many blocks follow, how many blocks the file had at least, the numbers of those blocks.
    """
    with path.open("rb") as stream:
        magic, count, least = struct.unpack("=III", stream.read(12))
        if magic != _INCREMENTAL_MAGIC:
            raise DataLoss(f"{path} is no incremental file", reason="COPY_DAMAGED")
        numbers = struct.unpack(f"={count}I", stream.read(4 * count))
    return int(max(least, *(number + 1 for number in numbers), 0)) * _PAGE


def position(lsn: str) -> int:
    """Bytes from the start of the log: `0/2000028` as a number."""
    high, _, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)
