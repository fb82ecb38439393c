"""How many sessions a server takes: found out from its refusals, and tried again after a while."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from opsplane_server.ftptransfer.sessions.condition import Condition

QUIET_SECONDS: Final = 60.0
"""How long a server must not have refused a session before it is asked for one more."""

LATE_SECONDS: Final = 5.0
"""How long a server may count sessions that have ended."""


def lowered(condition: Condition, sessions: int, now: float) -> Condition:
    """After a refusal, while the pod had so many other sessions."""
    limit = max(1, sessions)
    if condition.limit and condition.limit <= limit:
        limit = condition.limit  # another process was refused at the same time
    return replace(condition, limit=limit, limit_time=now)


def counts_late(condition: Condition, now: float) -> bool:
    """Whether a server that refuses a session, though the pod has none, may count some that have just ended."""
    return bool(condition.limit) and 0 <= now - condition.limit_time < LATE_SECONDS


def raised(condition: Condition, maximum: int, now: float) -> Condition:
    """One more session after a quiet time; none of it when there is no limit."""
    if not condition.limit or 0 <= now - condition.limit_time < QUIET_SECONDS:
        return condition
    limit = condition.limit + 1
    return replace(condition, limit=0 if limit >= maximum else limit, limit_time=now)


def effective(condition: Condition, maximum: int) -> int:
    """Most sessions of the pod now."""
    return min(condition.limit or maximum, maximum)
