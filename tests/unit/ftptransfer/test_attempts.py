"""Attempts against a server that is a folder: each rule, and an end at each step."""

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from opsplane_server.ftptransfer.attempt import Attempt, Means, Version
from opsplane_server.ftptransfer.downloads import Download
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, TransferFailure
from opsplane_server.ftptransfer.finisher import Finisher
from opsplane_server.ftptransfer.model import End, ExistingFile, Succeeded, Task
from opsplane_server.ftptransfer.temporary import is_temporary
from opsplane_server.ftptransfer.uploads import Upload

from tests.ftptransfer_fakes import FolderServer, again, ftp, local, task_between

CONTENT = bytes(range(256)) * 400
OLD = datetime(2025, 5, 5, 5, 5, 5, tzinfo=UTC).timestamp()


class Killed(BaseException):
    """The process is gone: no code of ours that handles failures runs."""


class Place:
    """One transfer, down or up, between two folders of which one is the server."""

    def __init__(self, root: Path, finisher: Finisher, *, up: bool) -> None:
        self.up = up
        (root / "server").mkdir()
        (root / "local").mkdir()
        self.server = FolderServer(root / "server")
        self.source_folder = root / ("local" if up else "server")
        self.destination_folder = root / ("server" if up else "local")
        self.source = self.source_folder / "out.bin"
        self.destination = self.destination_folder / "in/put.bin"
        ends = local(root / "local"), ftp()
        source, destination = ends if up else ends[::-1]
        self.task = task_between(End(source, "/out.bin"), End(destination, "/in/put.bin"))
        self.lease = True
        self._means = Means(self.server, finisher, lambda: self.lease, lambda: None)
        self.write(CONTENT)

    def write(self, content: bytes, time: float = OLD) -> None:
        self.source.write_bytes(content)
        os.utime(self.source, (time, time))

    def attempt(self, task: Task | None = None, earlier: Version | None = None) -> Attempt:
        return (Upload if self.up else Download)(task or self.task, self._means, earlier=earlier)

    async def run(self, task: Task | None = None, earlier: Version | None = None) -> Succeeded:
        return await self.attempt(task, earlier).run()

    @property
    def version(self) -> Version:
        return Version(len(CONTENT), datetime.fromtimestamp(OLD, UTC))

    def files(self) -> dict[str, bytes]:
        """What is at the destination."""
        return {
            str(path.relative_to(self.destination_folder)): path.read_bytes()
            for path in self.destination_folder.rglob("*")
            if path.is_file() and path != self.source
        }

    def temporaries(self) -> list[str]:
        return [name for name in self.files() if is_temporary(name.rpartition("/")[2])]


@pytest.fixture
async def finisher() -> AsyncIterator[Finisher]:
    async with Finisher() as finisher:
        yield finisher


@pytest.fixture(params=[False, True], ids=["down", "up"])
def place(request: pytest.FixtureRequest, tmp_path: Path, finisher: Finisher) -> Place:
    return Place(tmp_path, finisher, up=request.param)


def fail_at(step: str, count: int = 1, failure: BaseException | None = None) -> Callable[[str], None]:
    """A hook that raises the `count`-th time that it comes to this step."""
    seen = 0

    def hook(name: str) -> None:
        nonlocal seen
        seen += name == step
        if name == step and seen == count:
            raise failure or TransferFailure(ErrorReason.CONNECTION_LOST, "cut")

    return hook


async def cut(place: Place, task: Task | None = None, earlier: Version | None = None) -> Attempt:
    """An attempt whose connection breaks half way."""
    place.server.hook = fail_at("store half" if place.up else "retrieve half")
    attempt = place.attempt(task, earlier)
    with pytest.raises(TransferFailure):
        await attempt.run()
    place.server.hook = lambda step: None
    return attempt


async def test_file_is_brought_with_its_time(place: Place) -> None:
    outcome = await place.run()
    assert place.files() == {"in/put.bin": CONTENT}
    assert (outcome.size, outcome.sent, outcome.resumed) == (len(CONTENT), len(CONTENT), 0)
    assert not outcome.skipped
    assert outcome.modify_time == datetime.fromtimestamp(OLD, UTC)
    assert place.destination.stat().st_mtime == OLD


async def test_empty_file(place: Place) -> None:
    place.write(b"")
    outcome = await place.run()
    assert place.files() == {"in/put.bin": b""}
    assert outcome.size == 0


async def test_destination_that_ends_with_a_slash_is_a_folder(place: Place) -> None:
    task = replace(place.task, destination=replace(place.task.destination, path="/in/deep/"))
    await place.run(task)
    assert place.files() == {"in/deep/out.bin": CONTENT}


async def test_small_file_needs_few_round_trips(place: Place) -> None:
    place.destination.parent.mkdir()
    await place.run()
    calls = [call for call in place.server.calls if not call.endswith((" half", " done"))]
    assert calls == (["store", "size", "time", "rename"] if place.up else ["stat", "retrieve"])


async def test_broken_off_transfer_is_resumed(place: Place) -> None:
    attempt = await cut(place)
    assert attempt.steps.version == place.version
    assert len(place.temporaries()) == 1
    outcome = await place.run(again(place.task), attempt.steps.version)
    assert place.files() == {"in/put.bin": CONTENT}
    assert outcome.resumed == len(CONTENT) // 2
    assert outcome.sent == len(CONTENT) - outcome.resumed


@pytest.mark.parametrize("reason", ["unknown", "changed", "no resume", "longer"])
async def test_broken_off_transfer_is_begun_anew_where_resuming_is_not_sure(place: Place, reason: str) -> None:
    earlier = (await cut(place)).steps.version
    content = CONTENT
    if reason == "unknown":
        earlier = None
    elif reason == "changed":
        content = CONTENT[::-1]
        place.write(content, OLD + 5)
    elif reason == "longer":
        content = b"short"
        place.write(content)
        earlier = Version(len(content), place.version.modify_time)
    else:
        place.server.resumes = False
    outcome = await place.run(again(place.task), earlier)
    assert place.files() == {"in/put.bin": content}
    assert outcome.resumed == 0


async def test_version_is_not_noted_before_the_old_one_is_gone(place: Place) -> None:
    """Else the attempt after would go on with the new version where the old one begins."""
    earlier = (await cut(place)).steps.version
    content = CONTENT[::-1]
    place.write(content, OLD + 5)
    for step in ("stat", "size", "delete", "store", "retrieve"):
        place.server.hook = fail_at(step)
        attempt = place.attempt(again(place.task), earlier)
        try:
            await attempt.run()
        except TransferFailure:
            earlier = attempt.steps.version
        place.server.hook = lambda step: None
    await place.run(again(place.task), earlier)
    assert place.files() == {"in/put.bin": content}


async def test_complete_temporary_file_is_not_sent_again(place: Place) -> None:
    place.server.hook = fail_at("size" if place.up else "retrieve done")
    attempt = place.attempt()
    with pytest.raises(TransferFailure):
        await attempt.run()
    place.server.hook = lambda step: None
    outcome = await place.run(again(place.task), attempt.steps.version)
    assert place.files() == {"in/put.bin": CONTENT}
    assert (outcome.sent, outcome.resumed) == (0, len(CONTENT))


async def test_task_that_was_done_already_is_not_done_again(place: Place) -> None:
    await place.run()
    outcome = await place.run(again(place.task))
    assert outcome.skipped
    assert outcome.sent == 0
    assert place.files() == {"in/put.bin": CONTENT}


async def test_first_attempt_replaces_even_what_looks_the_same(place: Place) -> None:
    await place.run()
    outcome = await place.run()
    assert not outcome.skipped
    assert outcome.sent == len(CONTENT)


@pytest.mark.parametrize("mode", [ExistingFile.SKIP, ExistingFile.FAIL, ExistingFile.SKIP_SAME, ExistingFile.REPLACE])
async def test_existing_file(place: Place, mode: ExistingFile) -> None:
    place.destination.parent.mkdir()
    place.destination.write_bytes(b"there")
    task = replace(place.task, existing_file=mode)
    if mode is ExistingFile.FAIL:
        with pytest.raises(TransferFailure) as failure:
            await place.run(task)
        assert failure.value.reason is ErrorReason.EXISTS
        assert not failure.value.retryable
        assert place.files() == {"in/put.bin": b"there"}
        return
    outcome = await place.run(task)
    assert outcome.skipped == (mode is ExistingFile.SKIP)
    assert place.files() == {"in/put.bin": b"there" if outcome.skipped else CONTENT}


@pytest.mark.parametrize(("age", "skipped"), [(0, True), (10, True), (-10, False)])
async def test_same_file_is_skipped_unless_it_is_older(place: Place, age: int, skipped: bool) -> None:
    place.destination.parent.mkdir()
    place.destination.write_bytes(CONTENT[::-1])
    os.utime(place.destination, (OLD + age, OLD + age))
    outcome = await place.run(replace(place.task, existing_file=ExistingFile.SKIP_SAME))
    assert outcome.skipped is skipped


@pytest.mark.parametrize("mode", [ExistingFile.SKIP, ExistingFile.FAIL])
async def test_file_that_comes_meanwhile_is_not_overwritten(place: Place, mode: ExistingFile) -> None:
    def appear(step: str) -> None:
        if step.endswith("half"):
            place.destination.parent.mkdir(exist_ok=True)
            place.destination.write_bytes(b"came meanwhile")

    place.server.hook = appear
    attempt = place.attempt(replace(place.task, existing_file=mode))
    if mode is ExistingFile.SKIP:
        assert (await attempt.run()).skipped
    else:
        with pytest.raises(TransferFailure) as failure:
            await attempt.run()
        assert failure.value.reason is ErrorReason.EXISTS
        await attempt.clean_up()
    assert place.files() == {"in/put.bin": b"came meanwhile"}


async def test_own_file_does_not_exist_for_its_own_next_attempt(place: Place) -> None:
    task = replace(place.task, existing_file=ExistingFile.FAIL)
    await place.run(task)
    assert (await place.run(again(task))).skipped


async def test_missing_source(place: Place) -> None:
    place.source.unlink()
    attempt = place.attempt()
    with pytest.raises(TransferFailure) as failure:
        await attempt.run()
    assert failure.value.code is ErrorCode.FILE_NOT_FOUND
    await attempt.clean_up()
    assert place.files() == {}


async def test_source_that_is_a_folder(place: Place) -> None:
    place.source.unlink()
    place.source.mkdir()
    with pytest.raises(TransferFailure) as failure:
        await place.run()
    assert failure.value.code is ErrorCode.IO_ERROR
    assert not failure.value.retryable


@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:100]])
async def test_source_that_changes_is_a_failure(place: Place, content: bytes) -> None:
    def change(step: str) -> None:
        if step in ("retrieve half", "store half"):
            place.write(content, OLD + 60)

    place.server.hook = change
    with pytest.raises(TransferFailure) as failure:
        await place.run()
    assert failure.value.reason in (ErrorReason.SOURCE_CHANGED, ErrorReason.SIZE_MISMATCH)
    assert not place.destination.exists()


async def test_truncated_content_is_a_failure(place: Place) -> None:
    def truncate(step: str) -> None:
        if step in ("store done", "retrieve done"):
            [name] = place.temporaries()
            os.truncate(place.destination_folder / name, 1000)

    place.server.hook = truncate
    with pytest.raises(TransferFailure) as failure:
        await place.run()
    assert failure.value.reason is ErrorReason.SIZE_MISMATCH
    assert failure.value.retryable
    assert not place.destination.exists()


async def test_sha256(place: Place) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    attempt = await cut(place, replace(place.task, sha256=digest))
    outcome = await place.run(replace(again(place.task), sha256=digest.upper()), attempt.steps.version)
    assert outcome.resumed
    assert place.files() == {"in/put.bin": CONTENT}


async def test_wrong_sha256_gives_no_name(place: Place) -> None:
    task = replace(place.task, sha256="0" * 64)
    for generation in (1, 2, 3):
        attempt = place.attempt(replace(task, generation=generation), place.version)
        with pytest.raises(TransferFailure) as failure:
            await attempt.run()
        assert failure.value.reason is ErrorReason.CHECKSUM_MISMATCH
    await attempt.clean_up()
    assert place.files() == {}


async def test_without_its_lease_it_gives_no_name(place: Place) -> None:
    place.lease = False
    with pytest.raises(TransferFailure):
        await place.run()
    assert not place.destination.exists()


@pytest.mark.parametrize("cut_first", [True, False])
async def test_clean_up_leaves_nothing(place: Place, cut_first: bool) -> None:
    attempt = await cut(place) if cut_first else place.attempt()
    await attempt.clean_up()
    assert place.files() == {}


async def test_clean_up_of_what_another_worker_left(place: Place) -> None:
    await cut(place)
    await place.attempt(again(place.task)).clean_up()
    assert place.files() == {}


async def test_server_that_does_not_keep_times(place: Place) -> None:
    place.server.keeps_times = place.server.tells_times = False
    await place.run()
    outcome = await place.run(again(place.task))
    assert not outcome.skipped  # that it was done can not be known
    assert place.files() == {"in/put.bin": CONTENT}


@pytest.mark.parametrize("renames_over", [True, False], ids=["renames over", "renames over nothing"])
@pytest.mark.parametrize("exists", [False, True])
async def test_killed_at_each_step_the_next_attempt_ends_right(
    tmp_path: Path, finisher: Finisher, renames_over: bool, exists: bool
) -> None:
    for up in (False, True):
        for step in range(1, 100):
            root = tmp_path / f"{up}{step}"
            root.mkdir()
            place = Place(root, finisher, up=up)
            place.server.renames_over = renames_over
            if exists:
                place.destination.parent.mkdir()
                place.destination.write_bytes(b"before")
            if not await _killed(place, place.attempt(), step):
                break
            if exists:
                assert {b"before", CONTENT} & {*place.files().values()}
            outcome = await place.run(again(place.task), None)
            assert outcome.size == len(CONTENT)
            assert place.files() == {"in/put.bin": CONTENT}
        assert step > 3


@pytest.mark.parametrize("renames_over", [True, False], ids=["renames over", "renames over nothing"])
async def test_killed_at_each_step_and_given_up_nothing_is_left_but_what_was_there(
    tmp_path: Path, finisher: Finisher, renames_over: bool
) -> None:
    for up in (False, True):
        for step in range(1, 100):
            root = tmp_path / f"{up}{step}"
            root.mkdir()
            place = Place(root, finisher, up=up)
            place.server.renames_over = renames_over
            place.destination.parent.mkdir()
            place.destination.write_bytes(b"before")
            if not await _killed(place, place.attempt(), step):
                break
            await place.attempt(again(place.task)).clean_up()
            assert place.files() in ({"in/put.bin": b"before"}, {"in/put.bin": CONTENT})


@pytest.mark.parametrize("renames_over", [True, False], ids=["renames over", "renames over nothing"])
async def test_cut_at_each_step_it_succeeds_with_the_file_or_fails_without(
    tmp_path: Path, finisher: Finisher, renames_over: bool
) -> None:
    outcomes = set()
    for up in (False, True):
        for step in range(1, 100):
            root = tmp_path / f"{up}{step}"
            root.mkdir()
            place = Place(root, finisher, up=up)
            place.server.renames_over = renames_over
            place.destination.parent.mkdir()
            place.destination.write_bytes(b"before")
            attempt = place.attempt()
            cut = TransferFailure(ErrorReason.CONNECTION_LOST, "cut")
            try:
                reached = await _killed(place, attempt, step, by=cut)
            except TransferFailure:
                await attempt.clean_up()
                assert place.files() == {"in/put.bin": b"before"}
                outcomes.add((up, "failed"))
                continue
            assert place.files() == {"in/put.bin": CONTENT}
            if not reached:
                break
            outcomes.add((up, "succeeded"))
        assert step > 3
    # A download knows by itself whether the file has its name.
    assert outcomes == {(False, "failed"), (True, "failed"), (True, "succeeded")}


async def test_upload_of_which_nothing_is_known_in_the_end_fails(tmp_path: Path, finisher: Finisher) -> None:
    place = Place(tmp_path, finisher, up=True)

    def hook(name: str) -> None:
        if name == "rename done":
            place.server.hook = fail_at("login", failure=TransferFailure(ErrorReason.UNREACHABLE, "away"))
            raise TransferFailure(ErrorReason.CONNECTION_LOST, "cut")

    place.server.hook = hook
    with pytest.raises(TransferFailure, match="cut"):
        await place.run()


@pytest.mark.parametrize("renames_over", [True, False], ids=["renames over", "renames over nothing"])
async def test_killed_twice(tmp_path: Path, finisher: Finisher, renames_over: bool) -> None:
    for first in range(1, 100):
        for second in range(1, 100):
            root = tmp_path / f"{first} {second}"
            root.mkdir()
            place = Place(root, finisher, up=True)
            place.server.renames_over = renames_over
            place.destination.parent.mkdir()
            place.destination.write_bytes(b"before")
            if not await _killed(place, place.attempt(), first):
                return
            if not await _killed(place, place.attempt(again(place.task), place.version), second):
                break
            await place.run(replace(place.task, generation=3), place.version)
            assert place.files() == {"in/put.bin": CONTENT}


async def _killed(place: Place, attempt: Attempt, step: int, *, by: BaseException | None = None) -> bool:
    """Runs the attempt and breaks it off at its step of this number; False when it has fewer."""
    count = 0

    def hook(name: str) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise by or Killed

    place.server.hook = hook
    try:
        await attempt.run()
    except Killed:
        return True
    finally:
        place.server.hook = lambda name: None
        place.server.open_sessions = 0
    return count >= step
