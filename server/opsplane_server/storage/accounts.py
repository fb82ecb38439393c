"""The system account that runs the embedded PostgreSQL, and the folders that it needs.

PostgreSQL refuses to run as root, so a root process hands it to another account. That account must reach its files
without anybody's folder changing: only what is created here gets a mode or an owner.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from opsplane_server.errors import FailedPrecondition

_CANDIDATES = ("opsplane", "postgres", "nobody")


class _PopenOptions(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """A system account by number and name."""

    uid: int
    gid: int
    name: str

    @property
    def popen_options(self) -> _PopenOptions:
        """What makes `subprocess` run as this account; nothing when this process runs as it already."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def choose_account(user: str | None, data: Path) -> Account:
    """The account for a server whose files are in `data`, which may not exist yet.

    A process that is not root stays what it is. Root takes `user`, else the owner of existing data (an account that
    appeared since the first start must not lock it out), else the first of opsplane, postgres and nobody.
    """
    if os.geteuid() != 0:
        entry = pwd.getpwuid(os.geteuid())
    elif user is not None:
        entry = _existing(user)
    elif data.exists():
        entry = pwd.getpwuid(data.stat().st_uid)
    else:
        entry = _first_existing()
    account = Account(entry.pw_uid, entry.pw_gid, entry.pw_name)
    if account.uid == 0:
        raise FailedPrecondition("PostgreSQL does not run as root; name another system user", reason="DATABASE_USER")
    if data.exists() and data.stat().st_uid != account.uid:
        raise FailedPrecondition(
            f"{data} belongs to user number {data.stat().st_uid}, not to '{account.name}'", reason="DATABASE_USER"
        )
    return account


def _existing(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise FailedPrecondition(f"there is no system user '{user}'", reason="DATABASE_USER") from None


def _first_existing() -> pwd.struct_passwd:
    for name in _CANDIDATES:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise FailedPrecondition(
        f"PostgreSQL does not run as root; create one of the system users {', '.join(_CANDIDATES)}",
        reason="DATABASE_USER",
    )


def create_folder(path: Path) -> None:
    """Creates `path` and its missing parents: for the owner alone, and for root such that others may pass through.

    Root's umask may close new folders to PostgreSQL's account, therefore the mode is set outright.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            # With the mode from the start as far as the umask lets it: whoever dies right here leaves no closed one.
            folder.mkdir(mode=mode)
        except FileExistsError:  # somebody else was quicker; then its mode is theirs too
            continue
        folder.chmod(mode)


def require_passable(path: Path, account: Account) -> None:
    """Raises FailedPrecondition that names the first folder on the way to `path` that `account` may not enter."""
    if os.geteuid() == account.uid:
        return
    for folder in reversed((path, *path.parents)):
        status = folder.stat()
        if status.st_uid == account.uid:
            passable = status.st_mode & stat.S_IXUSR
        elif status.st_gid == account.gid:
            passable = status.st_mode & stat.S_IXGRP
        else:
            passable = status.st_mode & stat.S_IXOTH
        if not passable:
            raise FailedPrecondition(
                f"the user '{account.name}', who runs PostgreSQL because root can not, may not enter {folder}: "
                f"set the data directory to a place outside of it, or run `chmod o+x {folder}`",
                reason="DATA_DIR_UNREACHABLE",
                metadata={"folder": str(folder)},
            )


def private_folder(path: Path, account: Account) -> None:
    """Makes `path` a folder that `account` alone may use; refuses one that anybody else could have prepared."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        status = path.lstat()
        if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077:
            # Ours alone: whoever made it died before it was handed over.
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        elif not stat.S_ISDIR(status.st_mode) or status.st_uid != account.uid or status.st_mode & 0o077:
            raise FailedPrecondition(
                f"{path} is not a private folder of '{account.name}'; remove it", reason="DATA_DIR_UNSAFE"
            ) from None
    else:
        if os.geteuid() != account.uid:
            os.chown(path, account.uid, account.gid)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: a new or renamed file survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
