"""The thread that ships: cuts batches, sends them, spills what cannot be sent, and sends that later.

All its state belongs to this one thread; everything else reaches it as an event in its mailbox. A batch is in one place
at a time, in flight or in the backlog, and keeps its id for ever, so that sending it again stores nothing twice.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import grpc

from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane.logs.backlog import Backlog, Batch
from opsplane.logs.encoding import Encoder
from opsplane.logs.queue import RecordQueue
from opsplane.logs.report import ProblemKind, Reporter
from opsplane.logs.settings import MAX_BATCH_RECORDS, Settings
from opsplane.logs.stream import Answered, Ended, Failure, Stream, make_request

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
_PATIENCE_SECONDS = 1.0  # with a server that has not answered yet, before records go to the spool
_STALL_SECONDS = 60.0  # without an answer, before another connection is tried
_FORK_SECONDS = 60.0
_CLOSE_GRACE_SECONDS = 3.0
_LOST_CODES = (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_REFUSALS = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)


@dataclass(slots=True, eq=False)
class _Flush:
    done: threading.Event = field(default_factory=threading.Event)
    until: int = 0
    left: int = -1


@dataclass(slots=True)
class _Close:
    deadline: float
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class Pause:
    """A fork that waits for the sender (`ready`), and the sender for it (`resume`)."""

    ready: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)


class Sender:
    """Ships what is put into `queue`. The thread starts with `start`, and ends with `close` or with the process."""

    def __init__(self, settings: Settings, encoder: Encoder, reporter: Reporter) -> None:
        self.queue = RecordQueue(settings.memory_bytes, MAX_BATCH_RECORDS, settings.batch_bytes, self._wake)
        self.backlog = Backlog(settings, self.queue, reporter)
        self.acknowledged = 0
        self.rejected = 0
        self.lost = 0
        self.recovered = 0
        self.error = ""
        self._settings = settings
        self._encoder = encoder
        self._reporter = reporter
        self._mail: SimpleQueue[Answered | Ended | _Flush | _Close | Pause | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._prefix = ""
        self._sequence = 0
        self._outstanding = 0  # own batches without an answer, wherever they are
        self._in_flight: deque[Batch] = deque()
        self._in_flight_bytes = 0
        self._stream: Stream | None = None
        self._flushes: list[_Flush] = []
        self._closing: _Close | None = None
        self._pause_seconds = _FIRST_PAUSE
        self._retry_at = 0.0
        self._told_to_wait = False
        self._heard_at = 0.0
        self._noted = 0

    # What other threads call.

    @property
    def connected(self) -> bool:
        """True when the server has answered on the stream that is open."""
        stream = self._stream
        return stream is not None and stream.answered

    @property
    def started(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread; RuntimeError at the end of the interpreter."""
        self._prefix = secrets.token_hex(
            12
        )  # now and not before: a shipper may be made before a fork and used after it
        self._thread = threading.Thread(target=self._run, name="opsplane-logs", daemon=True)
        self._thread.start()

    def is_me(self) -> bool:
        """True in the sender's thread, where callbacks run."""
        return self._thread is threading.current_thread()

    def flush(self, timeout: float | None) -> bool:
        """Waits for the answers to all that was put before."""
        request = _Flush()
        self._mail.put(request)
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while not request.done.wait(max(min(deadline - time.monotonic(), 1.0), 0.0)):
            if time.monotonic() >= deadline or not self.started:
                return False
        return request.left == 0

    def close(self, timeout: float) -> None:
        """Ships what it can in `timeout` seconds, spills the rest and ends the thread."""
        if not self.started:
            self._prefix = self._prefix or secrets.token_hex(12)
            self._end()
            return
        request = _Close(time.monotonic() + timeout)
        self._mail.put(request)
        request.done.wait(timeout + _CLOSE_GRACE_SECONDS)

    def pause(self) -> Pause:
        """Asks to let go of gRPC before a fork; see `Pause`."""
        request = Pause()
        if self.is_me():  # a callback forks
            self._disconnect()
            request.ready.set()
        else:
            self._mail.put(request)
        return request

    # What the thread does.

    def _wake(self) -> None:
        self._mail.put(None)

    def _run(self) -> None:
        while True:
            try:
                while not self._step():
                    pass
            except Exception as error:  # a fault here must not end shipping
                self._reporter.tell(ProblemKind.INTERNAL, f"fault of the shipper: {type(error).__name__}: {error}")
                with suppress(Exception):
                    self._failed(Failure(grpc.StatusCode.INTERNAL, str(error)))
                if self._closing is None:
                    time.sleep(_FIRST_PAUSE)
                    continue
            break
        with suppress(Exception):
            self._end()
        for flush in self._flushes:
            flush.done.set()
        if self._closing is not None:
            self._closing.done.set()

    def _step(self) -> bool:
        """Takes the events that came, and does what is due; true when it is time to end."""
        try:
            event = self._mail.get(timeout=self._until_due())
            while True:
                self._handle(event)
                event = self._mail.get_nowait()
        except Empty:
            pass
        self.backlog.adopt()
        self._note_dropped()
        self._cut(everything=self._closing is not None)
        if self._stream is not None and self._in_flight and time.monotonic() - self._heard_at > _STALL_SECONDS:
            self._failed(Failure(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer in {_STALL_SECONDS:g} s"))
        self._open()
        self._fill()
        self._spill()
        return self._closing is not None and self._may_end(self._closing)

    def _handle(self, event: Answered | Ended | _Flush | _Close | Pause | None) -> None:
        if isinstance(event, Answered):
            if event.stream is self._stream:
                self._answered(event.result)
        elif isinstance(event, Ended):
            if event.stream is self._stream:
                self._failed(event.failure)
        elif isinstance(event, _Flush):
            self._cut(everything=True)
            event.until, event.left = self._sequence, self._outstanding
            if event.left:
                self._flushes.append(event)
                self._retry_soon()
            else:
                event.done.set()
        elif isinstance(event, _Close):
            self._closing = event
            self._retry_soon()
        elif isinstance(event, Pause):
            self._disconnect()
            event.ready.set()
            event.resume.wait(_FORK_SECONDS)

    def _until_due(self) -> float:
        """Seconds until something is to be done without an event."""
        due = [self.backlog.due_at]
        if not self.queue.empty:
            due.append(self.queue.first_at + self._settings.linger_seconds)
        if self._stream is None:
            if not self.backlog.empty:
                due.append(self._retry_at)
        elif self._in_flight:
            due.append(self._heard_at + _STALL_SECONDS)
            if not self._stream.answered:
                patient_until = self._stream.opened_at + _PATIENCE_SECONDS
                if time.monotonic() < patient_until:
                    due.append(patient_until)
        if self._closing is not None:
            due.append(self._closing.deadline)
        return min(max(min(due) - time.monotonic(), 0.0), 3600.0)

    # Making batches.

    def _cut(self, *, everything: bool) -> None:
        """Makes batches of what is queued: of all, or where there is enough for one or it has waited long enough."""
        while not self.queue.empty and (
            everything
            or self.queue.batch_full
            or time.monotonic() >= self.queue.first_at + self._settings.linger_seconds
        ):
            records, cost = self.queue.take()
            if not records:
                break
            self._sequence += 1
            self._outstanding += 1
            batch_id = f"{self._prefix}-{self._sequence}"
            request = make_request(batch_id, records)
            self.backlog.in_memory.append(Batch(batch_id, len(records), request, cost))

    def _note_dropped(self) -> None:
        """Ships a record that says how many were dropped, as soon as there is room for it."""
        dropped = self.queue.dropped - self._noted
        if not dropped:
            return
        self._reporter.begin(
            ProblemKind.DROPPED, "log records are dropped, as there is no room for them; a record will say how many"
        )
        if self.queue.used > self.queue.limit // 2 and self._closing is None:
            return
        fields = {"logger": "opsplane.logs", "metadata": {"opsplane.dropped": dropped}}
        message = f"{dropped} log records were dropped, because there was no room for them"
        if self.queue.put(self._encoder.values("warn", message, fields)):
            self._noted += dropped
            self._reporter.end(ProblemKind.DROPPED, message)
        else:
            self._noted += 1  # that one is no record of the application

    # Sending.

    def _open(self) -> None:
        if self._stream is not None or self.backlog.empty or time.monotonic() < self._retry_at:
            return
        try:
            self._stream = Stream(self._settings, self._mail.put)
        except Exception as error:  # files of TLS; no threads any more at the end of the interpreter
            self._failed(Failure(grpc.StatusCode.FAILED_PRECONDITION, f"{type(error).__name__}: {error}"))

    def _fill(self) -> None:
        """Sends as long as the window has room. One batch alone until the server has answered."""
        stream = self._stream
        if stream is None:
            return
        window = self._settings.window if stream.answered else 1
        while len(self._in_flight) < window and self._in_flight_bytes < self._settings.window_bytes:
            batch = self.backlog.next()
            if batch is None:
                break
            if not self._in_flight:
                self._heard_at = time.monotonic()
            self._in_flight.append(batch)
            self._in_flight_bytes += len(batch.request)
            stream.send(batch.request)

    def _answered(self, result: records_pb2.BatchResult) -> None:
        self._heard_at = time.monotonic()
        if not self._in_flight or self._in_flight[0].batch_id != result.batch_id:
            self._failed(Failure(grpc.StatusCode.INTERNAL, f"an answer to batch {result.batch_id!r} was not expected"))
            return
        if self._stream is not None and not self._stream.answered:
            self._stream.answered = True
            self._pause_seconds, self._told_to_wait, self.error = _FIRST_PAUSE, False, ""
            for kind in (ProblemKind.UNREACHABLE, ProblemKind.REFUSED, ProblemKind.OVERLOADED):
                self._reporter.end(kind, f"{self._settings.address} takes log records again")
        batch = self._in_flight.popleft()
        self._in_flight_bytes -= len(batch.request)
        self.backlog.acknowledge(batch)
        refused = batch.record_count if result.HasField("refusal") else len(result.rejected_records)
        prefix, _, number = batch.batch_id.rpartition("-")
        if prefix == self._prefix:
            self.rejected += refused
            self.acknowledged += batch.record_count - refused
            self._settle(int(number))
        else:
            self.recovered += batch.record_count
        if refused:
            self._report_rejected(batch, result)

    def _settle(self, sequence: int) -> None:
        """An own batch is done with; flushes that waited for it may be."""
        self._outstanding -= 1
        for flush in list(self._flushes):
            if sequence <= flush.until:
                flush.left -= 1
                if not flush.left:
                    self._flushes.remove(flush)
                    flush.done.set()

    def _report_rejected(self, batch: Batch, result: records_pb2.BatchResult) -> None:
        rejections = list(result.rejected_records)
        if result.HasField("refusal"):
            rejections = [
                records_pb2.RejectedRecord(
                    index=index,
                    reason=records_pb2.RejectedRecord.REASON_MALFORMED,
                    message=f"the batch was refused: {result.refusal.message}",
                )
                for index in range(batch.record_count)
            ]
        first = rejections[0]
        self._reporter.tell(
            ProblemKind.REJECTED,
            f"the server has rejected {len(rejections)} of {batch.record_count} log records, the first for its "
            f"{first.field or 'content'}: {first.message or records_pb2.RejectedRecord.Reason.Name(first.reason)}",
        )
        if self._settings.on_rejected is None:
            return
        records = logingest_pb2.StreamLogsRequest.FromString(batch.request).batch.records
        for rejection in rejections:
            try:
                self._settings.on_rejected(records[rejection.index], rejection)
            except Exception as error:
                self._reporter.tell(ProblemKind.INTERNAL, f"on_rejected: {type(error).__name__}: {error}")

    # What happens when the server does not take it.

    def _failed(self, failure: Failure) -> None:
        """The stream has ended, or could not be opened."""
        answered = self.connected
        had_work = bool(self._in_flight) or not self.backlog.empty
        self._disconnect()
        self.error = f"{failure.message} ({failure.code.name})"
        pause = self._pause_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads senders over time
        self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE)
        self._told_to_wait = failure.retry_after is not None
        if failure.retry_after is not None:
            pause = max(pause, failure.retry_after.total_seconds())
        self._retry_at = time.monotonic() + pause
        if not had_work or (answered and failure.code in _LOST_CODES):
            return  # a server that restarts is no problem unless the next attempt fails
        if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            kind, what = ProblemKind.OVERLOADED, "asks to wait"
        elif failure.code in _REFUSALS:
            kind, what = ProblemKind.REFUSED, "refuses log records"
        else:
            kind, what = ProblemKind.UNREACHABLE, "can not be reached"
        where = "are kept in memory" if self.backlog.spool is None else f"go to the spool {self._settings.spool}"
        self._reporter.begin(kind, f"{self._settings.address} {what}: {self.error}; log records {where}")

    def _disconnect(self) -> None:
        """Ends the stream; what was in flight is to be sent again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self.backlog.give_back(self._in_flight)
        self._in_flight.clear()
        self._in_flight_bytes = 0

    def _retry_soon(self) -> None:
        if not self._told_to_wait:
            self._retry_at = 0.0

    def _spill(self) -> None:
        """Spills all while the server does not answer, else what takes more than half of memory."""
        stream = self._stream
        hopeful = stream is not None and (
            stream.answered or time.monotonic() < stream.opened_at + _PATIENCE_SECONDS or self._closing is not None
        )
        self.backlog.spill(self.queue.limit // 2 if hopeful else 0)

    # The end.

    def _may_end(self, closing: _Close) -> bool:
        if time.monotonic() >= closing.deadline:
            return True
        if not self.queue.empty or self._in_flight:
            return False
        if self.backlog.empty:
            return True
        # There is no sense in waiting for a server that does not answer, when the spool has it all.
        spooled = self.backlog.spool is not None and not self.backlog.in_memory
        return spooled and self._stream is None and self._retry_at > time.monotonic()

    def _end(self) -> None:
        self._disconnect()
        self._cut(everything=True)
        lost = self.backlog.close()
        if lost:
            self.lost += lost
            self.queue.drop(lost)
            self._reporter.tell(ProblemKind.DROPPED, f"{lost} log records are lost: {self.error or 'no time to ship'}")
