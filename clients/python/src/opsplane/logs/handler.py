"""A handler of standard logging."""

from __future__ import annotations

import importlib
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

from opsplane.logingest.v1 import records_pb2
from opsplane.logs.encoding import error_type
from opsplane.logs.shipper import Shipper

# What every LogRecord of logging has; the rest was given as `extra`.
_PLAIN = vars(logging.makeLogRecord({}))
_STANDARD = frozenset(_PLAIN) | {"message", "asctime", "taskName"}
_OWN_LOGGER = "opsplane.logs"


class OpsplaneHandler(logging.Handler):
    """Ships what is logged: `OpsplaneHandler(shipper)`, or with the settings of a shipper of its own.

    Fields of LogRecord that are given as `extra` (user_id, http_status, ...) become these fields, all other extras
    become metadata. An exception becomes `error_type` and `stack_trace`. Trace and span are those of OpenTelemetry, if
    it is installed. With a formatter, the message is what that makes. `close` closes a shipper of its own.
    """

    def __init__(self, shipper: Shipper | None = None, *, level: int | str = logging.NOTSET, **settings: Any) -> None:
        super().__init__(level)
        self.shipper = Shipper(**settings) if shipper is None else shipper
        self._owned = shipper is None
        self._within = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Ships a record; never raises."""
        if self.shipper.is_sender_thread() or record.name == _OWN_LOGGER:
            return  # what shipping itself logs would never end
        if getattr(self._within, "emit", False):
            self.shipper.drop()  # logged by what is being converted: counted, as it can not be shipped
            return
        self._within.emit = True
        try:
            self.shipper.log_fields(level_of(record.levelno), self._message(record), _fields(record))
        except Exception:
            self.shipper.drop()
            self.handleError(record)
        finally:
            self._within.emit = False

    def flush(self) -> None:
        """Does nothing: logging flushes at its shutdown, and the shipper sees to that by itself."""

    def close(self) -> None:
        """Closes the shipper, if it was made by this handler."""
        if self._owned:
            self.shipper.close(self.shipper.settings.exit_seconds)
        super().close()

    def createLock(self) -> None:  # noqa: N802 - the name of logging
        """Makes a lock that locks nothing: the shipper is thread-safe, so that threads need not wait for each other."""
        self.lock = _NoLock()  # type: ignore[assignment]

    def _message(self, record: logging.LogRecord) -> str:
        if self.formatter is None:
            return record.getMessage()
        return self.formatter.format(record)


class _NoLock:
    def acquire(self) -> None: ...

    def release(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def level_of(number: int) -> int:
    """The level of a number of standard logging."""
    if number >= logging.CRITICAL:
        return records_pb2.LEVEL_FATAL
    if number >= logging.ERROR:
        return records_pb2.LEVEL_ERROR
    if number >= logging.WARNING:
        return records_pb2.LEVEL_WARN
    if number >= logging.INFO:
        return records_pb2.LEVEL_INFO
    return records_pb2.LEVEL_DEBUG if number >= logging.DEBUG else records_pb2.LEVEL_TRACE


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"timestamp": record.created, "logger": record.name, "thread": record.threadName}
    if _current_span is not None:
        fields.update(current_trace())
    if record.exc_info and record.exc_info[1] is not None:
        fields["error_type"] = error_type(record.exc_info[1])
        fields["stack_trace"] = record.exc_text or "".join(traceback.format_exception(*record.exc_info))
    elif record.stack_info:
        fields["stack_trace"] = record.stack_info
    given = record.__dict__
    if len(given) > len(_PLAIN):  # mostly there is nothing extra
        for name in given.keys() - _STANDARD:
            fields[name] = given[name]
    return fields


def _find_current_span() -> Callable[[], Any] | None:
    try:
        return importlib.import_module("opentelemetry.trace").get_current_span  # type: ignore[no-any-return]
    except ImportError:
        return None


_current_span = _find_current_span()


def current_trace() -> dict[str, str]:
    """Trace and span that this code runs in, by OpenTelemetry; nothing without."""
    if _current_span is None:
        return {}
    context = _current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
