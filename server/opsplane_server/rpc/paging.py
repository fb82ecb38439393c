"""Page sizes and page tokens of List methods.

A token carries the sort key of the last row sent, so a page costs the same however far it is and rows made
meanwhile shift nothing. It is bound to the method, parent and filter that it was made for, and holds no secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from opsplane_server.errors import InvalidArgument

DEFAULT = 50
MAX = 1000

Key = tuple[str | int | None, ...]

_MAX_TOKEN = 2048  # as the protos say


@dataclass(frozen=True, slots=True)
class PageRequest:
    """How many rows to return, and the key of the row to start after; None on the first page."""

    size: int
    key: Key | None


def page_request(
    page_size: int, page_token: str, *, binding: str, key_types: Sequence[type | tuple[type, ...]] | None = None
) -> PageRequest:
    """Read both fields of a List request; `binding` is what the token belongs to (method, parent, filter).

    Sizes above 1000 mean 1000: our own protos refuse them, those of others (google.longrunning) do not. With
    `key_types` each part of the key must be of that type; a forged token then never reaches the database.
    Raises InvalidArgument on `page_size` or `page_token`.
    """
    if page_size < 0:
        raise InvalidArgument.of("page_size", "must not be negative")
    size = min(page_size, MAX) or DEFAULT
    if not page_token:
        return PageRequest(size, None)
    key = _decode(page_token, binding)
    if key_types is not None and not _fits(key, key_types):
        raise _refused()
    return PageRequest(size, key)


def next_page_token(binding: str, key: Sequence[str | int | None]) -> str:
    """Return the token of the page after the row with this sort key."""
    text = json.dumps([_digest(binding), *key], separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(token: str, binding: str) -> Key:
    if len(token) > _MAX_TOKEN:
        raise _refused()
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        parts = json.loads(raw)
    except (ValueError, binascii.Error, RecursionError):
        raise _refused() from None
    if not isinstance(parts, list) or not parts or parts[0] != _digest(binding):
        raise _refused()
    key = tuple(parts[1:])
    if not all(_storable(part) for part in key):
        raise _refused()
    return key


def _fits(key: Key, kinds: Sequence[type | tuple[type, ...]]) -> bool:
    return len(key) == len(kinds) and all(isinstance(part, kind) for part, kind in zip(key, kinds, strict=True))


def _storable(part: object) -> bool:
    """Whether PostgreSQL takes the value: text without NUL and lone surrogates, a bigint, or null."""
    if isinstance(part, str):
        return _is_text(part)
    if isinstance(part, bool):
        return False
    return part is None or (isinstance(part, int) and -(2**63) <= part < 2**63)


def _is_text(part: str) -> bool:
    try:
        part.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in part


def _digest(binding: str) -> str:
    return hashlib.sha256(binding.encode()).hexdigest()[:12]


def _refused() -> InvalidArgument:
    return InvalidArgument.of("page_token", "is not one of this list with this filter", reason="PAGE_TOKEN_INVALID")
