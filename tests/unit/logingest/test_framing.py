"""Messages split by their framing are those that protobuf reads."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane_server.logingest import framing, wire

from tests.unit.logingest.records import good


@given(st.text("abc", max_size=5), st.lists(st.text("xyz", min_size=1, max_size=200), max_size=5), st.booleans())
def test_a_message_comes_apart_and_together_again(batch_id: str, messages: list[str], settings: bool) -> None:
    batch = records_pb2.LogBatch(batch_id=batch_id, records=[good(message=message) for message in messages])
    head = logingest_pb2.StreamSettings(client_id="c") if settings else None
    message = logingest_pb2.StreamLogsRequest(settings=head, batch=batch).SerializeToString()
    parts = framing.split_message(message, most=1000)
    assert parts.settings == (head.SerializeToString() if head else b"")
    assert parts.batch_id == batch_id.encode()
    assert parts.records == [record.SerializeToString() for record in batch.records]
    joined = framing.join_message(framing.join_batch(parts.batch_id, parts.records))
    assert logingest_pb2.StreamLogsRequest.FromString(joined).batch == batch


def test_splitting_stops_at_the_most_records() -> None:
    batch = framing.join_batch(b"", [b"\x08\x01"] * 50)
    assert len(framing.split_message(framing.join_message(batch) + b"\xff", most=7).records) == 7


@given(st.binary(max_size=60))
def test_any_bytes_come_apart_or_are_malformed(message: bytes) -> None:
    with contextlib.suppress(wire.Malformed):
        framing.split_message(message, most=1000)


@pytest.mark.parametrize(
    "message", [b"\x00\x00", b"\x0a", b"\x0a\x05abc", b"\x80" * 11, b"\x0b", b"\x0c", b"\x0f", b"\x0d\x00", b"\x09\x00"]
)
def test_broken_framing(message: bytes) -> None:
    with pytest.raises(wire.Malformed):
        list(framing.fields(message))
