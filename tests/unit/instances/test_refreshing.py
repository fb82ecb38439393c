"""When storage is news."""

from __future__ import annotations

from opsplane_server.instances.records import EventKind
from opsplane_server.instances.refreshing import storage_level

LOW, FULL = EventKind.STORAGE_LOW, EventKind.STORAGE_FULL


def test_levels() -> None:
    assert storage_level(0.89, None) is None
    assert storage_level(0.9, None) is LOW
    assert storage_level(1.0, None) is FULL
    assert storage_level(2.0, LOW) is FULL


def test_a_level_ends_only_when_it_is_well_below() -> None:
    assert storage_level(0.87, LOW) is LOW
    assert storage_level(0.84, LOW) is None
    assert storage_level(0.97, FULL) is FULL
    assert storage_level(0.94, FULL) is LOW
    assert storage_level(0.86, FULL) is LOW
    assert storage_level(0.5, FULL) is None
