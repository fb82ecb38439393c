"""Why a transfer fails. The names are those of `errors.proto` without their prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final


class ErrorCode(StrEnum):
    """Class of a failure, as messages of the queue name it."""

    INVALID_CONFIG = "INVALID_CONFIG"
    FILE_NOT_FOUND = "FILE_NOT_FOUND"
    CONNECTION_ERROR = "CONNECTION_ERROR"
    IO_ERROR = "IO_ERROR"
    UNKNOWN_ERROR = "UNKNOWN_ERROR"


class ErrorReason(StrEnum):
    """What happened, closer than its class."""

    UNSPECIFIED = "UNSPECIFIED"
    ENDS = "ENDS"
    NO_CONNECTION = "NO_CONNECTION"
    PATH = "PATH"
    MALFORMED_TASK = "MALFORMED_TASK"
    NOT_FOUND = "NOT_FOUND"
    HOST_UNKNOWN = "HOST_UNKNOWN"
    UNREACHABLE = "UNREACHABLE"
    LOGIN = "LOGIN"
    TLS = "TLS"
    TOO_MANY_SESSIONS = "TOO_MANY_SESSIONS"
    DATA_CONNECTION = "DATA_CONNECTION"
    CONNECTION_LOST = "CONNECTION_LOST"
    STALLED = "STALLED"
    ACCESS_DENIED = "ACCESS_DENIED"
    NO_SPACE = "NO_SPACE"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    SOURCE_CHANGED = "SOURCE_CHANGED"
    EXISTS = "EXISTS"
    CHILDREN_FAILED = "CHILDREN_FAILED"


_CODES: Final[Mapping[ErrorReason, ErrorCode]] = {
    ErrorReason.UNSPECIFIED: ErrorCode.UNKNOWN_ERROR,
    ErrorReason.ENDS: ErrorCode.INVALID_CONFIG,
    ErrorReason.NO_CONNECTION: ErrorCode.INVALID_CONFIG,
    ErrorReason.PATH: ErrorCode.INVALID_CONFIG,
    ErrorReason.MALFORMED_TASK: ErrorCode.INVALID_CONFIG,
    ErrorReason.NOT_FOUND: ErrorCode.FILE_NOT_FOUND,
    ErrorReason.HOST_UNKNOWN: ErrorCode.CONNECTION_ERROR,
    ErrorReason.UNREACHABLE: ErrorCode.CONNECTION_ERROR,
    ErrorReason.LOGIN: ErrorCode.CONNECTION_ERROR,
    ErrorReason.TLS: ErrorCode.CONNECTION_ERROR,
    ErrorReason.TOO_MANY_SESSIONS: ErrorCode.CONNECTION_ERROR,
    ErrorReason.DATA_CONNECTION: ErrorCode.CONNECTION_ERROR,
    ErrorReason.CONNECTION_LOST: ErrorCode.CONNECTION_ERROR,
    ErrorReason.STALLED: ErrorCode.CONNECTION_ERROR,
    ErrorReason.ACCESS_DENIED: ErrorCode.IO_ERROR,
    ErrorReason.NO_SPACE: ErrorCode.IO_ERROR,
    ErrorReason.SIZE_MISMATCH: ErrorCode.IO_ERROR,
    ErrorReason.CHECKSUM_MISMATCH: ErrorCode.IO_ERROR,
    ErrorReason.SOURCE_CHANGED: ErrorCode.IO_ERROR,
    ErrorReason.EXISTS: ErrorCode.IO_ERROR,
    ErrorReason.CHILDREN_FAILED: ErrorCode.UNKNOWN_ERROR,
}

_HOPELESS: Final = frozenset(
    {
        ErrorReason.LOGIN,
        ErrorReason.TLS,
        ErrorReason.ACCESS_DENIED,
        ErrorReason.EXISTS,
        ErrorReason.CHILDREN_FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as it is kept and shown. `ftp_code` is 0 when the FTP server did not reply."""

    code: ErrorCode
    reason: ErrorReason
    message: str
    ftp_code: int = 0
    retryable: bool = False
    time: datetime | None = None


class TransferFailure(Exception):
    """What sessions, local files and attempts raise.

    `reason` decides the class and whether another attempt may help, unless they are given. The message is for people
    and never has a password.
    """

    def __init__(
        self,
        reason: ErrorReason,
        message: str,
        *,
        ftp_code: int = 0,
        code: ErrorCode | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.ftp_code = ftp_code
        self.code = code or _CODES[reason]
        self.retryable = is_retryable(self.code, reason) if retryable is None else retryable
        self.unanswered = False
        """Whether the server said nothing about how it ended, so that it may still be at what it was asked for."""

    @property
    def failure(self) -> Failure:
        """The failure as data."""
        return Failure(self.code, self.reason, self.message, self.ftp_code, self.retryable)


class HeldBack(TransferFailure):
    """No session was tried to be opened, because the server failed again and again. It may be tried at `retry_time`."""

    def __init__(self, failure: Failure | None, retry_time: datetime) -> None:
        reason = failure.reason if failure else ErrorReason.UNREACHABLE
        message = f"held back until {retry_time:%H:%M:%S} UTC"
        if failure:
            message = f"{message}: {failure.message}"
        super().__init__(reason, message, ftp_code=failure.ftp_code if failure else 0, retryable=True)
        self.retry_time = retry_time


def is_retryable(code: ErrorCode, reason: ErrorReason) -> bool:
    """Whether waiting can help, as `errors.proto` promises it."""
    return code not in (ErrorCode.INVALID_CONFIG, ErrorCode.FILE_NOT_FOUND) and reason not in _HOPELESS
