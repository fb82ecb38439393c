"""Metrics are made of two samples."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from opsplane_server.instances.figures import figures
from opsplane_server.instances.records import BackupFigures, InstanceSample, NodeSample

from tests.unit.instances.samples import GIB, NOON, instance, sample


def test_rates_are_averages_between_two_samples() -> None:
    earlier = sample(0, cpu=1.0, transactions=100, queries=1000, buffer_hits=10, buffer_reads=10, deadlocks=1)
    later = sample(4, cpu=2.0, transactions=300, queries=1001, buffer_hits=40, buffer_reads=20, deadlocks=3)
    (node,) = figures(instance(), earlier, later).nodes
    assert node.cpu_millis == 250
    assert node.transactions_per_second == 50
    assert node.queries_per_second == 0.25
    assert node.cache_hit_ratio == 0.75
    assert (node.memory_bytes, node.storage_used_bytes, node.storage_limit_bytes) == (7, 8, GIB)
    assert (node.connections, node.active_connections, node.max_connections) == (5, 2, 100)
    assert (node.lag_bytes, node.lag, node.deadlocks) == (0, timedelta(), 3)


def test_the_first_sample_has_no_rates() -> None:
    (node,) = figures(instance(), None, sample(4, cpu=2.0, transactions=300, buffer_hits=3, buffer_reads=1)).nodes
    assert (node.cpu_millis, node.transactions_per_second, node.queries_per_second) == (None, None, None)
    assert node.cache_hit_ratio == 0.75  # of all time
    assert node.connections == 5


def test_a_server_that_began_anew_has_no_rates_till_the_next_sample() -> None:
    earlier, later = sample(0, cpu=9.0, transactions=300), sample(4, cpu=1.0, transactions=20)
    (node,) = figures(instance(), earlier, later).nodes
    assert (node.cpu_millis, node.transactions_per_second) == (None, None)


def test_what_an_engine_does_not_tell_is_not_known() -> None:
    (node,) = figures(instance(), sample(0), sample(4)).nodes
    assert (node.transactions_per_second, node.queries_per_second, node.cache_hit_ratio) == (None, None, None)
    assert node.deadlocks is None


def test_a_node_that_does_not_answer_is_left_out() -> None:
    later = InstanceSample(NOON, (*sample(0).nodes, NodeSample("orders-2")))
    assert [node.node for node in figures(instance(nodes=2), None, later).nodes] == ["orders-1"]


def test_the_size_is_the_primarys() -> None:
    nodes = (*sample(0, node="orders-2", database_size_bytes=5).nodes, *sample(0, database_size_bytes=9).nodes)
    assert figures(instance(nodes=2), None, InstanceSample(NOON, nodes)).database_size_bytes == 9


def test_the_age_of_the_newest_backup() -> None:
    backed_up = replace(instance(), backups=BackupFigures("backups/b", NOON - timedelta(hours=3), 10))
    assert figures(backed_up, None, sample(60)).backup_age == timedelta(hours=3, minutes=1)
    assert figures(instance(), None, sample(60)).backup_age is None
