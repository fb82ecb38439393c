"""Following an instance: its record, samples and events as they are stored, so that any process serves any watcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Final

from opsplane.instances.v1 import instance_pb2
from opsplane.instances.v1.monitoring_pb2 import InstanceMetrics, WatchInstanceRequest, WatchInstanceResponse

from opsplane_server.errors import Unavailable
from opsplane_server.instances.convert import instance_message
from opsplane_server.instances.convert_events import event_message
from opsplane_server.instances.convert_watch import metrics_message
from opsplane_server.instances.figures import figures
from opsplane_server.instances.records import EventKind, Instance, InstanceSample
from opsplane_server.instances.stores.ports import EventStore, InstanceStore, SampleStore
from opsplane_server.instances.submission import shown
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.identity import Role
from opsplane_server.storage.signals import Signal, Signals

_INTERVAL: Final = timedelta(seconds=5)
_POLL_SECONDS: Final = 1.0
_ASK_SECONDS: Final = 1.0
# Hints of all instances come by the same signal.
_REST_SECONDS: Final = 0.1
_BATCH: Final = 100
# Samples older than this say nothing of now.
_FRESH: Final = timedelta(seconds=30)
# An event is read when no older transaction is running any more.
_LAST_EVENT_SECONDS: Final = 5.0
# What changes all the time and is told by the metrics.
_MEASURED: Final = ("sample_time", "storage_used_bytes")
_MEASURED_OF_NODES: Final = ("lag_bytes", "lag")


def sampling_signal(signals: Signals, uid: str) -> Signal:
    """By it watchers ask for a sample of an instance now, wherever it is sampled."""
    return signals.topic(f"instances_sample_{uid}")


class InstanceWatcher:
    """Streams what happens to instances. `changes` is the signal of the stores."""

    def __init__(
        self, store: InstanceStore, events: EventStore, samples: SampleStore, changes: Signal, signals: Signals
    ) -> None:
        self._store = store
        self._events = events
        self._samples = samples
        self._changes = changes
        self._signals = signals
        self._drained = asyncio.Event()

    def drain(self) -> None:
        """Ends all watching with Unavailable: callers watch on at another process."""
        self._drained.set()

    async def watch(self, request: WatchInstanceRequest) -> AsyncGenerator[WatchInstanceResponse, None]:
        """See the proto. Raises NotFound."""
        principal = current_call().principal.allows("instances", Role.ADMIN)
        interval = request.interval.ToTimedelta() if request.HasField("interval") else _INTERVAL
        position = await self._events.end()
        instance = shown(await self._store.get(request.name))
        metrics = _Metrics(self._samples, sampling_signal(self._signals, instance.uid), interval)
        told = instance_message(instance)
        yield WatchInstanceResponse(instance=told)
        gone_since: float | None = None
        while True:
            # In this order: what is hinted at while this reads is read in the next round.
            seen = self._changes.generation
            latest = await self._store.find(request.name)
            deleted = False
            for place, event in await self._events.after(instance.uid, position, _BATCH):
                position = place
                deleted |= event.kind is EventKind.DELETED
                yield WatchInstanceResponse(event=event_message(event, principal=principal))
            if latest is None or latest.uid != instance.uid:
                gone_since = gone_since or time.monotonic()
                if deleted or time.monotonic() - gone_since > _LAST_EVENT_SECONDS:
                    return
            else:
                message = instance_message(latest)
                if _settled(message) != _settled(told):
                    told = message
                    yield WatchInstanceResponse(instance=message)
                if (measured := await metrics.next(latest)) is not None:
                    yield WatchInstanceResponse(metrics=measured)
            await self._pause(seen, metrics.wait_seconds)

    async def _pause(self, seen: int, seconds: float) -> None:
        try:
            async with asyncio.timeout(_REST_SECONDS):
                await self._drained.wait()
        except TimeoutError:
            await self._changes.changed(seen, min(max(seconds, 0.0), _POLL_SECONDS))
        if self._drained.is_set():
            raise Unavailable("the server shuts down; watch anew", reason="SERVER_SHUTS_DOWN")


class _Metrics:
    """Sets of metrics at the caller's interval, each of two samples that lie so far apart."""

    def __init__(self, samples: SampleStore, wanted: Signal, interval: timedelta) -> None:
        self._samples = samples
        self._wanted = wanted
        self._interval = interval
        self._last: InstanceSample | None = None
        self._due = self._ask = time.monotonic()

    @property
    def wait_seconds(self) -> float:
        """How long until there is something to do, if nothing comes meanwhile."""
        return max(self._due, self._ask) - time.monotonic()

    async def next(self, instance: Instance) -> InstanceMetrics | None:
        """The next set if it is due and there; if it is not there, a sample is asked for."""
        now = time.monotonic()
        if now < self._due:
            return None
        found = await self._samples.latest(instance.uid, 2)
        newest = found[0] if found else None
        if newest is None or datetime.now(UTC) - newest.time > _FRESH or self._is_near(newest):
            if now >= self._ask:
                self._wanted.notify()
                self._ask = now + _ASK_SECONDS
            return None
        earlier = self._last or (found[1] if len(found) > 1 else None)
        self._last = newest
        self._due = now + self._interval.total_seconds()
        return metrics_message(figures(instance, earlier, newest))

    def _is_near(self, sample: InstanceSample) -> bool:
        """Whether it lies less than the interval after the last one, but for a little that timers are late."""
        return self._last is not None and sample.time - self._last.time < self._interval * 0.9


def _settled(message: instance_pb2.Instance) -> bytes:
    """The instance without what is measured."""
    settled = instance_pb2.Instance()
    settled.CopyFrom(message)
    for field in _MEASURED:
        settled.ClearField(field)
    if settled.HasField("point_in_time_recovery"):
        settled.point_in_time_recovery.ClearField("latest_time")
    for node in settled.nodes:
        for field in _MEASURED_OF_NODES:
            node.ClearField(field)  # type: ignore[arg-type]
    return settled.SerializeToString(deterministic=True)
