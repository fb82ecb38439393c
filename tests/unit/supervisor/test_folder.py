"""The data folder, and who may use it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from opsplane_server.errors import FailedPrecondition
from opsplane_server.supervisor.folder import DataFolder


async def test_one_server_at_a_time(tmp_path: Path) -> None:
    async with DataFolder(tmp_path / "data", patience=0):
        with pytest.raises(FailedPrecondition, match="another Opsplane server uses"):
            async with DataFolder(tmp_path / "data", patience=0):
                pass
    async with DataFolder(tmp_path / "data", patience=0):
        pass


async def test_sockets_are_private_and_gone_in_the_end(tmp_path: Path) -> None:
    (tmp_path / "run" / "of-a-killed-server").mkdir(parents=True)
    async with DataFolder(tmp_path, patience=0) as folder:
        run = folder.run_folder
        assert run.is_relative_to(tmp_path)
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        assert list((tmp_path / "run").iterdir()) == [run]
    assert not run.exists()


@pytest.mark.parametrize("name", ["x" * 90, "with space", "per%20cent"])
async def test_sockets_are_elsewhere_where_the_path_does_not_fit_in_an_address(tmp_path: Path, name: str) -> None:
    async with DataFolder(tmp_path / name, patience=0) as folder:
        run = folder.run_folder
        assert not run.is_relative_to(tmp_path)
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert not run.exists()


async def test_the_node_keeps_its_name(tmp_path: Path) -> None:
    async with DataFolder(tmp_path / "a", patience=0) as folder:
        name = folder.node
    async with DataFolder(tmp_path / "a", patience=0) as folder:
        assert folder.node == name
    async with DataFolder(tmp_path / "b", patience=0) as folder:
        assert folder.node != name


def holding(descriptor: int) -> subprocess.Popen[bytes]:
    """A process that does nothing but have the descriptor."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])


async def test_workers_of_a_killed_server_are_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    async with DataFolder(tmp_path, patience=0) as folder:
        worker = holding(folder.workers_lock)
    with worker:
        with pytest.raises(FailedPrecondition, match="workers of a killed server still use"):
            async with DataFolder(tmp_path, patience=0.1):
                pass
        worker.kill()
        async with DataFolder(tmp_path, patience=60):
            assert worker.wait() != 0


async def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="can not be used"):
        async with DataFolder(tmp_path / "file" / "data", patience=0):
            pass


async def test_nothing_stays_locked_after_a_failure(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(FailedPrecondition, match="can not be used"):
            async with DataFolder(tmp_path, patience=0):
                pass
    assert len(os.listdir("/proc/self/fd")) == before
