"""Major upgrades by pg_upgrade, with a way back; broken off at any step they are gone on with."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.instances.model import CopySource, HighAvailability, InstanceSpec, NodeState
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest

from tests import instances_harness as harness
from tests.instances_copying import Copied, copied, exact
from tests.instances_harness import silent

ROOT = Path(__file__).resolve().parents[3]
MIDWAY_SECONDS = 0.4


@pytest.fixture(scope="module")
def shared() -> Iterator[Copied]:
    with copied("16") as shared:
        yield shared


def _new(shared: Copied) -> InstanceSpec:
    return dataclasses.replace(shared.spec, version=exact(shared.provider, "18"), generation=2)


def _manifest(shared: Copied) -> LocalManifest:
    return shared.machine.manifests.load(shared.spec.name)


def _left(shared: Copied) -> set[str]:
    """What is in the node's folder besides what belongs there."""
    folder = shared.machine.layout.instance(shared.spec.name).nodes / "orders-1"
    return {path.name for path in folder.iterdir()} - {"data", "conf", "log", "run"}


async def _version(shared: Copied) -> object:
    return (await shared.values("SHOW server_version"))[0]


async def test_what_stands_against_it_is_told_while_the_server_goes_on(shared: Copied) -> None:
    await shared.execute("CREATE TABLE obstacle (configuration regconfig)")
    before = await shared.provider.status(shared.spec.name)
    with pytest.raises(FailedPrecondition, match=r"obstacle\.configuration") as caught:
        await shared.provider.upgrade(_new(shared), silent)
    assert caught.value.reason == "UPGRADE_CHECK_FAILED"
    after = await shared.provider.status(shared.spec.name)
    assert after.nodes[0].start_time == before.nodes[0].start_time
    assert (_left(shared), _manifest(shared).upgrade, _manifest(shared).spec) == (set(), "", shared.spec)
    await shared.execute("DROP TABLE obstacle")


async def test_it_is_upgraded_and_back(shared: Copied) -> None:
    new = _new(shared)
    await shared.provider.copy(shared.spec.name, "before", "", silent)
    before = _manifest(shared)
    told: list[int] = []

    async def tell(what: str, percent: int) -> None:
        told.append(percent)

    status = await shared.provider.upgrade(new, tell)
    assert told == sorted(told)
    assert (status.running_version, await _version(shared)) == (new.version, new.version)
    assert await shared.values("SELECT count(*) FROM kept") == [2000]
    started = status.nodes[0].start_time
    again = await shared.provider.upgrade(new, silent)  # called again after it was done
    assert again.nodes[0].start_time == started
    with pytest.raises(InvalidArgument):
        await shared.provider.upgrade(shared.spec, silent)
    kept = _manifest(shared).kept_upgrade
    assert kept is not None
    assert (kept.from_version, kept.to_version) == (shared.spec.version, new.version)

    # Copies of the old version can still be restored; new ones do not build on them, and have a log of their own.
    after = await shared.provider.copy(shared.spec.name, "after", "before", silent)
    assert (after.base, after.engine_version) == ("", new.version)
    async with shared.restored("old", CopySource("before")) as name:
        assert await shared.values("SHOW server_version", name) == [shared.spec.version]
    assert len(list(shared.machine.layout.archived_log(shared.spec.uid).iterdir())) == 2
    assert (await shared.provider.status(shared.spec.name)).archive_from == after.cut_time

    # Killed when the data were in place, but that was not written down.
    shared.machine.manifests.save(before.replace(upgrade=new.version))
    await shared.provider.stop(shared.spec.name, silent)
    await shared.provider.upgrade(new, silent)
    await shared.provider.start(shared.spec.name, silent)
    assert await _version(shared) == new.version

    await shared.execute("INSERT INTO kept VALUES (-1)")
    status = await shared.provider.roll_back(shared.spec, silent)
    assert (status.running_version, await _version(shared)) == (shared.spec.version, shared.spec.version)
    assert await shared.values("SELECT count(*) FROM kept") == [2000]
    await shared.provider.roll_back(shared.spec, silent)  # called again after it was done
    assert _left(shared) == set()
    for location in ("before", "after"):
        await shared.provider.delete_copy(location)


@pytest.mark.parametrize(
    ("step", "undone"),
    [("stopping the server", ""), ("upgrading the data", "away"), ("starting the new version", "back")],
)
async def test_killed_at_a_step_it_is_gone_on_with(shared: Copied, step: str, undone: str) -> None:
    new = _new(shared)
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(shared.folder), new.version, step, cwd=ROOT
    )
    assert await killed.wait() == -signal.SIGKILL
    written = step == "stopping the server"
    if written:
        # The supervisor has the old server started, whose clients go on: nothing of that may be lost.
        await shared.provider.start(shared.spec.name, silent)
        await shared.execute("INSERT INTO kept VALUES (-2)")
    status = await shared.provider.upgrade(new, silent)
    assert (status.running_version, await _version(shared)) == (new.version, new.version)
    assert await shared.values("SELECT count(*) FROM kept") == [2000 + written]
    assert _manifest(shared).upgrade == ""
    if undone:
        await _begin_undoing(shared, back=undone == "back")
    status = await shared.provider.roll_back(shared.spec, silent)
    assert (status.running_version, await _version(shared)) == (shared.spec.version, shared.spec.version)
    assert await shared.values("SELECT count(*) FROM kept") == [2000 + written]
    assert _left(shared) == set()
    await shared.execute("DELETE FROM kept WHERE n < 0")


async def _begin_undoing(shared: Copied, *, back: bool) -> None:
    """What is there when the undoing is killed after the new data were moved away, or the old ones back as well."""
    folder = shared.machine.layout.instance(shared.spec.name).node("orders-1")
    kept = _manifest(shared).kept_upgrade
    assert kept is not None
    await shared.provider.stop(shared.spec.name, silent)
    shared.machine.manifests.save(_manifest(shared).replace(desired=Desired.RUNNING))
    folder.data.rename(folder.path / "data.discarded")
    if back:
        (folder.path / kept.folder).rename(folder.data)


async def test_replicas_are_made_anew_and_the_way_back_can_be_given_up(shared: Copied) -> None:
    available = dataclasses.replace(shared.spec, high_availability=HighAvailability(2, synchronous_replicas=1))
    status = await shared.provider.update(available, silent)
    assert status.ready_nodes == 2
    new = dataclasses.replace(available, version=exact(shared.provider, "18"))
    status = await shared.provider.upgrade(new, silent)
    assert [node.state for node in status.nodes] == [NodeState.READY] * 2
    await shared.execute("INSERT INTO kept VALUES (-3)")  # a commit that waits for the replica
    await shared.provider.forget_upgrade(shared.spec.name)
    assert _left(shared) == set()
    with pytest.raises(FailedPrecondition) as caught:
        await shared.provider.roll_back(available, silent)
    assert caught.value.reason == "ROLLBACK_EXPIRED"


def _upgrade_and_die(folder: str, version: str, step: str) -> None:
    """In a process of its own: is killed when `step` is told, or, when pg_upgrade runs, in the middle of it."""
    provider = harness.provider(harness.machine(Path(folder)))

    async def tell(what: str, percent: int) -> None:
        if what.startswith(step):
            if what != "upgrading the data":
                os.kill(os.getpid(), signal.SIGKILL)
            asyncio.get_running_loop().call_later(MIDWAY_SECONDS, os.kill, os.getpid(), signal.SIGKILL)

    async def run() -> None:
        spec = (await provider.find("instances/orders")).spec
        await provider.upgrade(dataclasses.replace(spec, version=version, generation=2), tell)

    asyncio.run(run())


if __name__ == "__main__":
    _upgrade_and_die(*sys.argv[1:])
