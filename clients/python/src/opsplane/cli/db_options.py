"""Options that describe an instance, for `opsplane db create` and `update` and `opsplane backup restore`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from opsplane.cli.db_names import pairs
from opsplane.cli.durations import DURATION
from opsplane.cli.sizes import CPU, SIZE
from opsplane.instances.v1 import instance_pb2

Command = TypeVar("Command", bound=Callable[..., Any])

_RESOURCES = {"storage": "storage_bytes", "memory": "memory_bytes", "cpu": "cpu_millis"}
_SYNCHRONOUS = instance_pb2.REPLICATION_MODE_SYNCHRONOUS
_ASYNCHRONOUS = instance_pb2.REPLICATION_MODE_ASYNCHRONOUS


def instance_options(command: Command) -> Command:
    """The settings that can also be changed later; `set_options` takes them."""
    for option in reversed(
        (
            click.option("--storage", type=SIZE, help="Storage of each node, for example 2Gi.  [default: 1Gi]"),
            click.option("--memory", type=SIZE, help="Memory of each node, for example 512Mi.  [default: 512Mi]"),
            click.option("--cpu", type=CPU, help="Processors of each node, for example 500m or 2.  [default: 500m]"),
            click.option("--nodes", type=click.IntRange(1, 9), help="Servers in all; from 2 on highly available."),
            click.option("--sync", "synchronous", type=click.IntRange(0, 8), metavar="N",
                         help="Replicas that a commit waits for, 0 for none."),
            click.option("--automatic-failover/--no-automatic-failover", "automatic_failover", default=None,
                         help="Whether another node takes over by itself.  [default: yes]"),
            click.option("--parameter", "-p", "parameters", multiple=True, metavar="NAME=VALUE",
                         help="Setting of the engine, repeatable, for example max_connections=200."),
            click.option("--pitr", "window_days", type=click.IntRange(0, 35), metavar="DAYS",
                         help="Keep the log, so that any moment of so many days can be restored; 0 for none."),
            click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label, repeatable."),
            click.option("--protect/--no-protect", "protect", default=None, help="Refuse to delete it."),
            click.option("--expire-in", type=DURATION, metavar="DURATION", help="Delete it after this time."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def set_options(wanted: instance_pb2.Instance, options: Mapping[str, Any]) -> list[str]:
    """Sets what the options say; the paths of the fields. Raises UsageError."""
    fields = []
    for name, field in _RESOURCES.items():
        if options[name] is not None:
            setattr(wanted.resources, field, options[name])
            fields.append(f"resources.{field}")
    fields += _set_availability(wanted, options)
    if options["parameters"]:
        wanted.parameters.update(pairs(options["parameters"], "--parameter"))
        fields.append("parameters")
    if options["window_days"] is not None:
        wanted.point_in_time_recovery.enabled = options["window_days"] > 0
        wanted.point_in_time_recovery.window_days = options["window_days"]
        fields.append("point_in_time_recovery")
    if options["labels"]:
        wanted.labels.update(pairs(options["labels"], "--label"))
        fields.append("labels")
    if options["protect"] is not None:
        wanted.deletion_protection = options["protect"]
        fields.append("deletion_protection")
    if options["expire_in"] is not None:
        wanted.expire_time.FromDatetime(datetime.now(UTC) + options["expire_in"])
        fields.append("expire_time")
    return fields


def _set_availability(wanted: instance_pb2.Instance, options: Mapping[str, Any]) -> list[str]:
    nodes, synchronous, automatic = options["nodes"], options["synchronous"], options["automatic_failover"]
    if nodes is None and synchronous is None and automatic is None:
        return []
    if nodes == 1:
        if synchronous or automatic is not None:
            raise click.UsageError("--sync and --automatic-failover need --nodes of at least 2")
        return ["high_availability"]  # unset: the primary alone
    fields = []
    availability = wanted.high_availability
    availability.SetInParent()
    if nodes is not None:
        availability.node_count = nodes
        fields.append("high_availability.node_count")
    if synchronous is not None:
        availability.replication_mode = _SYNCHRONOUS if synchronous else _ASYNCHRONOUS
        availability.synchronous_replica_count = synchronous
        fields += ["high_availability.replication_mode", "high_availability.synchronous_replica_count"]
    if automatic is not None:
        availability.automatic_failover = automatic
        fields.append("high_availability.automatic_failover")
    return fields
