"""Names of files that are not whole yet."""

from __future__ import annotations

import os
from hashlib import blake2s
from typing import Final

_MOST_BYTES: Final = 255  # of a name, on Linux and most servers


def temporary_name(name: str, transfer: str) -> str:
    """The name under which the transfer with this id writes the file `name`, in the same folder.

    It is the same in every attempt, so that the next one goes on with what is there, or removes it.
    """
    suffix = f".{blake2s(transfer.encode(), digest_size=5).hexdigest()}.part"
    room = _MOST_BYTES - 1 - len(suffix)
    return f".{_cut(name, room)}{suffix}"


def temporary_path(path: str, transfer: str) -> str:
    """The same for a whole path."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{temporary_name(name, transfer)}"


def is_temporary(name: str) -> bool:
    """Whether `name` looks like one of these; such files are never taken as sources of trees and globs."""
    return name.startswith(".") and name.endswith(".part") and name[-16:-15] == "."


def _cut(name: str, room: int) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= room else encoded[:room].decode("utf-8", "ignore")
