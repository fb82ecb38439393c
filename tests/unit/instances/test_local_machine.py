"""The ground that local instances stand on: manifests, locks, ports, programs, certificates, files of settings."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import socket
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted
from opsplane_server.instances.model import (
    FailoverKind,
    FailoverReport,
    HighAvailability,
    NodeState,
    Placement,
    PointInTimeRecovery,
)
from opsplane_server.instances.providers.local import certificates, logs, processes, programs
from opsplane_server.instances.providers.local.layout import InstanceFolder, Layout, NodeFolder
from opsplane_server.instances.providers.local.locks import locked, try_lock
from opsplane_server.instances.providers.local.machine import LocalSettings, Machine
from opsplane_server.instances.providers.local.manifest import Desired, KeptUpgrade, LocalManifest, NodeEntry
from opsplane_server.instances.providers.local.postgres import parameters
from opsplane_server.storage.accounts import Account
from opsplane_server.storage.secrets import SecretBox

from tests import instances_harness as harness
from tests.waiting import until

MOMENT = datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC)
OURSELVES = Account(os.geteuid(), os.getegid(), "ourselves")
BOX = SecretBox([b"k" * 32])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(Layout.below(tmp_path), LocalSettings(), BOX)


def manifest_of(instance_id: str, *, first_port: int = 21000) -> LocalManifest:
    spec = dataclasses.replace(
        harness.spec(
            instance_id,
            version="18.4",
            parameters={"work_mem": "4MB"},
            high_availability=HighAvailability(2, 1),
            point_in_time_recovery=PointInTimeRecovery(7),
        ),
        placement=Placement(namespace="here"),
    )
    return LocalManifest(
        spec=spec,
        secrets=harness.passwords(),
        nodes=(
            NodeEntry(f"{instance_id}-2", first_port + 1, "18.4"),
            NodeEntry(f"{instance_id}-11", first_port + 2, "18.4", NodeState.REJOINING),
        ),
        ports={"rw": first_port},
        primary=f"{instance_id}-2",
        desired=Desired.RUNNING,
        last_failover=FailoverReport(
            FailoverKind.FORCED, "a", "b", "said so", MOMENT, MOMENT, MOMENT + timedelta(seconds=1), None
        ),
        kept_upgrade=KeptUpgrade("16.14", "18.4", "data-16.14", MOMENT),
    )


def save(machine: Machine, manifest: LocalManifest) -> Path:
    folder = machine.layout.instance(manifest.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    machine.manifests.save(manifest)
    return folder.manifest


class TestManifest:
    def test_comes_back_whole(self, machine: Machine) -> None:
        manifest = manifest_of("orders")
        save(machine, manifest)
        assert machine.manifests.load("instances/orders") == manifest
        assert list(machine.manifests.all()) == [manifest]

    def test_shows_no_secret(self, machine: Machine) -> None:
        manifest = manifest_of("orders")
        path = save(machine, manifest)
        secrets = [manifest.secrets.admin, manifest.secrets.replication, *manifest.secrets.users.values()]
        assert not any(secret in path.read_text() for secret in secrets)
        assert not any(secret in repr(manifest) for secret in secrets)
        assert path.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"secrets": "x"}'])
    def test_damaged_is_told_without_its_content(self, machine: Machine, content: str) -> None:
        path = save(machine, manifest_of("orders"))
        path.write_text(content)
        with pytest.raises(DataLoss):
            machine.manifests.load("instances/orders")
        assert list(machine.manifests.all()) == []

    def test_of_another_instance_is_refused(self, machine: Machine) -> None:
        path = save(machine, manifest_of("orders"))
        save(machine, manifest_of("stolen"))
        shutil.copy(path, machine.layout.instance("instances/stolen").manifest)
        with pytest.raises(DataLoss):
            machine.manifests.load("instances/stolen")

    def test_of_a_later_version_is_read(self, machine: Machine) -> None:
        path = save(machine, manifest_of("orders"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))
        assert machine.manifests.load("instances/orders") == manifest_of("orders").replace(
            spec=machine.manifests.load("instances/orders").spec,
            secrets=machine.manifests.load("instances/orders").secrets,
        )

    def test_ids_of_nodes_are_never_used_again(self) -> None:
        manifest = manifest_of("orders")
        assert manifest.next_node_id() == "orders-12"
        with pytest.raises(NotFound):
            manifest.entry("orders-1")

    def test_what_is_being_deleted_is_not_listed(self, machine: Machine) -> None:
        path = save(machine, manifest_of("orders"))
        path.parent.rename(machine.layout.instances / ".deleting-orders")
        assert machine.manifests.names() == []


class TestLock:
    async def test_is_held_by_one_at_a_time(self, tmp_path: Path) -> None:
        file, inside = tmp_path / "lock", 0

        async def one() -> None:
            nonlocal inside
            for _ in range(20):
                async with locked(file):
                    inside += 1
                    await asyncio.sleep(0)
                    assert inside == 1
                    inside -= 1

        await asyncio.gather(*(one() for _ in range(4)))

    async def test_is_freed_when_its_process_is_killed(self, tmp_path: Path) -> None:
        file = tmp_path / "lock"
        code = (
            "import sys, time, pathlib\n"
            "from opsplane_server.instances.providers.local.locks import try_lock\n"
            "assert try_lock(pathlib.Path(sys.argv[1])) is not None\n"
            "print('held', flush=True)\n"
            "time.sleep(600)\n"
        )
        holder = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(file), stdout=asyncio.subprocess.PIPE
        )
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        assert try_lock(file) is None
        holder.kill()
        async with asyncio.timeout(30), locked(file):
            await holder.wait()

    async def test_of_a_removed_folder_is_not_had(self, machine: Machine) -> None:
        manifest = manifest_of("orders")
        folder = save(machine, manifest).parent
        async with machine.locked(manifest.name):
            waiting = asyncio.create_task(_enter(machine, manifest.name))
            await asyncio.sleep(0)
            shutil.rmtree(folder)
        with pytest.raises(NotFound):
            await waiting
        assert not await asyncio.to_thread(folder.exists)

    async def test_of_a_folder_made_anew_is_another(self, tmp_path: Path) -> None:
        file = tmp_path / "orders" / "lock"
        file.parent.mkdir()
        async with locked(file):
            file.parent.rename(tmp_path / "gone")
            file.parent.mkdir()
            async with locked(file):
                assert try_lock(file) is None


async def _enter(machine: Machine, name: str) -> None:
    async with machine.locked(name):
        pass


class TestPorts:
    async def test_are_those_of_nobody_else(self, tmp_path: Path) -> None:
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            first = stranger.getsockname()[1]
            machine = Machine(Layout.below(tmp_path), LocalSettings(first_port=first, last_port=first + 3), BOX)
            save(machine, manifest_of("orders", first_port=first + 1))  # which has three
            async with machine.choosing_ports() as choice:
                with pytest.raises(ResourceExhausted) as caught:
                    choice.next()
            assert caught.value.reason == "NO_FREE_PORT"

    async def test_are_given_once(self, machine: Machine) -> None:
        async with machine.choosing_ports() as choice:
            assert choice.next() != choice.next()


class TestProgram:
    async def test_is_told_what_it_reads_and_heard_to_its_end(self) -> None:
        heard = []

        async def line(text: str) -> None:
            heard.append(text)

        script = "cat; printf '1/3 kB\\r2/3 kB\\r'; echo done >&2"
        outcome = await programs.run(OURSELVES, ["/bin/sh", "-c", script], input=b"secret\n", on_line=line)
        assert heard == ["secret", "1/3 kB", "2/3 kB", "done"]
        assert outcome.last_line == "done"

    async def test_that_fails_says_why(self) -> None:
        script = "echo initdb: error: no room; echo something else; exit 3"
        with pytest.raises(FailedPrecondition, match="sh failed: initdb: error: no room"):
            await programs.run(OURSELVES, ["/bin/sh", "-c", script])
        assert (await programs.run(OURSELVES, ["/bin/sh", "-c", script], check=False)).returncode == 3

    async def test_has_nothing_of_our_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPASSWORD", "ours")
        outcome = await programs.run(OURSELVES, ["/usr/bin/env"], env={"ONE": "more"})
        assert "PGPASSWORD" not in outcome.output
        assert "ONE=more" in outcome.output

    async def test_that_is_cancelled_ends_with_all_that_it_started(self, tmp_path: Path) -> None:
        started = asyncio.Event()

        async def line(text: str) -> None:
            started.set()

        script = f"sleep 987 & sleep 986 & echo ready; wait # {tmp_path}"
        task = asyncio.create_task(programs.run(OURSELVES, ["/bin/sh", "-c", script], on_line=line))
        await started.wait()

        def families() -> list[list[psutil.Process]]:
            return [processes.tree(process) for process in processes.working_on(tmp_path)]

        # What it forks has its command line until it becomes another program.
        await until(lambda: [len(family) for family in families()] == [3])
        (family,) = families()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not any(processes.alive(process) for process in family))
        assert processes.working_on(tmp_path) == []

    async def test_an_error_of_the_listener_ends_it(self, tmp_path: Path) -> None:
        async def line(text: str) -> None:
            raise DataLoss("that is enough")

        with pytest.raises(DataLoss):
            await programs.run(OURSELVES, ["/bin/sh", "-c", f"echo x; sleep 987 # {tmp_path}"], on_line=line)
        assert processes.working_on(tmp_path) == []


class TestProcess:
    async def test_that_is_launched_is_seen_to_end_and_collected(self, tmp_path: Path) -> None:
        process = processes.launch(OURSELVES, ["/bin/sleep", "987"], tmp_path / "log")
        assert processes.alive(process)
        assert not await processes.ended(process, 0.01)
        waiting = asyncio.create_task(processes.ended(process, 60))
        await processes.kill([process])
        assert await waiting
        assert not processes.alive(process)
        assert not psutil.pid_exists(process.pid)  # not even as a zombie

    async def test_of_a_similar_folder_is_not_meant(self, tmp_path: Path) -> None:
        process = processes.launch(OURSELVES, ["/bin/sh", "-c", f"sleep 987 # {tmp_path}/orders-1/x"], tmp_path / "log")
        try:
            assert processes.working_on(tmp_path / "orders") == []
            assert processes.working_on(tmp_path / "orders-1") == [process]
            stranger = Account(os.geteuid() + 1, os.getegid(), "stranger")
            assert processes.working_on(tmp_path / "orders-1", stranger) == []
        finally:
            await processes.kill(processes.tree(process))


class TestCertificates:
    def test_are_of_an_authority_of_the_instance(self, tmp_path: Path) -> None:
        folder, conf = InstanceFolder(tmp_path), tmp_path / "conf"
        conf.mkdir()
        files = certificates.ensure(folder, conf, OURSELVES, ["db.example", "192.0.2.7"])
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(certificates.authority(folder).encode()))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert "db.example" in names.get_values_for_type(x509.DNSName)
        assert {"192.0.2.7", "127.0.0.1"} <= {str(name) for name in names.get_values_for_type(x509.IPAddress)}
        assert files.key.stat().st_mode & 0o077 == 0
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)

    def test_stay_until_they_do_not_fit(self, tmp_path: Path) -> None:
        folder, conf = InstanceFolder(tmp_path), tmp_path / "conf"
        conf.mkdir()
        files = certificates.ensure(folder, conf, OURSELVES, ["db.example"])
        first, authority = files.certificate.read_bytes(), certificates.authority(folder)
        certificates.ensure(folder, conf, OURSELVES, ["db.example"])
        assert files.certificate.read_bytes() == first
        certificates.ensure(folder, conf, OURSELVES, ["other.example"])
        second = files.certificate.read_bytes()
        assert second != first
        files.key.write_text("damaged")
        certificates.ensure(folder, conf, OURSELVES, ["other.example"])
        assert files.certificate.read_bytes() != second
        assert certificates.authority(folder) == authority


class TestLayout:
    def test_a_socket_fits_wherever_the_folder_is(self, tmp_path: Path) -> None:
        short, long = NodeFolder(Path("/srv/nodes/a-1")), NodeFolder(Path("/srv") / ("x" * 100))
        assert short.run == Path("/srv/nodes/a-1/run")
        assert len(str(long.run / ".s.PGSQL.65535.lock")) <= 107
        assert long.run != NodeFolder(Path("/srv") / ("y" * 100)).run


class TestLogs:
    def test_newest_lines_are_whole(self, tmp_path: Path) -> None:
        file = tmp_path / "log"
        assert logs.newest_lines(file, 10) == ()
        file.write_text("one\ntwo\nthree\n")
        assert logs.newest_lines(file, 100) == ["one", "two", "three"]
        assert logs.newest_lines(file, 8) == ["three"]

    def test_long_ones_are_moved_under_their_writer(self, tmp_path: Path) -> None:
        file = tmp_path / "log"
        with file.open("a", buffering=1) as writer:
            writer.write("old\n" * 10)
            logs.bound(file, 100)
            assert file.stat().st_size == 40
            logs.bound(file, 30)
            writer.write("new\n")
        assert file.read_text() == "new\n"
        assert (tmp_path / "log.1").read_text() == "old\n" * 10


class TestSettings:
    @given(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"])))
    def test_values_stay_in_their_quotes(self, value: str) -> None:
        line = parameters.quoted({"name": value})
        assert line.count("\n") == 1
        assert _unquoted(line.removeprefix("name = ").removesuffix("\n")) == value

    def test_a_value_of_two_lines_is_refused(self) -> None:
        with pytest.raises(ValueError, match="one line"):
            parameters.quoted({"name": "1\nport = 1"})

    @pytest.mark.parametrize("mib", [64, 256, 512, 4096, 1 << 20])
    def test_derived_ones_fit_into_the_memory(self, mib: int) -> None:
        spec = harness.spec("a", version="18.4", memory_bytes=mib << 20, storage_bytes=256 << 20)
        derived = parameters.derived(spec, preload=False)
        kib = {name: int(value[:-2]) for name, value in derived.items() if value.endswith("kB")}
        assert kib["shared_buffers"] == mib * 256
        assert kib["shared_buffers"] + kib["maintenance_work_mem"] * 3 <= mib * 1024
        assert 25 <= int(derived["max_connections"]) <= 1000
        assert int(derived["min_wal_size"][:-2]) <= int(derived["max_wal_size"][:-2]) <= 128


def _unquoted(text: str) -> str:
    """As the server reads it: guc-file.l and GUC_scanstr of PostgreSQL."""
    assert text[0] == text[-1] == "'"
    result, rest = "", text[1:-1]
    while rest:
        if rest[0] in "\\'":
            assert len(rest) > 1, "the quotes end too early"
            assert rest[0] == "\\" or rest[1] == "'", "the quotes end too early"
            assert rest[0] == "'" or rest[1] in "\\'", "an escape of something else"
            result, rest = result + rest[1], rest[2:]
        else:
            result, rest = result + rest[0], rest[1:]
    return result
