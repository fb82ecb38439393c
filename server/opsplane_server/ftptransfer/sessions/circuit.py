"""Leaving a server alone that failed again and again, for longer each time; then one session tries it."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorReason, Failure
from opsplane_server.ftptransfer.sessions.condition import Condition

FAILURES: Final = 5
"""Sessions in a row that cannot be opened before the server is left alone."""
REFUSED_LOGINS: Final = 3
"""The same for a wrong password: servers lock accounts."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0


def failed(condition: Condition, failure: Failure, now: float) -> Condition:
    """A session could not be opened."""
    failures = condition.failures + 1
    condition = replace(condition, failures=failures, failure=failure)
    if failures < (REFUSED_LOGINS if failure.reason is ErrorReason.LOGIN else FAILURES):
        return condition
    if is_open(condition, now):
        return condition  # sessions that began before fail still
    pause = min(FIRST_PAUSE * 2.0**condition.pauses, LONGEST_PAUSE)
    # Not all pods at the same moment.
    return replace(condition, pauses=condition.pauses + 1, open_until=now + pause * random.uniform(0.8, 1.2))  # noqa: S311


def succeeded(condition: Condition) -> Condition:
    """A session was opened."""
    return replace(condition, failures=0, pauses=0, open_until=0.0)


def is_open(condition: Condition, now: float) -> bool:
    """Whether the server is left alone."""
    # Later than ever possible means that the clock was set.
    return now < condition.open_until < now + 2 * LONGEST_PAUSE


def is_half_open(condition: Condition, now: float) -> bool:
    """Whether the server was left alone and no session has been opened since: one may try."""
    return condition.open_until > 0 and not is_open(condition, now)


def retry_time(condition: Condition) -> datetime:
    """When it may be tried."""
    return datetime.fromtimestamp(condition.open_until, UTC)
