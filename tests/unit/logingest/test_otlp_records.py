import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opsplane.logingest.v1 import records_pb2
from opsplane_server.logingest.otlp_records import convert, source_of

SECOND = 1_700_000_000


def any_value(value: Any) -> AnyValue:
    """A value of Python as OTLP has it."""
    result = AnyValue()
    if value is None:
        return result
    if isinstance(value, bool):
        result.bool_value = value
    elif isinstance(value, str):
        result.string_value = value
    elif isinstance(value, int):
        result.int_value = value
    elif isinstance(value, float):
        result.double_value = value
    elif isinstance(value, bytes):
        result.bytes_value = value
    elif isinstance(value, dict):
        result.kvlist_value.SetInParent()
        result.kvlist_value.values.extend(attributes(value))
    else:
        result.array_value.SetInParent()
        result.array_value.values.extend(map(any_value, value))
    return result


def attributes(values: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def converted(
    record: LogRecord | None = None,
    *,
    of: dict[str, Any] | None = None,
    resource: dict[str, Any] | None = None,
    scope: InstrumentationScope | None = None,
) -> records_pb2.LogRecord:
    """A record with these attributes, of a resource with those, as LogIngest gets it."""
    record = record or LogRecord()
    record.attributes.extend(attributes(of or {}))
    source = source_of(Resource(attributes=attributes(resource or {})), scope or InstrumentationScope())
    return convert(record, source)


def metadata(record: records_pb2.LogRecord) -> dict[str, Any]:
    assert not record.metadata
    found: dict[str, Any] = json.loads(record.metadata_json or "{}")
    return found


def test_a_record_with_all_that_has_a_field() -> None:
    record = converted(
        LogRecord(
            time_unix_nano=SECOND * 10**9 + 123_456_789,
            observed_time_unix_nano=1,
            severity_number=SeverityNumber.SEVERITY_NUMBER_ERROR2,
            severity_text="ERROR",
            body=any_value("Cannot go on"),
            trace_id=bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"),
            span_id=bytes.fromhex("00f067aa0ba902b7"),
            flags=1,
        ),
        of={
            "thread.name": "MainThread",
            "user.id": "u-1",
            "session.id": "s-5",
            "http.request.method": "POST",
            "url.path": "/orders",
            "http.response.status_code": 201,
            "exception.type": "ConnectionError",
            "exception.stacktrace": "Traceback ...",
        },
        resource={
            "service.name": "orders",
            "service.version": "1.4.2",
            "deployment.environment.name": "production",
            "host.name": "web-1",
        },
        scope=InstrumentationScope(name="orders.http"),
    )

    expected = records_pb2.LogRecord(
        level=records_pb2.LEVEL_ERROR,
        service="orders",
        message="Cannot go on",
        service_version="1.4.2",
        environment="production",
        host="web-1",
        logger="orders.http",
        thread="MainThread",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        span_id="00f067aa0ba902b7",
        user_id="u-1",
        session_id="s-5",
        http_method="POST",
        http_path="/orders",
        http_status=201,
        error_type="ConnectionError",
        stack_trace="Traceback ...",
    )
    expected.timestamp.seconds, expected.timestamp.nanos = SECOND, 123_456_789
    assert record == expected


def test_names_of_older_conventions() -> None:
    record = converted(
        of={"http.method": "GET", "http.target": "/", "http.status_code": "404", "enduser.id": "u", "thread.id": 17},
        resource={"deployment.environment": "test", "k8s.pod.name": "pod-1"},
    )
    assert (record.http_method, record.http_path, record.http_status) == ("GET", "/", 404)
    assert (record.user_id, record.thread, record.environment, record.host) == ("u", "17", "test", "pod-1")
    assert metadata(record) == {}


def test_the_better_of_two_attributes_has_the_field_and_the_other_stays() -> None:
    record = converted(
        of={"thread.id": 17, "thread.name": "worker"}, resource={"k8s.pod.name": "pod-1", "host.name": "web-1"}
    )
    assert (record.host, record.thread) == ("web-1", "worker")
    assert metadata(record) == {"k8s.pod.name": "pod-1", "thread.id": 17}


@pytest.mark.parametrize(
    ("number", "text", "level", "kept"),
    [
        (1, "", records_pb2.LEVEL_TRACE, None),
        (4, "TRACE", records_pb2.LEVEL_TRACE, None),
        (5, "Debug", records_pb2.LEVEL_DEBUG, None),
        (9, "info", records_pb2.LEVEL_INFO, None),
        (12, "audit", records_pb2.LEVEL_INFO, "audit"),
        (16, "WARNING", records_pb2.LEVEL_WARN, None),
        (17, "WARNING", records_pb2.LEVEL_ERROR, "WARNING"),
        (24, "", records_pb2.LEVEL_FATAL, None),
        (0, "err", records_pb2.LEVEL_ERROR, None),
        (0, "CRITICAL", records_pb2.LEVEL_FATAL, None),
        (0, "odd", records_pb2.LEVEL_INFO, "odd"),
        (0, "", records_pb2.LEVEL_INFO, None),
        (25, "", records_pb2.LEVEL_INFO, None),
        (-1, "warn", records_pb2.LEVEL_WARN, None),
    ],
)
def test_levels(number: int, text: str, level: records_pb2.Level.ValueType, kept: str | None) -> None:
    record = converted(LogRecord(severity_number=SeverityNumber.ValueType(number), severity_text=text))
    assert record.level == level
    assert metadata(record).get("severity_text") == kept


@pytest.mark.parametrize(
    ("body", "event", "message"),
    [
        ("text", "event", "text"),
        ("", "event", "event"),
        (None, "event", "event"),
        (None, "", "-"),
        ({"order": {"id": 42, "items": ["a", None]}}, "", '{"order":{"id":42,"items":["a",null]}}'),
        ([1.5, True, b"\x00\xff"], "", '[1.5,true,"AP8="]'),
        (0, "", "0"),
        ({}, "", "{}"),
        (math.nan, "", "NaN"),
    ],
)
def test_bodies(body: Any, event: str, message: str) -> None:
    record = converted(LogRecord(body=any_value(body), event_name=event))
    assert record.message == message
    assert metadata(record) == ({"event.name": event} if event else {})


def test_what_has_no_field_is_metadata() -> None:
    values = {
        "order.id": 2**63 - 1,
        "ratio": 0.25,
        "bad": [math.nan, math.inf, -math.inf],
        "nested": {"a": {"b": [1, "x", False, None]}},
        "raw": b"\x00\x01",
        "text": "Grüße \N{PILE OF POO} \x01",
        "": "no name",
        "service.name": "of the record",
    }
    scope = InstrumentationScope(
        name="lib", version="2.0", attributes=attributes({"short": "scope"}), dropped_attributes_count=1
    )
    record = converted(LogRecord(dropped_attributes_count=3), of=values, resource={"region": "eu"}, scope=scope)
    assert metadata(record) == values | {
        "bad": ["NaN", "Infinity", "-Infinity"],
        "raw": "AAE=",
        "dropped_attributes_count": 3,
        "short": "scope",
        "region": "eu",
        "otel.scope.version": "2.0",
        "otel.scope.dropped_attributes_count": 1,
    }


def test_what_is_overruled_keeps_another_name() -> None:
    record = converted(of={"region": "of the record"}, resource={"region": "of the resource"})
    assert metadata(record) == {"region": "of the record", "resource.region": "of the resource"}


@pytest.mark.parametrize(
    "values",
    [
        {"http.response.status_code": 99},
        {"http.response.status_code": "1000"},
        {"http.response.status_code": "٤٠٤"},
        {"http.response.status_code": True},
        {"http.request.method": "M" * 21},
        {"http.request.method": 5},
        {"exception.type": "E" * 256},
        {"session.id": ["s"]},
        {"thread.name": {"id": 1}},
        {"thread.id": "t" * 256},
        {"thread.id": 0.5},
    ],
)
def test_what_does_not_fit_in_its_field_stays(values: dict[str, Any]) -> None:
    record = converted(of=values)
    assert metadata(record) == values
    record.ClearField("metadata_json")
    assert record == converted()


def test_of_a_resource_what_does_not_fit_stays() -> None:
    resource = {"host.name": "h" * 256, "service.version": 3, "k8s.pod.name": "pod"}
    record = converted(resource=resource, scope=InstrumentationScope(name="s" * 256))
    assert (record.host, record.service_version, record.logger) == ("pod", "", "")
    assert metadata(record) == {"host.name": "h" * 256, "service.version": 3, "otel.scope.name": "s" * 256}


def test_a_service_is_known_or_said_to_be_unknown() -> None:
    assert converted().service == "unknown_service"
    assert converted(resource={"service.name": ""}).service == "unknown_service"
    assert converted(resource={"service.name": "s" * 101}).service == "s" * 101  # rejected where it is stored


def test_times_and_ids() -> None:
    record = converted(LogRecord(observed_time_unix_nano=5, trace_id=bytes(16), span_id=bytes(8)))
    assert (record.timestamp.seconds, record.timestamp.nanos) == (0, 5)
    assert (record.trace_id, record.span_id) == ("", "")
    assert not converted().HasField("timestamp")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.text() | st.sampled_from(
    ["thread.id", "thread.name", "http.method", "http.response.status_code", "service.name", "host.name", "user.id"]
)
ATTRIBUTES = st.dictionaries(NAMES, VALUES, max_size=8)


@given(ATTRIBUTES, ATTRIBUTES, VALUES, st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1), st.text())
def test_any_record_becomes_one(
    of: dict[str, Any], resource: dict[str, Any], body: Any, time: int, severity: int, text: str
) -> None:
    record = converted(
        LogRecord(
            body=any_value(body),
            time_unix_nano=time,
            severity_number=SeverityNumber.ValueType(severity),
            severity_text=text,
        ),
        of=of,
        resource=resource,
    )
    assert record.message
    assert record.service
    assert record.level in range(1, 7)
    kept = metadata(record)
    fields = {text for text in (record.thread, record.http_method, record.user_id) if text}
    for name, value in of.items():
        # As it is kept under a name that means nothing: infinity and bytes are texts there.
        plain = metadata(converted(of={"plain": value})).get("plain")
        # An empty text of a field is stored as none.
        assert name in kept or str(plain) in fields or plain == "" or str(plain) == str(record.http_status)
