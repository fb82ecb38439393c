"""The process of a machine that looks after its instances: one at a time, and another one when that dies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from opsplane_server.background import Background
from opsplane_server.errors import Aborted, OpsplaneError, Unavailable
from opsplane_server.instances.backup_figures import BackupCatalog, InstanceBackups
from opsplane_server.instances.metrics import InstanceMetricsCollector
from opsplane_server.instances.model import InstanceState
from opsplane_server.instances.ports import Provider
from opsplane_server.instances.records import BackupFigures
from opsplane_server.instances.refreshing import Refresher
from opsplane_server.instances.sampling import Sampler
from opsplane_server.instances.stores.ports import InstanceStore, SampleStore
from opsplane_server.instances.usage import Meter
from opsplane_server.instances.watch import sampling_signal
from opsplane_server.storage.signals import Signal, Signals

log = structlog.get_logger(__name__)

_RETRY_SECONDS: Final = 0.5
_LIST_SECONDS: Final = 1.0
_LIST_REST_SECONDS: Final = 0.1
_METER_SECONDS: Final = 60.0
_BACKUPS_SECONDS: Final = 10.0
_PRUNE_SECONDS: Final = 30.0
_KEPT: Final = timedelta(minutes=10)
# However often somebody asks, an instance is sampled no more than once in this time.
_SAMPLE_REST_SECONDS: Final = 0.8
_LOOK_SECONDS: Final = 20.0
# News come in showers, while nodes change their parts.
_NEWS_REST_SECONDS: Final = 0.05
_NOT_THERE: Final = frozenset({InstanceState.CREATING, InstanceState.RESTORING, InstanceState.DELETING})


@dataclass(frozen=True, slots=True)
class _Attended:
    """An instance that is looked after. news: its provider has told of something."""

    name: str
    wanted: Signal
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Supervision(Background):
    """Looks after the instances of `machine` while it holds the lock that `leading` takes, and runs `others` then.

    What it does, each again and again: the provider keeps the servers running; records follow what it sees, with
    events; samples are read and shown; usage is counted; what is known of backups is kept. `interval` lies between two
    samples of an instance that nobody watches.
    """

    _task_name = "instance supervision"

    def __init__(
        self,
        leading: Callable[[], AbstractAsyncContextManager[object]],
        provider: Provider,
        store: InstanceStore,
        samples: SampleStore,
        refresher: Refresher,
        sampler: Sampler,
        meter: Meter,
        backups: BackupCatalog,
        collector: InstanceMetricsCollector,
        changes: Signal,
        signals: Signals,
        *,
        machine: str,
        interval: timedelta = timedelta(seconds=5),
        others: Sequence[Callable[[], Awaitable[object]]] = (),
    ) -> None:
        self._leading = leading
        self._provider = provider
        self._store = store
        self._samples = samples
        self._refresher = refresher
        self._sampler = sampler
        self._meter = meter
        self._backups = backups
        self._collector = collector
        self._changes = changes
        self._signals = signals
        self._machine = machine
        self._interval = interval.total_seconds()
        self._others = others
        self._attended: dict[str, _Attended] = {}
        self._left_over: dict[str, InstanceBackups] = {}  # of deleted instances, by uid

    async def _run(self) -> None:
        while True:
            try:
                async with self._leading():
                    log.info("looking after the instances of this machine")
                    await self._lead()
            except Exception:
                log.exception("supervision of instances failed")
            finally:
                self._collector.clear()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _lead(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(lambda: self._provider.supervise(self._changed), 0.0))
            tasks.create_task(self._attend_all())
            tasks.create_task(self._repeat(self._count_usage, _METER_SECONDS))
            tasks.create_task(self._repeat(self._read_backups, _BACKUPS_SECONDS))
            tasks.create_task(self._repeat(lambda: self._samples.prune(_KEPT), _PRUNE_SECONDS))
            for other in self._others:
                tasks.create_task(self._repeat(other, 0.0))

    async def _repeat(self, action: Callable[[], Awaitable[object]], rest: float) -> None:
        """For ever; one that fails does not keep the others from going on."""
        while True:
            pause = rest
            try:
                await action()
            except (Unavailable, Aborted) as failure:
                log.warning("supervision of instances put off", detail=failure.message)
                pause = max(rest, _RETRY_SECONDS)
            except Exception:
                log.exception("supervision of instances failed")
                pause = max(rest, _LIST_SECONDS)
            await asyncio.sleep(pause)

    def _changed(self, name: str) -> None:
        attended = self._attended.get(name)
        if attended is not None:
            attended.news.set()

    async def _attend_all(self) -> None:
        """Has a task for each instance that there is."""
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    seen = self._changes.generation
                    await self._try(lambda: self._attend_present(group, tasks))
                    await asyncio.sleep(_LIST_REST_SECONDS)
                    await self._changes.changed(seen, _LIST_SECONDS)
        finally:
            self._attended.clear()

    async def _attend_present(self, group: asyncio.TaskGroup, tasks: dict[str, asyncio.Task[None]]) -> None:
        present = {instance.uid: instance for instance in await self._store.of_machine(self._machine)}
        for uid in [uid for uid in tasks if uid not in present]:
            tasks.pop(uid).cancel()
            self._collector.forget(uid)
        for uid, instance in present.items():
            if uid not in tasks:
                attended = _Attended(instance.name, sampling_signal(self._signals, uid))
                self._attended[instance.name] = attended
                tasks[uid] = group.create_task(self._attend(attended))

    async def _attend(self, attended: _Attended) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(attended))
            tasks.create_task(self._measure(attended))

    async def _follow(self, attended: _Attended) -> None:
        """Keeps the record up to date: soon after news, and when there are none all the same."""
        while True:
            attended.news.clear()
            await self._try(lambda: self._refresher.refresh(attended.name))
            await asyncio.sleep(_NEWS_REST_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await attended.news.wait()

    async def _measure(self, attended: _Attended) -> None:
        """Samples now and then, and when a watcher asks for it."""
        while True:
            seen, began = attended.wanted.generation, time.monotonic()
            await self._try(lambda: self._sample(attended))
            await asyncio.sleep(max(0.0, began + _SAMPLE_REST_SECONDS - time.monotonic()))
            await attended.wanted.changed(seen, max(0.0, began + self._interval - time.monotonic()))

    async def _sample(self, attended: _Attended) -> None:
        instance = await self._store.find(attended.name)
        if instance is None or instance.state in _NOT_THERE:
            return
        sample = None
        if instance.state is not InstanceState.STOPPED:
            sample = await self._sampler.sample(instance)
            await self._samples.add(instance.uid, sample)
        self._collector.update(instance, sample)

    async def _try(self, action: Callable[[], Awaitable[object]]) -> None:
        """Does it; what fails is tried again at the next turn."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await action()
        except (OpsplaneError, TimeoutError) as failure:
            log.warning("instance not looked at", detail=str(failure) or type(failure).__name__)
        except Exception:
            log.exception("supervision of an instance failed")

    async def _count_usage(self) -> None:
        for instance in await self._store.of_machine(self._machine):
            await self._meter.settle(instance)
        for uid, left in self._left_over.items():
            await self._meter.settle_backups(left.instance, uid, left.figures.size_bytes)

    async def _read_backups(self) -> None:
        found = await self._backups.read()
        if found is None:
            return
        for instance in await self._store.of_machine(self._machine):
            known = found.pop(instance.uid, None)
            figures = known.figures if known is not None else BackupFigures()
            if figures != instance.backups:
                await self._store.set_backups(instance.uid, figures)
        self._left_over = {uid: left for uid, left in found.items() if await self._is_deleted(left.instance, uid)}

    async def _is_deleted(self, name: str, uid: str) -> bool:
        instance = await self._store.find(name)
        return instance is None or instance.uid != uid
