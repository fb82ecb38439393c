"""Counts of records are kept by minute, hour and day; a time range is made up of as few of them as possible."""

from __future__ import annotations

from typing import Final, NamedTuple

WIDTHS: Final = (1440, 60, 1)
"""Minutes that a count stands for, widest first."""


class Piece(NamedTuple):
    """Counts of one width from minute `first` to before minute `past`, both since 1970."""

    width: int
    first: int
    past: int


def pieces(first: int, past: int) -> list[Piece]:
    """The counts that make up the minutes from `first` to before `past`, in order of time."""
    return _pieces(first, past, WIDTHS)


def _pieces(first: int, past: int, widths: tuple[int, ...]) -> list[Piece]:
    if first >= past:
        return []
    width, *rest = widths
    low, high = -(-first // width) * width, past // width * width
    if not rest:
        return [Piece(width, first, past)]
    if low >= high:
        return _pieces(first, past, tuple(rest))
    return [*_pieces(first, low, tuple(rest)), Piece(width, low, high), *_pieces(high, past, tuple(rest))]
