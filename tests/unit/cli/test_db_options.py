"""What the options of `opsplane db` and `opsplane backup` make."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner
from opsplane.backups.v1 import schedules_pb2
from opsplane.cli.backup_schedules import parse_tier
from opsplane.cli.db_options import instance_options, set_options
from opsplane.cli.sizes import parse_millis, parse_size
from opsplane.instances.v1 import instance_pb2


def parsed(*arguments: str) -> tuple[instance_pb2.Instance, list[str]]:
    """The instance and the fields of these options."""
    wanted = instance_pb2.Instance()
    fields: list[str] = []

    @click.command()
    @instance_options
    def command(**options: Any) -> None:
        fields.extend(set_options(wanted, options))

    outcome = CliRunner().invoke(command, arguments, standalone_mode=False)
    if outcome.exception is not None:
        raise outcome.exception
    return wanted, fields


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("512", 512), ("1K", 1000), ("1Ki", 1024), ("512Mi", 512 * 1024**2), ("1.5G", 1_500_000_000),
     ("2GiB", 2 * 1024**3), ("3TB", 3 * 10**12), (" 1gi ", 1024**3)],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 2", "1Ei", "1e3"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_processors() -> None:
    assert [parse_millis(text) for text in ("500m", "2", "0.25")] == [500, 2000, 250]
    with pytest.raises(ValueError, match="is no amount"):
        parse_millis("half")


def test_nothing_given_changes_nothing() -> None:
    assert parsed() == (instance_pb2.Instance(), [])


def test_everything() -> None:
    wanted, fields = parsed(
        "--storage", "2Gi", "--memory", "512Mi", "--cpu", "500m", "--nodes", "3", "--sync", "1", "-p", "work_mem=8MB",
        "-p", "search_path=a=b", "--pitr", "7", "--label", "team=shop", "--protect",
    )  # fmt: skip
    assert wanted == instance_pb2.Instance(
        resources=instance_pb2.Resources(storage_bytes=2 * 1024**3, memory_bytes=512 * 1024**2, cpu_millis=500),
        high_availability=instance_pb2.HighAvailability(
            node_count=3,
            replication_mode=instance_pb2.REPLICATION_MODE_SYNCHRONOUS,
            synchronous_replica_count=1,
        ),
        parameters={"work_mem": "8MB", "search_path": "a=b"},
        point_in_time_recovery=instance_pb2.PointInTimeRecovery(enabled=True, window_days=7),
        labels={"team": "shop"},
        deletion_protection=True,
    )
    assert fields == [
        "resources.storage_bytes",
        "resources.memory_bytes",
        "resources.cpu_millis",
        "high_availability.node_count",
        "high_availability.replication_mode",
        "high_availability.synchronous_replica_count",
        "parameters",
        "point_in_time_recovery",
        "labels",
        "deletion_protection",
    ]


def test_one_node_is_no_availability() -> None:
    assert parsed("--nodes", "1") == (instance_pb2.Instance(), ["high_availability"])
    with pytest.raises(click.UsageError, match="at least 2"):
        parsed("--nodes", "1", "--sync", "1")


def test_pairs_need_a_key_and_a_value() -> None:
    with pytest.raises(click.UsageError, match="write KEY=VALUE"):
        parsed("--label", "team")


@pytest.mark.parametrize(
    ("text", "tier"),
    [
        ("daily:7d", {"keep_days": 7}),
        ("long:month:12", {"period": schedules_pb2.PERIOD_MONTH, "keep_count": 12}),
        ("weekly:week:60d:8", {"period": schedules_pb2.PERIOD_WEEK, "keep_days": 60, "keep_count": 8}),
    ],
)
def test_tiers(text: str, tier: dict[str, Any]) -> None:
    assert parse_tier(text) == schedules_pb2.RetentionTier(name=text.partition(":")[0], **tier)


@pytest.mark.parametrize("text", ["daily", "daily:7w", ":7d", "daily:fortnight:7d", "Daily:7d"])
def test_wrong_tiers(text: str) -> None:
    with pytest.raises(ValueError, match="is no tier"):
        parse_tier(text)
