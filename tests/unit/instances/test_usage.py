"""What instances use in an hour, and how time is split into hours."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.instances.model import InstanceState
from opsplane_server.instances.records import BackupFigures
from opsplane_server.instances.usage import UsageRates, hourly, hours_between, scaled, with_cost

from tests.unit.instances.samples import GIB, NOON, instance

MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))


def test_resources_count_on_all_nodes() -> None:
    backed_up = replace(instance(nodes=3), backups=BackupFigures("backups/b", NOON, GIB // 2))
    used = hourly(backed_up)
    assert (used.cpu_core_hours, used.memory_gib_hours) == (1.5, 6.0)
    assert (used.storage_gib_hours, used.backup_gib_hours) == (3.0, 0.5)


@pytest.mark.parametrize("state", [InstanceState.STOPPED, InstanceState.CREATING])
def test_at_rest_only_storage_and_backups_count(state: InstanceState) -> None:
    backed_up = replace(instance(state=state), backups=BackupFigures("backups/b", NOON, GIB))
    used = hourly(backed_up)
    assert (used.cpu_core_hours, used.memory_gib_hours) == (0.0, 0.0)
    assert (used.storage_gib_hours, used.backup_gib_hours) == (1.0, 1.0)


@pytest.mark.parametrize("state", [InstanceState.DEGRADED, InstanceState.UPGRADING, InstanceState.UNAVAILABLE])
def test_what_is_not_stopped_counts(state: InstanceState) -> None:
    assert hourly(instance(state=state)) == hourly(instance())


def test_cost_is_the_sum_of_all_rates() -> None:
    backed_up = replace(instance(), backups=BackupFigures("backups/b", NOON, 4 * GIB))
    rates = UsageRates(
        cpu_core_hour_micros=1000,
        memory_gib_hour_micros=100,
        storage_gib_hour_micros=10,
        backup_gib_hour_micros=1,
    )
    assert with_cost(hourly(backed_up), rates).cost_micros == 500 + 200 + 10 + 4
    assert scaled(with_cost(hourly(backed_up), rates), 0.5).cost_micros == 357


@given(MOMENTS, st.timedeltas(timedelta(microseconds=1), timedelta(days=3)))
def test_hours_share_out_the_time_without_gap_or_overlap(start: datetime, span: timedelta) -> None:
    hours = list(hours_between(start, start + span))
    assert sum(share for _, share in hours) * 3600 == pytest.approx(span.total_seconds(), abs=1e-6)
    assert all(0 < share <= 1 for _, share in hours)
    assert all((hour.minute, hour.second, hour.microsecond) == (0, 0, 0) for hour, _ in hours)
    first = hours[0][0]
    assert [hour for hour, _ in hours] == [first + timedelta(hours=number) for number in range(len(hours))]
    assert first <= start < first + timedelta(hours=1)
    assert all(share == 1 for _, share in hours[1:-1])
