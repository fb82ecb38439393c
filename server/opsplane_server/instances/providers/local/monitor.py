"""Watching one instance: word of a dead process comes from the kernel at once, of one that hangs by asking."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import psutil
import structlog

from opsplane_server.errors import NotFound, OpsplaneError
from opsplane_server.instances.model import Engine, FailoverReport
from opsplane_server.instances.ports import Progress
from opsplane_server.instances.providers.local import servers
from opsplane_server.instances.providers.local.endpoints import LocalEndpoints
from opsplane_server.instances.providers.local.engine import LocalEngine, LocalNode, Replicas
from opsplane_server.instances.providers.local.machine import Machine
from opsplane_server.instances.providers.local.manifest import Desired, LocalManifest

log = structlog.get_logger(__name__)

_ROUND_SECONDS = 1.0
_PROBE_SECONDS = 0.5
_HANG_SECONDS = 10.0
_OBSERVE_SECONDS = 2.0
_APART_SECONDS = 6.0
_BACKOFF_SECONDS = (1.0, 30.0)  # first, longest
_LOGS_SECONDS = 60.0


class GuardedReplicas(Replicas, Protocol):
    """What a monitor asks of the replicas of an engine; each takes the instance's lock by itself."""

    async def primary_lost(self, name: str, primary: str, reason: str, since: datetime) -> FailoverReport | None:
        """The process of this primary is gone, or hangs: another one takes over, or if none can, it is started again,
        and then None comes back; likewise when it is not the primary any more, or reacts by now.

        since: when it was last known to work.
        """
        ...

    async def finish(self, name: str) -> None:
        """Promotes a primary that runs as a replica because a change was broken off. Harmless when there is none."""
        ...

    async def mend(self, name: str, node_id: str, progress: Progress = ...) -> None:
        """Brings a node to where it follows the primary, however it is now."""
        ...

    async def refresh(self, name: str) -> Sequence[str]:
        """Makes the routes what the nodes are now; returns the replicas that do not follow though they could."""
        ...

    async def is_alive(self, node: LocalNode) -> bool:
        """Whether its process reacts, were it only to say that it is still recovering."""
        ...


@dataclass(slots=True)
class _Watched:
    """A process that runs: its number, and the descriptor by which the kernel tells of its end."""

    pid: int
    descriptor: int


@dataclass(slots=True)
class _Retry:
    """When something that failed is tried again, in seconds of the loop."""

    at: float = 0.0
    pause: float = field(default=_BACKOFF_SECONDS[0])

    def failed(self, now: float) -> None:
        self.at = now + self.pause
        self.pause = min(self.pause * 2, _BACKOFF_SECONDS[1])


class Monitor:
    """Starts what died, has another primary take over, brings old ones back. `run` ends when the instance is gone."""

    def __init__(
        self, machine: Machine, engines: Mapping[Engine, LocalEngine], name: str, changed: Callable[[str], None]
    ) -> None:
        self._machine = machine
        self._engines = engines
        self._name = name
        self._changed = changed
        self._endpoints = LocalEndpoints(machine)
        self._loaded: tuple[tuple[int, int], LocalManifest] | None = None
        self._watched: dict[str, _Watched] = {}
        self._ends: dict[str, str] = {}
        self._attention = asyncio.Event()
        self._worked: tuple[str, float, datetime] | None = None  # the primary, when it last reacted: loop's time, time
        self._apart: dict[str, float] = {}  # replicas that do not stream, since when
        self._retries: dict[str, _Retry] = {}
        self._mending: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until the instance is gone."""
        loops = [asyncio.create_task(loop) for loop in (self._probe(), self._observe(), self._bound_logs())]
        try:
            while True:
                self._attention.clear()
                try:
                    manifest = self._manifest()
                    self._watch(manifest)
                    if _is_ours(manifest):
                        await self._round(manifest)
                    elif manifest.desired is Desired.STOPPED:
                        await self._endpoints.withdraw(manifest.spec.id)
                except NotFound:
                    return
                except OpsplaneError as error:
                    log.error("instance can not be looked after", instance=self._name, error=error.message)
                for loop in loops:
                    if loop.done():
                        loop.result()
                try:
                    async with asyncio.timeout(_ROUND_SECONDS):
                        await self._attention.wait()
                except TimeoutError:
                    pass
        finally:
            tasks = [*loops, *self._mending.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for node in list(self._watched):
                self._forget(node)

    def _manifest(self) -> LocalManifest:
        """As it is now. It is read again when the file has changed, for reading decrypts."""
        path = self._machine.layout.instance(self._name).manifest
        try:
            status = path.stat()
        except FileNotFoundError:
            raise NotFound.resource(self._name) from None
        state = (status.st_ino, status.st_mtime_ns)
        if self._loaded is None or self._loaded[0] != state:
            self._loaded = (state, self._machine.manifests.load(self._name))
        return self._loaded[1]

    # Processes.

    def _watch(self, manifest: LocalManifest) -> None:
        for node in self._machine.nodes(manifest):
            process = self._engine(manifest).find(node)
            watched = self._watched.get(node.id)
            if process is not None and (watched is None or watched.pid != process.pid):
                self._forget(node.id)
                self._follow(node.id, process)
        for node_id in self._watched.keys() - {entry.id for entry in manifest.nodes}:
            self._forget(node_id)

    def _follow(self, node_id: str, process: psutil.Process) -> None:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        self._watched[node_id] = _Watched(process.pid, descriptor)
        self._ends.pop(node_id, None)
        asyncio.get_running_loop().add_reader(descriptor, self._ended, node_id)

    def _forget(self, node_id: str) -> None:
        watched = self._watched.pop(node_id, None)
        if watched is not None:
            asyncio.get_running_loop().remove_reader(watched.descriptor)
            os.close(watched.descriptor)

    def _ended(self, node_id: str) -> None:
        self._ends[node_id] = _how(self._watched[node_id].descriptor)
        log.warning("server ended", node=node_id, pid=self._watched[node_id].pid, how=self._ends[node_id])
        self._forget(node_id)
        self._attention.set()
        self._changed(self._name)

    # What is done about it.

    async def _round(self, manifest: LocalManifest) -> None:
        engine = self._engine(manifest)
        replicas = self._replicas(manifest)
        primary = self._machine.node(manifest, manifest.primary)
        lost = self._lost(engine, primary)
        if lost and self._may(primary.id):
            await self._attempt(primary.id, self._replace(engine, replicas, primary, lost))
            manifest = self._manifest()
            self._watch(manifest)
        if replicas is not None:
            for node in self._machine.nodes(manifest):
                if not node.is_primary and self._needs_mending(engine, node):
                    self._mend(replicas, node.id)

    def _lost(self, engine: LocalEngine, primary: LocalNode) -> str:
        """Why the primary counts as lost, "" while it does not."""
        if engine.find(primary) is None:
            return self._ends.get(primary.id, "the process is gone")
        if self._worked is not None and self._worked[0] == primary.id:
            silent = asyncio.get_running_loop().time() - self._worked[1]
            if silent > _HANG_SECONDS:
                return f"no answer for {silent:.0f} s"
        return ""

    async def _replace(
        self, engine: LocalEngine, replicas: GuardedReplicas | None, primary: LocalNode, reason: str
    ) -> None:
        if replicas is None:
            async with self._machine.locked(self._name) as manifest:
                if _is_ours(manifest):
                    node = self._machine.node(manifest, manifest.primary)
                    await servers.start(engine, node, self._machine.settings.start_timeout)
            self._changed(self._name)
            return
        since = self._worked[2] if self._worked and self._worked[0] == primary.id else datetime.now(UTC)
        report = await replicas.primary_lost(self._name, primary.id, reason, since)
        self._worked = None
        if report is not None:
            log.warning(
                "primary replaced", instance=self._name, old=report.old_primary, new=report.new_primary, reason=reason
            )
        self._changed(self._name)

    def _needs_mending(self, engine: LocalEngine, node: LocalNode) -> bool:
        if engine.find(node) is None or node.entry.condition is not None:
            return True
        since = self._apart.get(node.id)
        return since is not None and asyncio.get_running_loop().time() - since > _APART_SECONDS

    def _mend(self, replicas: GuardedReplicas, node_id: str) -> None:
        """In a task of its own: it can take minutes, and the primary must be watched meanwhile."""
        task = self._mending.get(node_id)
        if (task is None or task.done()) and self._may(node_id):

            async def mend() -> None:
                await replicas.mend(self._name, node_id)
                self._apart.pop(node_id, None)
                self._changed(self._name)
                self._attention.set()

            self._mending[node_id] = asyncio.create_task(self._attempt(node_id, mend()))

    def _may(self, what: str) -> bool:
        retry = self._retries.get(what)
        return retry is None or asyncio.get_running_loop().time() >= retry.at

    async def _attempt(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except NotFound:
            self._attention.set()
        except OpsplaneError as error:
            log.warning("server not mended", node=what, reason=error.reason, error=error.message)
            self._retries.setdefault(what, _Retry()).failed(asyncio.get_running_loop().time())
        else:
            self._retries.pop(what, None)

    # Asking.

    async def _probe(self) -> None:
        """Whether the primary of a highly available instance reacts."""
        while True:
            try:
                manifest = self._manifest()
                replicas = self._replicas(manifest)
                if replicas is not None and _is_ours(manifest):
                    node = self._machine.node(manifest, manifest.primary)
                    if self._worked is None or self._worked[0] != node.id or await replicas.is_alive(node):
                        self._worked = (node.id, asyncio.get_running_loop().time(), datetime.now(UTC))
            except OpsplaneError:
                pass  # the rounds tell of it
            await asyncio.sleep(_PROBE_SECONDS)

    async def _observe(self) -> None:
        """Which replicas follow; the routes are made so."""
        while True:
            try:
                manifest = self._manifest()
                replicas = self._replicas(manifest)
                if replicas is not None and _is_ours(manifest):
                    await replicas.finish(self._name)
                    apart = await replicas.refresh(self._name)
                    now = asyncio.get_running_loop().time()
                    self._apart = {node: self._apart.get(node, now) for node in apart}
            except OpsplaneError as error:
                log.warning("nodes not observed", instance=self._name, error=error.message)
            await asyncio.sleep(_OBSERVE_SECONDS)

    async def _bound_logs(self) -> None:
        while True:
            try:
                manifest = self._manifest()
                engine = self._engine(manifest)
                for node in self._machine.nodes(manifest):
                    if engine.find(node) is not None:
                        await asyncio.to_thread(engine.bound_logs, node)
            except (OpsplaneError, OSError) as error:
                log.warning("logs not bounded", instance=self._name, error=str(error))
            await asyncio.sleep(_LOGS_SECONDS)

    def _replicas(self, manifest: LocalManifest) -> GuardedReplicas | None:
        """None for a single server."""
        replicas = self._engine(manifest).replicas
        return cast(GuardedReplicas, replicas) if replicas is not None and len(manifest.nodes) > 1 else None

    def _engine(self, manifest: LocalManifest) -> LocalEngine:
        return self._engines[manifest.spec.engine]


def _is_ours(manifest: LocalManifest) -> bool:
    """Whether it is to run, and no upgrade has been broken off in the middle, which is gone on with later."""
    return manifest.desired is Desired.RUNNING and not manifest.upgrade


def _how(descriptor: int) -> str:
    """How a process ended. Only its parent can know: for a server that was found running it is unknown."""
    try:
        result = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        result = None
    if result is None:
        return "the process ended"
    if result.si_code == os.CLD_EXITED:
        return f"the process ended with status {result.si_status}"
    return f"the process was ended by signal {result.si_status}"
