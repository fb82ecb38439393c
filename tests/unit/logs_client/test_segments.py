"""The format of segments: whatever a crash or a disk does to a file, whole batches are read and nothing else is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opsplane.logs.segments import HEADER_BYTES, Frame, Segment

BATCHES = st.lists(
    st.tuples(
        st.text("abcXYZ019._:-", min_size=1, max_size=64),
        st.integers(1, 1000),
        st.binary(max_size=200) | st.just(b"\xf5LOG" * 3),  # also what looks like the marker of a frame
    ),
    min_size=1,
    max_size=8,
)
Batches = list[tuple[str, int, bytes]]


@contextmanager
def written(batches: Batches) -> Iterator[tuple[Path, list[int]]]:
    """A file with these batches, and where each one ends."""
    with tempfile.TemporaryDirectory() as folder:
        segment = Segment.create(Path(folder) / "s")
        ends = []
        for batch in batches:
            segment.append(*batch)
            ends.append(segment.size)
        segment.close()
        yield segment.path, ends


def read_all(segment: Segment) -> list[Frame]:
    frames = []
    while (frame := segment.read()) is not None:
        frames.append(frame)
    return frames


def contents(frames: list[Frame]) -> Batches:
    return [(frame.batch_id, frame.record_count, frame.payload) for frame in frames]


@settings(deadline=None)
@given(BATCHES)
def test_what_is_written_is_read(batches: Batches) -> None:
    with written(batches) as (path, ends):
        segment = Segment.open(path)
        frames = read_all(segment)
        assert contents(frames) == batches
        assert [frame.end for frame in frames] == ends
        segment.rewind()
        assert contents(read_all(segment)) == batches
        assert segment.damaged_bytes == 0
        assert not segment.finished
        segment.close()


@settings(deadline=None)
@given(BATCHES, st.data())
def test_what_is_acknowledged_is_not_read_again(batches: Batches, data: st.DataObject) -> None:
    with written(batches) as (path, _):
        segment = Segment.open(path)
        frames = read_all(segment)
        done = data.draw(st.integers(1, len(frames)))
        for frame in frames[:done]:
            segment.acknowledge(frame)
        segment.close()
        again = Segment.open(path)
        assert contents(read_all(again)) == batches[done:]
        assert again.finished is (done == len(batches))
        again.close()


@settings(deadline=None)
@given(BATCHES, st.data())
def test_a_torn_tail_is_cut(batches: Batches, data: st.DataObject) -> None:
    with written(batches) as (path, ends):
        cut = data.draw(st.integers(HEADER_BYTES, ends[-1]))
        path.write_bytes(path.read_bytes()[:cut])
        segment = Segment.open(path)
        whole = [batch for batch, end in zip(batches, ends, strict=True) if end <= cut]
        assert contents(read_all(segment)) == whole
        last = max([HEADER_BYTES, *(end for end in ends if end <= cut)])
        assert segment.damaged_bytes == cut - last
        assert path.stat().st_size == segment.size == last
        segment.append("new", 1, b"x")
        assert contents(read_all(segment)) == [("new", 1, b"x")]
        segment.close()


@settings(deadline=None)
@given(BATCHES, st.data())
def test_a_wrong_byte_costs_its_batch_alone(batches: Batches, data: st.DataObject) -> None:
    with written(batches) as (path, ends):
        position = data.draw(st.integers(HEADER_BYTES, ends[-1] - 1))
        damaged = bytearray(path.read_bytes())
        damaged[position] ^= data.draw(st.integers(1, 255))
        path.write_bytes(damaged)
        hit = next(index for index, end in enumerate(ends) if position < end)
        segment = Segment.open(path)
        assert contents(read_all(segment)) == batches[:hit] + batches[hit + 1 :]
        start = ends[hit - 1] if hit else HEADER_BYTES
        assert segment.damaged_bytes == ends[hit] - start
        segment.rewind()
        read_all(segment)
        assert segment.damaged_bytes == ends[hit] - start, "counted once"
        segment.close()


@settings(deadline=None)
@given(BATCHES, st.binary(max_size=100), st.binary(max_size=100))
def test_rubbish_before_and_after_costs_nothing(batches: Batches, before: bytes, after: bytes) -> None:
    with written(batches) as (path, _):
        data = path.read_bytes()
        path.write_bytes(data[:HEADER_BYTES] + before + data[HEADER_BYTES:] + after)
        segment = Segment.open(path)
        assert contents(read_all(segment)) == batches
        assert segment.damaged_bytes == len(before) + len(after)
        segment.close()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is no segment"):
            Segment.open(path)


@settings(deadline=None)
@given(BATCHES, st.integers(12, HEADER_BYTES - 1), st.integers(1, 255))
def test_a_wrong_position_means_all_is_sent_again(batches: Batches, position: int, flip: int) -> None:
    with written(batches) as (path, _):
        segment = Segment.open(path)
        segment.acknowledge(read_all(segment)[-1])
        segment.close()
        data = bytearray(path.read_bytes())
        data[position] ^= flip
        path.write_bytes(data)
        again = Segment.open(path)
        assert contents(read_all(again)) == batches
        again.close()


def test_a_frame_that_an_application_logged_is_not_taken_for_one(tmp_path: Path) -> None:
    forger = Segment.create(tmp_path / "forged")
    forger.append("forged", 1, b"evil")
    forger.close()
    frame = forger.path.read_bytes()[HEADER_BYTES:]
    segment = Segment.create(tmp_path / "s")
    segment.append("good", 1, frame)
    segment.close()
    data = bytearray(segment.path.read_bytes())
    data[HEADER_BYTES + 15] ^= 1  # the id, so that the reader looks for the next frame inside of this one
    segment.path.write_bytes(data)
    again = Segment.open(segment.path)
    assert again.read() is None
    again.close()
