import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opsplane.cli import logs_files
from opsplane.cli.logs_files import LogFile, find
from opsplane.cli.logs_places import Batch, Place, PlaceError, PlaceFile

LONGEST = 8


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and reads of a few bytes."""
    monkeypatch.setattr(logs_files, "MAX_LINE_BYTES", LONGEST)
    monkeypatch.setattr(logs_files, "_READ_BYTES", 5)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


TEXT = st.text(st.sampled_from("ab\n ü€\N{PILE OF POO}"), max_size=40)


@pytest.mark.usefixtures("small")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT.map(str.encode) | st.binary(max_size=40), st.data())
def test_lines_are_what_is_written_however_it_comes(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    path = tmp_path / "file"
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    with LogFile(path) as file:
        lines = list(file.lines())
        with path.open("ab") as stream:
            stream.write(content[cut:])
        lines += list(file.lines())
        lines += list(file.lines(partial=True))
        assert file.position == len(content)
        # Read again from any line, up to any other, the same lines come: batches can be made anew.
        if lines:
            first = data.draw(st.integers(0, len(lines) - 1))
            last = data.draw(st.integers(first, len(lines) - 1))
            end = lines[last + 1][0] if last + 1 < len(lines) else len(content)
            file.seek(lines[first][0])
            assert list(file.lines(end=end, partial=True)) == lines[first : last + 1]
    for place, line in lines:
        assert len(line) <= LONGEST
        assert b"\n" not in line
        mark = 3 if place == 0 and content.startswith(b"\xef\xbb\xbf") else 0
        assert content[place + mark :].startswith(line)
        if content.decode(errors="replace").encode() == content:
            line.decode()  # no character is cut in two
    assert b"".join(line for _, line in lines).removeprefix(b"\xef\xbb\xbf") == content.replace(
        b"\n", b""
    ).removeprefix(b"\xef\xbb\xbf")


def test_a_file_is_found_under_another_name(tmp_path: Path, stack: ExitStack) -> None:
    path, renamed = tmp_path / "app.log", tmp_path / "app.log.1"
    path.write_text("one\n")
    known = stack.enter_context(LogFile(path)).identity()
    path.rename(renamed)
    path.write_text("two\n")
    found = find(path, known)
    assert found is not None
    with found:
        assert found.is_at(renamed)
        assert not found.is_at(path)
    renamed.write_text("three\n")  # the same number, another file
    assert find(path, known) is None


def test_a_file_that_was_begun_anew_is_another_one(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "app.log"
    path.write_text("one\n")
    file = stack.enter_context(LogFile(path))
    known = file.identity()
    assert [line for _, line in file.lines()] == [b"one"]
    assert not file.is_cut_off(known)
    with path.open("a") as stream:
        stream.write("more\n")
    assert not file.is_cut_off(known)
    path.write_text("something longer than what was there\n")
    assert file.is_cut_off(known)
    path.write_text("")
    assert file.is_cut_off(known)


def test_a_place_comes_back_as_it_was_saved(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "app.log"
    path.write_text("one\n")
    place = Place(stack.enter_context(LogFile(path)).identity(), 5, [Batch(5, 9, "b"), Batch(9, 12, "c", done=True)])
    places = stack.enter_context(PlaceFile(tmp_path / "places", path, "server"))
    assert places.load() is None
    places.save(place)
    assert places.load() == place
    assert place.end == 12
    place.finish(place.batches[0])
    assert (place.offset, place.batches, place.end) == (12, [], 12)
    with PlaceFile(tmp_path / "places", path, "another server") as others:
        assert others.load() is None
    with pytest.raises(PlaceError, match="by another program"), PlaceFile(tmp_path / "places", path, "server"):
        pass
    [saved] = [file for file in os.scandir(tmp_path / "places") if file.name.endswith(".json") and file.stat().st_size]
    Path(saved.path).write_text('{"offset": 5}')
    with pytest.raises(PlaceError, match="is damaged"):
        places.load()
