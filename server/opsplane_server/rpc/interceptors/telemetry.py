"""A span, two metrics and one log line for every RPC.

Ours instead of the OpenTelemetry project's own interceptor, which costs several times as much and breaks handlers
that use `context.write()`. Names follow its semantic conventions for RPCs.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Any, Final

import grpc
import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Histogram

from opsplane_server.errors import OpsplaneError
from opsplane_server.rpc.calls import find_call
from opsplane_server.rpc.interceptors.chain import Context, Handler, Method, incoming_metadata
from opsplane_server.rpc.interceptors.spans import Start, starter

log = structlog.get_logger(__name__)

_STATUS_CODE: Final = "rpc.response.status_code"
_HEALTH: Final = "grpc.health.v1.Health"

# What the conventions advise for seconds; a stream that is open longer counts in the last bucket.
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_SPAN_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
_SERVER_FAULTS: Final = frozenset({"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

# Native Prometheus metrics: recording one costs a tenth of what the OpenTelemetry SDK takes, whose exporter serves
# them from the same registry. The names are those that it would give them.
_LABELS: Final = ("rpc_service", "rpc_method", "rpc_response_status_code")
_DURATION: Final = Histogram(
    "rpc_server_call_duration_seconds",
    "Duration of RPCs, from the request's arrival to the end of its handler.",
    _LABELS,
    buckets=_BUCKETS,
)
_REQUESTS: Final = Counter("rpc_server_requests", "RPCs that ended.", _LABELS)

_TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})

_PLAIN_TRACE: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NO_CONTEXT: Final = otel_context.Context()

_propagator = TraceContextTextMapPropagator()


class Telemetry:
    """Observes every RPC but health checks, which would drown the others."""

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer(__name__, tracer_provider=tracer_provider)

    def wrap(self, method: Method, handler: Handler) -> Handler:
        """Observe the method."""
        if method.service == _HEALTH:
            return handler
        name = method.path[1:]
        # Most calls end well: what differs is set at the end.
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, _STATUS_CODE: "OK"}
        return _Observed(method, handler, starter(self._tracer, __name__, name, attributes)).call


class _Observed:
    """One method under observation."""

    def __init__(self, method: Method, handler: Handler, start_span: Start) -> None:
        self._method = method
        self._handler = handler
        self._start_span = start_span
        self._meters: dict[str, tuple[Histogram, Counter]] = {}

    async def call(self, request: Any, context: Context) -> Any:
        started = time.perf_counter()
        span = self._start_span(_parent())
        # Not detached: each call is a task with a context of its own, which ends with it.
        otel_context.attach(trace.set_span_in_context(span))
        code, reason = "UNKNOWN", ""
        try:
            response = await self._handler(request, context)
            code = _NAMES[_number(context.code())]
            return response
        except grpc.aio.AbortError as aborted:
            code = _NAMES[_number(context.code())]
            reason = _reason(aborted)
            raise
        except (asyncio.CancelledError, grpc.aio.InternalError):
            # The caller left or its time is up; gRPC's InternalError is a write that came too late for it.
            code = "DEADLINE_EXCEEDED" if _out_of_time(context, started) else "CANCELLED"
            raise
        finally:
            self._finish(context, span, code, reason, time.perf_counter() - started)

    def _finish(self, context: Context, span: trace.Span, code: str, reason: str, seconds: float) -> None:
        if code != "OK":
            span.set_attribute(_STATUS_CODE, code)
        if code in _SPAN_ERRORS:
            span.set_attribute("error.type", code)
            span.set_status(Status(StatusCode.ERROR))
        span.end()
        duration, requests = self._meters.get(code) or self._open_meters(code)
        duration.observe(seconds)
        requests.inc()
        level = _level(code)
        if log.is_enabled_for(level):
            call = find_call()
            log.log(
                level,
                "rpc finished",
                method=self._method.path,
                code=code,
                duration_ms=round(seconds * 1000, 3),
                principal=call.principal.name if call else "",
                peer=context.peer(),
                reason=reason,
            )

    def _open_meters(self, code: str) -> tuple[Histogram, Counter]:
        labels = (self._method.service, self._method.name, code)
        meters = self._meters[code] = (_DURATION.labels(*labels), _REQUESTS.labels(*labels))
        return meters


def _out_of_time(context: Context, started: float) -> bool:
    """Whether a call that was cut off had come to its deadline.

    The caller cuts it off at its own deadline, a little before ours: gRPC rounds timeouts up on the wire.
    """
    remaining: float | None = context.time_remaining()
    return remaining is not None and remaining <= 0.02 + 0.01 * (time.perf_counter() - started)


def _level(code: str) -> int:
    """Return the level of a call's log line: what went well is told by metrics and traces, at a tenth of the cost."""
    if code == "OK":
        return logging.DEBUG
    return logging.ERROR if code in _SERVER_FAULTS else logging.INFO


def _parent() -> otel_context.Context:
    """Return the caller's trace context, empty without one (never what this process happens to have)."""
    carrier = {key: value for key, value in incoming_metadata() if key in _TRACE_HEADERS}
    if not carrier:
        return _NO_CONTEXT
    plain = _PLAIN_TRACE.fullmatch(str(carrier.get("traceparent"))) if len(carrier) == 1 else None
    if plain is None:
        return _propagator.extract(carrier, _NO_CONTEXT)
    # What nearly every caller sends; the propagator takes twice as long.
    caller = SpanContext(int(plain[1], 16), int(plain[2], 16), True, TraceFlags(int(plain[3], 16)))
    return trace.set_span_in_context(NonRecordingSpan(caller), _NO_CONTEXT)


def _reason(aborted: grpc.aio.AbortError) -> str:
    """Return why a call was refused: the domain error that the abort was raised for."""
    cause = aborted.__context__
    return cause.reason if isinstance(cause, OpsplaneError) else ""


def _number(code: Any) -> int:
    """Return a status code as its number: what gRPC keeps is one, what its types promise is a StatusCode."""
    return int(code.value[0]) if isinstance(code, grpc.StatusCode) else int(code or 0)
