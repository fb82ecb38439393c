"""The rules of the server are those of the protos, and what is picked out of a group is all that breaks one."""

from __future__ import annotations

import json
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane_server.logingest import columns, rules, suspects
from opsplane_server.logingest.rules import END_OF_TIME, Reason, Window
from opsplane_server.rpc.interceptors.validation import field_path
from protovalidate import Validator

from tests.unit.logingest.records import NOW, good, records

EVER = Window(0, END_OF_TIME)
VALIDATOR = Validator()


def decoded(*some: records_pb2.LogRecord) -> columns.Records:
    """Records as the server sees them."""
    batch = records_pb2.LogBatch(records=some)
    return columns.decode([logingest_pb2.StreamLogsRequest(batch=batch).SerializeToString()]).records


def judge(record: records_pb2.LogRecord, window: Window = EVER) -> rules.Violation | None:
    """What the server finds wrong with a record."""
    return rules.violation(decoded(record).row(0), window)


def broken_by_proto(record: records_pb2.LogRecord) -> list[str]:
    """The fields that break a rule of the protos, by number; the rule of the whole record is about metadata_json."""
    paths = {
        field_path(violation).split("[")[0] or "metadata_json" for violation in VALIDATOR.collect_violations(record)
    }
    return [field.name for field in record.DESCRIPTOR.fields if field.name in paths]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(records())
def test_a_record_is_wrong_where_the_protos_say_so(record: records_pb2.LogRecord) -> None:
    found = judge(record)
    broken = broken_by_proto(record)
    assert (found is None) == (not broken)
    if found is not None:
        assert found.field.split("[")[0] == broken[0]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(records(), min_size=1, max_size=8))
def test_no_wrong_record_goes_unseen_in_a_group(some: Sequence[records_pb2.LogRecord]) -> None:
    group = decoded(*some)
    seen = set(suspects.find(group, EVER).tolist())
    assert {index for index in range(len(some)) if rules.violation(group.row(index), EVER) is not None} <= seen


def test_of_good_records_none_is_looked_at_one_by_one() -> None:
    some = [good(user_id="é" * 100, http_status=200, duration_ms=1.5, metadata={"k": "語"}) for _ in range(50)]
    assert not len(suspects.find(decoded(*some), EVER))


@pytest.mark.parametrize("field", ["message", "stack_trace"])
@pytest.mark.parametrize(("character", "beyond"), [("a", 0), ("a", 1), ("語", 0), ("語", 1)])
def test_a_text_of_a_megabyte_is_the_longest(field: str, character: str, beyond: int) -> None:
    count = (1 << 20) // len(character.encode()) + beyond
    found = judge(good(**{field: character * count}))
    if beyond:
        assert found is not None
        assert (found.field, found.reason) == (field, Reason.REASON_TOO_LONG)
    else:
        assert found is None


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"level": 0}, "level", Reason.REASON_REQUIRED),
        ({"level": 9}, "level", Reason.REASON_UNKNOWN_VALUE),
        ({"service": ""}, "service", Reason.REASON_REQUIRED),
        ({"service": "s" * 101}, "service", Reason.REASON_TOO_LONG),
        ({"message": ""}, "message", Reason.REASON_REQUIRED),
        ({"user_id": "a\0"}, "user_id", Reason.REASON_NUL_CHARACTER),
        ({"http_status": 99}, "http_status", Reason.REASON_OUT_OF_RANGE),
        ({"http_status": -1}, "http_status", Reason.REASON_OUT_OF_RANGE),
        ({"duration_ms": float("nan")}, "duration_ms", Reason.REASON_OUT_OF_RANGE),
        ({"duration_ms": -0.5}, "duration_ms", Reason.REASON_OUT_OF_RANGE),
        ({"metadata": {f"{n}": "" for n in range(129)}}, "metadata", Reason.REASON_TOO_MANY),
        ({"metadata": {"": "v"}}, "metadata", Reason.REASON_REQUIRED),
        ({"metadata": {"k": "a\0"}}, 'metadata["k"]', Reason.REASON_NUL_CHARACTER),
        ({"metadata": {"k": "v"}, "metadata_json": "{}"}, "metadata_json", Reason.REASON_CONFLICT),
        ({"metadata_json": "[1]"}, "metadata_json", Reason.REASON_INVALID_JSON),
    ],
)
def test_the_reason_names_what_is_wrong(fields: dict[str, object], field: str, reason: Reason.Reason.ValueType) -> None:
    found = judge(good(**fields))
    assert found is not None
    assert (found.field, found.reason) == (field, reason)


def with_bytes(text: bytes) -> rules.Violation | None:
    """What is wrong with a record whose user id has these bytes, whatever they are."""
    record = good(user_id="u" * len(text)).SerializeToString().replace(b"u" * len(text), text)
    message = b"\x12" + bytes([len(record)]) + record
    message = b"\x12" + bytes([len(message)]) + message
    group = columns.decode([message, message]).records
    assert list(suspects.find(group, EVER)) == ([0, 1] if rules.violation(group.row(0), EVER) else [])
    return rules.violation(group.row(0), EVER)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=40).filter(lambda text: b"u" not in text))
def test_bytes_that_are_no_utf8_are_refused_and_all_others_are_not(text: bytes) -> None:
    found = with_bytes(text)
    try:
        valid = "\0" not in text.decode()
    except UnicodeDecodeError:
        assert found is not None
        assert (found.field, found.reason) == ("user_id", Reason.REASON_INVALID_UTF8)
    else:
        assert (found is None) == valid


def test_a_character_split_between_two_records_is_none() -> None:
    first, second = "語".encode()[:1], "語".encode()[1:]
    messages = []
    for text in (first, second):
        record = good(user_id="u" * len(text)).SerializeToString().replace(b"u" * len(text), text)
        batch = b"\x12" + bytes([len(record)]) + record
        messages.append(b"\x12" + bytes([len(batch)]) + batch)
    assert list(suspects.find(columns.decode(messages).records, EVER)) == [0, 1]


@pytest.mark.parametrize(
    ("seconds", "nanos", "reason"),
    [
        (-1, 0, Reason.REASON_OUT_OF_RANGE),
        (END_OF_TIME, 0, Reason.REASON_OUT_OF_RANGE),
        (NOW, -1, Reason.REASON_OUT_OF_RANGE),
        (NOW, 1_000_000_000, Reason.REASON_OUT_OF_RANGE),
        (2**62, 0, Reason.REASON_OUT_OF_RANGE),
        (NOW - 101, 0, Reason.REASON_TIME_NOT_ACCEPTED),
        (NOW + 100, 0, Reason.REASON_TIME_NOT_ACCEPTED),
        (NOW - 100, 0, None),
        (NOW + 99, 999_999_999, None),
    ],
)
def test_times_outside_of_the_window_are_refused(
    seconds: int, nanos: int, reason: Reason.Reason.ValueType | None
) -> None:
    record = good()
    record.timestamp.seconds, record.timestamp.nanos = seconds, nanos
    window = Window(NOW - 100, NOW + 100)
    found = judge(record, window)
    assert (found and found.reason) == reason
    assert list(suspects.find(decoded(record), window)) == ([] if reason is None else [0])


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False),
              st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3))
def test_every_json_object_without_nul_is_taken(value: dict[str, object]) -> None:
    text = json.dumps(value)
    has_nul = "\\u0000" in text.replace("\\\\", "")
    assert (rules.json_object_fault(text.encode()) is None) == (not has_nul)


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "[]", '"text"', "1", "null", "{", '{"a":}', '{"a":NaN}', '{"a":Infinity}', '{"a":1e400}',
        '{"a":"\\ud800"}', '{"a":"\\u0000"}', '{"\\u0000":1}', '{"a":["\\u0000"]}', '{"a":1e-20000}',
        '{"a":0.' + "0" * 16384 + "1}", '{"a":' + "[" * 64 + "]" * 64 + "}", '{"a":"\x01"}',
    ],
)  # fmt: skip
def test_what_jsonb_can_not_hold_is_refused(text: str) -> None:
    assert rules.json_object_fault(text.encode()) is not None


@pytest.mark.parametrize(
    "text",
    ['{"a":"\\\\u0000"}', '{"a":1e300}', '{"a":1e-300}', '{"a":' + "[" * 63 + "]" * 63 + "}", '{"a":1,"a":2}',
     '{"a":"' + "[" * 100 + '"}', '{"a":"1e-99999"}', ' {"a" : 1} '],
)  # fmt: skip
def test_what_only_looks_as_if_is_taken(text: str) -> None:
    orjson.loads(text)
    assert rules.json_object_fault(text.encode()) is None
