"""Who may become a primary, and what PostgreSQL is told of its replicas."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.instances.model import HighAvailability, NodeState
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.layout import InstanceFolder
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest, NodeEntry
from opsplane_server.instances.providers.local.postgres import replication, timelines
from opsplane_server.instances.providers.local.postgres.replication import Quorum
from opsplane_server.storage.accounts import Account

from tests import instances_harness as harness


def _manifest(nodes: int, synchronous: int, name: str = "orders") -> LocalManifest:
    spec = harness.spec(name, version="18.4", high_availability=HighAvailability(nodes, synchronous))
    entries = tuple(NodeEntry(f"{name}-{number}", 21000 + number, "18.4") for number in range(1, nodes + 1))
    ports = {"rw": 20000, "ro": 20001, "r": 20002, "any": 20003}
    return LocalManifest(spec, harness.passwords(), entries, ports, f"{name}-1", Desired.RUNNING)


def _node(manifest: LocalManifest, node_id: str) -> LocalNode:
    folder = InstanceFolder(Path("/data/instances") / manifest.spec.id)
    return LocalNode(
        manifest, manifest.entry(node_id), folder, folder.node(node_id), Account(1, 1, "postgres"), "127.0.0.1"
    )


@given(st.integers(2, 9).flatmap(lambda nodes: st.tuples(st.just(nodes), st.integers(0, nodes - 1))))
def test_a_safe_number_of_replicas_has_every_acknowledged_write(sizes: tuple[int, int]) -> None:
    nodes, synchronous = sizes
    needed = replication.quorum(_manifest(nodes, synchronous), "orders-1")
    for present in range(nodes):
        # Any so many that acknowledged, and any that are left: do they always meet?
        meet = all(
            set(told) & set(left)
            for told in itertools.combinations(needed.members, needed.count)
            for left in itertools.combinations(needed.members, present)
        )
        assert needed.is_safe(present) == (meet or needed.count == 0)


def test_replicas_that_are_being_made_are_not_waited_for() -> None:
    manifest = _manifest(3, 2)
    assert replication.quorum(manifest, "orders-1") == Quorum(2, ("orders-2", "orders-3"))
    made = manifest.with_entry(dataclasses.replace(manifest.entry("orders-3"), condition=NodeState.STARTING))
    assert replication.quorum(made, "orders-1") == Quorum(1, ("orders-2",))
    assert replication.settings(_node(made, "orders-1"))["synchronous_standby_names"] == 'ANY 1 ("orders-2")'


def test_each_node_knows_what_it_needs_as_a_primary_and_as_a_replica() -> None:
    manifest = _manifest(3, 1)
    primary, replica = (replication.settings(_node(manifest, each)) for each in ("orders-1", "orders-2"))
    assert primary["primary_conninfo"] == ""
    assert "host='/data/instances/orders/nodes/orders-1/run'" in replica["primary_conninfo"]
    assert "application_name='orders-2'" in replica["primary_conninfo"]
    assert primary["synchronous_standby_names"] == 'ANY 1 ("orders-2", "orders-3")'
    assert replica["synchronous_standby_names"] == 'ANY 1 ("orders-1", "orders-3")'
    assert primary["cluster_name"] != replica["cluster_name"]


def test_long_names_stay_apart() -> None:
    manifest = _manifest(3, 1, "a" * 63)
    names = {replication.standby_name(entry.id) for entry in manifest.nodes}
    assert len(names) == 3
    tags = {replication.settings(_node(manifest, entry.id))["cluster_name"] for entry in manifest.nodes}
    assert len(tags) == 3
    assert all(len(name) <= 63 for name in names | tags)


def test_conninfo_is_quoted() -> None:
    assert replication.conninfo(host="/it's a \\ folder", port="1") == "host='/it\\'s a \\\\ folder' port='1'"


@given(st.integers(0, 2**64 - 1))
def test_positions_are_written_as_they_are_read(number: int) -> None:
    assert timelines.position(timelines.lsn(number)) == number


@pytest.mark.parametrize(("text", "number"), [("0/0", 0), ("0/5000148", 0x5000148), ("A/10", 0xA_0000_0010)])
def test_positions_are_postgresqls(text: str, number: int) -> None:
    assert timelines.position(text) == number
    assert timelines.lsn(number) == text
