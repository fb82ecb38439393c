"""JavaScript literals for values that people type.

Everything of a user's enters a script through here, as a JSON-like literal, so nothing can end its string: quotes,
backslashes and line ends of every kind are escaped, as are characters that would make a script read differently
from what it does (direction marks, invisible characters).
"""

from __future__ import annotations

import json
import math
import re

from pydantic import JsonValue

_HIDDEN = re.compile("[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]")
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*\Z")
_LINE = 100
_MAX_SAFE_INTEGER = 2**53 - 1


class Raw(str):
    """JavaScript of our own, put into a literal as it is. Never made from anything a user typed."""

    __slots__ = ()


def string(text: str) -> str:
    """A string literal, on one line whatever the text."""
    return _HIDDEN.sub(lambda match: f"\\u{ord(match.group()):04x}", json.dumps(text, ensure_ascii=False))


def literal(value: JsonValue, indent: str = "") -> str:
    """A literal of a JSON value, over several lines where it is long; `indent` is that of the line it starts on."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        members = [f"{_key(key)}: {literal(item, indent + '  ')}" for key, item in value.items()]
        nested = any(isinstance(item, dict) and item for item in value.values())
        return _block("{ ", members, " }", indent, flat=not nested)
    if isinstance(value, list):
        return _block("[", [literal(item, indent + "  ") for item in value], "]", indent, flat=True)
    return string(value) if isinstance(value, str) else json.dumps(value, allow_nan=False)


def is_exact(value: JsonValue) -> bool:
    """True when JavaScript holds `value` without loss: no integers beyond 2^53, no infinite numbers."""
    if isinstance(value, dict):
        return all(is_exact(item) for item in value.values())
    if isinstance(value, list):
        return all(is_exact(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) <= _MAX_SAFE_INTEGER


def _key(name: str) -> str:
    # In a literal, a plain `__proto__` would set the object's prototype instead of a property.
    if name == "__proto__":
        return '["__proto__"]'
    return name if _IDENTIFIER.match(name) else string(name)


def _block(start: str, parts: list[str], end: str, indent: str, *, flat: bool) -> str:
    """An object or array, on one line where that is asked for and short enough."""
    if not parts:
        return start.strip() + end.strip()
    line = ", ".join(parts)
    if flat and len(indent) + len(line) < _LINE and "\n" not in line:
        return start + line + end
    inner = "".join(f"{indent}  {part},\n" for part in parts)
    return f"{start.strip()}\n{inner}{indent}{end.strip()}"
