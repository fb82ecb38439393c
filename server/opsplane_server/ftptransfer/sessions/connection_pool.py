"""The sessions of one connection in this process: handed out in order, kept while they are good."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason, HeldBack, TransferFailure
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.model import FtpServer, PoolFigures
from opsplane_server.ftptransfer.sessions import circuit, limits
from opsplane_server.ftptransfer.sessions.condition import Condition, SharedCondition
from opsplane_server.ftptransfer.sessions.exchange import Knowledge
from opsplane_server.ftptransfer.sessions.flow import DataPlane
from opsplane_server.ftptransfer.sessions.login import Login
from opsplane_server.ftptransfer.sessions.places import ConnectionPlaces, Place, PodPlaces
from opsplane_server.ftptransfer.sessions.session import FtpSession
from opsplane_server.ftptransfer.sessions.slots import Slot, SlotFolder
from opsplane_server.ftptransfer.sessions.tls import TlsClient

log = structlog.get_logger(__name__)

CHECK_AFTER: Final = 15.0
"""Seconds after which a session that did nothing is asked whether it still answers, before it is used."""
_OPENING: Final = 8
"""Sessions that are opened at the same time: servers keep few connections waiting, and forget those beyond."""
_UNUSED: Final = 0.5
"""Seconds after which a session that did nothing makes room for other processes that wait."""
_LOOK: Final = 0.05
"""Seconds between looks for a place that another process has given back."""


@dataclass(slots=True)
class Member:
    """A session with its place. `since` is when it was put aside."""

    session: FtpSession
    place: Place
    since: float = 0.0


class ConnectionPool:
    """Sessions with one version of a connection's settings. `acquire` and `release` go together."""

    def __init__(
        self,
        connection: str,
        order: tuple[int, int],
        server: FtpServer,
        folder: Path,
        pod: PodPlaces,
        plane: DataPlane,
        figures: TransferFigures,
    ) -> None:
        """`order` tells newer settings from older; `server` has its limits and times filled in.

        `folder` is shared by the processes of the pod.
        """
        self.connection = connection
        self.order = order
        self.used = time.monotonic()
        self._server = server
        self._plane = plane
        self._pod = pod
        self._figures = figures
        self._places = ConnectionPlaces(folder, pod)
        self._condition = SharedCondition(folder / "condition.json", "{}.{}".format(*order))
        self._probes = SlotFolder(folder / "probe")
        self._knowledge = Knowledge()
        self._tls: TlsClient | None = None
        self._idle: list[Member] = []
        self._open = 0
        self._opening = 0
        self._waiters: deque[asyncio.Future[Member | Place]] = deque()
        self._look: asyncio.TimerHandle | None = None
        self._retired = False

    # Handing out

    async def acquire(self) -> Member:
        """A session; waits for one in turn. Raises TransferFailure when none can be opened."""
        self.used = time.monotonic()
        first = False
        while True:
            got = await self._turn(first=first)
            # Whoever comes back has waited already.
            first = True
            if isinstance(got, Member):
                if await self._is_good(got):
                    return got
                continue
            member = await self._opened(got)
            if member is not None:
                return member

    def release(self, member: Member) -> None:
        """Takes a session back, and keeps it if it is good and may be kept."""
        self.used = member.since = time.monotonic()
        if self._retired or not member.session.usable or self._gives_up(member):
            self._discard(member)
        else:
            self._keep(member)
        self._serve()

    def _turn_now(self) -> Member | Place | None:
        if self._idle:
            return self._take_idle()
        return self._take_place()

    async def _turn(self, *, first: bool) -> Member | Place:
        self._check_circuit()
        if first or not self._waiters:
            got = self._turn_now()
            if got is not None:
                return got
        waiter: asyncio.Future[Member | Place] = asyncio.get_running_loop().create_future()
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self._watch()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())
            raise
        finally:
            with suppress(ValueError):
                self._waiters.remove(waiter)
            self._watch()

    def _give_back(self, got: Member | Place) -> None:
        if isinstance(got, Member):
            self.release(got)
        else:
            self._opening -= 1
            self._release_place(got)
            self._serve()

    def _serve(self) -> None:
        """Gives what there is to those who wait, the first of them first."""
        while self._waiters:
            waiter = self._waiters[0]
            if waiter.done():
                self._waiters.popleft()
                continue
            got = self._turn_now()
            if got is None:
                break
            self._waiters.popleft()
            waiter.set_result(got)
        self._watch()

    def _watch(self) -> None:
        """Looks from time to time while somebody waits: what other processes give back nobody tells."""
        waiting = any(not waiter.done() for waiter in self._waiters)
        self._places.wait(waiting)
        if waiting and self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        try:
            self._check_circuit()
        except TransferFailure as failure:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(failure)
            self._waiters.clear()
        self._serve()

    # Opening

    def _take_place(self) -> Place | None:
        condition = self._condition.read()
        now = time.time()
        if circuit.is_half_open(condition, now) and self._open:
            return None  # the one that tries the server is at it
        limit = self.limit
        if self._opening >= _OPENING or self._open >= self._places.share(limit):
            return None
        place = self._places.take(limit, self._server.max_sessions)
        if place is not None:
            self._open += 1
            self._opening += 1
        return place

    async def _opened(self, place: Place) -> Member | None:
        """A new session, None to wait for another one. The place is given back if it is not needed."""
        probe: Slot | None = None
        try:
            if circuit.is_half_open(self._condition.read(), time.time()):
                probe = self._probes.take(1)
                if probe is None:
                    raise HeldBack(self._condition.read().failure, datetime.now(UTC))
            login = Login(self._server, self._knowledge, self._plane, await self._tls_client())
            session = await login.open()
        except HeldBack:
            self._release_place(place)
            raise
        except TransferFailure as failure:
            self._release_place(place)
            if self._refused(failure):
                await asyncio.sleep(_LOOK)
                return None
            raise
        except BaseException:
            self._release_place(place)
            raise
        else:
            self._works()
            return Member(session, place)
        finally:
            self._opening -= 1
            if probe is not None:
                probe.release()
            self._serve()

    def _works(self) -> None:
        """Remembers that a session could be opened."""
        self._figures.session_opened(self.connection)
        condition = self._condition.read()
        if condition.failures or condition.open_until:
            self._condition.change(circuit.succeeded)
            log.info("server works again", connection=self.connection)

    async def _tls_client(self) -> TlsClient | None:
        if self._server.tls is not None and self._tls is None:
            # The certificates of a system take a while to read.
            loop = asyncio.get_running_loop()
            self._tls = await loop.run_in_executor(self._plane.threads, TlsClient, self._server, self._server.tls)
        return self._tls

    def _refused(self, failure: TransferFailure) -> bool:
        """Remembers that no session could be opened. True when another will be free, so that waiting is the answer."""
        now = time.time()
        if failure.reason is ErrorReason.TOO_MANY_SESSIONS:
            others = self._places.taken(self._server.max_sessions)
            before = self._condition.read()
            if others:
                condition = self._condition.change(lambda known: limits.lowered(known, others, now))
                if condition.limit != before.limit:
                    log.info("server refuses more sessions", connection=self.connection, limit=condition.limit)
                return True
            if limits.counts_late(before, now):
                return True
        if failure.code is ErrorCode.CONNECTION_ERROR:
            kept = replace(failure.failure, time=datetime.now(UTC))
            pauses = self._condition.read().pauses
            condition = self._condition.change(lambda known: circuit.failed(known, kept, now))
            if condition.pauses > pauses:
                until = circuit.retry_time(condition).isoformat()
                log.warning("server is left alone", connection=self.connection, until=until, error=failure.message)
        return False

    def _check_circuit(self) -> None:
        condition = self._condition.read()
        if circuit.is_open(condition, time.time()):
            raise HeldBack(condition.failure, circuit.retry_time(condition))

    def _release_place(self, place: Place) -> None:
        self._open -= 1
        place.release()

    # Keeping

    async def _is_good(self, member: Member) -> bool:
        good = member.session.usable
        if good and time.monotonic() - member.since > CHECK_AFTER:
            try:
                good = await member.session.check()
            except BaseException:
                self._discard(member)
                raise
        if not good:
            self._discard(member)
        return good

    def _keep(self, member: Member) -> None:
        member.session.on_lost(lambda: self._lost(member))
        self._idle.append(member)

    def _take_idle(self) -> Member:
        # The one used last: it is the likeliest to be good, and those that are too many grow old.
        member = self._idle.pop()
        member.session.on_lost(None)
        return member

    def _lost(self, member: Member) -> None:
        if member in self._idle:
            self._idle.remove(member)
            self._discard(member)
            self._serve()

    def _discard(self, member: Member) -> None:
        member.session.on_lost(None)
        member.session.quit()
        self._release_place(member.place)
        self._figures.session_closed(self.connection)
        if not self._open and not self._waiters:
            self._places.leave()

    def _gives_up(self, member: Member) -> bool:
        """Whether a session that has done its work makes room for others."""
        limit = self.limit
        return member.place.number >= limit or self._open > self._places.share(limit)

    def make_room(self) -> bool:
        """Ends the session that has done nothing for longest; whether there was one."""
        if not self._idle:
            return False
        self._end_idle(self._idle[0])
        return True

    def tend(self) -> None:
        """Ends sessions that did nothing for too long, or that other processes wait for. To be called often."""
        now = time.monotonic()
        condition = self._condition.read()
        if self._waiters and limits.raised(condition, self._server.max_sessions, time.time()) != condition:
            self._condition.change(lambda known: limits.raised(known, self._server.max_sessions, time.time()))
        wanted = self._places.others_wait() or self._pod.queue.others()
        patience = min(_UNUSED, self._server.idle_timeout) if wanted else self._server.idle_timeout
        for member in [member for member in self._idle if now - member.since > patience]:
            self._end_idle(member)
        if self._idle and self._open > self._places.share(self.limit):
            self._end_idle(self._idle[0])
        self._serve()

    def _end_idle(self, member: Member) -> None:
        self._idle.remove(member)
        self._discard(member)

    def retire(self) -> None:
        """Keeps no sessions any more: its settings are old, or the process ends. Those at work end in `release`."""
        self._retired = True
        for member in list(self._idle):
            self._end_idle(member)

    def close(self) -> None:
        """Retires, and waits no more."""
        self.retire()
        for waiter in self._waiters:
            waiter.cancel()
        self._waiters.clear()
        self._watch()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._places.leave()

    # Figures

    @property
    def limit(self) -> int:
        """Most sessions of the pod now."""
        return limits.effective(self._condition.read(), self._server.max_sessions)

    @property
    def wants_pod(self) -> bool:
        """Whether somebody waits because the pod has no place left, though the connection has."""
        return bool(self._waiters) and self._open < self.limit

    @property
    def quiet(self) -> bool:
        """Whether it has no sessions and nobody waits for one."""
        return not self._open and not self._waiters

    @property
    def idle_since(self) -> float:
        """When the session that has done nothing for longest was put aside; infinity without one."""
        return self._idle[0].since if self._idle else float("inf")

    @property
    def held_back(self) -> bool:
        """Whether no session may be opened now."""
        return circuit.is_open(self._condition.read(), time.time())

    def figures(self) -> PoolFigures:
        """How it stands."""
        condition: Condition = self._condition.read()
        held_back = circuit.is_open(condition, time.time())
        return PoolFigures(
            sessions=self._open,
            busy=self._open - len(self._idle),
            limit=self.limit,
            waiting=len(self._waiters),
            circuit_open=held_back,
            retry_time=circuit.retry_time(condition) if held_back else None,
            last_failure=condition.failure,
        )
