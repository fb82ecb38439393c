"""Does what `retention` says: looks which instances are still there, and has deleted what nothing keeps."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog

from opsplane_server.backups.deleting import Deletions
from opsplane_server.backups.model import InstanceFacts, Source
from opsplane_server.backups.ports import BackupStore, Instances
from opsplane_server.backups.retention import cut_of, good_ones
from opsplane_server.backups.settling import Settling
from opsplane_server.errors import FailedPrecondition, NotFound
from opsplane_server.platform.ports import Transactions

log = structlog.get_logger(__name__)

_BATCH: Final = 100
_NAMESPACE: Final = uuid.UUID("0f3bb5a8-1a3e-4a55-8f2c-6d3f7f0d1c52")


class Retaining:
    """Is told when to look."""

    def __init__(
        self,
        transactions: Transactions,
        store: BackupStore,
        instances: Instances,
        settling: Settling,
        deletions: Deletions,
    ) -> None:
        self._transactions = transactions
        self._store = store
        self._instances = instances
        self._settling = settling
        self._deletions = deletions

    async def look(self) -> None:
        """Brings sources up to date, and what is told of their backups. Raises what Instances answers, Unavailable."""
        sources = await self._store.list_sources()
        if not sources:
            return
        there = {facts.uid: facts for facts in await self._instances.list_all()}
        for source in sources:
            facts = there.get(source.uid)
            gone = facts is None and source.live and await self._is_gone(source)
            try:
                keep_from = await self._update(source, facts, gone=gone)
            except NotFound:
                continue
            if keep_from is not None:
                await self._prune(source, keep_from)

    async def delete_expired(self) -> int:
        """Has deleted what has expired; returns how many. Raises Unavailable, Aborted."""
        started = 0
        for backup in await self._store.expired(datetime.now(UTC), _BATCH):
            try:
                async with self._transactions.transaction():
                    # What was read is old: since then it may have become the last good one.
                    await self._settling.settle(await self._store.lock_source(backup.instance_uid))
                    current = await self._store.get(backup.name)
                    if (current.state, current.expire_time) == (backup.state, backup.expire_time):
                        await self._deletions.create(backup.name)
                        started += 1
            except (NotFound, FailedPrecondition) as error:
                log.info("expired backup kept for now", backup=backup.name, detail=error.message)
        return started

    async def _is_gone(self, source: Source) -> bool:
        """Asked by name, because an instance that was made after the list began is not in it either."""
        try:
            return (await self._instances.get(source.name)).uid != source.uid
        except NotFound:
            return True

    async def _update(self, source: Source, facts: InstanceFacts | None, *, gone: bool) -> str | None:
        """Stores what was seen; returns from which copy on archived log is to be kept, None to leave it as it is."""
        async with self._transactions.transaction():
            locked = await self._store.lock_source(source.uid)
            seen = locked
            if facts is not None:
                seen = replace(locked, live=True, window=facts.window)
            elif gone:
                seen = replace(locked, live=False, window=None)
            if seen != locked:
                await self._store.save_source(seen)
            await self._settling.settle(seen)
            backups = await self._store.of_source(seen.uid)
            logged = [backup for backup in good_ones(backups) if backup.copy is not None and backup.copy.logged]
            oldest = min(logged, key=lambda backup: (cut_of(backup), backup.key), default=None)
            if oldest is not None and oldest.copy is not None:
                return oldest.copy.location if oldest.copy.location != seen.pruned else None
            if seen.live or backups:
                return None
            if seen.pruned == "":
                await self._store.forget_source(seen.uid)
                return None
            return ""

    async def _prune(self, source: Source, keep_from: str) -> None:
        """Has the log before that copy removed: an operation of the service Instances, which sees it through."""
        request_id = str(uuid.uuid5(_NAMESPACE, f"{source.uid} {keep_from}"))
        await self._instances.prune_log(source.uid, keep_from, request_id)
        async with self._transactions.transaction():
            locked = await self._store.lock_source(source.uid)
            await self._store.save_source(replace(locked, pruned=keep_from))
