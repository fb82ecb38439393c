"""A local folder: nothing leads out of it, and files appear whole or not at all."""

import contextlib
import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.local_files import Finish, LocalFiles, disk_failure, to_nanoseconds, to_time
from opsplane_server.ftptransfer.model import FileKind
from opsplane_server.ftptransfer.temporary import is_temporary, temporary_name, temporary_path

TIME = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("outside")
    base = tmp_path / "base"
    base.mkdir()
    return base


@pytest.fixture
def files(base: Path) -> LocalFiles:
    return LocalFiles(base)


def reason_of(failure: pytest.ExceptionInfo[TransferFailure]) -> ErrorReason:
    return failure.value.reason


def write(files: LocalFiles, path: str, content: bytes, *, size: int | None = None, transfer: str = "t-1") -> None:
    target = files.begin(path, transfer)
    os.write(target.descriptor, content)
    target.finish(Finish(size, TIME))


def test_file_appears_whole_with_its_time(files: LocalFiles, base: Path) -> None:
    target = files.begin("/new/folders/a.bin", "t-1")
    os.write(target.descriptor, b"abc")
    assert [entry.name for entry in (base / "new/folders").iterdir()] == [temporary_name("a.bin", "t-1")]
    target.finish(Finish(3, TIME))
    assert [entry.name for entry in (base / "new/folders").iterdir()] == ["a.bin"]
    assert (base / "new/folders/a.bin").read_bytes() == b"abc"
    assert files.stat("new/folders/a.bin").modify_time == TIME
    assert files.stat("new/folders/a.bin").size == 3


def test_file_of_another_size_does_not_appear(files: LocalFiles, base: Path) -> None:
    with pytest.raises(TransferFailure) as failure:
        write(files, "a", b"abc", size=4)
    assert reason_of(failure) is ErrorReason.SIZE_MISMATCH
    assert failure.value.retryable
    assert not (base / "a").exists()
    assert (base / temporary_name("a", "t-1")).read_bytes() == b"abc"


def test_what_is_there_is_replaced_at_once(files: LocalFiles, base: Path) -> None:
    (base / "a").write_bytes(b"old")
    write(files, "a", b"new content")
    assert (base / "a").read_bytes() == b"new content"


def test_existing_file_is_kept_where_that_was_asked_for(files: LocalFiles, base: Path) -> None:
    target = files.begin("a", "t-1")
    (base / "a").write_bytes(b"came meanwhile")
    with pytest.raises(TransferFailure) as failure:
        target.finish(Finish(0, None, existing_ok=False))
    assert reason_of(failure) is ErrorReason.EXISTS
    assert (base / "a").read_bytes() == b"came meanwhile"


def test_without_its_lease_it_is_not_renamed(files: LocalFiles, base: Path) -> None:
    target = files.begin("a", "t-1")
    with pytest.raises(TransferFailure):
        target.finish(Finish(0, None, allowed=lambda: False))
    assert not (base / "a").exists()


def test_next_attempt_goes_on_with_what_is_there(files: LocalFiles, base: Path) -> None:
    first = files.begin("a", "t-1")
    os.write(first.descriptor, b"abc")
    first.leave()
    second = files.begin("a", "t-1")
    assert second.size == 3
    os.write(second.descriptor, b"def")
    second.finish(Finish(6, None))
    assert (base / "a").read_bytes() == b"abcdef"


def test_start_over_forgets_what_is_there(files: LocalFiles, base: Path) -> None:
    first = files.begin("a", "t-1")
    os.write(first.descriptor, b"abc")
    first.leave()
    second = files.begin("a", "t-1")
    second.start_over()
    os.write(second.descriptor, b"x")
    second.finish(Finish(1, None))
    assert (base / "a").read_bytes() == b"x"


def test_two_attempts_never_write_at_once(files: LocalFiles) -> None:
    first = files.begin("a", "t-1")
    with pytest.raises(TransferFailure) as failure:
        files.begin("a", "t-1")
    assert failure.value.code is ErrorCode.IO_ERROR
    assert failure.value.retryable
    with pytest.raises(TransferFailure):
        files.remove_temporary("a", "t-1")
    first.leave()
    files.begin("a", "t-1").discard()


def test_two_transfers_of_one_destination_do_not_meet(files: LocalFiles, base: Path) -> None:
    first, second = files.begin("a", "t-1"), files.begin("a", "t-2")
    os.write(first.descriptor, b"first")
    os.write(second.descriptor, b"second")
    first.finish(Finish(5, None))
    second.finish(Finish(6, None))
    assert [entry.name for entry in base.iterdir()] == ["a"]
    assert (base / "a").read_bytes() == b"second"


def test_discard_and_remove_leave_nothing(files: LocalFiles, base: Path) -> None:
    files.begin("a", "t-1").discard()
    files.begin("b", "t-1").leave()
    files.remove_temporary("b", "t-1")
    files.remove_temporary("b", "t-1")
    files.remove_temporary("no/such/folder/b", "t-1")
    assert list(base.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["../secret", "/../secret", "a/../../secret", "..", "a\nb", "a\rb", "a\0b", "a/..", "\udc80\ud800"]
)
def test_paths_that_are_refused(files: LocalFiles, base: Path, path: str) -> None:
    (base / "a").mkdir()
    for use in (files.stat, files.list, files.open, files.delete, lambda path: files.begin(path, "t")):
        with pytest.raises(TransferFailure) as failure:
            use(path)
        assert reason_of(failure) is ErrorReason.PATH
        assert not failure.value.retryable


@pytest.mark.parametrize("target", ["../secret", "{outside}/secret", "inner/../../secret", "up/secret"])
def test_links_that_lead_out_are_refused(files: LocalFiles, base: Path, target: str) -> None:
    (base / "inner").mkdir()
    (base / "up").symlink_to("..")
    (base / "link").symlink_to(target.format(outside=base.parent))
    for use in (files.stat, files.open):
        with pytest.raises(TransferFailure) as failure:
            use("link")
        assert reason_of(failure) is ErrorReason.PATH


def test_folders_that_are_links_out_are_refused(files: LocalFiles, base: Path) -> None:
    (base / "out").symlink_to("..")
    (base / "far").symlink_to(base.parent)
    for folder in ("out", "far"):
        for use in (files.stat, files.open, files.delete, lambda path: files.begin(path, "t")):
            with pytest.raises(TransferFailure) as failure:
                use(f"{folder}/secret")
            assert reason_of(failure) is ErrorReason.PATH
        with pytest.raises(TransferFailure):
            files.list(folder)
    assert (base.parent / "secret").read_text() == "outside"


def test_links_that_stay_inside_are_followed(files: LocalFiles, base: Path) -> None:
    (base / "real/deep").mkdir(parents=True)
    (base / "real/file").write_bytes(b"content")
    (base / "folder").symlink_to("real/deep/..")
    (base / "link").symlink_to("./folder/file")
    assert files.stat("link").size == 7
    with files.open("folder/file") as source:
        assert os.read(source.descriptor, 10) == b"content"
    write(files, "folder/deep/new", b"x")
    assert (base / "real/deep/new").read_bytes() == b"x"
    assert {file.name: file.kind for file in files.list("")} == {
        "real": FileKind.FOLDER,
        "folder": FileKind.LINK,
        "link": FileKind.LINK,
    }


def test_links_in_a_circle_end(files: LocalFiles, base: Path) -> None:
    (base / "a").symlink_to("b")
    (base / "b").symlink_to("a")
    for path in ("a", "a/x"):
        with pytest.raises(TransferFailure) as failure:
            files.open(path)
        assert reason_of(failure) is ErrorReason.PATH


def test_a_written_file_takes_the_place_of_a_link(files: LocalFiles, base: Path) -> None:
    (base / "a").symlink_to("../secret")
    write(files, "a", b"mine")
    assert not (base / "a").is_symlink()
    assert (base.parent / "secret").read_text() == "outside"


def test_temporary_name_that_is_a_link_is_not_followed(files: LocalFiles, base: Path) -> None:
    (base / temporary_name("a", "t-1")).symlink_to("../secret")
    with pytest.raises(TransferFailure):
        files.begin("a", "t-1")
    assert (base.parent / "secret").read_text() == "outside"


def test_a_folder_that_becomes_a_link_leads_nowhere(base: Path) -> None:
    """Who swaps a folder for a link between two steps only makes the second step fail."""
    (base / "folder").mkdir()
    files = LocalFiles(base)
    target = files.begin("folder/a", "t-1")
    os.write(target.descriptor, b"x")
    (base / "folder").rename(base / "moved")
    (base / "folder").symlink_to("..")
    target.finish(Finish(1, None))
    assert (base / "moved/a").read_bytes() == b"x"
    assert not (base.parent / "a").exists()


def test_what_is_no_file_is_not_read(files: LocalFiles, base: Path) -> None:
    os.mkfifo(base / "pipe")
    (base / "folder").mkdir()
    for path in ("pipe", "folder", "/", ""):
        with pytest.raises(TransferFailure) as failure:
            files.open(path)
        assert failure.value.code is ErrorCode.IO_ERROR
        assert not failure.value.retryable


def test_missing_source(files: LocalFiles, base: Path) -> None:
    (base / "file").touch()
    for path in ("no", "no/file", "file/below"):
        with pytest.raises(TransferFailure) as failure:
            files.open(path)
        assert failure.value.code is ErrorCode.FILE_NOT_FOUND


def test_destination_that_is_a_folder(files: LocalFiles, base: Path) -> None:
    (base / "a").mkdir()
    with pytest.raises(TransferFailure) as failure:
        write(files, "a", b"x")
    assert failure.value.code is ErrorCode.IO_ERROR
    assert not failure.value.retryable
    with pytest.raises(TransferFailure):
        files.begin("a/", "t-1")


def test_source_that_changes_is_noticed(files: LocalFiles, base: Path) -> None:
    (base / "a").write_bytes(b"abc")
    with files.open("a") as source:
        source.check_unchanged()
        (base / "a").write_bytes(b"abcd")
        with pytest.raises(TransferFailure) as failure:
            source.check_unchanged()
    assert reason_of(failure) is ErrorReason.SOURCE_CHANGED


def test_delete(files: LocalFiles, base: Path) -> None:
    (base / "a").touch()
    (base / "link").symlink_to("../secret")
    files.delete("a")
    files.delete("link")
    assert list(base.iterdir()) == []
    assert (base.parent / "secret").exists()
    with pytest.raises(TransferFailure) as failure:
        files.delete("a")
    assert failure.value.code is ErrorCode.FILE_NOT_FOUND


def test_every_descriptor_is_closed(files: LocalFiles, base: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    write(files, "deep/er/a", b"x")
    for path in ("deep/er/a", "no", "../x", "deep/er", "deep/no/x"):
        with contextlib.suppress(TransferFailure), files.open(path):
            pass
        for use in (files.stat, files.list):
            with contextlib.suppress(TransferFailure):
                use(path)
    with pytest.raises(TransferFailure):
        files.begin("deep/er/a/b", "t")
    (base / "x").mkdir()
    with pytest.raises(TransferFailure):
        files.begin("new/x/" + "n" * 300 + "/y", "t")
    files.check_writable()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("number", "reason", "retryable"),
    [
        (errno.ENOSPC, ErrorReason.NO_SPACE, True),
        (errno.EDQUOT, ErrorReason.NO_SPACE, True),
        (errno.EFBIG, ErrorReason.NO_SPACE, False),
        (errno.EACCES, ErrorReason.ACCESS_DENIED, False),
        (errno.EROFS, ErrorReason.ACCESS_DENIED, False),
        (errno.ENAMETOOLONG, ErrorReason.PATH, False),
        (errno.EIO, ErrorReason.UNSPECIFIED, True),
        (errno.ENOENT, ErrorReason.UNSPECIFIED, True),
    ],
)
def test_errors_of_the_disk(number: int, reason: ErrorReason, retryable: bool) -> None:
    failure = disk_failure(OSError(number, os.strerror(number)), "a")
    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert failure.code is (ErrorCode.INVALID_CONFIG if reason is ErrorReason.PATH else ErrorCode.IO_ERROR)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_times_are_exact(time: datetime) -> None:
    assert to_time(to_nanoseconds(time)) == time


_NAMES = st.text(st.characters(blacklist_characters="/\0\r\n", blacklist_categories=["Cs"]), min_size=1, max_size=100)


@given(_NAMES, st.text(min_size=1, max_size=70))
def test_temporary_names_fit_and_are_known(name: str, transfer: str) -> None:
    temporary = temporary_name(name, transfer)
    assert len(os.fsencode(temporary)) <= 255
    assert is_temporary(temporary)
    assert temporary == temporary_name(name, transfer)
    assert temporary_path(f"/a/{name}", transfer) == f"/a/{temporary}"


def test_long_names_have_short_temporary_names(files: LocalFiles, base: Path) -> None:
    name = "é" * 127
    write(files, name, b"x")
    assert (base / name).exists()


_PARTS = st.lists(st.sampled_from(["..", ".", "", "a", "b", "link", "out", "loop", "secret"]), max_size=8)


@settings(deadline=None)
@given(_PARTS)
def test_no_path_reaches_the_outside(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    top = tmp_path_factory.mktemp("top")
    (top / "secret").write_text("outside")
    base = top / "base"
    (base / "a/b").mkdir(parents=True)
    (base / "a/link").symlink_to("../a/b")
    (base / "a/b/out").symlink_to("../../..")
    (base / "link").symlink_to("a")
    (base / "loop").symlink_to(".")
    files = LocalFiles(base)
    path = "/".join(parts)
    with contextlib.suppress(TransferFailure):
        write(files, path, b"mine")
        with files.open(path) as source:
            assert os.read(source.descriptor, 9) == b"mine"
    assert sorted(entry.name for entry in top.iterdir()) == ["base", "secret"]
    assert (top / "secret").read_text() == "outside"
