"""The logs of servers: their newest lines, and keeping them from growing without end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path


def newest_lines(path: Path, most_bytes: int) -> Sequence[str]:
    """The last whole lines of a file, oldest first; none where there is no file. Blocks for a moment."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - most_bytes))
            lines = stream.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    return lines[1:] if size > most_bytes else lines


def bound(path: Path, most_bytes: int) -> None:
    """Moves a log to `FILE.1` when it is longer; the server's open file stays, for servers append to theirs. Blocks."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    if size > most_bytes:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
