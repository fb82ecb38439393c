"""The process of a worker: `python -m opsplane_server.worker`, started by the parent alone."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys

import structlog
import uvloop

from opsplane_server.app import App
from opsplane_server.errors import OpsplaneError
from opsplane_server.supervisor.facts import Report, State, WorkerFacts
from opsplane_server.telemetry import logs
from opsplane_server.telemetry.instruments import Instruments

log = structlog.get_logger("opsplane_server.worker")  # __name__ is __main__ here


class _Stopped(Exception):
    """The worker was asked to end."""


class _Worker:
    def __init__(self, facts: WorkerFacts) -> None:
        self._facts = facts
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        instance = f"{facts.node}/{facts.index}"
        self._instruments = Instruments(
            facts.settings.telemetry, instance=instance, metrics_socket=facts.metrics_socket
        )
        self._instruments.install()

    async def run(self) -> None:
        """Serves until SIGTERM, or until the parent is dead."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        async with App(self._facts, self._instruments) as app:
            # What is there now stays: to look through all of it again and again would hold up the event loop.
            gc.collect()
            gc.freeze()
            self._report(State.SERVING)
            log.info("worker ready", pid=os.getpid())
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(app.watch(self._serving), name="watch health")
                    group.create_task(self._watch_parent(), name="watch parent")
                    group.create_task(self._stopped(), name="wait for the end")
            except* _Stopped:
                log.info("worker drains")
            self._report(State.NOT_SERVING)
            await app.drain(self._hurry)
        log.info("worker stopped")

    def fail(self, message: str) -> None:
        """Tells the parent why this worker can not start."""
        self._report(State.FAILED, message)

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _stopped(self) -> None:
        await self._stop.wait()
        raise _Stopped

    async def _watch_parent(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()
        log.warning("the parent process is gone")
        self._stop.set()

    def _serving(self, serving: bool) -> None:
        self._report(State.SERVING if serving else State.NOT_SERVING)

    def _report(self, state: State, message: str = "") -> None:
        try:
            os.write(self._facts.report_fd, Report(state=state, message=message).model_dump_json().encode() + b"\n")
        except BrokenPipeError:  # the parent is dead
            log.debug("nobody to report to", state=state)


def main() -> int:
    """Runs a worker; returns the status of the process."""
    facts = WorkerFacts.model_validate_json(sys.stdin.buffer.readline())
    for descriptor in (facts.report_fd, facts.lock_fd):
        os.set_inheritable(descriptor, False)  # not for the programs that this worker starts
    logs.configure(facts.settings.logging, worker=facts.index)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        worker = _Worker(facts)
        try:
            runner.run(worker.run())
        except OpsplaneError as error:
            log.error("worker failed", error=error.message, reason=error.reason)
            worker.fail(error.message)
            return 1
        except Exception as error:
            log.exception("worker failed")
            worker.fail(f"unexpected error in a worker, see the log: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
