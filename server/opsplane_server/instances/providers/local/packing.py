"""Writing archives in a thread: tar, plain or compressed by all cores, with its SHA-256 on the way."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from opsplane_server.instances.providers.local.bulk import Tally

_BLOCK = 1024 * 1024
_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3


class _Packer(Protocol):
    """Both methods return what is ready to be written, often nothing."""

    def compress(self, content: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, content: bytes) -> bytes:
        return content

    def flush(self) -> bytes:
        return b""


class _Gzip:
    """Compresses blocks of a megabyte on all cores, each as a gzip member of its own: together they are a gzip file."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool = pool
        self._most = threads + 1
        self._pending: deque[Future[bytes]] = deque()
        self._rest = bytearray()

    def compress(self, content: bytes) -> bytes:
        self._rest += content
        while len(self._rest) >= _BLOCK:
            self._submit(self._rest[:_BLOCK])
            del self._rest[:_BLOCK]
        return self._finished(self._most)

    def flush(self) -> bytes:
        self._submit(self._rest)
        return self._finished(0)

    def _submit(self, block: bytearray) -> None:
        self._pending.append(self._pool.submit(gzip.compress, bytes(block), _GZIP_LEVEL, mtime=0))

    def _finished(self, most: int) -> bytes:
        """What is compressed, in order, waiting until no more than `most` blocks are under way."""
        ready = []
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            ready.append(self._pending.popleft().result())
        return b"".join(ready)


@contextmanager
def _packer(packing: str) -> Iterator[_Packer]:
    threads = os.cpu_count() or 1
    match packing:
        case "TAR_GZIP":
            with ThreadPoolExecutor(threads, thread_name_prefix="gzip") as pool:
                yield _Gzip(pool, threads)
        case "TAR_ZSTD":
            yield zstandard.ZstdCompressor(_ZSTD_LEVEL, threads=threads, write_checksum=True).compressobj()
        case _:
            yield _Plain()


def write_tar(target: BinaryIO, files: Iterable[tuple[Path, str]], packing: str, tally: Tally) -> tuple[int, str]:
    """Writes files and folders, each with its name in the archive, as TAR, TAR_GZIP or TAR_ZSTD; bytes and SHA-256.

    The same files give the same bytes: owners are left out, for all belongs to the one who unpacks it. Blocks.
    """
    digest, size = hashlib.sha256(), 0
    with _packer(packing) as packer:

        def write(content: bytes) -> None:
            nonlocal size
            target.write(content)
            digest.update(content)
            size += len(content)

        for path, name in files:
            for block in _member(path, name, tally):
                write(packer.compress(block))
        write(packer.compress(bytes(2 * tarfile.BLOCKSIZE)))
        write(packer.flush())
    return size, digest.hexdigest()


def _member(path: Path, name: str, tally: Tally) -> Iterator[bytes]:
    entry = tarfile.TarInfo(name)
    if path.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o700
        yield entry.tobuf(tarfile.PAX_FORMAT)
        return
    with path.open("rb", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        entry.size, entry.mtime, entry.mode = status.st_size, int(status.st_mtime), 0o600
        yield entry.tobuf(tarfile.PAX_FORMAT)
        done = 0
        while block := stream.read(_BLOCK):
            tally.add(len(block))
            done += len(block)
            yield block
        if done != status.st_size:
            raise OSError(f"{path} changed while it was read")
        yield bytes(-done % tarfile.BLOCKSIZE)
