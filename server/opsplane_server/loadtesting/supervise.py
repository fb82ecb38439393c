"""Seeing a run through: its load generators are started, watched, ended, and their figures judged.

It is the handler of the operation that CreateRun submits. Each step can be repeated: whoever takes the operation up
after a crash goes on with the same load generators, which have outlived it.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from opsplane_server.errors import FailedPrecondition, NotFound, OpsplaneError, Unavailable
from opsplane_server.loadtesting.datasets.preparing import RowSource
from opsplane_server.loadtesting.effort import Effort
from opsplane_server.loadtesting.k6.requests import credential_environment
from opsplane_server.loadtesting.k6.wrapping import wrap
from opsplane_server.loadtesting.metrics.results import RunFold, RunResults, Verdict
from opsplane_server.loadtesting.metrics.rows import ExportRow
from opsplane_server.loadtesting.metrics.targets import SustainedTargets, judge, why_invalid
from opsplane_server.loadtesting.metrics.windows import WindowAssembler
from opsplane_server.loadtesting.model import LogLine, Outcome, Run, RunEnd, RunState
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.loadtesting.run_rows import RunRows
from opsplane_server.loadtesting.runners.endings import THRESHOLDS_CROSSED, Ending, describe
from opsplane_server.loadtesting.runners.port import Exporter, GeneratorSpec, Runner, Running, segments
from opsplane_server.loadtesting.secrets import open_credentials
from opsplane_server.loadtesting.tokens import new_token, token_hash
from opsplane_server.loadtesting.watch import origin
from opsplane_server.platform.execution import Execution
from opsplane_server.platform.model import Operation
from opsplane_server.storage.followers import Position
from opsplane_server.storage.secrets import SecretBox
from opsplane_server.storage.signals import Signal

T = TypeVar("T")

log = structlog.get_logger(__name__)

STARTING = "starting"
RUNNING = "running"

# Why a load is ended before its time.
CANCELLED = "CANCELLED"
TIMEOUT = "TIMEOUT"
TARGET_MISSED = "TARGET_MISSED"

# What k6 writes of a call that got no answer.
_NO_ANSWER = "Request Failed"

_EXHAUSTED = "the load generator had no CPU left for most of the run: it was the limit, and its figures are its own"

_BATCH = 500
_CONSOLE_BYTES = 256 * 1024


class RunSupervisor:
    """The handler of `loadtesting.run` operations, and its failure hook.

    `endpoint` is where load generators of this machine reach the server, `host:port` in plain text on loopback.
    A run without a timeout of its own is ended after `job_timeout`; one that takes longer than `job_warning` gets a
    note. With `clean_up` what a load generator leaves behind is removed once the run has ended. Up to `places` runs
    are started by this process at a time; others wait as PENDING.
    """

    def __init__(
        self,
        store: RunStore,
        runner: Runner,
        secrets: SecretBox,
        signal: Signal,
        rows: RowSource,
        *,
        endpoint: str,
        poll: timedelta,
        max_retry: int,
        job_timeout: timedelta,
        job_warning: timedelta,
        clean_up: bool,
        places: int,
    ) -> None:
        self._store = store
        self._runner = runner
        self._secrets = secrets
        self._signal = signal
        self._run_rows = RunRows(store, rows)
        self._endpoint = endpoint
        self._poll = poll
        self._max_retry = max_retry
        self._job_timeout = job_timeout
        self._job_warning = job_warning
        self._clean_up = clean_up
        self._places = asyncio.Semaphore(places)

    async def handle(self, execution: Execution) -> Message | None:
        """Sees the run of the operation through, from its last step on."""
        run = await self._store.get_run(execution.operation.target)
        generators = generator_names(run)
        if not run.state.ended:
            # A run that has started goes on, however many others there are by now.
            async with nullcontext() if execution.step else self._places:
                await self._execute(execution, run, generators)
        if self._clean_up:
            for generator in generators:
                await self._runner.clean_up(generator)
        return None

    async def failed(self, operation: Operation) -> None:
        """Ends the run of an operation that failed, in the transaction that ends the operation."""
        with suppress(NotFound):
            run = await self._store.get_run(operation.target)
            if run.state.ended:
                return
            error = operation.error
            message = error.message if error else "the server gave up"
            for generator in generator_names(run):
                with suppress(OpsplaneError):
                    await self._runner.clean_up(generator)
            end = RunEnd(
                RunState.FAILED,
                Verdict.INVALID,
                Outcome(RunFold(origin(run), run.plan.generators).results(message)),
                failure_reason=_reason(operation),
                failure_message=message,
            )
            await self._store.end_run(run.name, end)
            self._signal.notify()

    async def _execute(self, execution: Execution, run: Run, generators: list[str]) -> None:
        if not execution.step and not await self._admit(execution, run):
            results = RunFold(origin(run), run.plan.generators).results("it was cancelled before it started")
            async with execution.transaction():
                await self._store.end_run(run.name, RunEnd(RunState.CANCELLED, Verdict.INVALID, Outcome(results)))
            self._signal.notify()
            return
        if execution.step == STARTING:
            await self._start(execution, run, generators)
        await self._see_through(execution, await self._store.get_run(run.name), generators)

    async def _admit(self, execution: Execution, run: Run) -> bool:
        """Keeps the rows that its users draw from, and notes who may deliver figures before anybody can.

        False when somebody cancelled the run meanwhile.
        """
        if execution.cancel_requested:
            return False
        version = await self._again(self._runner.version)
        rows = await _unless_cancelled(execution, self._run_rows.prepare(run))
        if rows is None:
            return False
        token = new_token()
        sealed = base64.b64encode(self._secrets.encrypt(token, run.name)).decode()
        async with execution.transaction():
            await self._run_rows.keep(run, rows)
            await self._store.start_run(run.name, token_hash(token), version)
            await execution.checkpoint(STARTING, data={"token": sealed}, stage="starting the load generator")
        return True

    async def _start(self, execution: Execution, run: Run, generators: list[str]) -> None:
        token = self._secrets.decrypt(base64.b64decode(execution.data["token"]), run.name)
        sealed = await self._store.get_credentials(run.name)
        credentials = open_credentials(self._secrets, run.name, sealed) if sealed else None
        script = await self._store.get_script(run.name)
        files = {"script.js": script, **await self._run_rows.files(run)}
        if run.plan.script:
            files["main.js"] = wrap("script.js", teardown_timeout=run.plan.teardown_timeout)
        for number, (name, segment) in enumerate(zip(generators, segments(len(generators)), strict=True)):
            spec = GeneratorSpec(
                name=name,
                files=files,
                main="main.js" if run.plan.script else "script.js",
                instance=str(number),
                exporter=Exporter(self._endpoint, token),
                environment=credential_environment(credentials),
                segment=segment,
                thresholds=bool(run.plan.script),
            )
            await self._again(partial(self._runner.start, spec))
        async with execution.transaction():
            await self._store.set_state(run.name, RunState.RUNNING)
            await self._store.append_log(run.key, [_event(f"{await self._runner.version()} started")])
            await execution.checkpoint(RUNNING, stage="generating load")
        self._signal.notify()

    async def _see_through(self, execution: Execution, run: Run, generators: list[str]) -> None:
        """Waits for the end of the load, brings it about where it must, and ends the run."""
        why, warned = "", False
        effort = Effort()
        sustained = _Sustained(self._store, run)
        while not why and await self._any_runs(generators, effort):
            assert run.start_time is not None
            now = datetime.now(UTC)
            if execution.cancel_requested:
                why = CANCELLED
            elif now - run.start_time > (run.plan.timeout or self._job_timeout):
                why = TIMEOUT
            elif await sustained.aborts():
                why = TARGET_MISSED
            else:
                if is_overdue(run, now, self._job_warning) and not warned:
                    warned = True
                    async with execution.transaction():
                        await self._store.add_note(run.name, f"has been running for more than {self._job_warning}")
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll.total_seconds()):
                        await execution.cancelled()
        if why:
            async with execution.transaction():
                await self._store.set_state(run.name, RunState.STOPPING)
                await self._store.append_log(run.key, [_event(f"load generator stopped: {why}")])
            self._signal.notify()
            await asyncio.gather(*(self._again(partial(self._runner.stop, generator)) for generator in generators))
        end, lines = await self._ending(run, generators, why, exhausted=effort.exhausted)
        async with execution.transaction():
            await self._store.append_log(run.key, [*lines, _event(f"run ended: {end.state.value}")])
            await self._store.end_run(run.name, end)
        self._signal.notify()
        log.info("run ended", run=run.name, state=end.state.value, reason=end.failure_reason)

    async def _again(self, action: Callable[[], Awaitable[T]]) -> T:
        """Asks the runner, again when it can not do it now, and gives up after `max_retry` more times."""
        for _ in range(self._max_retry):
            try:
                return await action()
            except Unavailable as error:
                log.warning("load generator not available", detail=error.message)
                await asyncio.sleep(self._poll.total_seconds())
        try:
            return await action()
        except Unavailable as error:
            raise FailedPrecondition(error.message, reason="GENERATOR_UNAVAILABLE") from error

    async def _any_runs(self, generators: list[str], effort: Effort) -> bool:
        running = False
        for generator in generators:
            status = await self._runner.poll(generator)
            effort.note(generator, status, time.monotonic())
            running |= isinstance(status, Running)
        return running

    async def _ending(
        self, run: Run, generators: list[str], why: str, *, exhausted: bool
    ) -> tuple[RunEnd, list[LogLine]]:
        """How the run ended, and what its load generators wrote."""
        endings, lines = [], []
        for generator in generators:
            status = await self._runner.stop(generator)  # it has ended; this tells how
            console = await self._runner.console(generator, _CONSOLE_BYTES)
            endings.append(describe(status, console))
            now = datetime.now(UTC)
            lines += [LogLine(line.time or now, "console", line.level, line.message) for line in console]
        lost = "; ".join(ending.message for ending in endings if not ending.complete)
        fold = RunFold(origin(run), run.plan.generators)
        sustained = SustainedTargets(run.plan.test)
        assembler = WindowAssembler(origin(run), run.plan.generators)
        missed = []
        async for row in self._rows(run):
            fold.add(row)
            if not sustained:
                continue
            for window in assembler.feed([("", row)], row.time_unix_nano):
                missed += [target for _, target in sustained.watch(window)]
        for window in assembler.finish():
            missed += [target for _, target in sustained.watch(window)]
        results = fold.results(lost)
        verdict, missed_targets = judge(results, run.plan.test, missed)
        outcome = Outcome(results, missed_targets)
        if why == CANCELLED:
            return RunEnd(RunState.CANCELLED, Verdict.INVALID, outcome), lines
        if why == TIMEOUT:
            timeout = run.plan.timeout or self._job_timeout
            words = f"it took longer than {timeout}"
            return RunEnd(RunState.FAILED, Verdict.INVALID, outcome, "TIMEOUT", words), lines
        if why == TARGET_MISSED:
            note = "ended early: a target with abort_on_fail was missed"
            return RunEnd(RunState.COMPLETED, Verdict.FAILED, outcome, notes=(note,)), lines
        failure = next((e for e in endings if e.reason not in ("", THRESHOLDS_CROSSED)), None)
        if failure is not None:
            return RunEnd(RunState.FAILED, Verdict.INVALID, outcome, failure.reason, failure.message), lines
        unreachable = _unreachable(results, lines)
        if unreachable:
            return RunEnd(RunState.FAILED, Verdict.INVALID, outcome, "TARGET_UNREACHABLE", unreachable), lines
        if any(ending.reason == THRESHOLDS_CROSSED for ending in endings) and verdict is Verdict.PASSED:
            verdict = Verdict.FAILED
        invalid = why_invalid(results, run.plan.test)
        if exhausted:
            verdict, invalid = Verdict.INVALID, _EXHAUSTED
        notes = (*_notes(endings), *([invalid] if invalid else []))
        return RunEnd(RunState.COMPLETED, verdict, outcome, notes=notes), lines

    async def _rows(self, run: Run) -> AsyncGenerator[ExportRow, None]:
        """All rows of a run whose load generators have ended: what they were answered is committed."""
        position = Position.START
        while rows := await self._store.read_windows(run.key, position, _BATCH, settled_only=False):
            position = rows[-1][0]
            for _, row in rows:
                yield row


class _Sustained:
    """Follows a run at work for targets that end it at once when they are missed for too long."""

    def __init__(self, store: RunStore, run: Run) -> None:
        self._store = store
        self._run = run
        self._wanted = any(target.abort_on_fail for target in run.plan.test.targets)
        self._targets = SustainedTargets(run.plan.test)
        self._assembler = WindowAssembler(origin(run), run.plan.generators)
        self._position = Position.START

    async def aborts(self) -> bool:
        """Whether such a target has been missed since the last look."""
        if not self._wanted:
            return False
        rows = await self._store.read_windows(self._run.key, self._position, _BATCH, settled_only=True)
        if rows:
            self._position = rows[-1][0]
        now = time.time_ns()
        windows = [*self._assembler.feed((("", row) for _, row in rows), now), *self._assembler.advance(now)]
        missed = [target for window in windows for target, _ in self._targets.watch(window)]
        return any(target.abort_on_fail for target in missed)


async def _unless_cancelled(execution: Execution, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work returns; None when somebody cancels the operation before, which ends the work."""
    tasks: tuple[asyncio.Task[T], asyncio.Task[None]] = (
        asyncio.create_task(work),
        asyncio.create_task(execution.cancelled()),
    )
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return await tasks[0] if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def generator_names(run: Run) -> list[str]:
    """Names of the run's load generators, unique on a machine for ever."""
    operation = run.operation.rpartition("/")[2]
    return [f"{operation}-{number}" for number in range(run.plan.generators)]


def is_overdue(run: Run, now: datetime, job_warning: timedelta) -> bool:
    """Whether the run's load has lasted longer than is usual."""
    return run.start_time is not None and now - run.start_time > job_warning


def _unreachable(results: RunResults, lines: list[LogLine]) -> str:
    """What k6 says of a target that answered none of the calls; empty when any was answered.

    An answer with a bad status is an answer: k6 warns only of calls that got none.
    """
    total = results.total
    if not total.requests or total.failed_requests < total.requests:
        return ""
    warnings = [line.message for line in lines if line.level == "WARN" and _NO_ANSWER in line.message]
    return f"no call was answered: {warnings[-1]}" if warnings else ""


def _notes(endings: list[Ending]) -> tuple[str, ...]:
    return tuple(ending.message for ending in endings if ending.message)


def _event(message: str) -> LogLine:
    return LogLine(datetime.now(UTC), "event", "INFO", message)


def _reason(operation: Operation) -> str:
    """The reason of the error that ended the operation."""
    info = error_details_pb2.ErrorInfo()
    for detail in operation.error.details if operation.error else ():
        if detail.Unpack(info):
            reason: str = info.reason
            return reason
    return OpsplaneError.default_reason
