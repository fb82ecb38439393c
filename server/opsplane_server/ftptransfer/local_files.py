"""A local folder as one end of transfers: nothing outside of it is touched, and files appear whole or not at all.

A file is written under a temporary name beside its own. While it is open it is locked (`flock`), and only who has the
lock renames or removes it: a worker that slept through its lease can neither be overtaken half way nor spoil what the
next one does. The kernel frees the lock of a process that dies, and leaves the file for the next attempt.

What waits for the disk is `Target.finish` and reading; the rest is a few system calls, about 20 us, and is meant to be
called on the event loop. Every method raises TransferFailure.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from opsplane_server.ftptransfer.beneath import Walk, refused, split
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.model import FileKind, RemoteFile
from opsplane_server.ftptransfer.temporary import temporary_name

_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PATHS: Final = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EILSEQ})
_HOPELESS: Final = frozenset({errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EFBIG})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TRIES: Final = 10


def disk_failure(error: OSError, path: str, *, source: bool = False) -> TransferFailure:
    """What an error of the operating system means for the transfer of `path`, as its source or its destination."""
    message = f"{path}: {error.strerror or error}"
    if error.errno in _DENIED:
        return TransferFailure(ErrorReason.ACCESS_DENIED, message)
    if error.errno in _FULL:
        return TransferFailure(ErrorReason.NO_SPACE, message, retryable=error.errno not in _HOPELESS)
    if error.errno in _PATHS:
        return TransferFailure(ErrorReason.PATH, message)
    if source and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return TransferFailure(ErrorReason.NOT_FOUND, message)
    return TransferFailure(
        ErrorReason.UNSPECIFIED, message, code=ErrorCode.IO_ERROR, retryable=error.errno not in _HOPELESS
    )


class _telling:  # noqa: N801 - used like a function; a generator would cost as much as what it guards
    """Raises what an OSError means for the path."""

    __slots__ = ("_path", "_source")

    def __init__(self, path: str, *, source: bool = False) -> None:
        self._path = path
        self._source = source

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise disk_failure(error, self._path, source=self._source) from error


def to_time(nanoseconds: int) -> datetime:
    """A file's time as a date, to the microsecond below."""
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def to_nanoseconds(time: datetime) -> int:
    """The opposite, exact."""
    return (time - _EPOCH) // _MICROSECOND * 1000


class FileBusy(TransferFailure):
    """Another attempt of the same transfer has its file open: a process that lost it, and does not know it yet."""


class Source:
    """A file that is open for reading. `with` closes it."""

    __slots__ = ("_path", "descriptor", "modify_time", "size")

    def __init__(self, path: str, descriptor: int) -> None:
        found = os.fstat(descriptor)
        self._path = path
        self.descriptor = descriptor
        self.size = found.st_size
        self.modify_time = to_time(found.st_mtime_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    def check_unchanged(self) -> None:
        """Fails with SOURCE_CHANGED when it was written to since it was opened."""
        found = os.fstat(self.descriptor)
        if (found.st_size, to_time(found.st_mtime_ns)) != (self.size, self.modify_time):
            raise TransferFailure(ErrorReason.SOURCE_CHANGED, f"{self._path} changed while it was read")


@dataclass(frozen=True, slots=True)
class Finish:
    """How a file must be to get its name: `size` bytes (None: as many as there are), and `allowed` must hold.

    existing_ok: when False, and a file of that name has come to be there meanwhile, it fails with EXISTS.
    """

    size: int | None
    modify_time: datetime | None
    existing_ok: bool = True
    allowed: Callable[[], bool] = lambda: True


class Target:
    """A file that is being written under its temporary name, locked.

    It ends with one of `finish`, `discard` and `leave`. Whoever writes to `descriptor` begins at its end, `size`.
    """

    __slots__ = ("_folder", "_made", "_name", "_path", "_temporary", "descriptor", "size")

    def __init__(
        self, path: str, folder: int, made: list[int], name: str, temporary: str, descriptor: int, size: int
    ) -> None:
        self._path = path
        self._folder = folder
        self._made = made
        self._name = name
        self._temporary = temporary
        self.descriptor = descriptor
        self.size = size

    def finish(self, finish: Finish) -> None:
        """Gives the file its name, safe on the disk. Waits for the disk: not for the event loop; see `Finisher`.

        When it fails, the file stays under its temporary name.
        """
        try:
            self.rename(finish)
            with _telling(self._path):
                for folder in self.folders:
                    os.fsync(folder)
        finally:
            self.leave()

    def rename(self, finish: Finish) -> None:
        """The first part of `finish`; for the second, all of `folders` are to be synced, and then the target left."""
        with _telling(self._path):
            size = os.fstat(self.descriptor).st_size
            if finish.size is not None and size != finish.size:
                raise TransferFailure(
                    ErrorReason.SIZE_MISMATCH, f"{self._path} has {size} bytes instead of {finish.size}"
                )
            if finish.modify_time is not None:
                nanoseconds = to_nanoseconds(finish.modify_time)
                os.utime(self.descriptor, ns=(nanoseconds, nanoseconds))
            os.fsync(self.descriptor)
            if not finish.existing_ok and self._exists():
                raise TransferFailure(ErrorReason.EXISTS, f"{self._path} exists")
            if not finish.allowed():
                raise TransferFailure(ErrorReason.UNSPECIFIED, "the lease of the task has run out")
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    @property
    def folders(self) -> tuple[int, ...]:
        """Descriptors of the folders whose entries changed."""
        return (*self._made, self._folder)

    def discard(self) -> None:
        """Removes the file."""
        try:
            with _telling(self._path), contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._folder)
        finally:
            self.leave()

    def leave(self) -> None:
        """Closes it and leaves it to the next attempt."""
        for descriptor in (self.descriptor, *self.folders):
            os.close(descriptor)

    def start_over(self) -> None:
        """Throws away what is in the file."""
        with _telling(self._path):
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
        self.size = 0

    def _exists(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
            return True
        return False


class LocalFiles:
    """The files of the folder `base`. Paths are taken from there, with a leading `/` or without.

    Symbolic links are followed as long as they stay in the folder and are not absolute; a file that is written takes
    the place of a link, not of what it points to.
    """

    def __init__(self, base: Path) -> None:
        self._base = base

    def stat(self, path: str) -> RemoteFile:
        """The file or folder, after links; fails with NOT_FOUND."""
        names = split(path)
        with _telling(path, source=True), Walk(self._base) as walk:
            return _entry(names[-1] if names else "", walk.stat(names))

    def list(self, path: str) -> list[RemoteFile]:
        """The entries of a folder, links as links. There may be names that no transfer can have, see `is_usable`."""
        with _telling(path, source=True), Walk(self._base) as walk:
            walk.enter(split(path))
            with os.scandir(walk.folder) as entries:
                return [file for entry in entries if (file := _listed(entry)) is not None]

    def open(self, path: str) -> Source:
        """Opens a file to read it; fails with NOT_FOUND, and for what is no file."""
        names = split(path)
        with _telling(path, source=True), Walk(self._base) as walk:
            descriptor = walk.open_file(names, os.O_RDONLY) if names else walk.take_folder()
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise TransferFailure(
                    ErrorReason.UNSPECIFIED, f"{path} is not a file", code=ErrorCode.IO_ERROR, retryable=False
                )
        return Source(path, descriptor)

    def begin(self, path: str, transfer: str) -> Target:
        """Opens the temporary file of the transfer with this id for the file `path`; makes folders that are missing.

        What an earlier attempt has left is in it; see `Target.size` and `Target.start_over`.
        """
        *folders, name = _named(path)
        with _telling(path), Walk(self._base) as walk:
            walk.enter(folders, make=True)
            temporary = temporary_name(name, transfer)
            descriptor, size = _lock(walk.folder, temporary, os.O_RDWR | os.O_CREAT)
            return Target(path, walk.take_folder(), walk.made, name, temporary, descriptor, size)

    def remove_temporary(self, path: str, transfer: str) -> None:
        """Removes what the transfer with this id has left of the file `path`, if anything."""
        *folders, name = _named(path)
        temporary = temporary_name(name, transfer)
        try:
            with _telling(path), Walk(self._base) as walk:
                walk.enter(folders)
                descriptor, _ = _lock(walk.folder, temporary, os.O_RDWR)
                try:
                    os.unlink(temporary, dir_fd=walk.folder)
                finally:
                    os.close(descriptor)
        except TransferFailure as failure:
            if not isinstance(failure.__cause__, FileNotFoundError | NotADirectoryError):
                raise

    def delete(self, path: str) -> None:
        """Deletes a file, or a link and not what it points to; fails with NOT_FOUND."""
        *folders, name = _named(path)
        with _telling(path, source=True), Walk(self._base) as walk:
            walk.enter(folders)
            os.unlink(name, dir_fd=walk.folder)

    def check_writable(self) -> None:
        """Writes a file and removes it again."""
        self.begin(".writable", f"{os.getpid()}").discard()


def _named(path: str) -> tuple[str, ...]:
    names = split(path)
    if not names or path.endswith("/"):
        raise refused(f"{path!r} names a folder, not a file")
    return names


def _lock(folder: int, name: str, flags: int) -> tuple[int, int]:
    """Opens and locks the file, which has this name even after that; its descriptor at its end, and its size."""
    for _ in range(_TRIES):
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EEXIST, "is there and is not a file", name)
            # Whoever had the lock before may have renamed or removed it between the two calls.
            if found.st_nlink and os.path.samestat(found, os.stat(name, dir_fd=folder, follow_symlinks=False)):
                os.lseek(descriptor, 0, os.SEEK_END)
                return descriptor, found.st_size
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(descriptor)
            raise FileBusy(
                ErrorReason.UNSPECIFIED, "another attempt still has the file open", code=ErrorCode.IO_ERROR
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise TransferFailure(ErrorReason.UNSPECIFIED, f"{name} can not be locked", code=ErrorCode.IO_ERROR)


def _listed(entry: os.DirEntry[str]) -> RemoteFile | None:
    try:
        return _entry(entry.name, entry.stat(follow_symlinks=False))
    except FileNotFoundError:  # removed meanwhile
        return None


def _entry(name: str, found: os.stat_result) -> RemoteFile:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), FileKind.OTHER)
    size = found.st_size if kind is FileKind.FILE else None
    return RemoteFile(name, kind, size, to_time(found.st_mtime_ns))


_KINDS: Final = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.FOLDER, stat.S_IFLNK: FileKind.LINK}
