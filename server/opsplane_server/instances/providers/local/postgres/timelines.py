"""Timelines: the numbers that PostgreSQL gives to the ways that its log has taken, one more with each promotion."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.postgres.sessions import session
from opsplane_server.storage.accounts import sync_folder

SEGMENT: Final = re.compile(r"[0-9A-F]{24}")
"""The name of a file of the log; the first eight digits are its timeline."""

_OF_TIMELINE = re.compile(r"([0-9A-F]{8})(?:[0-9A-F]{16}(?:\.partial)?|\.history)")


async def timeline(primary: LocalNode) -> int:
    """That of a primary now. Unavailable."""
    async with session(primary) as connection:
        segment = await connection.fetchval("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    return int(segment[:8], 16)


async def ancestry(primary: LocalNode) -> Sequence[int]:
    """The timelines that led to the one of a primary, oldest first, itself included. Unavailable."""
    newest = await timeline(primary)
    return [*(number for number, _ in _parents(_history(primary.folder.data, newest))), newest]


def parting(node: LocalNode, timeline: int) -> tuple[int, int] | None:
    """The timeline that a promoted server left for `timeline`, and where; None if that can not be read."""
    parents = _parents(_history(node.folder.data, timeline))
    return parents[-1] if parents else None


def newest(node: LocalNode) -> int:
    """The timeline that a server wrote last, by the names of its log's files. FileNotFoundError. Blocks."""
    names = [name for name in os.listdir(node.folder.data / "pg_wal") if SEGMENT.fullmatch(name)]
    if not names:
        raise FileNotFoundError(f"{node.id} has no log")
    return int(max(names)[:8], 16)


def agree(node: LocalNode, primary: LocalNode, timeline: int) -> bool:
    """Whether two servers mean the same by a number: one that was promoted and never followed may have taken it too.
    What a server copies from another's history is the same to the letter. Blocks.
    """
    own, other = (_history(each.folder.data, timeline) for each in (node, primary))
    return not own.exists() or not other.exists() or own.read_bytes() == other.read_bytes()


def remove_others(node: LocalNode, ancestry: Sequence[int]) -> None:
    """Removes log of timelines that led nowhere. The server is down. Blocks."""
    folder = node.folder.data / "pg_wal"
    for name in os.listdir(folder):
        match = _OF_TIMELINE.fullmatch(name)
        if match and int(match[1], 16) not in ancestry:
            (folder / name).unlink()
    sync_folder(folder)


def _history(data: Path, timeline: int) -> Path:
    return data / "pg_wal" / f"{timeline:08X}.history"


def _parents(history: Path) -> list[tuple[int, int]]:
    """Each timeline before, oldest first, and where it was left; none for the first timeline of all."""
    try:
        lines = history.read_text().splitlines()
    except FileNotFoundError:
        return []
    words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return [(int(first), position(second)) for first, second, *_ in words]


def position(text: str) -> int:
    """The number of `0/5000148`."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def lsn(number: int) -> str:
    """The opposite of `position`."""
    return f"{number >> 32:X}/{number & 0xFFFFFFFF:X}"
