"""Deletes instances when their time has come, and what rollbacks of upgrades need when theirs is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

import structlog
from opsplane.instances.v1.instances_pb2 import DeleteInstanceRequest

from opsplane_server.errors import Aborted, NotFound, Unavailable
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.records import Instance
from opsplane_server.instances.stores.ports import InstanceStore
from opsplane_server.platform.operations import Operations
from opsplane_server.platform.ports import Transactions

log = structlog.get_logger(__name__)


class Expiry:
    """Submits what is due on a machine. Several processes may: each operation is submitted once."""

    def __init__(
        self,
        store: InstanceStore,
        transactions: Transactions,
        operations: Operations,
        *,
        machine: str,
        interval_seconds: float = 1.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._transactions = transactions
        self._operations = operations
        self._machine = machine
        self._interval = interval_seconds
        self._now = now

    async def run(self) -> NoReturn:
        """Looks again and again, until it is cancelled."""
        while True:
            try:
                await self.expire()
            except (Unavailable, Aborted) as error:
                log.warning("expiry waits", detail=error.message)
            await asyncio.sleep(self._interval)

    async def expire(self) -> None:
        """Submits what is due now."""
        for instance in await self._store.of_machine(self._machine):
            if self._due(instance) is not None:
                await self._submit(instance.name)

    async def _submit(self, name: str) -> None:
        async with self._transactions.transaction():
            try:
                instance = await self._store.lock(name)
            except NotFound:
                return
            kind = self._due(instance)
            if kind is None:
                return
            deletion = kind == kinds.DELETE
            operation = await self._operations.submit(
                kind=kind,
                verb="DeleteInstance" if deletion else "ForgetUpgrade",
                target=name,
                request=DeleteInstanceRequest(name=name) if deletion else None,
                node=instance.spec.machine,
                hidden=instance.hidden or kind in kinds.HIDDEN,
            )
            await self._store.save(replace(instance, operation=operation.name))
        log.info("time is up", instance=name, kind=kind, operation=operation.name)

    def _due(self, instance: Instance) -> str | None:
        """The kind of operation that is due, if nothing else is done to it."""
        if instance.operation:
            return None
        now, upgrade = self._now(), instance.last_upgrade
        if instance.expire_time is not None and instance.expire_time <= now and not instance.deletion_protection:
            return kinds.DELETE
        if upgrade is not None and upgrade.rollback_expire_time is not None and upgrade.rollback_expire_time <= now:
            return kinds.FORGET_UPGRADE
        return None
