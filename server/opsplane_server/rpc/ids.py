"""Ids of resources for which the caller chose none."""

from __future__ import annotations

import secrets
import threading
import time

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: sorts as its values do
_RANDOM_BITS = 65
_LENGTH = 22  # 110 bits: 45 of milliseconds (until the year 3084) and 65 random ones

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """Return a new id that sorts after every id this process made before: 23 characters, `i` and base 32.

    Ids of different processes sort by the millisecond and do not collide. Fits `[a-z]([a-z0-9-]{0,61}[a-z0-9])?`.
    """
    global _last
    with _lock:
        fresh = time.time_ns() // 1_000_000 << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
        # Two ids of one millisecond, or a clock set back: count on from the last one.
        _last = value = max(fresh, _last + 1)
    return "i" + encode(value)


def encode(value: int) -> str:
    """Write a number below 2**110 as 22 digits; greater numbers sort later."""
    return "".join(_DIGITS[value >> 5 * place & 31] for place in reversed(range(_LENGTH)))
