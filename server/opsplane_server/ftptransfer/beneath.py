"""Opens what lies beneath a folder, and never anything else.

A path is walked one name at a time, each opened relative to the folder before it and never through a symbolic link.
Links are read and their targets walked in the same way: a link that stays beneath the folder is followed, one that is
absolute or leads above the folder is refused, even if it would come back. Who changes folders or links meanwhile
gains nothing: what is opened was reached from the folder, name by name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure

_BASE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER = _BASE | os.O_NOFOLLOW
_MOST_LINKS = 40  # as Linux does
_BAD_CHARACTERS = frozenset("\0\r\n")


def refused(message: str) -> TransferFailure:
    """The failure of a path that can not be used as it is written."""
    return TransferFailure(ErrorReason.PATH, message)


def split(path: str) -> tuple[str, ...]:
    """The names of a path: a leading `/` and empty names mean nothing; `..` and line breaks are refused."""
    if not _BAD_CHARACTERS.isdisjoint(path):
        raise refused(f"{path!r} has a NUL or a line break")
    names = tuple([name for name in path.split("/") if name and name != "."])
    if ".." in names:
        raise refused(f"{path!r} leads upwards")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise refused(f"{path!r} can not be written in the encoding of this machine") from error
    return names


def is_usable(name: str) -> bool:
    """Whether a file of this name can be transferred: it is one name, in UTF-8 and without line breaks."""
    if name in ("", ".", "..") or "/" in name or not _BAD_CHARACTERS.isdisjoint(name):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Walk:
    """A way down from the folder `base`, which may be a link itself; `with` closes the folders that it opened."""

    __slots__ = ("_folders", "_links", "made")

    def __init__(self, base: Path) -> None:
        self._folders = [os.open(base, _BASE)]
        self._links = 0
        self.made: list[int] = []
        """Descriptors of the folders in which folders were made, whose entries are not yet safe on the disk; the
        caller's to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for folder in self._folders:
            os.close(folder)
        self._folders.clear()
        if error is not None:
            for folder in self.made:
                os.close(folder)

    @property
    def folder(self) -> int:
        """Descriptor of the folder that was reached; of the walk, which closes it."""
        return self._folders[-1]

    def take_folder(self) -> int:
        """The same, now the caller's to close; the walk is over."""
        return self._folders.pop()

    def enter(self, names: Iterable[str], *, make: bool = False) -> None:
        """Goes down the names; with `make`, folders that do not exist are made."""
        ahead = deque(names)
        while ahead:
            name = ahead.popleft()
            if name == "..":  # of a link
                self._up()
                continue
            try:
                self._folders.append(os.open(name, _FOLDER, dir_fd=self.folder))
            except NotADirectoryError:
                ahead.extendleft(reversed(self.link(name)))
            except FileNotFoundError:
                if not make:
                    raise
                self._make(name)
                ahead.appendleft(name)

    def link(self, name: str) -> list[str]:
        """The names that the link `name` in this folder stands for. NotADirectoryError when it is no link."""
        try:
            target = os.readlink(name, dir_fd=self.folder)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from error
        self._links += 1
        if self._links > _MOST_LINKS:
            raise refused(f"too many symbolic links at {name!r}")
        if target.startswith("/"):
            raise refused(f"{name!r} is a symbolic link out of the folder")
        return [part for part in target.split("/") if part and part != "."]

    def open_file(self, names: Iterable[str], flags: int) -> int:
        """Descriptor of the file, after the links that lead to it. It never waits, not even for a named pipe."""
        *folders, name = names
        self.enter(folders)
        while True:
            try:
                return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.folder)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
            name = self._follow(name)

    def stat(self, names: Iterable[str]) -> os.stat_result:
        """What the file or folder is, after the links that lead to it."""
        *folders, name = (*names,) or (".",)
        self.enter(folders)
        while True:
            found = os.stat(name, dir_fd=self.folder, follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                return found
            name = self._follow(name)

    def _follow(self, name: str) -> str:
        """Goes to the folder of what the link stands for, and returns the name there."""
        *folders, last = self.link(name) or ["."]
        if last == "..":
            folders, last = [*folders, last], "."
        self.enter(folders)
        return last

    def _up(self) -> None:
        if len(self._folders) == 1:
            raise refused("a symbolic link leads out of the folder")
        os.close(self._folders.pop())

    def _make(self, name: str) -> None:
        try:
            os.mkdir(name, dir_fd=self.folder)
        except FileExistsError:  # another transfer was quicker
            return
        self.made.append(os.dup(self.folder))
