"""How a load generator ended, in words and for programs. k6's codes are those of its package `errext/exitcodes`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from opsplane_server.loadtesting.runners.console import ConsoleLine
from opsplane_server.loadtesting.runners.port import Exited, Lost

THRESHOLDS_CROSSED = "THRESHOLDS_CROSSED"
ABORTED = "ABORTED"

_ENDINGS = {
    99: (THRESHOLDS_CROSSED, "thresholds of the script were crossed"),
    100: ("SETUP_TIMEOUT", "the script's setup took too long"),
    101: ("TEARDOWN_TIMEOUT", "the script's teardown took too long"),
    102: ("TIMEOUT", "k6 gave up waiting"),
    103: (ABORTED, "k6 was stopped by its REST API"),
    104: ("SCRIPT_ERROR", "k6 does not accept the script's options"),
    105: (ABORTED, "k6 was told to stop"),
    107: ("SCRIPT_ERROR", "the script failed"),
    108: ("SCRIPT_ABORTED", "the script ended the test itself"),
    109: ("GENERATOR_CRASHED", "k6 crashed"),
    110: ("SCRIPT_FAILED", "the script marked the test as failed"),
    # Signals that come before k6 listens to them, while it reads the script.
    -signal.SIGINT: (ABORTED, "k6 was told to stop"),
    -signal.SIGTERM: (ABORTED, "k6 was told to stop"),
    -signal.SIGKILL: ("GENERATOR_KILLED", "k6 was killed"),
}
_MAX_DETAIL = 1000


@dataclass(frozen=True, slots=True)
class Ending:
    """Why it ended: `reason` in UPPER_SNAKE_CASE and words for people; both are empty when it ended as planned.

    `complete` says whether it could send all its metrics.
    """

    reason: str = ""
    message: str = ""
    complete: bool = True


def describe(status: Exited | Lost, console: Sequence[ConsoleLine]) -> Ending:
    """How it ended, with the last error that it wrote."""
    if status == Exited(0):
        return Ending()
    if isinstance(status, Lost):
        return Ending("GENERATOR_LOST", "k6 is gone, and nobody saw how it ended", complete=False)
    reason, message = _ENDINGS.get(status.code, ("GENERATOR_ERROR", f"k6 ended with {status.code}"))
    error = next((line.message for line in reversed(console) if line.level == "ERROR" and line.message), "")
    # That it was told to stop says more than what it wrote about it.
    if error and reason != ABORTED:
        message = f"{message}: {error[:_MAX_DETAIL]}"
    return Ending(reason, message, complete=status.code > 0 and reason != "GENERATOR_CRASHED")
