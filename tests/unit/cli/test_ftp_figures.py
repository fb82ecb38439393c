"""Where transfers stand, and how it is written."""

from __future__ import annotations

import pytest
from opsplane.cli.ftp_figures import Progress, count, counts_text, remaining, size_text
from opsplane.cli.ftp_places import join, split_pattern
from opsplane.cli.ftp_views import LiveView
from opsplane.ftptransfer.v1 import errors_pb2, ftptransfer_pb2
from opsplane.ftptransfer.v1 import transfers_pb2 as pb
from rich.console import Console

Response = ftptransfer_pb2.WatchTransfersResponse


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (123_456, "123 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (5e9, "5.00 GB"),
        (2e18, "2000 PB"),
    ],
)
def test_sizes(number: float, text: str) -> None:
    assert size_text(number) == text


def test_counts() -> None:
    counts = pb.TransferCounts(
        pending=1, running=2, waiting=3, succeeded=4, failed=5, cancelled=6, skipped=1,
        size_bytes=2_000_000, bytes_transferred=1_000_000, bytes_per_second=50_000,
    )  # fmt: skip
    assert counts_text(counts) == (
        "15 of 21 files, 1.00 MB of 2.00 MB, 50.0 kB/s, 3 waiting, 1 skipped, 5 failed, 6 cancelled"
    )
    assert remaining(counts) == "21s left"
    assert counts_text(pb.TransferCounts(succeeded=1)) == "1 file, 0 B"
    assert remaining(pb.TransferCounts(size_bytes=5)) == ""


def test_a_tree_counts_as_its_files_and_itself_only_where_it_failed_itself() -> None:
    children = pb.TransferCounts(succeeded=2, failed=1, size_bytes=30, bytes_transferred=20)
    by_files = errors_pb2.TransferError(
        code=errors_pb2.ERROR_CODE_UNKNOWN_ERROR, reason=errors_pb2.ERROR_REASON_CHILDREN_FAILED
    )
    by_itself = errors_pb2.TransferError(
        code=errors_pb2.ERROR_CODE_FILE_NOT_FOUND, reason=errors_pb2.ERROR_REASON_NOT_FOUND
    )
    none = pb.TransferCounts()
    trees = [
        (pb.Transfer(state=pb.TRANSFER_STATE_FAILED, children=children, error=by_files), children),
        (pb.Transfer(state=pb.TRANSFER_STATE_FAILED, children=none, error=by_itself), pb.TransferCounts(failed=1)),
        (pb.Transfer(state=pb.TRANSFER_STATE_CANCELLED, children=none), pb.TransferCounts(cancelled=1)),
        (pb.Transfer(state=pb.TRANSFER_STATE_PENDING, children=none), pb.TransferCounts(pending=1)),
        (pb.Transfer(state=pb.TRANSFER_STATE_SUCCEEDED, children=none), none),
    ]
    for tree, counts in trees:
        assert count([tree]) == counts
    file = pb.Transfer(state=pb.TRANSFER_STATE_RUNNING, size_bytes=9, bytes_transferred=3, bytes_per_second=1.5)
    assert count([file, file]) == pb.TransferCounts(running=2, size_bytes=18, bytes_transferred=6, bytes_per_second=3)


def transfer(
    name: str, state: pb.TransferState.ValueType, *, size_bytes: int | None = None, bytes_transferred: int = 0
) -> pb.Transfer:
    place = pb.Location(connection="connections/nas", path=f"/{name} \x1b[31m")
    return pb.Transfer(
        name=name,
        state=state,
        source=place,
        destination=place,
        size_bytes=size_bytes,
        bytes_transferred=bytes_transferred,
    )


def test_progress_tells_changes_of_states_and_keeps_what_is_under_way() -> None:
    progress = Progress(["a", "b"])
    first = transfer("a", pb.TRANSFER_STATE_RUNNING, size_bytes=10, bytes_transferred=1)
    assert progress.add(Response(transfers=[first])) == [first]
    assert progress.add(Response(transfers=[transfer("a", pb.TRANSFER_STATE_RUNNING, bytes_transferred=5)])) == []
    assert progress.counts.bytes_transferred == 5
    child = transfer("child", pb.TRANSFER_STATE_WAITING)
    progress.add(Response(transfers=[child]))
    assert set(progress.under_way) == {"a", "child"}
    done = transfer("a", pb.TRANSFER_STATE_SUCCEEDED, bytes_transferred=10)
    assert progress.add(Response(transfers=[done])) == [done]
    assert progress.add(Response(transfers=[done])) == []  # told again after a loss
    assert set(progress.under_way) == {"child"}
    assert progress.counts == pb.TransferCounts(succeeded=1, bytes_transferred=10)
    others = Progress()
    others.add(Response(counts=pb.TransferCounts(running=7)))
    assert others.counts.running == 7


def test_the_picture_has_a_bar_for_all_and_for_each_under_way() -> None:
    out = Console(width=120, record=True)
    view = LiveView(Progress([f"f{number}" for number in range(12)]), out)
    out.print(view.picture())
    assert "waiting for the transfers" in out.export_text()
    files = [
        transfer(f"f{number}", pb.TRANSFER_STATE_RUNNING, size_bytes=10, bytes_transferred=number)
        for number in range(11)
    ]
    waiting = transfer("f11", pb.TRANSFER_STATE_WAITING)
    view.show(Response(transfers=[*files, waiting]))
    view.note("connection lost")
    out.print(view.picture())
    seen = out.export_text()
    assert "50%" in seen
    assert "0 of 12 files, 55 B of 110 B" in seen
    assert seen.count("0 B/s") == 10
    assert seen.count("━") > 100
    assert "nas:/f0 \N{REPLACEMENT CHARACTER}[31m" in seen
    assert "and 2 more" in seen
    assert "connection lost" in seen
    assert "\x1b[31m" not in seen


@pytest.mark.parametrize(
    ("path", "folder", "pattern"),
    [
        ("*.csv", "", "*.csv"),
        ("/*.csv", "/", "*.csv"),
        ("/a/b*/c", "/a", "b*/c"),
        ("a/**/[x]?", "a", "**/[x]?"),
    ],
)
def test_patterns_are_split_and_joined(path: str, folder: str, pattern: str) -> None:
    assert split_pattern(path) == (folder, pattern)
    assert join(folder, pattern) == path
