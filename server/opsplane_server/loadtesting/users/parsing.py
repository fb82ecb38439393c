"""The grammar of templates: text with `{{WORD WORD ...}}` in it.

Words are separated by white space. A word may stand in quotes, single or double, or have a part in quotes, which may
hold white space and `}}` (`{{choice a "b c"}}`); a backslash in a word begins an escape as in JSON. In a JSON string
the double quotes are escaped themselves (`"{{choice a \\"b c\\"}}"`), so that form is read as well.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_PLAIN = re.compile(r"[^\s\"'\\{}]+|\{(?!\{)|\}(?!\})")
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\[\"'\\/bfnrt]")
_SPACE = re.compile(r"\s*")
_PATH_PART = re.compile(r"\.?([^.\[\]\"'\s]+)|\[(\d{1,9})\]|\[(\"(?:[^\"\\]|\\.)*\")\]")


class TemplateError(ValueError):
    """Text that is no template; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a hole, without its quotes. `quoted` is True when any part of it stood in quotes."""

    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Hole:
    """What stands between `{{` and `}}`: at least one word. `position` is that of its first brace, from 1."""

    words: tuple[Word, ...]
    position: int


def split(text: str) -> tuple[str | Hole, ...]:
    """The text around holes, and the holes; nothing is empty. Raises TemplateError."""
    parts: list[str | Hole] = []
    at = 0
    while (start := text.find("{{", at)) >= 0:
        while text.startswith("{{{", start):
            start += 1  # the innermost two of several braces belong to the hole
        if start > at:
            parts.append(text[at:start])
        words, at = _words(text, start)
        parts.append(Hole(words, start + 1))
    if at < len(text):
        parts.append(text[at:])
    return tuple(parts)


def json_path(text: str) -> tuple[str | int, ...]:
    """The keys and indexes of a path such as `data.items[0].id` or `data["odd name"]`. Raises TemplateError."""
    at = 1 if text.startswith("$") else 0
    found: list[str | int] = []
    while at < len(text):
        match = _PATH_PART.match(text, at)
        if match is None or (match[1] is not None and bool(found or at) != text.startswith(".", at)):
            raise TemplateError(f"at character {at + 1}: a key, or an index such as [0], is expected")
        if match[3] is not None:
            try:
                found.append(str(json.loads(match[3])))
            except ValueError as error:
                raise TemplateError(f"at character {at + 1}: this is no JSON string") from error
        else:
            found.append(match[1] if match[1] is not None else int(match[2]))
        at = match.end()
    if not found:
        raise TemplateError("a path has at least one key")
    return tuple(found)


def _words(text: str, start: int) -> tuple[tuple[Word, ...], int]:
    """The words of the hole whose braces begin at `start`, and where it ends."""
    words: list[Word] = []
    at = start + 2
    while True:
        space = _SPACE.match(text, at)
        assert space is not None
        at = space.end()
        if text.startswith("}}", at):
            if not words:
                raise TemplateError(f"at character {start + 1}: nothing stands between the braces")
            return tuple(words), at + 2
        if at == len(text):
            raise TemplateError(f"at character {start + 1}: `{{{{` without `}}}}`")
        word, at = _word(text, at, start)
        words.append(word)


def _word(text: str, at: int, start: int) -> tuple[Word, int]:
    found: list[str] = []
    quoted = False
    while at < len(text) and not text[at].isspace() and not text.startswith("}}", at):
        if plain := _PLAIN.match(text, at):
            found.append(plain.group())
            at = plain.end()
        elif quote := next((quote for quote in ('"', "'", '\\"') if text.startswith(quote, at)), None):
            part, at = _quoted(text, at, quote)
            found.append(part)
            quoted = True
        elif text[at] == "\\":
            part, at = _escape(text, at)
            found.append(part)
        else:
            raise TemplateError(f"at character {start + 1}: `{{{{` without `}}}}`")
    return Word("".join(found), quoted), at


def _quoted(text: str, at: int, quote: str) -> tuple[str, int]:
    """What stands in the quotes that begin at `at`, and where they end."""
    begin = at
    found: list[str] = []
    at += len(quote)
    while not text.startswith(quote, at):
        if at >= len(text):
            raise TemplateError(f"at character {begin + 1}: these quotes are not closed")
        if text[at] == "\\":
            part, at = _escape(text, at)
        else:
            part, at = text[at], at + 1
        found.append(part)
    return "".join(found), at + len(quote)


def _escape(text: str, at: int) -> tuple[str, int]:
    match = _ESCAPE.match(text, at)
    if match is None:
        raise TemplateError(f"at character {at + 1}: no such escape; a backslash itself is written twice")
    if match.group() == "\\'":
        return "'", match.end()
    found = str(json.loads(f'"{match.group()}"'))
    if any("\ud800" <= character <= "\udfff" for character in found):
        raise TemplateError(f"at character {at + 1}: half of a character")
    return found, match.end()
