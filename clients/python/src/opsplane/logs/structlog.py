"""A processor of structlog."""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from opsplane.logs.handler import current_trace
from opsplane.logs.shipper import Shipper


class OpsplaneProcessor:
    """Ships every event and hands it on unchanged. Put it before the renderer, and before what formats exceptions.

        structlog.configure(processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            OpsplaneProcessor(shipper),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ])

    `event` becomes the message, `level` (or the method that was called) the level, `exc_info` or `exception` the error,
    `logger` and the fields of LogRecord by their names what they are, all else metadata. `timestamp` is taken from the
    event where it is a time.
    """

    def __init__(self, shipper: Shipper) -> None:
        self.shipper = shipper

    def __call__(self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """As structlog calls it."""
        if not self.shipper.is_sender_thread():
            try:
                self._ship(logger, method_name, event_dict)
            except Exception:  # a logger must not fail its caller
                self.shipper.drop()
        return event_dict

    def _ship(self, logger: Any, method_name: str, event_dict: Mapping[str, Any]) -> None:
        fields = {**current_trace(), **event_dict}
        message = fields.pop("event", "")
        level = fields.pop("level", method_name)
        if "logger" not in fields and isinstance(name := getattr(logger, "name", None), str):
            fields["logger"] = name
        error = _error(fields.pop("exc_info", None))
        if error is not None:
            fields["error"] = error
        elif isinstance(text := fields.pop("exception", None), str):
            fields["stack_trace"] = text
        self.shipper.log_fields(level if isinstance(level, str) else method_name, message, fields)


def _error(exc_info: Any) -> BaseException | None:
    """The exception that `exc_info` says: itself, as a tuple, or True for the one at hand."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if len(exc_info) == 3 and isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None
