"""Folders of the spool: their bounds, and who takes over what."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from opsplane.logs.spool import Spool, Spooled, SpoolFull

SEGMENT = 1000


def spool(root: Path, name: str = "client", *, limit: int = 100_000) -> Spool:
    return Spool(root, name, limit=limit, segment_bytes=SEGMENT, sync=False)


def read_all(made: Spool) -> list[Spooled]:
    found = []
    while (spooled := made.read()) is not None:
        found.append(spooled)
    return found


def ids(found: list[Spooled]) -> list[str]:
    return [spooled.frame.batch_id for spooled in found]


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_batches_come_back_in_order_over_many_segments(tmp_path: Path) -> None:
    made = spool(tmp_path)
    for number in range(20):
        made.append(f"b{number}", 1, b"x" * 300)
    assert len(list(tmp_path.rglob("*.seg"))) > 5
    found = read_all(made)
    assert ids(found) == [f"b{number}" for number in range(20)]
    assert not made.unread
    for spooled in found[:10]:
        made.acknowledge(spooled)
    made.rewind()
    again = read_all(made)
    assert ids(again) == [f"b{number}" for number in range(10, 20)]
    for spooled in again:
        made.acknowledge(spooled)
    assert made.empty
    assert not list(tmp_path.rglob("*.seg"))
    made.append("later", 1, b"x")
    assert ids(read_all(made)) == ["later"]
    made.close()


def test_the_limit_holds_for_all_processes_together(tmp_path: Path) -> None:
    first, second = spool(tmp_path, limit=5000), spool(tmp_path, "other", limit=5000)
    count = 0
    with suppress(SpoolFull):
        while True:
            (first, second)[count % 2].append(f"b{count}", 1, b"x" * 300)
            count += 1
    assert 3000 < sum(path.stat().st_size for path in tmp_path.rglob("*.seg")) <= 5000
    for made in (first, second):
        for spooled in read_all(made):
            made.acknowledge(spooled)
    first.append("room again", 1, b"x")
    first.close()
    second.close()


def test_a_batch_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    made = spool(tmp_path)
    made.append("small", 1, b"x")
    made.append("large", 1, b"x" * 5000)
    made.append("small again", 1, b"x")
    assert ids(read_all(made)) == ["small", "large", "small again"]
    made.close()


def test_what_a_closed_one_has_left_is_taken_over(tmp_path: Path) -> None:
    first = spool(tmp_path)
    for number in range(5):
        first.append(f"b{number}", 1, b"x" * 300)
    for spooled in read_all(first)[:2]:
        first.acknowledge(spooled)
    second = spool(tmp_path)
    assert second.adopt() == []
    assert not second.unread, "its process lives"
    first.close()
    assert second.adopt() == []
    second.append("own", 1, b"x")
    found = read_all(second)
    assert ids(found) == ["b2", "b3", "b4", "own"]
    for spooled in found:
        second.acknowledge(spooled)
    second.close()
    assert files(tmp_path) == []


def test_only_one_takes_it_over(tmp_path: Path) -> None:
    dead = spool(tmp_path)
    dead.append("b", 1, b"x")
    dead.close()
    heirs = [spool(tmp_path) for _ in range(3)]
    for heir in heirs:
        heir.adopt()
    assert [heir.unread for heir in heirs] == [True, False, False]
    for heir in heirs:
        heir.close()


def test_of_another_client_it_is_only_told(tmp_path: Path) -> None:
    dead = spool(tmp_path, "one")
    dead.append("b", 1, b"x")
    living = spool(tmp_path, "two")
    living.append("b", 1, b"x")
    dead.close()
    made = spool(tmp_path, "three")
    made.adopt()
    assert not made.unread
    (left,) = made.leftovers()
    assert left.parent.name == "one"
    living.close()


def test_a_forked_child_lets_go_without_a_trace(tmp_path: Path) -> None:
    """Descriptors are shared after a fork, and so is the lock, which must stay the parent's."""
    parent = spool(tmp_path)
    parent.append("b", 1, b"x")
    before = {path: path.read_bytes() for path in files(tmp_path)}
    parent.abandon()
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    assert parent.empty


def test_what_is_no_segment_is_left_aside_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "client" / "dead"
    folder.mkdir(parents=True)
    (folder / "00000001.seg").write_bytes(b"?" * 500)
    (folder / "00000002.seg").write_bytes(b"")
    made = spool(tmp_path)
    (told,) = made.adopt()
    assert "500 bytes" in told
    assert made.empty
    assert [path.name for path in files(tmp_path)] == ["00000001.unreadable"]
    assert made.adopt() == []


def test_bytes_that_are_no_batch_are_counted_once(tmp_path: Path) -> None:
    dead = spool(tmp_path)
    dead.append("one", 1, b"x" * 100)
    dead.append("two", 1, b"x" * 100)
    dead.close()
    (path,) = tmp_path.rglob("*.seg")
    path.write_bytes(path.read_bytes()[:-1])
    made = spool(tmp_path)
    made.adopt()
    (one,) = read_all(made)
    made.rewind()
    (one,) = read_all(made)
    made.acknowledge(one)
    assert made.take_damaged_bytes() == 117
    assert made.take_damaged_bytes() == 0
    assert made.empty
    made.close()
