"""Logs: a line a record on standard error, JSON for machines or coloured for people.

What libraries write with `logging` takes the same way. Each record has timestamp, level, event, logger, service,
the trace it belongs to, in a worker its number, and its own fields; what looks secret is blotted out.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from opsplane_server.config import LoggingSettings

SERVICE: Final = "opsplane"

_SECRET: Final = re.compile(
    r"passw(or)?d|secret|token|authorization|credential|cookie|(api|private|access)_?key|dsn", re.IGNORECASE
)
_FIRST: Final = ("timestamp", "level", "event", "logger", "service", "worker")
_BLOTTED: Final = "[redacted]"


class _Logger(structlog.WriteLogger):
    """Writes whole lines, and knows its name as loggers of the standard library do."""

    def __init__(self, file: TextIO, name: str) -> None:
        super().__init__(file)
        self.name = name


def configure(settings: LoggingSettings, *, worker: int | None = None, file: TextIO | None = None) -> None:
    """Sets up logging for this process, of which there is one; to standard error unless `file` is given."""
    stream = file or sys.stderr
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    level = logging.getLevelNamesMapping()[settings.level]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _origin(worker),
        _add_trace,
        redact,
    ]
    last: list[Processor]
    if console:
        last = [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    else:
        last = [structlog.processors.format_exc_info, _in_order, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _Logger(stream, names[0] if names else SERVICE),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Blots out the values of fields whose names say that they are secret, at any depth."""
    return _redacted(event)


def _redacted(fields: MutableMapping[str, Any]) -> dict[str, Any]:
    return {
        key: _BLOTTED if _SECRET.search(str(key)) else _redacted(dict(value)) if isinstance(value, Mapping) else value
        for key, value in fields.items()
    }


def _in_order(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Puts what every record has in front."""
    first = {key: event[key] for key in _FIRST if key in event}
    return {**first, **event}


def _origin(worker: int | None) -> Processor:
    origin: dict[str, Any] = {"service": SERVICE}
    if worker is not None:
        origin["worker"] = worker

    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {**origin, **event}

    return add


def _add_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event
