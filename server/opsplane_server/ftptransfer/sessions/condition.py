"""How a server fares, known to all processes of a pod: a small file beside the places, rewritten at changes only."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, Failure

_FRESH: Final = 0.2
"""Seconds for which what was read is believed."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Times are seconds since 1970, so that they are the same for every process.

    version: of the connection's settings; with others everything is forgotten.
    limit: how many sessions the server lets the pod have, 0 while it never refused one; changed at `limit_time`.
    failures: how many times in a row no session could be opened.
    pauses: how many times in a row it was left alone, now until `open_until`.
    """

    version: str = ""
    limit: int = 0
    limit_time: float = 0.0
    failures: int = 0
    pauses: int = 0
    open_until: float = 0.0
    failure: Failure | None = None


class SharedCondition:
    """The condition of one connection."""

    def __init__(self, file: Path, version: str) -> None:
        self._file = file
        self._initial = self._known = Condition(version)
        self._read_at = 0.0

    def read(self) -> Condition:
        """What is known, at most a fraction of a second old."""
        now = time.monotonic()
        if now - self._read_at > _FRESH:
            self._known = self._load()
            self._read_at = now
        return self._known

    def change(self, action: Callable[[Condition], Condition]) -> Condition:
        """Replaces what is known, one process at a time; returns what is known then."""
        with self._locked():
            before = self._load()
            after = action(before)
            if after != before:
                self._save(after)
        self._known = after
        self._read_at = time.monotonic()
        return after

    def _load(self) -> Condition:
        try:
            known = _decode(json.loads(self._file.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return self._initial
        return known if known.version == self._initial.version else self._initial

    def _save(self, condition: Condition) -> None:
        content = asdict(condition)
        if condition.failure is not None and condition.failure.time is not None:
            content["failure"]["time"] = condition.failure.time.timestamp()
        temporary = self._file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(content))
        temporary.replace(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _decode(content: dict[str, Any]) -> Condition:
    condition = Condition(**content)
    failure = content["failure"]
    if failure is None:
        return condition
    when = failure["time"]
    with suppress(TypeError):
        when = datetime.fromtimestamp(when, UTC)
    return replace(
        condition,
        failure=Failure(
            ErrorCode(failure["code"]),
            ErrorReason(failure["reason"]),
            failure["message"],
            failure["ftp_code"],
            failure["retryable"],
            when,
        ),
    )
