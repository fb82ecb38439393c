"""The call under way: who asked for what, readable anywhere below the servicer.

The interceptors record it in a context variable. Each call runs in a task of its own, so nothing leaks from one to
the next; tasks that a handler starts inherit it, deadline included.
"""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from dataclasses import dataclass

from opsplane_server.rpc.identity import Principal


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC: full method name, caller and its address, W3C trace id (empty without a trace), deadline."""

    method: str
    principal: Principal
    peer: str
    trace_id: str = ""
    deadline: float | None = None  # of time.monotonic(), seconds; None: the caller waits for ever

    def remaining(self) -> float | None:
        """Seconds until the caller gives up, never negative; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_current: ContextVar[Call] = ContextVar("opsplane_call")


def current_call() -> Call:
    """Return the call under way; LookupError outside of one."""
    return _current.get()


def find_call() -> Call | None:
    """Return the call under way, None outside of one."""
    return _current.get(None)


def set_call(call: Call) -> Token[Call]:
    """Make this the call of the current task and of those that it starts; `reset_call` takes what it returns."""
    return _current.set(call)


def reset_call(token: Token[Call]) -> None:
    """Undo `set_call`."""
    _current.reset(token)
