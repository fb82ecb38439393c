"""What the FTP server's refusals mean, as `errors.proto` defines them."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.sessions.replies import Reply


class Purpose(Enum):
    """What the refused command was for, which decides what an unclear refusal means."""

    LOGIN = "login"
    READ = "read"
    WRITE = "write"
    OTHER = "other"


# What servers say. The codes alone do not tell a missing file from a forbidden one (550), nor a wrong password from a
# full house (530).
_MISSING = re.compile(r"no such|not found|not exist|n.t exist|cannot find|can.t find|no file|missing", re.IGNORECASE)
_DENIED = re.compile(r"denied|permission|permitted|forbidden|not allowed|privilege|read.only|access", re.IGNORECASE)
_FULL = re.compile(r"no space|disk.{0,4} full|quota|insufficient|not enough|exceeded", re.IGNORECASE)
_CROWDED = re.compile(
    r"too many|maximum|max(?:imum)? (?:number|clients|connections)|(?:connection|session|user)s? limit", re.IGNORECASE
)
_TLS = re.compile(r"\b(?:TLS|SSL)\b", re.IGNORECASE)

MAX_QUOTED: Final = 300
"""Most characters of what the server said that go into a message."""


def refusal(command: str, reply: Reply, purpose: Purpose = Purpose.OTHER) -> TransferFailure:
    """The failure that a refusal stands for. `command` is its first word: arguments may be secret."""
    reason, code = _meaning(reply, purpose)
    said = reply.text[:MAX_QUOTED]
    return TransferFailure(reason, f"{command}: {reply.code} {said}".rstrip(), ftp_code=reply.code, code=code)


def _meaning(reply: Reply, purpose: Purpose) -> tuple[ErrorReason, ErrorCode | None]:
    code, text = reply.code, reply.text
    if purpose is Purpose.LOGIN:
        return _login(code, text), None
    match code:
        case 421:
            return ErrorReason.CONNECTION_LOST, None
        case 425:
            return ErrorReason.DATA_CONNECTION, None
        case 426:
            return ErrorReason.CONNECTION_LOST, None
        case 452 | 552:
            return ErrorReason.NO_SPACE, None
        case 521 | 522 | 533 | 534 | 535 | 536 | 537:
            return ErrorReason.TLS, None
        case 530 | 532:
            return ErrorReason.CONNECTION_LOST, None  # the server has forgotten the login
        case 450 | 451 | 550 | 551 | 553:
            return _file(code, text, purpose)
        case _:
            return ErrorReason.UNSPECIFIED, None


def _login(code: int, text: str) -> ErrorReason:
    if code == 421 or _CROWDED.search(text):
        return ErrorReason.TOO_MANY_SESSIONS
    if code in (534, 521, 522) or (code == 530 and _TLS.search(text)):
        return ErrorReason.TLS
    if code in (530, 430, 332, 532, 331):
        return ErrorReason.LOGIN
    return ErrorReason.UNREACHABLE


def _file(code: int, text: str, purpose: Purpose) -> tuple[ErrorReason, ErrorCode | None]:
    if _FULL.search(text):
        return ErrorReason.NO_SPACE, None
    if code in (450, 451):
        # Busy, or an error of the server's own: it may pass.
        return ErrorReason.UNSPECIFIED, ErrorCode.IO_ERROR
    if _TLS.search(text):
        return ErrorReason.TLS, None
    if purpose is Purpose.WRITE:
        # NOT_FOUND speaks of the source; a folder that is missing at the destination is no such case.
        return ErrorReason.ACCESS_DENIED, None
    if _MISSING.search(text):
        return ErrorReason.NOT_FOUND, None
    if _DENIED.search(text):
        return ErrorReason.ACCESS_DENIED, None
    if purpose is Purpose.READ:
        return ErrorReason.NOT_FOUND, None
    return ErrorReason.UNSPECIFIED, ErrorCode.IO_ERROR
