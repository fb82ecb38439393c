"""Spans of RPCs that cost a third of the SDK's.

A span of the SDK takes 15 us (attributes cleaned one by one, three locks, limits), more than all other work of the
interceptors together. `ServerSpan` keeps what a call needs and hands the SDK's processors the same `ReadableSpan` in
the end; ids, sampling, batching and export stay the SDK's. With another implementation of the OpenTelemetry API its
own spans are used.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, Tracer
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes, AttributeValue

Start = Callable[[Context], trace.Span]

_MOST: Final = 128  # of attributes, events and links, as the SDK's default; a stream may be open for days
_UNSET: Final = Status()


def starter(tracer: trace.Tracer, scope: str, name: str, attributes: Mapping[str, AttributeValue]) -> Start:
    """Return what starts the spans of one method, as children of the caller's trace context."""
    if not isinstance(tracer, Tracer):
        return lambda parent: tracer.start_span(name, parent, SpanKind.SERVER, attributes)
    return _Starter(tracer, InstrumentationScope(scope), name, attributes).start


class _Starter:
    def __init__(
        self, tracer: Tracer, scope: InstrumentationScope, name: str, attributes: Mapping[str, AttributeValue]
    ) -> None:
        self.tracer = tracer
        self.scope = scope
        self._name = name
        self._attributes = attributes

    def start(self, parent: Context) -> trace.Span:
        tracer, name, attributes = self.tracer, self._name, self._attributes
        caller: SpanContext | None = trace.get_current_span(parent).get_span_context()
        if caller is None or not caller.is_valid:
            caller = None
        trace_id = tracer.id_generator.generate_trace_id() if caller is None else caller.trace_id
        sampling = tracer.sampler.should_sample(parent, trace_id, name, SpanKind.SERVER, attributes)
        flags = TraceFlags.SAMPLED if sampling.decision is Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT
        span_id = tracer.id_generator.generate_span_id()
        context = SpanContext(trace_id, span_id, False, TraceFlags(flags), sampling.trace_state)
        if sampling.decision is Decision.DROP:
            return NonRecordingSpan(context)
        return ServerSpan(self, name, context, caller, dict(sampling.attributes or {}))


class ServerSpan(trace.Span):
    """One span. Used by one task at a time, so without locks."""

    def __init__(
        self,
        starter: _Starter,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, AttributeValue],
    ) -> None:
        self._starter = starter
        self._name = name
        self._context = context
        self._parent = parent
        self._attributes = attributes
        self._events: list[Event] = []
        self._links: list[Link] = []
        self._status = _UNSET
        self._ended = False
        self._start_time = time.time_ns()

    def get_span_context(self) -> SpanContext:
        """Return the ids that go on with the trace."""
        return self._context

    def is_recording(self) -> bool:
        """Whether it has not ended."""
        return not self._ended

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set an attribute, unless there are too many."""
        if not self._ended and (len(self._attributes) < _MOST or key in self._attributes):
            self._attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Note that something happened, now or at `timestamp` (nanoseconds)."""
        if not self._ended and len(self._events) < _MOST:
            self._events.append(Event(name, attributes, timestamp))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Link another span."""
        if not self._ended and len(self._links) < _MOST:
            self._links.append(Link(context, attributes))

    def update_name(self, name: str) -> None:
        """Rename the span."""
        self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status; OK is final, and UNSET changes nothing."""
        new = status if isinstance(status, Status) else Status(status, description)
        if not self._ended and self._status.status_code is not StatusCode.OK and not new.is_unset:
            self._status = new

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Note an exception with its traceback."""
        kind = type(exception)
        noted: dict[str, AttributeValue] = {
            "exception.type": kind.__qualname__
            if kind.__module__ == "builtins"
            else f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**noted, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """End the span and give it to the SDK's processors."""
        if self._ended:
            return
        self._ended = True
        tracer = self._starter.tracer
        tracer.span_processor.on_end(
            ReadableSpan(
                self._name,
                self._context,
                self._parent,
                tracer.resource,
                self._attributes,
                self._events,
                self._links,
                SpanKind.SERVER,
                None,
                self._status,
                self._start_time,
                time.time_ns() if end_time is None else end_time,
                self._starter.scope,
            )
        )
