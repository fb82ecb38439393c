"""Messages of the queue, in and out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.ftptransfer.model import Location, Origin, Priority
from opsplane_server.ftptransfer.queues.kafka.messages import Record, Rejected, Result, TaskMessage, parse

SEED = {
    "task_id": "uuid-1234-5678",
    "src_id": "remote-server-a",
    "src_path": "/remote/path/file.txt",
    "dst_id": "local",
    "dst_path": "/local/path/file.txt",
    "metadata": {"priority": "high", "retry_count": 0},
}


def record(value: object, *, offset: int = 7, time: int = 1_800_000_000_000) -> Record:
    """A message; what is no bytes is written as JSON."""
    return Record("ftp-tasks", 2, offset, time, value if isinstance(value, bytes) else json.dumps(value).encode())


def parsed(value: object, **place: int) -> TaskMessage:
    message = parse(record(value, **place))
    assert isinstance(message, TaskMessage), message
    return message


def refused(value: object) -> Rejected:
    message = parse(record(value))
    assert isinstance(message, Rejected), message
    return message


def without(*names: str, **fields: Any) -> dict[str, Any]:
    return {name: value for name, value in {**SEED, **fields}.items() if name not in names}


def test_the_message_of_the_ftp_pooler_becomes_a_transfer() -> None:
    transfer = parsed(SEED).transfer
    assert transfer.task_id == transfer.task_key == "uuid-1234-5678"
    assert transfer.source == Location("remote-server-a", "/remote/path/file.txt")
    assert transfer.destination == Location("local", "/local/path/file.txt")
    assert (transfer.priority, transfer.retry_count, transfer.metadata) == (Priority.HIGH, 0, None)
    assert transfer.origin == Origin("kafka", "ftp-tasks", 2, 7)
    assert json.loads(transfer.message) == SEED


@pytest.mark.parametrize("missing", [{}, {"task_id": None}, {"task_id": ""}])
def test_a_missing_task_id_is_that_of_the_place_of_the_message(missing: dict[str, Any]) -> None:
    content = {**without("task_id"), **missing}
    transfer = parsed(content).transfer
    assert transfer.task_id == transfer.task_key == "ftp-tasks-2-7-1800000000000"
    assert json.loads(transfer.message)["task_id"] == transfer.task_id
    assert parsed(content).transfer.task_id == transfer.task_id
    assert parsed(content, offset=8).transfer.task_id != transfer.task_id
    assert parsed(content, time=1_800_000_000_001).transfer.task_id != transfer.task_id


@pytest.mark.parametrize(
    ("metadata", "priority", "retry_count", "kept"),
    [
        ({"priority": "LOW", "retry_count": 3, "customer": "c-17"}, Priority.LOW, 3, {"customer": "c-17"}),
        ({"priority": "urgent", "retry_count": "3"}, Priority.NORMAL, 0, None),
        ({"priority": 5, "retry_count": True}, Priority.NORMAL, 0, None),
        ({"retry_count": 1000}, Priority.NORMAL, 100, None),
        ({"retry_count": -1}, Priority.NORMAL, 0, None),
        ({"parts": [1, {"a": None}]}, Priority.NORMAL, 0, {"parts": [1, {"a": None}]}),
        ({}, Priority.NORMAL, 0, None),
        (None, Priority.NORMAL, 0, None),
    ],
)
def test_priority_and_retry_count_are_honoured_and_the_rest_of_metadata_is_kept(
    metadata: object, priority: Priority, retry_count: int, kept: object
) -> None:
    content = {**SEED, "metadata": metadata}
    transfer = parsed(content).transfer
    assert (transfer.priority, transfer.retry_count, transfer.metadata) == (priority, retry_count, kept)
    assert json.loads(transfer.message) == content


def test_fields_of_other_names_are_ignored() -> None:
    assert json.loads(parsed({**SEED, "created": "today", "status": "success"}).transfer.message) == SEED


@pytest.mark.parametrize("value", [None, b"", b"  \r\n"])
def test_an_empty_message_says_nothing(value: bytes | None) -> None:
    assert Record("ftp-tasks", 0, 0, 0, value).is_empty


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"hello", "not JSON"),
        (b'{"task_id": NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"src_id": "\\ud800"}', "not JSON"),
        ([SEED], "a JSON object is expected, not a list"),
        ("text", "a JSON object is expected, not text"),
        (None, "a JSON object is expected, not null"),
        ({**SEED, "task_id": 17}, "task_id: text is expected, not a number"),
        ({**SEED, "task_id": "x" * 201}, "task_id: at most 200"),
        ({**SEED, "task_id": "a\nb"}, "task_id: at most 200"),
        (without("src_id"), "src_id: is missing"),
        ({**SEED, "src_path": ""}, "src_path: is empty"),
        ({**SEED, "src_path": ["/a"]}, "src_path: text is expected, not a list"),
        ({**SEED, "dst_path": "/a\nb"}, "dst_path: has NUL or line breaks"),
        ({**SEED, "dst_path": "ä" * 2049}, "dst_path: longer than 4096 bytes"),
        ({**SEED, "dst_id": "a\x00"}, "dst_id: no connection has such a name"),
        ({**SEED, "metadata": "high"}, "metadata: a JSON object is expected, not text"),
        ({**SEED, "metadata": {"a": "x" * 16384}}, "metadata: more than 16 KiB"),
        ({**SEED, "metadata": {"a": "b\x00"}}, "metadata: has NUL in a text"),
        ({**SEED, "metadata": {"a\x00": 1}}, "metadata: has NUL in a text"),
    ],
)
def test_what_is_no_task_says_why(value: object, why: str) -> None:
    assert refused(value).why.startswith(why)


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert parsed({**SEED, "metadata": {"a": "\\u0000"}}).transfer.metadata == {"a": "\\u0000"}


def test_a_byte_order_mark_is_no_error() -> None:
    assert parsed(b"\xef\xbb\xbf" + json.dumps(SEED).encode()).transfer.task_id == SEED["task_id"]


def test_the_text_of_a_long_message_is_cut_off_and_what_is_no_text_is_escaped() -> None:
    assert record(b"\xffab\x00").text == "\\xffab\\x00"
    assert len(record(b"x" * 1_000_000).text) == 8192


_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)


@given(st.binary(max_size=200) | _VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_a_task_or_refused(value: bytes) -> None:
    message = parse(record(value))
    assert isinstance(message, Rejected)
    assert message.why
    message.record.text.encode()
    assert "\x00" not in message.record.text


@given(
    st.fixed_dictionaries(
        {name: st.text(min_size=1, max_size=30) for name in ("src_id", "src_path", "dst_id", "dst_path")},
        optional={
            "task_id": st.text(max_size=30),
            "metadata": st.dictionaries(st.text(max_size=5), st.integers(-(2**53), 2**53) | st.text(max_size=5)),
        },
    )
)
def test_a_task_is_repeated_as_it_came(content: dict[str, Any]) -> None:
    message = parse(record(content))
    if isinstance(message, Rejected):
        assert "NUL" in message.why or "control" in message.why or "no connection" in message.why
        return
    repeated = json.loads(message.transfer.message)
    assert {**content, "task_id": repeated["task_id"]} == repeated
    assert repeated["task_id"] == (content.get("task_id") or message.transfer.task_id)


def test_a_success_is_told_as_the_ftp_pooler_told_it() -> None:
    end = datetime(2025, 11, 25, 19, 0, 3, 45406, UTC)
    result = Result("success", json.dumps(without("metadata")), 1048576, 1.2341, end)
    key, value = result.encode()
    assert key == b"uuid-1234-5678"
    assert list(json.loads(value).items()) == [
        ("task_id", "uuid-1234-5678"),
        ("status", "success"),
        ("src_id", "remote-server-a"),
        ("src_path", "/remote/path/file.txt"),
        ("dst_id", "local"),
        ("dst_path", "/local/path/file.txt"),
        ("bytes_transferred", 1048576),
        ("duration_ms", 1234),
        ("timestamp", "2025-11-25T19:00:03.045406+00:00"),
    ]


def test_a_failure_has_its_error_and_the_metadata() -> None:
    end = datetime(2025, 11, 25, tzinfo=UTC)
    result = Result("failed", json.dumps(SEED), 0, 0, end, "CONNECTION_ERROR", "Failed to connect to FTP server")
    message = json.loads(result.encode()[1])
    assert message["metadata"] == SEED["metadata"]
    assert message["timestamp"] == "2025-11-25T00:00:00.000000+00:00"
    assert (message["status"], message["error_code"]) == ("failed", "CONNECTION_ERROR")
    assert message["error_message"] == "Failed to connect to FTP server"


def test_a_message_that_is_no_task_is_told_with_its_place_and_text() -> None:
    end = datetime(2025, 11, 25, tzinfo=UTC)
    result = Result("failed", "", 0, 0, end, "INVALID_CONFIG", "not JSON", record(b"hello"))
    key, value = result.encode()
    message = json.loads(value)
    assert key is None
    assert (message["task_id"], message["src_id"], message["error_code"]) == (None, None, "INVALID_CONFIG")
    assert message["source_message"] == {"topic": "ftp-tasks", "partition": 2, "offset": 7, "text": "hello"}
