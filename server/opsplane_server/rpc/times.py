"""Times and spans of the API from those of Python, and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(moment: datetime | None) -> Timestamp | None:
    """An aware datetime as a Timestamp; None stays None, which leaves a field unset."""
    if moment is None:
        return None
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def duration(span: timedelta | None) -> Duration | None:
    """A timedelta as a Duration; None stays None, which leaves a field unset."""
    if span is None:
        return None
    result = Duration()
    result.FromTimedelta(span)
    return result


def moment(value: Timestamp) -> datetime:
    """A Timestamp as an aware datetime."""
    return value.ToDatetime(tzinfo=UTC)
