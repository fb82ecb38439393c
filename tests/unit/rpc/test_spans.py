"""Our spans against those of the SDK: what an exporter gets must be the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, DEFAULT_ON, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opsplane_server.errors import InvalidArgument
from opsplane_server.rpc.interceptors.spans import ServerSpan, starter

NAME = "opsplane.rpctest.v1.Echo/Say"
ATTRIBUTES = {"rpc.system.name": "grpc", "rpc.method": NAME}
CALLER = SpanContext(0xAF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True, TraceFlags(TraceFlags.SAMPLED))
UNSAMPLED = SpanContext(CALLER.trace_id, CALLER.span_id, True, TraceFlags(TraceFlags.DEFAULT))


def context(caller: SpanContext | None) -> Context:
    return Context() if caller is None else trace.set_span_in_context(NonRecordingSpan(caller), Context())


class Recorder:
    """A tracer of the SDK and what it exports."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, resource=Resource({"service.name": "test"}))
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("scope")

    def ours(self, caller: SpanContext | None = CALLER) -> trace.Span:
        return starter(self.tracer, "scope", NAME, ATTRIBUTES)(context(caller))

    def theirs(self, caller: SpanContext | None = CALLER) -> trace.Span:
        return self.tracer.start_span(NAME, context(caller), SpanKind.SERVER, ATTRIBUTES)


def live(span: trace.Span) -> None:
    """Use everything a span can do."""
    span.set_attribute("a", 1)
    span.set_attributes({"a": 2, "b": [True, False]})
    span.add_event("step", {"number": 7}, timestamp=5)
    span.add_link(CALLER, {"why": "because"})
    span.record_exception(ValueError("broken"), timestamp=6)
    span.record_exception(InvalidArgument("broken"), {"extra": 1}, timestamp=7, escaped=True)
    span.update_name("renamed")
    span.set_status(StatusCode.ERROR, "it broke")
    span.set_status(StatusCode.UNSET)
    span.end(end_time=2**62)


def exported(recorder: Recorder, span: trace.Span) -> dict[str, Any]:
    live(span)
    [ended] = recorder.exporter.get_finished_spans()
    told: dict[str, Any] = json.loads(ended.to_json())
    assert ended.start_time is not None
    assert ended.instrumentation_scope is not None
    told["scope"] = ended.instrumentation_scope.name
    told.pop("start_time")
    told["context"].pop("span_id")
    return told


@pytest.mark.parametrize("sampler", [ALWAYS_ON, DEFAULT_ON])
def test_exporter_gets_what_the_sdk_gives(sampler: Sampler) -> None:
    ours, theirs = Recorder(sampler), Recorder(sampler)
    assert exported(ours, ours.ours()) == exported(theirs, theirs.theirs())
    assert isinstance(ours.ours(), ServerSpan)


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF, DEFAULT_ON])
@pytest.mark.parametrize("caller", [None, CALLER, UNSAMPLED], ids=["root", "sampled", "unsampled"])
def test_sampling_is_the_sdks(sampler: Sampler, caller: SpanContext | None) -> None:
    recorder = Recorder(sampler)
    ours, theirs = recorder.ours(caller), recorder.theirs(caller)
    assert ours.is_recording() == theirs.is_recording()
    assert ours.get_span_context().trace_flags.sampled == theirs.get_span_context().trace_flags.sampled
    assert ours.get_span_context().is_valid
    if caller is not None:
        assert ours.get_span_context().trace_id == caller.trace_id


def test_ok_is_final() -> None:
    recorder = Recorder()
    span = recorder.ours()
    span.set_status(Status(StatusCode.OK))
    span.set_status(StatusCode.ERROR)
    span.end()
    [ended] = recorder.exporter.get_finished_spans()
    assert ended.status.is_ok


def test_nothing_changes_after_the_end() -> None:
    recorder = Recorder()
    span = recorder.ours()
    span.end()
    live(span)
    [ended] = recorder.exporter.get_finished_spans()
    assert dict(ended.attributes or {}) == ATTRIBUTES
    assert ended.events == ()
    assert ended.links == ()
    assert ended.status.is_unset
    assert not span.is_recording()


def test_span_of_a_long_stream_stays_small() -> None:
    recorder = Recorder()
    span = recorder.ours()
    for number in range(1000):
        span.set_attribute(f"key{number}", number)
        span.add_event("step")
        span.add_link(CALLER)
    span.set_attribute("key0", "replaced")
    span.end()
    [ended] = recorder.exporter.get_finished_spans()
    assert len(ended.attributes or {}) == len(ended.events) == len(ended.links) == 128
    assert dict(ended.attributes or {})["key0"] == "replaced"


def test_other_implementations_use_their_own_spans() -> None:
    span = starter(trace.NoOpTracer(), "scope", NAME, ATTRIBUTES)(context(CALLER))
    assert span.get_span_context() == CALLER
