"""What the application is told of its shipping: figures, and problems as they begin and end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

_AGAIN_SECONDS = 60.0


class ProblemKind(Enum):
    """What a problem is about."""

    UNREACHABLE = "unreachable"  # no server answers; records go to the spool
    REFUSED = "refused"  # the server refuses this sender: token, role, settings; records go to the spool
    OVERLOADED = "overloaded"  # the server asks to wait, or a quota is used up; records go to the spool
    REJECTED = "rejected"  # the server refused records for good
    DROPPED = "dropped"  # records were dropped, because memory and spool are full or the shipper is closed
    SPOOL = "spool"  # the spool folder cannot be used, or holds what nobody ships
    DAMAGED = "damaged"  # a part of the spool was not readable and was left out
    INTERNAL = "internal"  # a fault of the shipper or of a callback


@dataclass(frozen=True, slots=True)
class Problem:
    """One line for people. `over` is true for the line that says that a problem has ended."""

    kind: ProblemKind
    message: str
    over: bool = False


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures since the shipper was made (in a forked child: since the fork), in records unless said otherwise."""

    accepted: int
    """Taken from the application."""
    acknowledged: int
    """Of those: stored by the server, as it has confirmed."""
    rejected: int
    """Of those: refused by the server for good."""
    pending: int
    """Of those: neither yet, in memory or in the spool."""
    dropped: int
    """Lost to want of room: not taken, or not shipped and not spooled when the shipper was closed."""
    spilled: int
    """Written to the spool."""
    recovered: int
    """Of earlier or dead processes, found in the spool and brought to the server."""
    memory_bytes: int
    """What records in memory take now."""
    spool_bytes: int
    """What this process has in the spool now, that of dead processes which it took over included."""
    connected: bool
    """True when the server has answered on the stream that is open."""
    error: str
    """Why the last stream ended; empty when connected."""


class Reporter:
    """Tells of problems without flooding: of a lasting one when it begins and ends, of others at most once a minute."""

    def __init__(self, on_problem: Callable[[Problem], None] | None) -> None:
        self._on_problem = on_problem or _to_stderr
        self._open: set[ProblemKind] = set()
        self._quiet_until: dict[ProblemKind, float] = {}

    def begin(self, kind: ProblemKind, message: str) -> None:
        """Tells of a problem that lasts, unless it is known."""
        if kind not in self._open:
            self._open.add(kind)
            self._tell(Problem(kind, message))

    def end(self, kind: ProblemKind, message: str) -> None:
        """Tells that a problem is over, if there was one."""
        if kind in self._open:
            self._open.discard(kind)
            self._tell(Problem(kind, message, over=True))

    def tell(self, kind: ProblemKind, message: str) -> None:
        """Tells of something that happened, unless something of this kind was told in the last minute."""
        now = time.monotonic()
        if now >= self._quiet_until.get(kind, 0.0):
            self._quiet_until[kind] = now + _AGAIN_SECONDS
            self._tell(Problem(kind, message))

    def _tell(self, problem: Problem) -> None:
        with suppress(Exception):  # whatever a callback does, records are shipped
            self._on_problem(problem)


def _to_stderr(problem: Problem) -> None:
    # Not through logging: it may lead back here. There may be no standard error at all.
    if sys.stderr is not None:
        sys.stderr.write(f"opsplane.logs: {problem.message}\n")
