"""When a task is tried again after a failure: later each time, and not all tasks at the same moment."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorReason, Failure

_GROWTH: Final = 4.0


@dataclass(frozen=True, slots=True)
class _Backoff:
    """The longest delay after the first attempt, and the longest of all, in seconds."""

    first: float
    most: float


# A broken connection is often the only one, a full disk or house stays full for a while.
_BACKOFFS: Final[Mapping[ErrorReason, _Backoff]] = {
    ErrorReason.CONNECTION_LOST: _Backoff(1.0, 300.0),
    ErrorReason.DATA_CONNECTION: _Backoff(1.0, 300.0),
    ErrorReason.STALLED: _Backoff(1.0, 300.0),
    ErrorReason.SIZE_MISMATCH: _Backoff(1.0, 300.0),
    ErrorReason.CHECKSUM_MISMATCH: _Backoff(1.0, 300.0),
    ErrorReason.TOO_MANY_SESSIONS: _Backoff(5.0, 300.0),
    ErrorReason.SOURCE_CHANGED: _Backoff(10.0, 600.0),
    ErrorReason.NO_SPACE: _Backoff(30.0, 1800.0),
}
_OTHERS: Final = _Backoff(4.0, 600.0)


def delay(failure: Failure, attempt: int) -> float | None:
    """Seconds to wait after the attempt of this number, 1 for the first; None when no other one can help.

    It is drawn evenly from zero to the longest delay, which grows fourfold: so tasks that failed together come back
    spread out.
    """
    if not failure.retryable:
        return None
    backoff = _BACKOFFS.get(failure.reason, _OTHERS)
    longest = min(backoff.most, backoff.first * _GROWTH ** min(attempt - 1, 20))
    return random.uniform(0.0, longest)  # noqa: S311 - spreads load, keeps no secret
