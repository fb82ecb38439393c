"""Usage of instances and its cost, counted by the hour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from opsplane_server.instances.model import InstanceState
from opsplane_server.instances.records import Instance, UsageAmounts
from opsplane_server.instances.stores.ports import UsageStore
from opsplane_server.platform.ports import Transactions

_HOUR: Final = timedelta(hours=1)
_GIB: Final = 1024**3
_MILLIS: Final = 1000
# Nothing runs yet or any more, for whatever reason.
_AT_REST: Final = frozenset({InstanceState.STOPPED, InstanceState.CREATING, InstanceState.RESTORING})


@dataclass(frozen=True, slots=True)
class UsageRates:
    """Prices, each in millionths of the currency unit. 0 means free."""

    cpu_core_hour_micros: int = 0
    memory_gib_hour_micros: int = 0
    storage_gib_hour_micros: int = 0
    backup_gib_hour_micros: int = 0


class Meter:
    """Counts usage from where it was counted to last. Several may count at once: no time counts twice."""

    def __init__(
        self,
        store: UsageStore,
        transactions: Transactions,
        rates: UsageRates,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._transactions = transactions
        self._rates = rates
        self._now = now

    async def settle(self, instance: Instance) -> None:
        """Counts what an instance used up to now, as it is; joins a transaction. Scratch instances cost nothing.

        To be called before a change of its resources or state, and before its end.
        """
        if instance.hidden or instance.create_time is None:
            return
        await self._count(instance.name, instance.uid, instance.create_time, hourly(instance))

    async def settle_backups(self, instance: str, uid: str, size_bytes: int) -> None:
        """The same for what is left of a deleted instance: its backups."""
        await self._count(instance, uid, self._now(), UsageAmounts(backup_gib_hours=size_bytes / _GIB))

    async def _count(self, instance: str, uid: str, since: datetime, amounts: UsageAmounts) -> None:
        async with self._transactions.transaction():
            until, now = await self._store.metered_until(uid), self._now()
            if until is not None and now <= until:
                return
            priced = with_cost(amounts, self._rates)
            hours = [(hour, scaled(priced, share)) for hour, share in hours_between(until or since, now)]
            await self._store.add(instance, uid, now, hours)


def hourly(instance: Instance) -> UsageAmounts:
    """What an instance uses in an hour as it is: resources as they are set, on all nodes, while it is not stopped."""
    resources, nodes = instance.spec.resources, instance.spec.node_count
    running = 0 if instance.state in _AT_REST else nodes
    return UsageAmounts(
        cpu_core_hours=running * resources.cpu_millis / _MILLIS,
        memory_gib_hours=running * resources.memory_bytes / _GIB,
        storage_gib_hours=nodes * resources.storage_bytes / _GIB,
        backup_gib_hours=instance.backups.size_bytes / _GIB,
    )


def with_cost(amounts: UsageAmounts, rates: UsageRates) -> UsageAmounts:
    """The same with what it costs."""
    return replace(
        amounts,
        cost_micros=amounts.cpu_core_hours * rates.cpu_core_hour_micros
        + amounts.memory_gib_hours * rates.memory_gib_hour_micros
        + amounts.storage_gib_hours * rates.storage_gib_hour_micros
        + amounts.backup_gib_hours * rates.backup_gib_hour_micros,
    )


def scaled(amounts: UsageAmounts, share: float) -> UsageAmounts:
    """This share of it."""
    return UsageAmounts(
        cpu_core_hours=amounts.cpu_core_hours * share,
        memory_gib_hours=amounts.memory_gib_hours * share,
        storage_gib_hours=amounts.storage_gib_hours * share,
        backup_gib_hours=amounts.backup_gib_hours * share,
        cost_micros=amounts.cost_micros * share,
    )


def hours_between(start: datetime, end: datetime) -> Iterator[tuple[datetime, float]]:
    """Each hour (UTC) that the time from start to end touches, by its first moment, and the share of it that it has."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    hour = start.replace(minute=0, second=0, microsecond=0)
    while hour < end:
        following = hour + _HOUR
        yield hour, (min(end, following) - max(start, hour)) / _HOUR
        hour = following
