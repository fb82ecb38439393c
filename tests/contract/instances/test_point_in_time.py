"""Moments between copies: the archived log, how far it reaches, and what of it is kept."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from opsplane_server.errors import FailedPrecondition
from opsplane_server.instances.model import CopySource, FailoverKind, HighAvailability, PointInTimeRecovery
from opsplane_server.instances.providers.local.copies import of_instance
from opsplane_server.instances.providers.local.postgres import archiving

from tests.instances_copying import Copied, copied
from tests.instances_harness import silent
from tests.waiting import until


@pytest.fixture(scope="module")
def shared() -> Iterator[Copied]:
    with copied("18") as shared:
        yield shared


async def _now(shared: Copied) -> datetime:
    """A moment that lies after what was committed and before what comes."""
    (now,) = await shared.values("SELECT clock_timestamp()")
    assert isinstance(now, datetime)
    await until(lambda: datetime.now(UTC) > now + timedelta(milliseconds=5))
    return now


async def test_any_moment_since_a_copy_can_be_restored(shared: Copied) -> None:
    uid = shared.spec.uid
    assert (await shared.provider.status(shared.spec.name)).archive_from is None
    copy = await shared.provider.copy(shared.spec.name, "start", "", silent)
    await shared.execute("CREATE TABLE events (n integer); INSERT INTO events VALUES (1)")
    one = await _now(shared)
    await shared.execute("INSERT INTO events VALUES (2)")
    two = await _now(shared)
    status = await shared.provider.status(shared.spec.name)
    assert status.archive_from == copy.cut_time
    assert status.archive_until is not None
    assert status.archive_until >= two

    async with shared.restored("one", CopySource("start", uid, one)) as name:
        assert await shared.values("SELECT n FROM events", name) == [1]
        await shared.execute("INSERT INTO events VALUES (100)", name)  # it is a primary of its own
    # Nothing was committed since, so the log has nothing that would tell the server that it is there.
    async with shared.restored("two", CopySource("start", uid, two)) as name:
        assert await shared.values("SELECT n FROM events ORDER BY n", name) == [1, 2]
    async with shared.restored("copy", CopySource("start")) as name:
        assert await shared.values("SELECT count(*) FROM kept", name) == [2000]

    with pytest.raises(FailedPrecondition) as early:
        async with shared.restored("early", CopySource("start", uid, copy.cut_time - timedelta(minutes=1))):
            pass
    with pytest.raises(FailedPrecondition) as late:
        async with shared.restored("late", CopySource("start", uid, datetime.now(UTC) + timedelta(hours=1))):
            pass
    assert early.value.reason == late.value.reason == "POINT_IN_TIME_UNREACHABLE"


async def test_log_that_no_kept_copy_needs_is_removed(shared: Copied) -> None:
    (log,) = shared.machine.layout.archived_log(shared.spec.uid).iterdir()
    await shared.provider.copy(shared.spec.name, "later", "", silent)
    before = set(os.listdir(log))
    await shared.provider.delete_archive(shared.spec.uid, "start")
    first = int(of_instance(shared.machine.layout, shared.spec.uid)[0].details["first_segment"])
    kept = {archiving.segment_number(name, 16 * 1024 * 1024) for name in os.listdir(log)}
    assert min(kept) == first
    await shared.execute("INSERT INTO events VALUES (3)")
    three = await _now(shared)
    await shared.provider.delete_archive(shared.spec.uid, "later")
    assert set(os.listdir(log)) < before | set(os.listdir(log))
    await shared.provider.delete_copy("start")
    async with shared.restored("three", CopySource("later", shared.spec.uid, three)) as name:
        assert await shared.values("SELECT n FROM events ORDER BY n", name) == [1, 2, 3]
    await shared.provider.delete_archive(shared.spec.uid, "gone")  # by mistake: nothing is removed then
    assert os.listdir(log)


async def test_a_gap_in_the_log_ends_the_window(shared: Copied) -> None:
    copy = await shared.provider.copy(shared.spec.name, "gap", "", silent)
    assert (await shared.provider.status(shared.spec.name)).archive_from is not None
    await shared.provider.update(dataclasses.replace(shared.spec, point_in_time_recovery=None), silent)
    assert (await shared.provider.status(shared.spec.name)).archive_from is None
    for _ in range(2):
        await _switch(shared)
    await shared.provider.update(
        dataclasses.replace(shared.spec, point_in_time_recovery=PointInTimeRecovery(7)), silent
    )
    await _switch(shared)
    assert (await shared.provider.status(shared.spec.name)).archive_from is None
    with pytest.raises(FailedPrecondition):
        async with shared.restored("never", CopySource("gap", shared.spec.uid, copy.cut_time + timedelta(hours=1))):
            pass
    newer = await shared.provider.copy(shared.spec.name, "newer", "", silent)
    await shared.provider.delete_copy("gap")
    await _switch(shared)
    assert (await shared.provider.status(shared.spec.name)).archive_from == newer.cut_time


async def test_the_log_goes_on_over_a_failover(shared: Copied) -> None:
    available = dataclasses.replace(shared.spec, high_availability=HighAvailability(2))
    await shared.provider.update(available, silent)
    await shared.execute("INSERT INTO events VALUES (10)")
    before = await _now(shared)
    await shared.execute("INSERT INTO events VALUES (11)")
    await shared.provider.failover(shared.spec.name, "", FailoverKind.FORCED, "test", silent)
    await shared.execute("INSERT INTO events VALUES (12)")
    after = await _now(shared)
    built = await shared.provider.copy(shared.spec.name, "built", "newer", silent)
    # A full one after all: the new primary, made after that copy, knows not all that has changed since.
    assert (built.base, built.node) == ("", "orders-2")
    for moment, rows in ((before, [10]), (after, [10, 11, 12])):
        async with shared.restored("promoted", CopySource("newer", shared.spec.uid, moment)) as name:
            assert await shared.values("SELECT n FROM events WHERE n >= 10 ORDER BY n", name) == rows
    async with shared.restored("built", CopySource("built")) as name:
        assert await shared.values("SELECT max(n) FROM events", name) == [12]
    await shared.provider.delete_copy("built")


async def test_a_deleted_instance_can_be_restored_up_to_its_end(shared: Copied) -> None:
    uid = shared.spec.uid
    await shared.execute("INSERT INTO events VALUES (20)")
    end = await _now(shared)
    await shared.provider.stop(shared.spec.name, silent)
    await shared.provider.delete(shared.spec.name, silent)
    async with shared.restored("heir", CopySource("newer", uid, end)) as name:
        assert await shared.values("SELECT max(n) FROM events", name) == [20]
    with pytest.raises(FailedPrecondition):
        async with shared.restored("never", CopySource("newer", uid, end + timedelta(hours=1))):
            pass
    await shared.provider.delete_copy("newer")
    await shared.provider.delete_archive(uid, "")
    assert not shared.machine.layout.archived_log(uid).exists()
    await shared.provider.delete_archive(uid, "")  # harmless


async def _switch(shared: Copied) -> None:
    """Fills a segment and waits until it is archived."""
    node = shared.machine.node(shared.machine.manifests.load(shared.spec.name), "orders-1")
    await shared.execute("INSERT INTO events VALUES (0)")
    await archiving.flush(node)


def test_an_archived_segment_is_never_replaced_by_another(tmp_path: Path) -> None:
    folder = tmp_path / "it's a 100% odd folder"
    folder.mkdir()
    command = archiving._archive_command(folder)
    segment = tmp_path / "segment"

    def archive(content: bytes) -> bool:
        segment.write_bytes(content)
        line = command.replace("%p", "segment").replace("%f", "0001").replace("%%", "%")
        return subprocess.run(["/bin/sh", "-c", line], check=False, cwd=tmp_path).returncode == 0

    whole = b"log" + bytes(1024 * 1024)
    assert archive(whole)
    assert (folder / "0001").read_bytes() == whole
    assert (folder / "0001").stat().st_blocks * 512 < len(whole)  # holes where there is nothing
    assert archive(whole)  # the other server of the instance has it too
    assert not archive(b"other" + bytes(1024 * 1024))
    assert (folder / "0001").read_bytes() == whole
    assert [path.name for path in folder.iterdir()] == ["0001"]
