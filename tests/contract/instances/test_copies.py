"""What `Provider` promises of copies: true records, restores of what was committed, damage that is found."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from opsplane_server.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, LeaseLost, NotFound
from opsplane_server.instances.model import CopySource
from opsplane_server.instances.providers.local import copies
from opsplane_server.instances.providers.local.bulk import storage_of
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.postgres.installations import Installations
from opsplane_server.instances.providers.local.programs import Installation

from tests import instances_harness as harness
from tests.instances_copying import Copied, copied
from tests.instances_harness import silent
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", params=["18", "16"])
def each(request: pytest.FixtureRequest) -> Iterator[Copied]:
    with copied(request.param) as shared:
        yield shared


@pytest.fixture(scope="module")
def shared() -> Iterator[Copied]:
    with copied("18") as shared:
        yield shared


async def test_a_copy_is_restored_with_all_that_was_committed(each: Copied) -> None:
    await each.execute("CREATE TABLE first (n integer); INSERT INTO first VALUES (1)")
    told: list[tuple[str, int]] = []

    async def tell(what: str, percent: int) -> None:
        told.append((what, percent))

    before = datetime.now(UTC)
    copy = await each.provider.copy(each.spec.name, "full", "", tell)
    after = datetime.now(UTC)
    await each.execute("INSERT INTO first VALUES (2)")
    assert (copy.location, copy.base, copy.engine_version) == ("full", "", each.spec.version)
    assert (copy.method, copy.consistency, copy.node) == ("PHYSICAL", "TRANSACTION", "orders-1")
    assert (copy.databases, copy.users) == (("app",), ("app",))
    assert copy.tables["app.public.kept"] == 2000
    assert before <= copy.start_time <= copy.cut_time <= copy.complete_time <= after
    # The record and the lock came after the sizes were taken.
    assert copy.size_bytes <= storage_of(each.copy_folder("full")) <= copy.size_bytes + 16384
    assert [percent for _, percent in told] == sorted(percent for _, percent in told)
    assert await each.provider.copy(each.spec.name, "full", "", silent) == copy  # called again

    async with each.restored("again", CopySource("full")) as name:
        assert await each.values("SELECT n FROM first", name) == [1]
        assert await each.values("SELECT count(*) FROM kept", name) == [2000]
        data = each.machine.layout.instance(name).node("again-1").data
        assert not (data / "backup_manifest").exists()
        await _refuses_the_password_of_the_source(each, name)
    await each.execute("DROP TABLE first")
    assert "files of" in await each.provider.check_files("full", silent)
    await each.provider.delete_copy("full")
    assert not each.copy_folder("full").exists()


async def _refuses_the_password_of_the_source(shared: Copied, name: str) -> None:
    others = dict(shared.secrets)
    shared.secrets[name] = shared.secrets[shared.spec.name]
    try:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await shared.execute("SELECT", name)
    finally:
        shared.secrets.update(others)


async def test_the_cut_parts_the_commits(shared: Copied) -> None:
    """Every row whose commit was acknowledged by then is in the copy, and none that was begun after it."""
    await shared.execute("CREATE TABLE ticks (at timestamptz, payload text)")
    acknowledged: list[tuple[datetime, datetime]] = []
    stopped = asyncio.Event()

    async def write() -> None:
        async with shared.connected() as connection:
            while not stopped.is_set():
                at = await connection.fetchval(
                    "INSERT INTO ticks VALUES (clock_timestamp(), repeat('x', 2000)) RETURNING at"
                )
                acknowledged.append((at, datetime.now(UTC)))

    writers = [asyncio.create_task(write()) for _ in range(2)]
    await until(lambda: len(acknowledged) > 50)
    copy = await shared.provider.copy(shared.spec.name, "cut", "", silent)
    stopped.set()
    await asyncio.gather(*writers)
    async with shared.restored("parted", CopySource("cut")) as name:
        there = set(await shared.values("SELECT at FROM ticks", name))
    await shared.execute("DROP TABLE ticks")
    await shared.provider.delete_copy("cut")
    assert there
    assert {at for at, done in acknowledged if done <= copy.cut_time} <= there
    assert max(at for at in there if isinstance(at, datetime)) <= copy.cut_time
    assert any(at not in there for at, _ in acknowledged), "nothing was written after the cut: no test"


async def test_incremental_copies_build_on_each_other(shared: Copied) -> None:
    full = await shared.provider.copy(shared.spec.name, "base", "", silent)
    await shared.execute("CREATE TABLE more AS SELECT 1 AS n")
    second = await shared.provider.copy(shared.spec.name, "second", "base", silent)
    await shared.execute("INSERT INTO more VALUES (2)")
    third = await shared.provider.copy(shared.spec.name, "third", "second", silent)
    assert (full.base, second.base, third.base) == ("", "base", "second")
    assert third.size_bytes < full.size_bytes / 2
    assert third.restore_size_bytes >= full.restore_size_bytes
    assert "3 copies" in await shared.provider.check_files("third", silent)
    async with shared.restored("chained", CopySource("third")) as name:
        assert await shared.values("SELECT n FROM more ORDER BY n", name) == [1, 2]
        assert await shared.values("SELECT count(*) FROM kept", name) == [2000]
        await shared.provider.stop(name, silent)
        assert "pages have their checksums" in await shared.provider.check_checksums(name, silent)
    await shared.provider.delete_copy("base")
    with pytest.raises(DataLoss, match="gone"):
        await shared.provider.check_files("third", silent)
    full_after_all = await shared.provider.copy(shared.spec.name, "fourth", "base", silent)
    assert full_after_all.base == ""
    await shared.execute("DROP TABLE more")
    for location in ("second", "third", "fourth"):
        await shared.provider.delete_copy(location)


async def test_the_engines_own_program_says_the_same(each: Copied) -> None:
    await each.provider.copy(each.spec.name, "one", "", silent)
    two = await each.provider.copy(each.spec.name, "two", "one", silent)
    assert two.base == ("" if each.spec.version.startswith("16.") else "one")  # older versions make full ones instead
    assert "files of" in await each.provider.check_files("two", silent)
    verify = Installations((), each.machine.layout.binaries).of(each.spec.version).program("pg_verifybackup")
    if _succeeds(verify, "--version"):  # that of PostgreSQL 18 in the wheel is broken
        data = each.copy_folder("two") / "data"
        assert _succeeds(verify, str(data))
        _damage(_largest(data / "base"))
        assert not _succeeds(verify, str(data))
        with pytest.raises(DataLoss):
            await each.provider.check_files("two", silent)
    for location in ("one", "two"):
        await each.provider.delete_copy(location)


async def test_what_a_killed_process_left_is_replaced(shared: Copied) -> None:
    """A program of its own goes on copying after its server was killed; so much the more slowly here."""
    folder = shared.copy_folder("broken")
    node = shared.machine.node(shared.machine.manifests.load(shared.spec.name), "orders-1")
    installation = Installations((), shared.machine.layout.binaries).reachable(shared.spec.version, node.account)
    shared.machine.layout.copies.mkdir(exist_ok=True)
    folder.mkdir(mode=0o700)
    os.chown(folder, node.account.uid, node.account.gid)
    orphan = _copying_slowly(installation, node, folder / "data")
    try:
        await until(lambda: (folder / "data" / "pg_wal").exists())
        with pytest.raises(NotFound):
            await shared.provider.check_files("broken", silent)
        await shared.provider.copy(shared.spec.name, "broken", "", silent)
        assert orphan.wait(10) < 0
        assert "files of" in await shared.provider.check_files("broken", silent)
    finally:
        orphan.kill()
        orphan.wait()
    await shared.provider.delete_copy("broken")


async def test_a_copy_that_is_broken_off_leaves_nothing(shared: Copied) -> None:
    async def lost(what: str, percent: int) -> None:
        if percent > 0:
            raise LeaseLost("another process has it")

    with pytest.raises(LeaseLost):
        await shared.provider.copy(shared.spec.name, "lost", "", lost)
    assert not shared.copy_folder("lost").exists()
    task = asyncio.create_task(shared.provider.copy(shared.spec.name, "lost", "", silent))
    await until(lambda: (shared.copy_folder("lost") / "data").exists())
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not shared.copy_folder("lost").exists()


@pytest.mark.parametrize("step", ["copying files", "recovering"])
async def test_a_restore_that_was_killed_is_begun_anew(shared: Copied, step: str) -> None:
    await shared.provider.copy(shared.spec.name, "whole", "", silent)
    spec = harness.spec("killed", version=shared.spec.version)
    shared.secrets[spec.name] = harness.passwords()
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(shared.folder), spec.uid, spec.version, step, cwd=ROOT
    )
    assert await killed.wait() == -signal.SIGKILL
    await shared.provider.create(spec, shared.secrets[spec.name], CopySource("whole"), silent)
    assert (await shared.provider.find(spec.name)).secrets.users.keys() == {"app"}
    shared.secrets[spec.name] = (await shared.provider.find(spec.name)).secrets
    assert await shared.values("SELECT count(*) FROM kept", spec.name) == [2000]
    await shared.provider.delete(spec.name, silent)
    await shared.provider.delete_copy("whole")


async def test_damage_is_found_and_not_restored(shared: Copied) -> None:
    await shared.provider.copy(shared.spec.name, "damaged", "", silent)
    data = shared.copy_folder("damaged") / "data"
    large, segment = _largest(data / "base"), next((data / "pg_wal").glob("0*"))
    more = data / "base" / "more"
    for path, at in ((large, -1), (segment, 64), (data / "backup_manifest", 200), (more, None), (large, None)):
        before = path.read_bytes() if path.exists() else None
        if at is not None:
            _damage(path, at=at)
        elif before is None:
            path.touch()
        else:
            path.unlink()
        with pytest.raises(DataLoss):
            await shared.provider.check_files("damaged", silent)
        if path == segment:
            with pytest.raises(DataLoss):
                async with shared.restored("never", CopySource("damaged")):
                    pass
            assert not shared.machine.layout.instance("instances/never").path.exists()
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
    assert "files of" in await shared.provider.check_files("damaged", silent)
    await shared.provider.delete_copy("damaged")


async def test_damaged_pages_of_a_stopped_instance_are_found(shared: Copied) -> None:
    await shared.provider.copy(shared.spec.name, "pages", "", silent)
    async with shared.restored("spoilt", CopySource("pages")) as name:
        with pytest.raises(FailedPrecondition):
            await shared.provider.check_checksums(name, silent)  # it runs
        file = (await shared.values("SELECT pg_relation_filepath('kept')", name))[0]
        await shared.provider.stop(name, silent)
        _damage(shared.machine.layout.instance(name).node("spoilt-1").data / str(file), at=9000)
        with pytest.raises(DataLoss, match=str(file).rpartition("/")[2]):
            await shared.provider.check_checksums(name, silent)
    await shared.provider.delete_copy("pages")


async def test_a_copy_that_is_read_is_not_removed_meanwhile(shared: Copied) -> None:
    await shared.provider.copy(shared.spec.name, "read", "", silent)
    async with copies.in_use(shared.machine.layout, ["read"]), copies.in_use(shared.machine.layout, ["read"]):
        removal = asyncio.create_task(shared.provider.delete_copy("read"))
        await asyncio.wait({removal}, timeout=0.3)
        assert not removal.done()
        assert (shared.copy_folder("read") / "copy.json").exists()
    await removal
    assert not shared.copy_folder("read").exists()
    await shared.provider.delete_copy("read")  # harmless


async def test_a_copy_is_archived_with_all_that_it_builds_on(shared: Copied) -> None:
    await shared.provider.copy(shared.spec.name, "below", "", silent)
    await shared.provider.copy(shared.spec.name, "top", "below", silent)
    layout = shared.machine.layout
    expected = {
        str(path.relative_to(layout.copies)): path
        for location in ("below", "top")
        for path in shared.copy_folder(location).rglob("*")
        if path.is_file() and path.name != "lock"
    }
    for packing, program in (("TAR", ""), ("TAR_GZIP", "gzip"), ("TAR_ZSTD", "zstd")):
        size, digest = await shared.provider.archive_copy("top", f"to/{packing}", packing, silent, overwrite=False)
        file = layout.exports / "to" / packing
        assert (size, digest) == (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        assert file.stat().st_mode & 0o077 == 0
        with tarfile.open(fileobj=io.BytesIO(_unpacked(file, program)), mode="r:") as members:
            assert {member.name for member in members if member.isfile()} == expected.keys()
            for name, path in expected.items():
                content = members.extractfile(name)
                assert content is not None
                assert content.read() == path.read_bytes(), name
            assert members.getmember("top/data/pg_tblspc").isdir()  # PostgreSQL does not start without its empty ones
    assert {path.name for path in (layout.exports / "to").iterdir()} == {"TAR", "TAR_GZIP", "TAR_ZSTD"}
    for location in ("top", "below"):
        await shared.provider.delete_copy(location)


async def test_an_archive_replaces_nothing_unless_it_may(shared: Copied) -> None:
    await shared.provider.copy(shared.spec.name, "packed", "", silent)
    archive, file = shared.provider.archive_copy, shared.machine.layout.exports / "one.tar"
    made = await archive("packed", "one.tar", "TAR_ZSTD", silent, overwrite=False)
    # What was broken off after it had written the file finds it again; a file of others is another matter.
    assert await archive("packed", "one.tar", "TAR_ZSTD", silent, overwrite=False) == made
    with file.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(AlreadyExists):
        await archive("packed", "one.tar", "TAR_ZSTD", silent, overwrite=False)
    assert await archive("packed", "one.tar", "TAR_ZSTD", silent, overwrite=True) == made
    file.unlink()
    await shared.provider.delete_copy("packed")


async def test_archives_stay_in_their_folder(shared: Copied) -> None:
    await shared.provider.copy(shared.spec.name, "caged", "", silent)
    exports = shared.machine.layout.exports
    exports.mkdir(exist_ok=True)
    (exports / "out").symlink_to(shared.folder)
    for path in ("", "/etc/x", "../x", "a/../../x", ".hidden", "a/.b", "out/x", "a\nb"):
        with pytest.raises(InvalidArgument):
            await shared.provider.archive_copy("caged", path, "TAR", silent, overwrite=True)
    (exports / "out").unlink()
    with pytest.raises(NotFound):
        await shared.provider.archive_copy("nowhere", "x.tar", "TAR", silent, overwrite=False)
    task = asyncio.create_task(shared.provider.archive_copy("caged", "n/x.tar", "TAR_GZIP", silent, overwrite=False))
    await until(lambda: any(exports.glob("n/.*.part")))
    task.cancel()
    await asyncio.wait({task})
    assert list((exports / "n").iterdir()) == []
    await shared.provider.delete_copy("caged")


async def test_what_can_not_be_copied_is_refused(shared: Copied) -> None:
    with pytest.raises(NotFound):
        await shared.provider.copy("instances/nobody", "none", "", silent)
    with pytest.raises(InvalidArgument):
        await shared.provider.copy(shared.spec.name, "../orders", "", silent)
    with pytest.raises(InvalidArgument):
        await shared.provider.delete_copy("../instances")
    await shared.provider.stop(shared.spec.name, silent)
    try:
        with pytest.raises(FailedPrecondition):
            await shared.provider.copy(shared.spec.name, "none", "", silent)
    finally:
        await shared.provider.start(shared.spec.name, silent)
    assert not shared.copy_folder("none").exists()


async def test_no_copy_holds_a_password(shared: Copied) -> None:
    await shared.provider.copy(shared.spec.name, "secretive", "", silent)
    secrets = shared.secrets[shared.spec.name]
    words = [word.encode() for word in (secrets.admin, secrets.replication, *secrets.users.values())]
    layout = shared.machine.layout
    for path in [*layout.copies.rglob("*"), *layout.archive.rglob("*"), *layout.instances.rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in words), path
    await shared.provider.delete_copy("secretive")


def _unpacked(file: Path, program: str) -> bytes:
    if not program:
        return file.read_bytes()
    return subprocess.run([program, "-dc", str(file)], check=True, capture_output=True).stdout


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _copying_slowly(installation: Installation, node: LocalNode, data: Path) -> subprocess.Popen[bytes]:
    command = [installation.program("pg_basebackup"), "-h", str(node.folder.run), "-p", str(node.port), "-c", "fast"]
    command += ["-U", "opsplane_replication", "-D", str(data), "--max-rate=32k"]
    return subprocess.Popen(command, cwd="/", **node.account.popen_options)


def _largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _damage(path: Path, *, at: int = -1) -> None:
    with path.open("r+b") as stream:
        stream.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 0x10]))


def _restore_and_die(folder: str, uid: str, version: str, step: str) -> None:
    """In a process of its own: is killed soon after `step` was told."""
    provider = harness.provider(harness.machine(Path(folder)))
    spec = dataclasses.replace(harness.spec("killed", version=version), uid=uid)

    async def tell(what: str, percent: int) -> None:
        if what == step:
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGKILL)

    asyncio.run(provider.create(spec, harness.passwords(), CopySource("whole"), tell))


if __name__ == "__main__":
    _restore_and_die(*sys.argv[1:])
