"""Statements without their constants, so that those which differ in nothing else count as one."""

from __future__ import annotations

import hashlib
import re
from typing import Final

_LONGEST: Final = 10_000  # as the API says
_TOKEN: Final = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\*(?:[^*]|\*(?!/))*(?:\*/|\Z) )
    | (?P<string>
          [eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)
        | (?:[uU]&|[bBxXnN])?'(?:[^']|'')*(?:'|\Z)
        | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z) )
    | (?P<quoted> "(?:[^"]|"")*(?:"|\Z) )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<parameter> \$\d+ )
    | (?P<number> 0[xX][\da-fA-F_]+ | (?:\d[\d_]*\.?[\d_]* | \.\d[\d_]*)(?:[eE][+-]?\d+)? )
    | (?P<space> \s+ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_LIST: Final = re.compile(r"\( ?\?(?: ?, ?\?)+ ?\)")
_ROWS: Final = re.compile(r"(\(\?(?:, \.\.\.)?\))(?: ?, ?\(\?(?:, \.\.\.)?\))+")


def without_constants(statement: str) -> str:
    """The statement with `?` in place of constants and parameters, without comments and superfluous blanks.

    Lists of constants of any length become `(?, ...)`. It never fails, also on what is cut off or no SQL: a text that
    begins and does not end is taken for a constant.
    """
    parts: list[str] = []
    for token in _TOKEN.finditer(statement):
        kind = token.lastgroup if token.lastgroup != "tag" else "string"
        if kind in ("string", "number", "parameter"):
            parts.append("?")
        elif kind in ("comment", "space"):
            if parts and parts[-1] != " ":
                parts.append(" ")
        else:
            parts.append(token.group())
    text = _LIST.sub("(?, ...)", "".join(parts).strip())
    return _ROWS.sub(r"\1, ...", text)[:_LONGEST]


def statement_id(*parts: str) -> str:
    """An id of a statement, the same from call to call."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
